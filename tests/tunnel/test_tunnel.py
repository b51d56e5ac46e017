"""The tunnel's life: handshake, rekey, keepalive, failure, configuration, renewal. Two tunnels on a virtual network."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.model import Endpoint, NodeId, PeerKind, Source
from calnet.tunnel import constants
from calnet.tunnel import effects as do
from calnet.tunnel.constants import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_WHEN_RECEIVING_AFTER
from calnet.tunnel.tunnel import Tunnel
from tests.tunnel.world import World, config_of, connected, endpoint, inner, packet, pair, private_key, seeded

JITTER = constants.REKEY_TIMEOUT_JITTER


# --- Handshake ---


def test_first_packet_waits_for_the_handshake_and_arrives() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"hello"))
    assert bob.texts() == []
    world.deliver()
    assert bob.texts() == [b"hello"]
    bob.send(packet(2, 1, b"answer"))
    world.deliver()
    assert alice.texts() == [b"answer"]
    assert alice.initiations() + bob.initiations() == 1


def test_handshake_effects_persist_before_they_send() -> None:
    world, alice, bob = pair()
    peer = alice.peer_with(2)
    session, effects = alice.tunnel.session_to_send(peer, world.now, world.wall)
    assert session is None
    persist, send = effects
    assert isinstance(persist, do.PersistTimestamp)
    assert persist.sent
    assert persist.node_key == bob.key.public
    assert isinstance(send, do.SendHandshake)
    assert send.reply_to is None
    source = Source(alice.endpoint)
    persist, moved, answer = bob.tunnel.receive(send.datagram, source, world.now, world.wall)
    assert isinstance(persist, do.PersistTimestamp)
    assert not persist.sent
    assert persist.node_key == alice.key.public
    assert moved == do.EndpointAuthenticated(NodeId(1), source)
    assert isinstance(answer, do.SendHandshake)
    assert answer.reply_to == source
    effects = alice.tunnel.receive(answer.datagram, Source(bob.endpoint), world.now, world.wall)
    assert [type(effect) for effect in effects] == [do.EndpointAuthenticated, do.SessionReady, do.SendKeepalive]


def test_second_packet_during_the_handshake_begins_no_other() -> None:
    world, alice, bob = pair()
    for text in (b"one", b"two", b"three"):
        alice.send(packet(1, 2, text))
    assert alice.initiations() == 1
    world.deliver()
    assert bob.texts() == [b"one", b"two", b"three"]


def test_responder_sends_nothing_before_the_first_packet_of_the_initiator() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2))
    world.hand_over(world.wire.pop(0))
    bob.send(packet(2, 1, b"early"))
    assert [datagram.data[0] for datagram in world.wire] == [2]
    world.deliver()
    assert alice.texts() == [b"early"]
    assert bob.initiations() == 0


def test_idle_initiator_confirms_with_a_keepalive() -> None:
    world, alice, bob = pair()
    alice.tunnel.configure([config_of(bob, keepalive_s=25)], world.now, world.wall)
    world.advance(0.0)
    assert bob.peer_with(1).current is not None
    assert bob.received == []
    assert alice.peer_with(2).last_handshake_at == bob.peer_with(1).last_handshake_at == world.wall


def test_handshake_by_relay_works_and_moves_no_endpoint() -> None:
    world, alice, bob = pair()
    alice.routes.clear()
    bob.routes.clear()
    alice.send(packet(1, 2, b"relayed"))
    world.deliver()
    assert bob.texts() == [b"relayed"]
    assert alice.count(do.EndpointAuthenticated) + bob.count(do.EndpointAuthenticated) == 0
    assert all(datagram.target is None for datagram in world.carried)


def test_preshared_keys_that_agree_connect() -> None:
    connected(psk=b"p" * 32)


def test_byte_counts_are_kept_on_both_sides() -> None:
    _, alice, bob = connected()
    assert alice.peer_with(2).tx_bytes == bob.peer_with(1).rx_bytes == len(packet(1, 2, b"first")) + 32


@pytest.mark.parametrize("lost", ["initiation", "response", "confirmation"])
def test_handshake_with_one_message_lost_still_completes(lost: str) -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"hello"))
    for _ in range(["initiation", "response", "confirmation"].index(lost)):
        world.hand_over(world.wire.pop(0))
    world.deliver(lose=True)
    world.advance(6.0)
    alice.send(packet(1, 2, b"again"))
    world.deliver()
    assert b"again" in bob.texts()
    bob.send(packet(2, 1, b"back"))
    world.deliver()
    assert alice.texts() == [b"back"]


def test_initiations_of_both_sides_at_once_carry_data_both_ways_and_converge() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"from alice"))
    bob.send(packet(2, 1, b"from bob"))
    world.deliver()
    assert alice.texts() == [b"from bob"]
    assert bob.texts() == [b"from alice"]
    for number in range(300):
        world.advance(1.0)
        alice.send(packet(1, 2, b"a%d" % number))
        bob.send(packet(2, 1, b"b%d" % number))
        world.deliver()
    assert len(alice.texts()) == len(bob.texts()) == 301
    ours, theirs = alice.peer_with(2).current, bob.peer_with(1).current
    assert ours is not None
    assert theirs is not None
    assert (ours.local_index, ours.remote_index) == (theirs.remote_index, theirs.local_index)


@given(st.lists(st.tuples(st.sampled_from(["alice", "bob", "hand", "swap", "lose", "wait"]), st.floats(0.0, 8.0)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_order_of_sending_loss_and_waiting_ends_connected(steps: list[tuple[str, float]]) -> None:
    world, alice, bob = pair()
    for step, seconds in steps:
        if step == "alice":
            alice.send(packet(1, 2))
        elif step == "bob":
            bob.send(packet(2, 1))
        elif step == "wait":
            world.advance(seconds, lose=seconds > 6)
        elif world.wire and step == "hand":
            world.hand_over(world.wire.pop(0))
        elif world.wire and step == "swap":
            world.wire.append(world.wire.pop(0))
        elif world.wire:
            world.wire.pop(0)
    for number in range(60):
        world.advance(1.0)
        alice.send(packet(1, 2, b"a%d" % number))
        bob.send(packet(2, 1, b"b%d" % number))
        world.deliver()
    assert bob.texts()[-1] == b"a59"
    assert alice.texts()[-1] == b"b59"


# --- Rekey and expiry ---


def test_initiator_rekeys_after_120_seconds_without_losing_a_packet() -> None:
    world, alice, bob = connected()
    old = alice.peer_with(2).current
    for number in range(400):
        world.advance(1.0)
        alice.send(packet(1, 2, b"%d" % number))
        world.deliver()
    assert bob.texts() == [b"first", *(b"%d" % number for number in range(400))]
    assert alice.initiations() == 1 + 400 // int(REKEY_AFTER_TIME + 1)
    assert bob.initiations() == 0
    assert alice.peer_with(2).current is not old


def test_responder_that_sends_never_rekeys_by_age_but_the_initiator_does_when_it_only_receives() -> None:
    world, alice, bob = connected()
    for number in range(200):
        world.advance(1.0)
        bob.send(packet(2, 1, b"%d" % number))
        world.deliver()
    assert bob.initiations() == 0
    assert alice.initiations() == 2
    assert len(alice.texts()) == 200


def test_initiator_that_receives_shortly_before_the_end_of_a_session_rekeys_at_once() -> None:
    world, alice, bob = connected()
    world.advance(REKEY_WHEN_RECEIVING_AFTER + 1)
    bob.send(packet(2, 1, b"late"))
    world.deliver()
    assert alice.texts() == [b"late"]
    assert alice.initiations() == 2
    session = alice.peer_with(2).current
    assert session is not None
    assert session.created_at == world.now


def test_session_rekeys_after_its_messages_and_stops_at_the_limit() -> None:
    world, alice, bob = connected()
    world.advance(6.0)
    session = alice.peer_with(2).current
    assert session is not None
    session.send_counter = REKEY_AFTER_MESSAGES + 1
    alice.send(packet(1, 2, b"rekey"))
    assert alice.initiations() == 2
    world.deliver(lose=True)
    session.send_counter = REJECT_AFTER_MESSAGES
    alice.send(packet(1, 2, b"waits"))
    assert world.wire == []
    world.advance(6.0)
    assert bob.texts()[-1] == b"waits"


def test_session_dies_at_180_seconds_on_both_sides() -> None:
    world, alice, bob = connected()
    session = alice.peer_with(2).current
    assert session is not None
    late = session.seal(packet(1, 2, b"late"))
    receiving = bob.peer_with(1).current
    assert receiving is not None
    world.now += REJECT_AFTER_TIME
    assert bob.tunnel.session_by_index(receiving.local_index, world.now) is None
    assert alice.tunnel.session_to_send(alice.peer_with(2), world.now, world.wall)[0] is None
    bob.take(late, Source(alice.endpoint))
    assert bob.texts() == [b"first"]
    world.advance(0.0, lose=True)
    assert alice.peer_with(2).sessions() == bob.peer_with(1).sessions() == []
    assert bob.tunnel.session_by_index(receiving.local_index) is None


def test_previous_session_still_receives_after_a_rekey() -> None:
    world, alice, bob = connected()
    old = alice.peer_with(2).current
    assert old is not None
    delayed = old.seal(packet(1, 2, b"delayed"))
    world.advance(REKEY_AFTER_TIME + 1)
    alice.send(packet(1, 2, b"rekey"))
    world.deliver()
    alice.send(packet(1, 2, b"new"))
    world.deliver()
    assert alice.peer_with(2).current is not old
    bob.take(delayed, Source(alice.endpoint))
    assert b"delayed" in bob.texts()


def test_idle_peers_forget_all_keys_and_fall_silent() -> None:
    world, alice, bob = connected()
    world.advance(3 * REJECT_AFTER_TIME + 1)
    assert alice.count(do.SessionsDropped) == bob.count(do.SessionsDropped) == 1
    carried = len(world.carried)
    world.advance(100_000.0)
    assert len(world.carried) == carried
    assert alice.tunnel.next_deadline() is None
    alice.send(packet(1, 2, b"awake"))
    world.deliver()
    assert bob.texts()[-1] == b"awake"


# --- Keepalive ---


def test_receiver_of_data_that_has_nothing_to_say_sends_one_keepalive_after_10_seconds() -> None:
    world, alice, bob = connected()
    world.advance(9.9)
    assert bob.count(do.SendKeepalive) == 0
    world.advance(0.2)
    assert bob.count(do.SendKeepalive) == 1
    world.advance(60.0)
    assert bob.count(do.SendKeepalive) == 1
    assert alice.count(do.SendKeepalive) == 1
    assert alice.initiations() == 1


def test_data_without_any_answer_begins_a_new_handshake_after_15_seconds() -> None:
    world, alice, _ = connected()
    world.advance(60.0)
    alice.send(packet(1, 2, b"into the void"))
    world.deliver(lose=True)
    world.advance(14.9, lose=True)
    assert alice.initiations() == 1
    world.advance(0.2 + JITTER, lose=True)
    assert alice.initiations() == 2


def test_peer_that_restarted_is_reached_again_by_that() -> None:
    world, alice, bob = connected()
    world.advance(30.0)
    bob = world.restart(2)
    alice.send(packet(1, 2, b"lost"))
    world.deliver()
    assert bob.texts() == []
    world.advance(16.0)
    alice.send(packet(1, 2, b"back"))
    world.deliver()
    assert bob.texts() == [b"back"]


def test_persistent_keepalive_goes_out_every_interval_and_keeps_the_session() -> None:
    world, alice, bob = pair()
    alice.change(2, keepalive_s=25)
    world.advance(1000.0)
    keepalives = alice.count(do.SendKeepalive)
    assert 38 <= keepalives <= 52
    assert bob.peer_with(1).current is not None
    alice.change(2, keepalive_s=0)
    world.advance(1000.0)
    assert alice.count(do.SendKeepalive) <= keepalives + 1


def test_persistent_keepalive_goes_on_trying_while_the_peer_is_away() -> None:
    world, alice, bob = pair()
    alice.change(2, keepalive_s=25)
    world.advance(1000.0, lose=True)
    assert alice.count(do.HandshakeFailed) >= 5
    world.advance(60.0)
    assert bob.peer_with(1).current is not None


# --- Failure ---


def test_handshake_without_an_answer_retries_every_5_seconds_and_is_given_up_after_90() -> None:
    world, alice, _ = pair()
    alice.send(packet(1, 2))
    world.advance(89.0, lose=True)
    assert 16 <= alice.initiations() <= 18
    assert alice.count(do.HandshakeFailed) == 0
    world.advance(60.0, lose=True)
    assert alice.count(do.HandshakeFailed) == 1
    assert alice.initiations() == 18
    world.advance(10_000.0, lose=True)
    assert alice.initiations() == 18
    assert alice.queue.get(2) is None


def test_packet_after_giving_up_begins_anew() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2))
    world.advance(200.0, lose=True)
    alice.send(packet(1, 2, b"anew"))
    world.deliver()
    assert bob.texts() == [b"anew"]


def test_small_order_peer_key_fails_at_once_and_does_not_retry() -> None:
    world = World()
    alice = world.add(1)
    bob = world.add(2)
    alice.configure(config_of(bob, node_key=bytes(32)))
    alice.send(packet(1, 2))
    assert alice.count(do.HandshakeFailed) == 1
    world.advance(1000.0)
    assert alice.initiations() == 0


def test_initiation_of_an_unknown_key_gets_nothing() -> None:
    world, _, bob = pair()
    stranger = world.add(3)
    stranger.configure(config_of(bob))
    stranger.routes[2] = bob.endpoint
    stranger.send(packet(3, 2))
    world.deliver()
    assert bob.count(do.SendHandshake) == 0


def test_initiation_from_a_clock_too_far_ahead_is_told_and_gets_nothing_else() -> None:
    world, alice, bob = pair()
    world.wall_offset += 3600
    alice.send(packet(1, 2))
    world.wall_offset -= 3600
    world.deliver()
    (effect,) = bob.effects
    assert isinstance(effect, do.ClockAhead)
    assert effect.peer == NodeId(1)
    assert effect.seconds == pytest.approx(3600, abs=1)


@pytest.mark.parametrize("datagram", [b"", b"\1", bytes(148), b"\5" + bytes(91)])
def test_receive_of_no_handshake_message_gets_nothing(datagram: bytes) -> None:
    world, alice, _ = pair()
    assert alice.tunnel.receive(datagram, Source(endpoint(9)), world.now, world.wall) == []


def test_response_nobody_waits_for_gets_nothing() -> None:
    world, alice, bob = connected()
    response = next(datagram for datagram in world.carried if datagram.data[0] == 2)
    before = len(alice.effects)
    assert alice.take(response.data, Source(bob.endpoint)) == []
    assert len(alice.effects) == before


def test_two_initiations_within_20_ms_the_second_is_dropped() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2))
    first = world.wire.pop().data
    again = Tunnel(alice.key, random=seeded("again"))
    again.configure([config_of(bob)], world.now, world.wall)
    _, effects = again.session_to_send(next(iter(again.peers)), world.now, world.wall + 0.05)
    second = next(effect.datagram for effect in effects if isinstance(effect, do.SendHandshake))
    assert len(bob.take(first, Source(alice.endpoint))) == 3
    world.now += 0.019
    assert bob.take(second, Source(alice.endpoint)) == []
    world.now += 0.002
    assert len(bob.take(second, Source(alice.endpoint))) == 2


def test_data_of_a_session_that_was_dropped_meanwhile_does_nothing() -> None:
    world, alice, bob = connected()
    session = bob.peer_with(1).current
    assert session is not None
    bob.configure()
    assert bob.tunnel.data_received(session, Source(alice.endpoint), world.now, world.wall, 100, True) == []


# --- Endpoints ---


def test_authenticated_data_from_a_new_address_is_reported_once() -> None:
    world, alice, bob = connected()
    alice.endpoint = Endpoint("198.51.100.7", 5)
    before = bob.count(do.EndpointAuthenticated)
    for _ in range(3):
        alice.send(packet(1, 2))
    world.deliver()
    assert bob.count(do.EndpointAuthenticated) == before + 1
    assert bob.effects[-1] == do.EndpointAuthenticated(NodeId(1), Source(alice.endpoint))


def test_wireguard_peer_that_roams_is_followed() -> None:
    world, alice, bob = connected(kind=PeerKind.WIREGUARD)
    alice.endpoint = endpoint(99)
    alice.send(packet(1, 2))
    world.deliver()
    bob.send(packet(2, 1, b"followed"))
    world.deliver()
    assert alice.texts() == [b"followed"]


# --- Configuration ---


def test_configure_the_same_peer_keeps_its_session() -> None:
    world, alice, bob = connected()
    session = alice.peer_with(2).current
    alice.change(2, allowed=(ip_network("100.70.0.0/24"),), key_expires=world.wall + 1000)
    assert alice.peer_with(2).current is session
    assert alice.count(do.SessionsDropped) == 0
    assert alice.tunnel.lookup(inner(77)) is alice.peer_with(2)
    alice.send(packet(1, 2, b"still"))
    world.deliver()
    assert bob.texts()[-1] == b"still"


def test_configure_without_a_peer_drops_it_at_once() -> None:
    _, alice, bob = connected()
    session = bob.peer_with(1).current
    assert session is not None
    bob.configure()
    assert bob.effects[-1] == do.SessionsDropped(NodeId(1))
    assert bob.tunnel.session_by_index(session.local_index) is None
    assert bob.tunnel.lookup(inner(1)) is None
    assert bob.tunnel.peer(NodeId(1)) is None
    assert bob.tunnel.next_deadline() is None
    assert alice.peer_with(2).current is not None


@pytest.mark.parametrize("changes", [{"psk": b"x" * 32}, {"kind": PeerKind.WIREGUARD}])
def test_configure_another_psk_or_kind_drops_sessions(changes: dict[str, object]) -> None:
    _, alice, _ = connected()
    alice.change(2, **changes)
    assert alice.peer_with(2).current is None
    assert alice.effects[-1] == do.SessionsDropped(NodeId(2))


def test_configure_another_key_drops_sessions_and_the_handshake_under_way() -> None:
    world, alice, _ = connected()
    alice.change(2, node_key=private_key("another").public)
    assert alice.peer_with(2).sessions() == []
    assert alice.count(do.SessionsDropped) == 1
    alice.send(packet(1, 2))
    assert alice.initiations() == 2
    alice.change(2, node_key=private_key("third").public)
    assert alice.peer_with(2).pending is None
    alice.send(packet(1, 2))
    assert alice.initiations() == 3
    world.deliver(lose=True)


def test_peer_whose_key_expires_is_dropped_when_it_does() -> None:
    world, alice, bob = pair()
    bob.change(1, key_expires=world.wall + 50)
    alice.send(packet(1, 2, b"before"))
    world.deliver()
    assert bob.texts() == [b"before"]
    world.advance(49.0)
    assert bob.tunnel.peer(NodeId(1)) is not None
    world.advance(2.0)
    assert bob.tunnel.peer(NodeId(1)) is None
    assert bob.count(do.SessionsDropped) == 1
    alice.send(packet(1, 2, b"after"))
    world.deliver()
    assert bob.texts() == [b"before"]


def test_peer_expired_already_is_not_taken_and_its_initiation_gets_nothing() -> None:
    world, alice, bob = pair()
    bob.change(1, key_expires=world.wall - 1)
    assert bob.tunnel.peer(NodeId(1)) is None
    alice.send(packet(1, 2))
    world.deliver()
    assert bob.count(do.SendHandshake) == 0


def test_initiation_of_a_key_that_expired_before_the_timer_ran_gets_nothing() -> None:
    world, alice, bob = pair()
    bob.change(1, key_expires=world.wall + 5)
    world.now += 6
    alice.send(packet(1, 2))
    world.deliver()
    assert bob.count(do.SendHandshake) == 0


# --- Key renewal ---


def test_renewed_identity_answers_peers_that_know_the_old_key_and_initiates_with_the_new() -> None:
    world, alice, bob = connected()
    new = private_key("renewed")
    bob.tunnel.set_identity(new, previous=bob.key)
    bob.send(packet(2, 1, b"same session"))
    world.deliver()
    assert alice.texts() == [b"same session"]
    world.advance(REKEY_AFTER_TIME + 1)
    alice.send(packet(1, 2, b"to the old key"))
    world.deliver()
    assert alice.initiations() == 2
    assert bob.texts()[-1] == b"to the old key"
    alice.change(2, node_key=new.public, previous_node_key=bob.key.public)
    assert alice.count(do.SessionsDropped) == 0
    world.advance(REKEY_AFTER_TIME + 1)
    alice.send(packet(1, 2, b"to the new key"))
    world.deliver()
    assert bob.texts()[-1] == b"to the new key"
    session = alice.peer_with(2).current
    assert session is not None
    assert session.remote_static == new.public


def test_peer_with_two_keys_may_initiate_with_either() -> None:
    world, alice, bob = pair()
    new = private_key("renewed")
    bob.change(1, node_key=new.public, previous_node_key=alice.key.public)
    alice.send(packet(1, 2, b"old"))
    world.deliver()
    alice.tunnel.set_identity(new, previous=alice.key)
    world.advance(REKEY_AFTER_TIME + 1)
    alice.send(packet(1, 2, b"new"))
    world.deliver()
    assert bob.texts() == [b"old", b"new"]
    session = bob.peer_with(1).next or bob.peer_with(1).current
    assert session is not None
    assert session.remote_static == new.public


def test_identity_without_its_previous_key_does_not_answer_to_it() -> None:
    world, alice, bob = pair()
    bob.tunnel.set_identity(private_key("renewed"), previous=None)
    alice.send(packet(1, 2))
    world.deliver()
    assert bob.count(do.SendHandshake) == 0


# --- Cryptokey routing and the tables ---


def test_owns_only_what_the_longest_prefix_gives_the_peer() -> None:
    world, alice, bob = pair()
    carol = world.add(3)
    alice.configure(config_of(bob, allowed=(ip_network("10.0.0.0/8"), ip_network("100.70.0.2/32"))), config_of(carol, allowed=(ip_network("10.1.0.0/16"),)))
    two, three = alice.peer_with(2), alice.peer_with(3)
    assert alice.tunnel.owns(two, bytes([10, 2, 0, 1]))
    assert not alice.tunnel.owns(two, bytes([10, 1, 0, 1]))
    assert alice.tunnel.owns(three, bytes([10, 1, 0, 1]))
    assert not alice.tunnel.owns(two, bytes([8, 8, 8, 8]))


def test_deadline_without_peers_is_none() -> None:
    assert Tunnel(private_key("1"), random=seeded("x")).next_deadline() is None


def test_new_index_taken_already_is_drawn_again() -> None:
    world, alice, bob = pair()
    carol = world.add(3)
    draws = [b"\1\0\0\0"] * 2 + [b"\2\0\0\0"]
    source = seeded("rest")
    alice.tunnel = Tunnel(alice.key, random=lambda size: draws.pop(0) if size == 4 else source(size))
    alice.configure(config_of(bob), config_of(carol))
    alice.send(packet(1, 2))
    alice.send(packet(1, 3))
    assert [datagram.data[4] for datagram in world.wire] == [1, 2]


def test_backup_router_may_bring_what_it_may_route_and_is_sent_nothing() -> None:
    world, alice, bob = pair()
    carol, dave = world.add(3), world.add(4)
    lan, part = ip_network("10.1.0.0/16"), ip_network("10.1.5.0/24")
    alice.configure(config_of(bob, allowed=(lan,)), config_of(carol, allowed=(), also_from=(lan,)), config_of(dave, allowed=(part,)))
    primary, backup = alice.peer_with(2), alice.peer_with(3)
    source = bytes([10, 1, 2, 3])
    assert alice.tunnel.lookup(source) is primary
    assert alice.tunnel.owns(primary, source)
    assert alice.tunnel.owns(backup, source)
    assert not alice.tunnel.owns(backup, bytes([10, 1, 5, 1]))  # a longer prefix has another owner
    assert not alice.tunnel.owns(backup, bytes([10, 2, 0, 1]))
