"""Discovery, STUN and relay frames under attack: the node's half of 13, 14, 15 and 19."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.box import SharedBox
from calnet.crypto.keys import PrivateKey
from calnet.errors import RemoteError
from calnet.model import DiscoveryKey, Endpoint, NodeId, NodeKey, Source
from calnet.paths import constants as c
from calnet.paths.effects import Route, SendDatagram, SendRelayed
from calnet.paths.paths import Paths
from calnet.paths.spray import MAX_TRIES_AT_HOST, PORTS
from calnet.wire import stun
from calnet.wire.discovery import (
    MAGIC,
    PROBE_SIZE,
    Ask,
    Candidates,
    DiscoveryMessage,
    Grant,
    Mark,
    Ping,
    Pong,
    Question,
    Tally,
    View,
    ViewFlag,
    build_payload,
    open_message,
    parse_sealed,
    seal_message,
)
from calnet.wire.relay import Data, RelayDecoder
from tests.paths.network import STUN_SERVER, Host, Nat, World

RANDOM = random.Random(13)
WHERE = Endpoint("203.0.113.77", 77)


def open_pair() -> tuple[World, Host, Host]:
    world = World()
    a, b = world.add(Nat.OPEN), world.add(Nat.OPEN)
    world.start()
    return world, a, b


def sealed(sender: Host, receiver: Host, message: DiscoveryMessage) -> bytes:
    return seal_message(SharedBox(sender.discovery, receiver.discovery.public), sender.discovery.public, RANDOM.randbytes(24), message)


def probe(sender: Host, receiver: Host, node_key: bytes, token: bytes = bytes(12)) -> bytes:
    box = SharedBox(sender.discovery, receiver.discovery.public)
    return seal_message(box, sender.discovery.public, RANDOM.randbytes(24), Ping(NodeKey(node_key), token))


# --- 13 ---


def test_attack_13_probe_of_a_stranger_gets_no_answer() -> None:
    world, a, b = open_pair()
    stranger = replace(b, discovery=PrivateKey.generate(RANDOM.randbytes))
    assert a.paths.receive_probe(probe(stranger, a, b.node_key.public), Source(WHERE), world.now) == []
    assert a.paths.receive_probe(probe(b, a, b.node_key.public), Source(WHERE), world.now) != []


def test_attack_13_probe_whose_node_key_is_not_the_discovery_keys_owners_gets_no_answer() -> None:
    world, a, b = open_pair()
    assert a.paths.receive_probe(probe(b, a, a.node_key.public), Source(WHERE), world.now) == []


def test_attack_13_altered_probe_changes_nothing_and_the_genuine_one_is_answered() -> None:
    world, a, b = open_pair()
    genuine = probe(b, a, b.node_key.public)
    for position in range(0, len(genuine), 7):
        forged = bytearray(genuine)
        forged[position] ^= 0x80
        assert a.paths.receive_probe(bytes(forged), Source(WHERE), world.now) == []
    assert a.paths.report(b.id).candidates == ()
    answers = a.paths.receive_probe(genuine, Source(b.address), world.now)
    assert isinstance(answers[0], SendDatagram)
    assert answers[0].endpoint == b.address
    assert len(answers[0].data) <= len(genuine)


def test_attack_13_pong_that_answers_no_ping_of_ours_proves_nothing() -> None:
    world, a, b = open_pair()
    box = SharedBox(b.discovery, a.discovery.public)
    a.paths.peer_candidates(b.id, (WHERE,), world.now)
    for token in (bytes(12), RANDOM.randbytes(12)):
        pong = seal_message(box, b.discovery.public, RANDOM.randbytes(24), Pong(NodeKey(b.node_key.public), token, None))
        assert a.paths.receive_probe(pong, Source(WHERE), world.now) == []
    assert a.paths.route(b.id) == Route(None, True)


def test_attack_13_pong_by_relay_does_not_prove_an_endpoint() -> None:
    world, a, b = open_pair()
    sent = [effect for effect in a.paths.peer_candidates(b.id, (b.address,), world.now) if isinstance(effect, SendDatagram)]
    pong = next(effect for effect in b.paths.receive_probe(sent[0].data, Source(a.address), world.now) if isinstance(effect, SendDatagram))
    a.paths.receive_probe(pong.data, Source(None, b.id), world.now)
    assert a.paths.route(b.id) == Route(None, True)


def test_attack_13_hostile_candidates_are_capped_filtered_and_probed_at_a_bounded_rate() -> None:
    world, a, b = open_pair()
    victims = [Endpoint(f"198.51.{number >> 8}.{number & 255}", 53) for number in range(1, 1_000)]
    own = [Endpoint("127.0.0.1", 22), Endpoint("::1", 22), Endpoint("224.0.0.251", 5353), Endpoint("169.254.169.254", 80), Endpoint("0.0.0.0", 1)]
    probes: list[SendDatagram] = []
    for tick in range(1_000):
        told = (*own, *(RANDOM.choice(victims) for _ in range(200)))
        probes += [effect for effect in a.paths.peer_candidates(b.id, told, world.now + tick / 100) if isinstance(effect, SendDatagram)]
    assert not {effect.endpoint for effect in probes} & set(own)
    assert len(a.paths.report(b.id).candidates) <= c.MAX_TOLD + c.MAX_SEEN
    assert len(probes) <= c.PEER_PROBES_BURST + 10 * c.PEER_PROBES_PER_S + 32
    assert a.paths.route(b.id).endpoint is None


def test_attack_13_many_peers_naming_one_victim_send_it_a_bounded_number_of_probes() -> None:
    world = World()
    a = world.add(Nat.OPEN)
    peers = [world.add(Nat.OPEN) for _ in range(30)]
    world.start(stun=False)
    victim = "198.51.100.9"
    sent = 0
    for tick in range(100):
        for peer in peers:
            ports = tuple(Endpoint(victim, RANDOM.randrange(1, 65_536)) for _ in range(32))
            effects = a.paths.peer_candidates(peer.id, ports, world.now + tick / 10)
            sent += sum(isinstance(effect, SendDatagram) and effect.endpoint.host == victim for effect in effects)
    assert sent <= c.HOST_PROBES_BURST + 10 * c.HOST_PROBES_PER_S


def test_attack_13_replayed_probe_from_a_spoofed_address_reflects_no_more_than_twice_itself() -> None:
    world, a, b = open_pair()
    genuine = probe(b, a, b.node_key.public)
    sent = 0
    for tick in range(1_000):
        effects = a.paths.receive_probe(genuine, Source(WHERE), world.now + tick / 1_000)
        sent += sum(len(effect.data) for effect in effects if isinstance(effect, SendDatagram))
    assert sent <= 1_000 * PROBE_SIZE + (c.HOST_PROBES_BURST + c.HOST_PROBES_PER_S) * PROBE_SIZE
    assert a.paths.route(b.id).endpoint is None


def test_attack_13_authenticated_packet_from_a_spoofed_address_moves_no_data() -> None:
    world, a, b = open_pair()
    world.run_sending(a, b, 3.0)
    for _ in range(50):
        world.perform(a, a.paths.data_received(b.id, Source(WHERE), world.now))
        world.run_sending(a, b, 0.1)
    assert a.paths.route(b.id).endpoint == b.address
    assert WHERE not in {endpoint for _, endpoint in a.data_to}


def test_attack_13_candidate_inside_the_overlay_is_never_probed() -> None:
    world, a, b = open_pair()
    inside = Endpoint("100.70.0.9", 9)
    a.paths.set_overlay([ip_network("100.70.0.0/24")])
    effects = a.paths.peer_candidates(b.id, (inside,), world.now)
    assert not [effect for effect in effects if isinstance(effect, SendDatagram)]
    a.paths.data_received(b.id, Source(inside), world.now)
    assert inside not in a.paths.report(b.id).candidates


def test_attack_13_peer_that_lies_about_what_came_moves_its_own_packets_to_the_relay_and_nobody_elses() -> None:
    world = World()
    a, liar, honest = (world.add(Nat.OPEN) for _ in range(3))
    world.start()
    for peer in (liar, honest):
        world.run_sending(a, peer, 2.0)
    routes = set()
    for step in range(300):
        honest.paths.data_received(a.id, Source(a.address), world.now, 50_000)
        liar.paths._deliveries[a.id].got_relayed = step << 40  # and nothing came directly
        for peer in (liar, honest):
            world.perform(a, a.paths.data_sent(peer.id, world.now, a.paths.route(peer.id), 50_000))
            world.perform(a, a.paths.data_received(peer.id, Source(peer.address), world.now))
        assert a.paths.route(honest.id) == Route(honest.address, False)
        routes.add(a.paths.route(liar.id))
        world.run(0.1)
    assert routes == {Route(liar.address, False), Route(None, True)}
    assert "UDP is throttled here" in a.paths.report(liar.id).left


def test_attack_13_tally_of_a_stranger_or_without_a_mark_changes_nothing() -> None:
    world, a, b = open_pair()
    world.run_sending(a, b, 2.0)
    box = SharedBox(b.discovery, a.discovery.public)
    for number in (0, 1, 2**32 - 1):
        tally = seal_message(box, b.discovery.public, RANDOM.randbytes(24), Tally(NodeKey(b.node_key.public), number, 0, 2**64 - 1))
        assert a.paths.receive_probe(tally, Source(b.address), world.now) == []
    assert a.paths.route(b.id).endpoint == b.address
    mark = seal_message(box, b.discovery.public, RANDOM.randbytes(24), Mark(NodeKey(a.node_key.public), 1))
    assert a.paths.receive_probe(mark, Source(b.address), world.now) == []


def test_attack_13_mark_is_answered_the_way_it_came_by_no_more_than_its_length() -> None:
    world, a, b = open_pair()
    box = SharedBox(b.discovery, a.discovery.public)
    mark = seal_message(box, b.discovery.public, RANDOM.randbytes(24), Mark(NodeKey(b.node_key.public), 7))
    a.paths.data_received(b.id, Source(b.address), world.now, 1000)
    a.paths.data_received(b.id, Source(None, b.id), world.now, 30)
    a.paths.data_received(b.id, Source(b.address), world.now)
    for source in (Source(b.address), Source(None, b.id)):
        (answer,) = a.paths.receive_probe(mark, source, world.now)
        assert isinstance(answer, SendDatagram if source.endpoint is not None else SendRelayed)
        assert len(answer.data) == len(mark)
        assert open_message(box, parse_sealed(answer.data)) == Tally(NodeKey(a.node_key.public), 7, 1000, 30)


def test_attack_13_replayed_question_keeps_no_candidates_out_and_no_question_by_relay_unanswered() -> None:
    world, a, b = open_pair()
    question = sealed(b, a, Question(NodeKey(b.node_key.public), bytes(12)))
    now = world.now
    for tick in range(40):
        for step in range(10):
            a.paths.receive_probe(question, Source(WHERE), now + step / 10)
        now += 1.0
        by_control, by_relay = Endpoint("203.0.113.8", 7_000 + tick), Endpoint("203.0.113.9", 7_000 + tick)
        a.paths.peer_candidates(b.id, (by_control,), now)
        a.paths.receive_probe(sealed(b, a, Candidates(NodeKey(b.node_key.public), (by_relay,))), Source(None, b.id), now)
        assert {by_control, by_relay} <= set(a.paths.report(b.id).candidates)
        assert a.paths.receive_probe(question, Source(None, b.id), now)


def test_attack_13_question_by_udp_is_answered_by_no_more_than_its_length() -> None:
    """However little it is padded: its source may be forged."""
    world, a, b = open_pair()
    a.paths.peer_candidates(b.id, tuple(Endpoint(f"203.0.113.{host}", 9) for host in range(30, 60)), world.now)
    box = SharedBox(b.discovery, a.discovery.public)
    payload = build_payload(Question(NodeKey(b.node_key.public), bytes(12)))
    told: list[int] = []
    for length in (45, 48, 70, 300, len(payload), 2_000):
        world.now += 10.0
        nonce = RANDOM.randbytes(24)
        question = MAGIC + b.discovery.public + nonce + box.seal(nonce, payload[:45].ljust(length, b"\0"))
        for source in (Source(WHERE), Source(None, b.id)):
            answers = a.paths.receive_probe(question, source, world.now)
            for answer in answers:
                assert isinstance(answer, SendDatagram if source.endpoint is not None else SendRelayed)
                view = open_message(box, parse_sealed(answer.data))
                assert isinstance(view, View)
                told.append(len(view.tried))
                assert source.endpoint is None or len(answer.data) <= len(question)
    assert told == [24, 0, 24, 1, 24, 11, 24, 24, 24, 24, 24]


@pytest.mark.parametrize(
    "spoofed",
    [
        lambda number: Endpoint(f"198.51.{number >> 8}.{number & 255}", 53),
        lambda number: Endpoint("203.0.113.77", 10_000 + number),
        lambda number: Endpoint("203.0.113.77", 7_000 + number % 30),
    ],
    ids=["anywhere", "the peer's address", "endpoints that the peer told"],
)
def test_attack_13_ping_replayed_from_spoofed_sources_delays_no_probe_of_what_the_peer_tells(spoofed: Callable[[int], Endpoint]) -> None:
    world, a, b = open_pair()
    ping = probe(b, a, b.node_key.public)
    for number in range(3_000):
        now = world.now + number / 100
        a.paths.receive_probe(ping, Source(spoofed(number)), now)
        if number % 100 == 99:
            new = Endpoint("203.0.113.77", 8_000 + number)
            effects = a.paths.peer_candidates(b.id, (new,), now)
            assert any(isinstance(effect, SendDatagram) and effect.endpoint == new for effect in effects)


def test_attack_13_candidates_asks_and_grants_by_udp_change_nothing() -> None:
    world, a, b = open_pair()
    key = NodeKey(b.node_key.public)
    a.paths.peer_candidates(b.id, (WHERE,), world.now)
    for message in (Candidates(key, (Endpoint("198.51.100.9", 9),)), Ask(key, WHERE, 0), Grant(key, WHERE)):
        assert a.paths.receive_probe(sealed(b, a, message), Source(b.address), world.now) == []
    assert a.paths.report(b.id).candidates == (WHERE,)


def pings_for(world: World, a: Host, asking: Host, victim: Endpoint, *, told: bool = True) -> int:
    """How many pings `a` sends to `victim`'s address when `asking` asks for them."""
    if told:
        world.perform(a, a.paths.peer_candidates(asking.id, (victim,), world.now))
    else:
        world.perform(a, a.paths.receive_probe(probe(asking, a, asking.node_key.public), Source(victim), world.now))
    world.run(c.IDLE_AFTER)
    since = world.now
    ask = sealed(asking, a, Ask(NodeKey(asking.node_key.public), victim, 0))
    world.perform(a, a.paths.receive_probe(ask, Source(None, asking.id), world.now))
    world.run(30.0)
    return sum(isinstance(effect, SendDatagram) and effect.endpoint.host == victim.host for effect in a.effects(SendDatagram, since))


@pytest.mark.parametrize(
    ("host", "told", "pings"),
    [
        ("198.51.100.9", True, PORTS),
        ("198.51.100.9", False, 0),
        ("192.168.1.50", True, 0),
        ("10.1.2.3", True, 0),
        ("100.64.0.9", True, 0),
        ("2001:db8::9", True, 0),
        ("fd00::9", True, 0),
    ],
)
def test_attack_13_ports_are_guessed_at_public_ipv4_addresses_alone_that_the_peer_told(host: str, told: bool, pings: int) -> None:
    world, a, b = open_pair()
    assert pings_for(world, a, b, Endpoint(host, 9), told=told) == pings


def test_attack_13_many_peers_that_ask_send_one_victim_a_bounded_number_of_pings_and_leave_some_for_others() -> None:
    world = World()
    a, *peers = (world.add(Nat.OPEN) for _ in range(6))
    world.start()
    assert sum(pings_for(world, a, peer, WHERE) for peer in peers[:4]) <= MAX_TRIES_AT_HOST
    assert pings_for(world, a, peers[4], Endpoint("198.51.100.9", 9)) == PORTS


def test_attack_13_one_peer_that_asks_again_and_again_leaves_some_for_others() -> None:
    world = World()
    a, greedy, other = (world.add(Nat.OPEN) for _ in range(3))
    world.start()
    assert sum(pings_for(world, a, greedy, Endpoint("198.51.100.9", 9)) for _ in range(6)) > 0
    assert pings_for(world, a, other, WHERE) == PORTS


@pytest.mark.parametrize("host", ["198.51.100.9", "2001:db8::{peer:x}"])
def test_attack_13_handshakes_without_a_relay_reach_one_victim_a_bounded_number_of_times(host: str) -> None:
    world = World()
    a = world.add(Nat.OPEN, relay=False)
    peers = [world.add(Nat.OPEN, relay=False) for _ in range(50)]
    world.perform(a, a.paths.set_peers([world.peer(p, tuple(Endpoint(host.format(peer=p.id), port) for port in range(1, 9))) for p in peers], world.now))
    sent = sum(len(a.paths.handshake_targets(peer.id, world.now + tick)) for tick in range(10) for peer in peers)
    assert 0 < sent <= c.HOST_PROBES_BURST + 10 * c.HOST_PROBES_PER_S


# --- 14 ---


def test_attack_14_answers_are_bounded_by_the_request_and_never_answered_themselves() -> None:
    for size in range(0, 200, 4):
        body = (b"\x80\x22" + (size - 4).to_bytes(2, "big") + bytes(size - 4)) if size else b""
        request = b"\0\1" + len(body).to_bytes(2, "big") + stun.MAGIC_COOKIE + bytes(12) + body
        for source, ratio in ((WHERE, 1.6), (Endpoint("2001:db8::7", 7), 2.2)):
            answer = stun.answer(request, source)
            assert answer is not None
            assert len(answer) <= ratio * len(request)
            assert stun.answer(answer, source) is None


def test_attack_14_errors_for_unknown_attributes_are_bounded_too() -> None:
    for count in range(1, 60):
        body = b"".join((0x4000 + number).to_bytes(2, "big") + b"\0\0" for number in range(count))
        request = b"\0\1" + len(body).to_bytes(2, "big") + stun.MAGIC_COOKIE + bytes(12) + body
        answer = stun.answer(request, WHERE)
        assert answer is not None
        assert len(answer) <= 1.6 * len(request)


def test_attack_14_node_answers_no_stun_and_takes_no_unasked_answer() -> None:
    world, a, _ = open_pair()
    before = a.paths.reflexive()
    request = stun.build_request(RANDOM.randbytes(12))
    forged = stun.answer(request, WHERE)
    assert forged is not None
    for datagram in (request, forged):
        assert a.paths.receive_stun(datagram, STUN_SERVER, world.now) == []
    assert a.paths.reflexive() == before


# --- 15 ---


@given(data=st.binary(max_size=300), relayed=st.booleans(), magic=st.booleans())
def test_attack_15_fuzzed_stun_and_probes_never_raise_out_of_paths(data: bytes, relayed: bool, magic: bool) -> None:
    paths = Paths(node_key=bytes(32), discovery=PrivateKey(bytes(range(32))), random=random.Random(1).randbytes)
    source = Source(None, NodeId(5)) if relayed else Source(WHERE)
    whole = MAGIC + data if magic else data
    assert paths.receive_probe(whole, source, 1.0) == []
    assert paths.receive_stun(whole, WHERE, 1.0) == []


@given(payload=st.binary(max_size=300))
def test_attack_15_fuzzed_payload_of_a_genuine_peer_never_raises_out_of_paths(payload: bytes) -> None:
    world, a, b = open_pair()
    box = SharedBox(b.discovery, a.discovery.public)
    nonce = RANDOM.randbytes(24)
    for plain in (payload, payload[:1] + b.node_key.public + payload[1:]):
        world.perform(a, a.paths.receive_probe(MAGIC + b.discovery.public + nonce + box.seal(nonce, plain), Source(WHERE), world.now))


@pytest.mark.parametrize("host", ["203.0.113.77", "2001:db8::77"])
def test_attack_15_genuine_messages_from_port_0_raise_nothing_and_change_nothing(host: str) -> None:
    world, a, b = open_pair()
    box, key = SharedBox(b.discovery, a.discovery.public), NodeKey(b.node_key.public)
    messages: tuple[DiscoveryMessage, ...] = (
        Ping(key, bytes(12)),
        Pong(key, bytes(12), WHERE),
        Candidates(key, (WHERE,)),
        Ask(key, WHERE, 0),
        Grant(key, WHERE),
        Question(key, bytes(12)),
        View(key, bytes(12), ViewFlag(0), 0, ()),
        Mark(key, 1),
        Tally(key, 1, 0, 0),
    )
    nowhere = Endpoint(host, 0)
    for message in messages:
        sealed = seal_message(box, b.discovery.public, RANDOM.randbytes(24), message)
        assert a.paths.receive_probe(sealed, Source(nowhere), world.now) == []
    assert a.paths.receive_stun(stun.build_request(bytes(12)), nowhere, world.now) == []
    world.perform(a, a.paths.data_received(b.id, Source(nowhere), world.now, 100))
    assert a.paths.report(b.id).candidates == ()


@given(frames=st.lists(st.binary(max_size=100), max_size=10))
def test_attack_15_fuzzed_relay_frames_raise_their_errors_alone(frames: list[bytes]) -> None:
    decoder = RelayDecoder()
    for frame in frames:
        with contextlib.suppress(RemoteError):
            event = decoder.decode(frame)
            assert not isinstance(event, Data) or event.datagrams


# --- 19, the node's half ---


def test_attack_19_discovery_message_by_relay_in_anothers_name_is_dropped() -> None:
    world, a, b = open_pair()
    assert a.paths.receive_probe(probe(b, a, b.node_key.public), Source(None, NodeId(99)), world.now) == []


def test_attack_19_what_came_by_relay_is_answered_to_its_sender_alone_and_never_passed_on() -> None:
    world, a, b = open_pair()
    ping = probe(b, a, b.node_key.public)
    for _ in range(3):
        effects = a.paths.receive_probe(ping, Source(None, b.id), world.now)
        assert [type(effect) for effect in effects] == [SendRelayed]
        assert isinstance(effects[0], SendRelayed)
        assert effects[0].peer == b.id
        assert len(effects[0].data) <= len(ping)
        assert effects[0].data != ping


def test_attack_19_candidates_replayed_by_the_relay_cause_a_bounded_number_of_probes() -> None:
    world, a, b = open_pair()
    box = SharedBox(b.discovery, a.discovery.public)
    replayed = seal_message(box, b.discovery.public, bytes(24), Candidates(NodeKey(b.node_key.public), (WHERE,)))
    sent = 0
    for tick in range(1_000):
        effects = a.paths.receive_probe(replayed, Source(None, b.id), world.now + tick / 100)
        sent += sum(isinstance(effect, SendDatagram) for effect in effects)
    assert sent <= c.HOST_PROBES_BURST + 10 * c.HOST_PROBES_PER_S


def test_attack_13_small_order_discovery_key_is_nobodys() -> None:
    world, a, b = open_pair()
    a.paths.set_peers([replace(world.peer(b), discovery_key=DiscoveryKey(bytes(32)))], world.now)
    assert a.paths.receive_probe(probe(b, a, b.node_key.public), Source(WHERE), world.now) == []
    assert a.paths.receive_probe(MAGIC + bytes(136), Source(WHERE), world.now) == []
    assert not [effect for effect in a.paths.data_sent(b.id, world.now) if isinstance(effect, SendDatagram)]
