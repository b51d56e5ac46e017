"""Attacks on the tunnel: 1 to 7, 9 and 10 of the list, as far as the tunnel itself decides."""

from __future__ import annotations

import copy
import pickle
from ipaddress import ip_network

import pytest

from calnet.crypto.hash import blake2s, mac
from calnet.crypto.keys import PrivateKey
from calnet.model import NodeId, PeerKind, Source
from calnet.tunnel import effects as do
from calnet.tunnel.constants import HANDSHAKE_BURST, LABEL_MAC1, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_TIME, REPLAY_WINDOW
from calnet.tunnel.session import SessionExhausted
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.tunnel import initiation_body
from tests import shared_vectors
from tests.tunnel.world import Node, World, config_of, connected, endpoint, inner, packet, pair, seeded

YEAR = 365 * 86400.0
FORGER = Source(endpoint(66))


class _CountingKey(PrivateKey):
    """Counts Diffie-Hellmans."""

    __slots__ = ("exchanges",)

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self.exchanges = 0

    def exchange(self, public: bytes) -> bytes:
        self.exchanges += 1
        return super().exchange(public)


def _with_mac1(public: bytes, body: bytes) -> bytes:
    return body + mac(blake2s(LABEL_MAC1, public), body) + bytes(16)


# --- 1. A replayed initiation, or one with an older timestamp even after a restart, gets no response. ---


def test_attack_01_replayed_initiation_gets_no_response_not_even_after_a_restart() -> None:
    world, _, bob = connected()
    initiation = next(datagram.data for datagram in world.carried if datagram.data[0] == 1)
    world.advance(30.0)
    assert bob.take(initiation, FORGER) == []
    bob = world.restart(2)
    assert bob.take(initiation, FORGER) == []
    assert bob.count(do.SendHandshake) == 0


def test_attack_01_initiation_with_an_older_timestamp_gets_no_response_even_after_a_restart() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2))
    held_back = world.wire.pop().data
    world.advance(6.0)
    assert bob.count(do.SendHandshake) == 1
    world.advance(1.0)
    assert bob.take(held_back, FORGER) == []
    bob = world.restart(2)
    assert bob.take(held_back, FORGER) == []


def test_attack_01_timestamp_is_durable_before_the_response() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2))
    effects = bob.tunnel.receive(world.wire.pop().data, Source(alice.endpoint), world.now, world.wall)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(do.PersistTimestamp) < kinds.index(do.SendHandshake)


def test_attack_01_restarted_initiator_with_its_clock_set_back_is_still_heard() -> None:
    world, alice, bob = connected()
    alice = world.restart(1)
    world.wall_offset -= 300
    world.advance(1.0)
    alice.send(packet(1, 2, b"heard"))
    world.deliver()
    assert bob.texts()[-1] == b"heard"


# --- 2. An initiation dated a year ahead does not lock the genuine peer out. ---


def test_attack_02_initiation_dated_a_year_ahead_is_dropped_and_the_genuine_peer_still_connects() -> None:
    world, alice, bob = pair()
    _, effects = alice.tunnel.session_to_send(alice.peer_with(2), world.now, world.wall + YEAR)
    future = next(effect.datagram for effect in effects if isinstance(effect, do.SendHandshake))
    ahead = bob.take(future, Source(alice.endpoint))
    assert [type(effect) for effect in ahead] == [do.ClockAhead]
    assert isinstance(ahead[0], do.ClockAhead)
    assert ahead[0].seconds == pytest.approx(YEAR, abs=1)
    assert bob.accepted == {}
    world.advance(6.0)
    alice.send(packet(1, 2, b"genuine"))
    world.deliver()
    assert bob.texts() == [b"genuine"]
    assert [type(effect) for effect in bob.take(future, FORGER)] == [do.ClockAhead]


def test_attack_02_initiator_whose_clock_was_a_year_ahead_recovers_after_a_restart() -> None:
    world, alice, bob = pair()
    world.wall_offset += YEAR
    alice.send(packet(1, 2))
    world.deliver(lose=True)
    world.wall_offset -= YEAR
    alice = world.restart(1)
    alice.send(packet(1, 2, b"recovered"))
    world.deliver()
    assert bob.texts() == [b"recovered"]


# --- 3. A small-order ephemeral or static key is dropped. ---


def _small_order_points() -> list[bytes]:
    cases = [case for group in shared_vectors.load("wycheproof/x25519_test.json")["testGroups"] for case in group["tests"]]
    points = {bytes.fromhex(case["public"]) for case in cases if "ZeroSharedSecret" in case["flags"]}
    assert len([case for case in cases if "ZeroSharedSecret" in case["flags"]]) >= 31
    return sorted(points)


def test_attack_03_small_order_ephemeral_is_dropped_in_either_message() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2))
    initiation = world.wire[0].data
    for point in _small_order_points():
        forged = _with_mac1(bob.key.public, initiation[:8] + point + initiation[40:116])
        assert bob.take(forged, Source(alice.endpoint)) == []
    world.hand_over(world.wire.pop(0))
    response = world.wire[0].data
    for point in _small_order_points():
        forged = _with_mac1(alice.key.public, response[:12] + point + response[44:60])
        assert alice.take(forged, Source(bob.endpoint)) == [do.ResponseRejected(NodeId(2))]
    assert alice.peer_with(2).current is None
    world.deliver()
    assert len(bob.received) == 1


def test_attack_03_small_order_static_key_of_a_peer_gets_no_handshake() -> None:
    for point in _small_order_points():
        world, alice, bob = pair()
        alice.change(2, node_key=point)
        alice.send(packet(1, 2))
        assert alice.effects == [do.HandshakeFailed(NodeId(2))]
        assert world.wire == []
        assert bob.received == []


# --- 4. A bad mac1 costs no Diffie-Hellman; under load no mac2 means only a cookie reply, and no state. ---


def _counting_responder() -> tuple[World, Node, Node, _CountingKey]:
    world, alice, _ = pair()
    key = _CountingKey(b"\x42" * 32)
    bob = world.add(2, key)
    bob.routes[1] = alice.endpoint
    bob.configure(config_of(alice))
    alice.configure(config_of(bob))
    return world, alice, bob, key


def test_attack_04_bad_mac1_costs_no_diffie_hellman() -> None:
    world, alice, bob, key = _counting_responder()
    alice.send(packet(1, 2))
    genuine = world.wire.pop().data
    for at in range(148 - 16):
        assert bob.take(genuine[:at] + bytes([genuine[at] ^ 1]) + genuine[at + 1 :], FORGER) == []
    assert key.exchanges == 0
    assert len(bob.take(genuine, Source(alice.endpoint))) == 3
    assert key.exchanges == 2


def test_attack_04_under_load_an_initiation_without_mac2_gets_a_short_cookie_reply_and_costs_nothing() -> None:
    world, alice, bob, key = _counting_responder()
    flood = _with_mac1(key.public, initiation_body(7, b"\x09" * 108))
    for _ in range(int(HANDSHAKE_BURST)):
        assert bob.take(flood, FORGER) == []
    spent = key.exchanges
    sessions = len(bob.peer_with(1).sessions())
    for number in range(500):
        source = Source(endpoint(66, 1000 + number))
        (effect,) = bob.take(flood, source)
        assert isinstance(effect, do.SendCookie)
        assert effect.reply_to == source
        assert len(effect.datagram) <= 64 < len(flood)
    assert key.exchanges == spent
    assert len(bob.peer_with(1).sessions()) == sessions == 0
    world.deliver(lose=True)
    alice.send(packet(1, 2, b"genuine"))
    world.deliver()
    world.advance(6.0)
    assert bob.texts() == [b"genuine"]


def test_attack_04_under_load_a_cookie_for_another_address_is_worth_nothing() -> None:
    world, alice, bob, key = _counting_responder()
    flood = _with_mac1(key.public, initiation_body(7, b"\x09" * 108))
    for _ in range(int(HANDSHAKE_BURST) + 1):
        bob.take(flood, FORGER)
    world.deliver(lose=True)
    alice.send(packet(1, 2))
    world.deliver()
    for _ in range(60):
        world.now += 0.1
        for _ in range(11):
            bob.take(flood, FORGER)
    world.deliver()
    spent = key.exchanges
    alice.perform(alice.tunnel.on_timer(world.now, world.wall))
    with_cookie = world.wire.pop(0).data
    assert with_cookie[-16:] != bytes(16)
    (effect,) = bob.take(with_cookie, FORGER)
    assert isinstance(effect, do.SendCookie)
    assert key.exchanges == spent


# --- 5. Replayed, out-of-window or concurrent counters deliver once. ---


def test_attack_05_every_packet_delivers_once_in_any_order() -> None:
    world, alice, bob = connected()
    for number in range(100):
        alice.send(packet(1, 2, b"%d" % number))
    sent = [datagram.data for datagram in world.wire]
    world.wire.clear()
    for data in [*sent[::-1], *sent, *sent[::3]]:
        bob.take(data, Source(alice.endpoint))
    assert sorted(bob.texts()[1:]) == sorted(b"%d" % number for number in range(100))


def test_attack_05_counter_out_of_the_window_is_dropped() -> None:
    _, alice, bob = connected()
    session = alice.peer_with(2).current
    assert session is not None
    old = session.seal(packet(1, 2, b"old"))
    session.take_counters(REPLAY_WINDOW)
    bob.take(session.seal(packet(1, 2, b"new")), Source(alice.endpoint))
    bob.take(old, Source(alice.endpoint))
    assert bob.texts() == [b"first", b"new"]


def test_attack_05_batch_with_one_counter_seen_before_is_not_taken_as_a_whole() -> None:
    _, _, bob = connected()
    session = bob.peer_with(1).current
    assert session is not None
    session.replay.accept(120)
    assert not session.replay.accept_run(100, 44)
    assert [counter for counter in range(100, 144) if not session.replay.accept(counter)] == [120]


# --- 6. A forged packet from a new address never moves the endpoint; an authenticated one is told. ---


@pytest.mark.parametrize("kind", list(PeerKind))
def test_attack_06_forged_packets_from_a_new_address_move_nothing(kind: PeerKind) -> None:
    world, alice, bob = connected(kind=kind)
    for data in [datagram.data for datagram in world.carried]:
        for forged in (data, data[:-1] + bytes([data[-1] ^ 1]), _with_mac1(bob.key.public, data[:-32])):
            effects = bob.take(forged, FORGER)
            assert not any(isinstance(effect, do.EndpointAuthenticated) for effect in effects)
    bob.send(packet(2, 1, b"still here"))
    world.deliver()
    assert alice.texts()[-1] == b"still here"


def test_attack_06_authenticated_packet_from_a_new_address_is_told_once_and_no_session_moves() -> None:
    world, alice, bob = connected()
    alice.endpoint = endpoint(99)
    before = bob.routes[1]
    alice.send(packet(1, 2))
    world.deliver()
    assert bob.effects[-1] == do.EndpointAuthenticated(NodeId(1), Source(endpoint(99)))
    assert bob.routes[1] == before


def test_attack_06_replayed_packet_from_a_new_address_is_not_authenticated() -> None:
    world, alice, bob = connected()
    alice.send(packet(1, 2))
    data = world.wire[0].data
    world.deliver()
    assert bob.take(data, FORGER) == []


# --- 7. An inner source outside the peer's addresses is dropped, for multi-address and routed peers too. ---


def test_attack_07_inner_source_of_another_peer_is_dropped() -> None:
    world, alice, bob = connected()
    carol = world.add(3)
    bob.configure(
        config_of(alice, allowed=tuple(map(ip_network, ("100.70.0.1/32", "fd00::1/128", "10.0.0.0/8")))),
        config_of(carol, allowed=tuple(map(ip_network, ("100.70.0.3/32", "10.3.0.0/16")))),
    )
    for source, allowed in [
        (inner(1), True),
        (bytes([10, 9, 9, 9]), True),
        (bytes([10, 3, 0, 1]), False),
        (inner(3), False),
        (inner(2), False),
        (bytes(4), False),
        (bytes([127, 0, 0, 1]), False),
    ]:
        delivered, dropped = len(bob.received), bob.dropped_inner
        session = alice.peer_with(2).current
        assert session is not None
        alice.seal(session, source + inner(2) + b"x")
        world.deliver()
        assert (len(bob.received) - delivered, bob.dropped_inner - dropped) == ((1, 0) if allowed else (0, 1))
    peer = bob.peer_with(1)
    assert bob.tunnel.owns(peer, bytes.fromhex("fd" + "00" * 14 + "01"))
    assert not bob.tunnel.owns(peer, bytes.fromhex("fd" + "00" * 14 + "02"))
    assert not bob.tunnel.owns(peer, bytes(12) + inner(1))


# --- 9. No nonce is used twice across restart, rekey or copy; a key dies at 180 s or its message limit. ---


def test_attack_09_no_nonce_is_used_twice_across_rekeys_and_restarts() -> None:
    """The same plaintext again and again: equal ciphertexts would show a key and nonce used twice."""
    world, alice, bob = pair()
    for number in range(12):
        alice.send(packet(1, 2, b"the same"))
        bob.send(packet(2, 1, b"the same"))
        world.deliver()
        world.advance(17.0 if number % 3 else REKEY_AFTER_TIME + 5)
        if number % 4 == 3:
            alice = world.restart(1)
    ciphertexts = [datagram.data[16:] for datagram in world.carried if datagram.data[0] == 4]
    assert len(ciphertexts) >= 20
    assert len(set(ciphertexts)) == len(ciphertexts)


def test_attack_09_session_cannot_be_doubled() -> None:
    _, alice, _ = connected()
    session = alice.peer_with(2).current
    for double in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            double(session)


def test_attack_09_key_dies_at_180_seconds_for_sending_and_receiving() -> None:
    world, alice, bob = connected()
    sending, receiving = alice.peer_with(2).current, bob.peer_with(1).current
    assert sending is not None
    assert receiving is not None
    derived = sending.created_at
    assert alice.tunnel.session_to_send(alice.peer_with(2), derived + REJECT_AFTER_TIME - 0.1, world.wall)[0] is sending
    assert alice.tunnel.session_to_send(alice.peer_with(2), derived + REJECT_AFTER_TIME, world.wall)[0] is None
    assert bob.tunnel.session_by_index(receiving.local_index, derived + REJECT_AFTER_TIME - 0.1) is receiving
    assert bob.tunnel.session_by_index(receiving.local_index, derived + REJECT_AFTER_TIME) is None


def test_attack_09_key_dies_at_its_message_limit_for_sending_and_receiving() -> None:
    world, alice, bob = connected()
    session = alice.peer_with(2).current
    assert session is not None
    session.send_counter = REJECT_AFTER_MESSAGES
    with pytest.raises(SessionExhausted):
        session.seal(b"")
    assert alice.tunnel.session_to_send(alice.peer_with(2), world.now + 6, world.wall + 6)[0] is None
    receiving = bob.peer_with(1).current
    assert receiving is not None
    assert not receiving.replay.accept(REJECT_AFTER_MESSAGES)


# --- 10. A wrong pre-shared key: no traffic, a clear status, no retry storm. ---


def test_attack_10_wrong_psk_gives_no_traffic_a_clear_status_and_no_storm() -> None:
    world, alice, bob = pair(psk=b"a" * 32)
    bob.change(1, psk=b"b" * 32)
    for _ in range(300):
        alice.send(packet(1, 2, b"secret"))
        bob.send(packet(2, 1, b"secret"))
        world.advance(1.0)
    assert alice.received == bob.received == []
    assert do.ResponseRejected(NodeId(2)) in alice.effects
    assert alice.peer_with(2).last_handshake_at is None
    assert alice.initiations() <= 61
    assert bob.initiations() <= 61
    assert alice.count(do.HandshakeFailed) >= 1
    initiations = alice.initiations() + bob.initiations()
    world.advance(1000.0)
    assert alice.initiations() + bob.initiations() - initiations <= 36
    assert not any(datagram.data[0] == 4 for datagram in world.carried)


def test_attack_10_one_side_without_a_psk_gives_no_traffic_until_it_is_mended() -> None:
    world, alice, bob = pair()
    bob.change(1, psk=b"b" * 32)
    alice.send(packet(1, 2))
    world.advance(20.0)
    assert bob.received == []
    alice.change(2, psk=b"b" * 32)
    alice.send(packet(1, 2, b"mended"))
    world.deliver()
    assert bob.texts()[-1] == b"mended"


def test_stranger_with_our_public_key_alone_gets_nothing() -> None:
    world, _, bob = pair()
    stranger = Tunnel(PrivateKey(b"s" * 32), random=seeded("stranger"))
    stranger.configure([config_of(bob)], world.now, world.wall)
    _, effects = stranger.session_to_send(next(iter(stranger.peers)), world.now, world.wall)
    sent = next(effect.datagram for effect in effects if isinstance(effect, do.SendHandshake))
    assert bob.take(sent, FORGER) == []
