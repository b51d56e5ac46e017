"""Two or more `Paths` against each other over a small network with a virtual clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.crypto.keys import PrivateKey
from calnet.errors import InvalidError, NotFoundError
from calnet.model import DiscoveryKey, Endpoint, NodeId, NodeKey, Peer, PeerKind, Source
from calnet.paths import constants as c
from calnet.paths.effects import NOWHERE, PathChanged, PongReceived, PublishEndpoints, Route, SendCandidates, SendDatagram, SendRelayed
from calnet.paths.way import Way
from tests.paths.network import STUN_SERVER, Host, Nat, Site, World

RELAY = Route(None, True)


def pair(one: Nat, other: Nat, *, relay: bool = True, control: bool = True) -> tuple[World, Host, Host]:
    world = World()
    first, second = world.add(one, relay=relay, control=control), world.add(other, relay=relay, control=control)
    world.start()
    return world, first, second


def numbers(host: Host) -> list[int]:
    return [number for number, _ in host.delivered]


def assert_data_only_to_proven(host: Host) -> None:
    """Every endpoint that got data was named by a path change before it (which only an answered probe makes)."""
    for at, endpoint in host.data_to:
        named = [when for when, effect in host.done if isinstance(effect, PathChanged) and effect.new.endpoint == endpoint]
        assert named
        assert min(named) <= at


# --- finding a path ---


REACHABLE = [
    (one, other)
    for one, other in itertools.product(Nat, repeat=2)
    if Nat.BLOCKED not in (one, other) and not (Nat.SYMMETRIC in (one, other) and {one, other} <= {Nat.SYMMETRIC, Nat.PORT_RESTRICTED})
]


@pytest.mark.parametrize(("one", "other"), REACHABLE)
def test_sites_that_can_meet_first_relay_then_direct_without_loss_or_duplicate(one: Nat, other: Nat) -> None:
    world, a, b = pair(one, other)
    began = world.now
    sent = world.run_sending(a, b, 6.0)
    world.run(0.2)
    assert a.relayed_data[0] == began
    assert a.paths.route(b.id).endpoint is not None
    assert b.paths.route(a.id).endpoint is not None
    assert not a.paths.route(b.id).relay
    direct = next(at for at, effect in a.done if isinstance(effect, PathChanged))
    assert direct - began <= 5.0
    assert sorted(numbers(b)) == list(range(sent))
    assert sorted(numbers(a)) == list(range(sent))
    assert_data_only_to_proven(a)
    assert_data_only_to_proven(b)


@pytest.mark.parametrize(("one", "other"), [pair for pair in itertools.product(Nat, repeat=2) if pair not in REACHABLE])
def test_sites_that_cannot_meet_stay_on_the_relay_without_loss(one: Nat, other: Nat) -> None:
    world, a, b = pair(one, other)
    sent = world.run_sending(a, b, 5.0)
    world.run(0.2)
    assert (a.paths.route(b.id), b.paths.route(a.id)) == (RELAY, RELAY)
    assert numbers(b) == numbers(a) == list(range(sent))
    assert not a.data_to
    assert a.paths.report(b.id).path == "relay"


def test_one_site_two_hosts_use_the_private_addresses() -> None:
    world = World()
    a = world.add(Nat.PORT_RESTRICTED)
    b = world.add(Nat.PORT_RESTRICTED, site=a.site, local="192.168.1.3")
    world.start()
    world.run_sending(a, b, 3.0)
    assert a.paths.route(b.id) == Route(b.address, False)
    assert b.paths.route(a.id) == Route(a.address, False)


def test_without_control_session_candidates_travel_through_the_relay() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED, control=False)
    world.run_sending(a, b, 5.0)
    assert a.paths.route(b.id).endpoint is not None
    assert a.effects(SendRelayed)


def test_without_relay_candidates_travel_through_the_control_session() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED, relay=False)
    world.run_sending(a, b, 5.0)
    assert a.paths.route(b.id).endpoint is not None
    assert not a.effects(SendRelayed)
    assert_data_only_to_proven(a)


def test_without_server_and_relay_the_last_endpoints_are_tried_and_get_handshakes_only() -> None:
    world = World()
    a, b = world.add(Nat.OPEN, relay=False, control=False), world.add(Nat.OPEN, relay=False, control=False)
    world.perform(a, a.paths.set_peers([world.peer(b, (Endpoint("203.0.113.77", 1), b.address))], world.now))
    world.perform(b, b.paths.set_peers([world.peer(a)], world.now))
    assert a.paths.route(b.id) == NOWHERE
    assert a.paths.handshake_targets(b.id, world.now) == (Endpoint("203.0.113.77", 1), b.address)
    assert a.paths.report(b.id).path == "none"
    world.run_sending(a, b, 0.5)
    assert a.paths.route(b.id) == Route(b.address, False)
    assert a.paths.handshake_targets(b.id, world.now) == ()
    assert_data_only_to_proven(a)


def test_without_relay_attempts_go_on_every_five_seconds_while_data_is_wanted() -> None:
    world, a, b = pair(Nat.OPEN, Nat.BLOCKED, relay=False)
    world.perform(a, a.paths.peer_candidates(b.id, (Endpoint("203.0.113.9", 9),), world.now))
    world.run_sending(a, b, 60.0, every=0.5, reply=False)
    probes = [at for at, effect in a.done if isinstance(effect, SendDatagram) and effect.endpoint.host == "203.0.113.9"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert max(gaps) <= c.PROBE_INTERVAL + 0.01
    assert probes[-1] > world.now - 2 * c.PROBE_INTERVAL


def test_relayed_with_traffic_a_new_attempt_begins_within_a_minute() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.SYMMETRIC)
    world.run_sending(a, b, 150.0, every=0.5)
    exchanges = [at for at, effect in a.done if isinstance(effect, SendCandidates)]
    assert len(exchanges) >= 3
    assert max(later - earlier for earlier, later in itertools.pairwise(exchanges)) <= c.ATTEMPT_INTERVAL + 0.1


def test_relay_that_comes_back_starts_an_attempt_at_once() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.SYMMETRIC)
    world.run_sending(a, b, 40.0, every=0.5)
    world.perform(a, a.paths.relay_connected(False, world.now))
    assert a.paths.route(b.id) == NOWHERE
    world.run_sending(a, b, 10.0, every=0.5, reply=False)
    since = world.now
    world.perform(a, a.paths.relay_connected(True, world.now))
    assert a.effects(SendCandidates, since)
    assert a.paths.route(b.id) == RELAY
    again = a.paths.relay_connected(True, world.now)
    assert [type(effect) for effect in again if not isinstance(effect, SendDatagram)] == [SendCandidates, SendRelayed], "what the old one took may be lost"


def test_better_path_found_later_is_taken_up_by_the_regular_look() -> None:
    world = World()
    a = world.add(Nat.OPEN)
    b = world.add(Nat.PORT_RESTRICTED)
    world.start()
    world.run_sending(a, b, 3.0)
    public = a.paths.route(b.id).endpoint
    near = Endpoint("10.9.9.9", 9)
    world.perform(a, a.paths.peer_candidates(b.id, (near,), world.now))
    b.site.mappings[(b.address, near)] = near
    world.hosts[b.id].site = Site(Nat.OPEN, "")
    b.address = near
    world.run_sending(a, b, 70.0, every=0.5)
    assert a.paths.route(b.id).endpoint == near != public


# --- losing a path ---


def meet(seconds: float = 5.0) -> tuple[World, Host, Host, int]:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED)
    sent = world.run_sending(a, b, seconds)
    assert a.paths.route(b.id).endpoint is not None
    return world, a, b, sent


def test_path_that_dies_while_sending_falls_back_within_a_second() -> None:
    world, a, b, sent = meet()
    cut_at = world.now
    a.site.cut = True
    sent += world.run_sending(a, b, 4.0, first=sent)
    back = min(at for at in a.relayed_data if at >= cut_at)
    assert back - cut_at <= 1.0
    assert set(range(sent)) - set(numbers(b)) <= set(range(100, 100 + 21))
    sent += world.run_sending(a, b, 6.0, first=sent)
    assert a.paths.route(b.id) == RELAY
    assert b.paths.route(a.id) == RELAY


def test_path_that_comes_back_is_used_again_and_duplicates_end() -> None:
    world, a, b, sent = meet()
    a.site.cut = True
    sent += world.run_sending(a, b, 3.0, first=sent)
    assert a.paths.route(b.id).relay
    a.site.cut = False
    sent += world.run_sending(a, b, 3.0, first=sent)
    assert a.paths.route(b.id).endpoint is not None
    assert not a.paths.route(b.id).relay
    since = len(b.delivered)
    world.run_sending(a, b, 3.0, first=sent)
    later = numbers(b)[since:]
    assert len(later) == len(set(later))


def test_path_dead_for_long_is_found_again_after_recovery() -> None:
    world, a, b, sent = meet()
    a.site.cut = True
    sent += world.run_sending(a, b, 20.0, first=sent, every=0.2)
    assert a.paths.route(b.id) == RELAY
    a.site.cut = False
    world.run_sending(a, b, 65.0, first=sent, every=0.2)
    assert a.paths.route(b.id).endpoint is not None


def test_path_in_doubt_without_relay_goes_on_then_is_lost() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED, relay=False)
    world.run_sending(a, b, 3.0)
    endpoint = a.paths.route(b.id).endpoint
    a.site.cut = True
    world.run_sending(a, b, 2.0)
    assert a.paths.route(b.id) == Route(endpoint, False)
    world.run_sending(a, b, 5.0)
    assert a.paths.route(b.id) == NOWHERE


def test_one_way_data_keeps_its_path_by_probes_alone() -> None:
    world, a, b, _ = meet()
    since = len(a.relayed_data)
    for _ in range(4):
        world.run_sending(a, b, 9.0, reply=False)
        world.send(b, a, 0)  # WireGuard's passive keepalive
    assert len(a.relayed_data) == since


def test_network_change_doubts_the_path_and_finds_the_new_one() -> None:
    world, a, b, sent = meet()
    old = b.paths.route(a.id).endpoint
    a.site = Site(Nat.PORT_RESTRICTED, "203.0.113.99")
    a.address = Endpoint("10.0.0.5", 40_001)
    world.perform(a, a.paths.network_changed(world.now, local=[a.address]))
    assert a.paths.route(b.id).relay
    moved = world.run_sending(a, b, 5.0, first=sent)
    new = b.paths.route(a.id).endpoint
    assert new is not None
    assert new.host == "203.0.113.99"
    assert new != old
    world.run(0.2)
    assert set(numbers(b)) == set(range(sent + moved))
    assert a.effects(PublishEndpoints)


def test_network_change_while_idle_sends_nothing_to_peers() -> None:
    world, a, _, _ = meet()
    world.run(60.0)
    since = world.now + 0.001
    world.run(0.01)
    world.perform(a, a.paths.network_changed(world.now))
    world.run(20.0)
    assert {effect.endpoint for effect in a.sent_since(since) if isinstance(effect, SendDatagram)} == {STUN_SERVER}


def test_network_change_of_a_quiet_direct_path_puts_it_to_sleep() -> None:
    world, a, b, _ = meet()
    a.paths.ping(b.id, world.now)
    world.run(c.IDLE_AFTER + 1.0)
    assert a.paths.route(b.id).endpoint is not None
    effects = a.paths.network_changed(world.now)
    assert any(isinstance(effect, PathChanged) for effect in effects)
    assert a.paths.route(b.id) == RELAY


def test_peer_that_moved_is_followed_through_its_probes() -> None:
    world, a, b, sent = meet()
    key = next(key for key in a.site.mappings)
    a.site.mappings[key] = Endpoint(a.site.public, 33_333)
    world.run_sending(a, b, 3.0, first=sent)
    assert b.paths.route(a.id).endpoint == Endpoint(a.site.public, 33_333)
    assert_data_only_to_proven(b)


def test_path_that_carries_no_data_is_left_for_the_relay() -> None:
    world, a, b, sent = meet()
    world.drop = lambda source, to, data: data.startswith(b"data")
    sent += world.run_sending(a, b, c.NO_DATA_AFTER + 3.0, every=0.2, first=sent, reply=False)
    assert a.paths.route(b.id) == RELAY
    assert "carries no data" in [effect.why for effect in a.effects(PathChanged) if isinstance(effect, PathChanged)][-1]
    world.run_sending(a, b, 20.0, every=0.2, first=sent, reply=False)
    assert a.paths.route(b.id) == RELAY
    world.drop = lambda source, to, data: False
    world.run_sending(a, b, 2 * c.HOLD_FIRST, every=0.2, first=sent)
    assert a.paths.route(b.id).endpoint is not None


# --- idle ---


def test_idle_direct_peers_fall_silent_and_wake_by_relay_then_direct() -> None:
    world, a, b, sent = meet()
    world.run(c.IDLE_AFTER + c.TRUST + 1.0)
    assert a.paths.report(b.id).path == "none"
    since = world.now
    world.run(600.0)
    assert a.sent_since(since) == []
    assert b.sent_since(since) == []
    assert a.paths.next_deadline() is None
    sent_again = world.run_sending(a, b, 3.0, first=sent)
    world.run(0.2)
    assert a.relayed_data[-1] >= since
    assert a.paths.route(b.id).endpoint is not None
    assert set(numbers(b)) == set(range(sent + sent_again))


def test_quiet_but_active_path_has_a_heartbeat_every_three_seconds() -> None:
    world, a, b, _ = meet()
    since = world.now + 5.0
    world.run(35.0)
    probes = [at for at, effect in a.done if at > since and isinstance(effect, SendDatagram) and effect.endpoint == a.paths.route(b.id).endpoint]
    gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert a.paths.route(b.id).endpoint is not None
    # its own pings, and its answers to the peer's, 3 s apart each
    assert len(probes) <= 2 * 35 / c.HEARTBEAT + 2
    assert max(gaps) <= c.HEARTBEAT + 0.1


def test_idle_peers_without_relay_wake_on_the_path_that_never_failed() -> None:
    world, a, b = pair(Nat.OPEN, Nat.OPEN, relay=False)
    world.run_sending(a, b, 2.0)
    world.run(120.0)
    assert a.paths.route(b.id) == Route(b.address, False)
    b.site.cut = True
    a.site.cut = True
    world.run_sending(a, b, 8.0)
    assert a.paths.route(b.id) == NOWHERE


def test_sleeping_path_that_does_not_answer_is_lost_with_a_relay_too() -> None:
    world, a, b, sent = meet()
    world.run(120.0)
    a.site.cut = True
    world.run_sending(a, b, 8.0, first=sent)
    assert a.paths.route(b.id) == RELAY


def test_stun_repeats_while_active_and_stops_when_idle() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.BLOCKED)
    began = world.now
    world.run_sending(a, b, 100.0, every=0.5)
    asked = [at for at, effect in a.done if isinstance(effect, SendDatagram) and effect.endpoint == STUN_SERVER and at > began]
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert all(c.STUN_INTERVAL_MIN <= gap <= c.STUN_INTERVAL_MAX + 0.01 for gap in gaps)
    assert len(asked) >= 3
    world.run(200.0)
    assert len([at for at, effect in a.done if isinstance(effect, SendDatagram) and effect.endpoint == STUN_SERVER]) <= len(asked) + 1 + 3
    since = world.now
    world.send(a, b, 0)
    assert a.effects(SendDatagram, since)
    assert a.paths.reflexive() == (Endpoint(a.site.public, 20_001),)
    assert a.paths.mapping() == "unknown"


def test_server_that_names_other_stun_servers_all_the_time_makes_the_node_ask_a_bounded_number() -> None:
    world, a, _ = pair(Nat.PORT_RESTRICTED, Nat.OPEN)
    world.run(10.0)
    since = world.now + 0.001
    world.run(0.01)
    for number in range(200):
        world.perform(a, a.paths.set_stun_servers([Endpoint("192.0.2.1", 1 + number)], world.now))
        world.run(0.1)
    sent = [effect.endpoint for effect in a.effects(SendDatagram, since) if isinstance(effect, SendDatagram)]
    assert len(sent) <= (20.0 / c.STUN_GAP + 1) * len(c.STUN_RETRANSMITS)
    world.perform(a, a.paths.set_stun_servers([STUN_SERVER], world.now))
    world.run(c.STUN_GAP + 1.0)
    assert a.paths.reflexive() == (Endpoint(a.site.public, 20_001),)


def test_endpoint_that_no_server_sees_any_more_is_published_no_more() -> None:
    world, a, _ = pair(Nat.PORT_RESTRICTED, Nat.OPEN)
    world.run(10.0)
    world.perform(a, a.paths.set_stun_servers([Endpoint("192.0.2.1", 1)], world.now))
    world.run(10.0)
    assert a.paths.reflexive() == ()
    assert a.effects(PublishEndpoints)[-1] == PublishEndpoints((a.address,))


# --- ping, report ---


def test_ping_first_by_relay_then_direct() -> None:
    world, a, b = pair(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED)
    first, effects = a.paths.ping(b.id, world.now)
    world.perform(a, effects)
    world.run(3.0)
    second, effects = a.paths.ping(b.id, world.now)
    world.perform(a, effects)
    world.run(1.0)
    pongs = [effect for effect in a.effects(PongReceived) if isinstance(effect, PongReceived)]
    assert [pong.token for pong in pongs] == [first, second]
    assert pongs[0].via == Source(None, b.id)
    assert pongs[1].via == Source(a.paths.route(b.id).endpoint, None)
    assert pongs[0].rtt_s == pytest.approx(0.06)
    assert pongs[1].rtt_s == pytest.approx(0.04)
    report = a.paths.report(b.id)
    assert (report.path, report.endpoint) == ("direct", a.paths.route(b.id).endpoint)
    assert report.rtt_s == pytest.approx(0.04)
    assert report.endpoint in report.candidates


def test_pings_for_long_without_data_do_not_make_the_path_look_dead() -> None:
    world, a, b, _ = meet()
    for _ in range(60):
        world.perform(a, a.paths.ping(b.id, world.now)[1])
        world.run(1.0)
    assert a.paths.route(b.id).endpoint is not None


def test_ping_nobody_raises() -> None:
    world, a, _ = pair(Nat.OPEN, Nat.OPEN)
    with pytest.raises(NotFoundError):
        a.paths.ping(NodeId(99), world.now)
    assert a.paths.route(NodeId(99)) == NOWHERE
    assert a.paths.report(NodeId(99)).path == "none"
    assert a.paths.handshake_targets(NodeId(99), world.now) == ()
    assert a.paths.data_sent(NodeId(99), world.now) == []
    assert a.paths.data_received(NodeId(99), Source(STUN_SERVER), world.now) == []
    assert a.paths.peer_candidates(NodeId(99), (STUN_SERVER,), world.now) == []


# --- the table of peers ---


def test_renewed_keys_do_not_disturb_a_path() -> None:
    world, a, b, sent = meet()
    changes = len(b.effects(PathChanged)) + len(a.effects(PathChanged))
    old = a.node_key
    a.node_key, a.discovery = PrivateKey.generate(world.random.randbytes), PrivateKey.generate(world.random.randbytes)
    a.paths.set_identity(a.node_key.public, a.discovery)
    sent += world.run_sending(a, b, 1.0, first=sent)
    renewed = world.peer(a)
    with_previous = Peer(
        id=a.id,
        name="a",
        node_key=renewed.node_key,
        addresses=(),
        previous_node_key=NodeKey(old.public),
        discovery_key=renewed.discovery_key,
    )
    world.perform(b, b.paths.set_peers([with_previous], world.now))
    world.run_sending(a, b, 20.0, every=0.5, first=sent)
    world.run(20.0)
    assert len(b.effects(PathChanged)) + len(a.effects(PathChanged)) == changes


def test_peer_removed_is_forgotten_and_its_probes_ignored() -> None:
    world, a, b, _ = meet()
    world.perform(b, b.paths.set_peers([], world.now))
    assert b.paths.route(a.id) == NOWHERE
    since = world.now
    world.run_sending(a, b, 2.0, reply=False)
    assert not b.sent_since(since)
    assert b.paths.next_deadline() is None or b.paths.on_timer(world.now + 100.0) is not None


def test_new_endpoints_in_a_netmap_are_tried_while_data_flows() -> None:
    world, a, b = pair(Nat.OPEN, Nat.OPEN, control=False)
    world.hosts[b.id].relay = False
    world.run_sending(a, b, 1.0, reply=False)
    since = world.now
    world.perform(a, a.paths.set_peers([world.peer(b, (b.address,))], world.now))
    assert a.effects(SendDatagram, since)
    world.run(2.2)
    assert a.paths.route(b.id) == Route(b.address, False)


def test_peer_without_discovery_key_stays_on_the_relay() -> None:
    world = World()
    a = world.add(Nat.OPEN)
    peer = Peer(id=NodeId(2), name="old", node_key=NodeKey(bytes(32)), addresses=(), endpoints=(Endpoint("203.0.113.2", 2),))
    world.hosts[NodeId(2)] = world.add(Nat.BLOCKED)
    a.paths.set_peers([peer], world.now)
    a.paths.relay_connected(True, world.now)
    effects = a.paths.data_sent(NodeId(2), world.now)
    assert all(isinstance(effect, SendCandidates) for effect in effects)
    assert a.paths.route(NodeId(2)) == RELAY
    assert a.paths.ping(NodeId(2), world.now)[1] == []


def test_wireguard_peer_is_at_its_endpoint_until_authenticated_packets_move_it() -> None:
    world = World()
    a = world.add(Nat.OPEN)
    home, away = Endpoint("127.0.0.1", 51_820), Endpoint("127.0.0.1", 51_821)
    peer = Peer(id=NodeId(9), name="wg", node_key=NodeKey(bytes(32)), addresses=(), endpoints=(home,), kind=PeerKind.WIREGUARD)
    silent = Peer(id=NodeId(8), name="silent", node_key=NodeKey(bytes(32)), addresses=(), kind=PeerKind.WIREGUARD)
    assert a.paths.set_peers([peer, silent], world.now) == []
    assert (a.paths.route(NodeId(9)), a.paths.route(NodeId(8))) == (Route(home, False), NOWHERE)
    assert a.paths.data_sent(NodeId(9), world.now) == []
    assert a.paths.next_deadline() is None
    assert a.paths.data_received(NodeId(9), Source(home), world.now) == []
    assert a.paths.data_received(NodeId(9), Source(away), world.now) == [PathChanged(NodeId(9), Route(home, False), Route(away, False), "the peer moved")]
    a.paths.set_peers([peer, silent], world.now)
    assert a.paths.route(NodeId(9)) == Route(away, False)
    assert a.paths.report(NodeId(9)).path == "direct"
    with pytest.raises(InvalidError):
        a.paths.ping(NodeId(9), world.now)
    a.paths.set_peers([], world.now)
    assert a.paths.route(NodeId(9)) == NOWHERE


def test_wireguard_peer_is_not_at_port_0() -> None:
    world, a, _ = pair(Nat.OPEN, Nat.OPEN)
    where = Endpoint("198.51.100.20", 51820)
    stock = Peer(NodeId(9), "stock", NodeKey(bytes(32)), (), kind=PeerKind.WIREGUARD, endpoints=(where,))
    a.paths.set_peers([stock], world.now)
    assert a.paths.data_received(stock.id, Source(Endpoint("198.51.100.21", 0)), world.now) == []
    assert a.paths.route(stock.id) == Route(where, False)


def test_peer_that_becomes_a_stock_one_and_back_has_the_route_of_its_kind() -> None:
    world, a, b = pair(Nat.OPEN, Nat.OPEN)
    world.run_sending(a, b, 2.0)
    where = Endpoint("198.51.100.20", 51820)
    stock = replace(world.peer(b), kind=PeerKind.WIREGUARD, endpoints=(where,))
    a.paths.set_peers([stock], world.now)
    assert a.paths.route(b.id) == Route(where, False)
    a.paths.set_peers([world.peer(b)], world.now)
    assert a.paths.route(b.id) == RELAY


def test_own_endpoints_are_published_once_and_without_overlay_addresses() -> None:
    world = World()
    a = world.add(Nat.OPEN)
    a.paths.set_overlay([ip_network("100.70.0.0/24")])
    endpoints = [Endpoint("10.0.0.1", 5), Endpoint("100.70.0.1", 5), Endpoint("127.0.0.1", 5), Endpoint("2001:db8::1", 5)]
    effects = a.paths.set_local_endpoints(endpoints, world.now)
    assert effects == [PublishEndpoints((Endpoint("10.0.0.1", 5), Endpoint("2001:db8::1", 5)))]
    assert a.paths.set_local_endpoints(endpoints, world.now) == []


def test_new_own_endpoints_are_told_to_peers_in_use() -> None:
    world, a, b, _ = meet()
    since = world.now
    world.perform(a, a.paths.set_local_endpoints([a.address, Endpoint("10.7.7.7", 7)], world.now))
    told = [effect for effect in a.effects(SendCandidates, since) if isinstance(effect, SendCandidates)]
    assert Endpoint("10.7.7.7", 7) in told[-1].endpoints
    assert told[-1].peer == b.id
    world.run(200.0)
    since = world.now
    world.perform(a, a.paths.set_local_endpoints([a.address], world.now))
    assert not a.effects(SendCandidates, since)


def test_overlay_prefix_that_grows_drops_candidates_inside() -> None:
    world = World()
    a, b = world.add(Nat.OPEN), world.add(Nat.OPEN)
    a.paths.set_peers([world.peer(b, (Endpoint("100.71.0.5", 1), Endpoint("192.0.2.5", 1)))], world.now)
    a.paths.set_overlay([ip_network("100.64.0.0/10")])
    assert a.paths.handshake_targets(b.id, world.now) == (Endpoint("192.0.2.5", 1),)


# --- whatever happens ---


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_order_of_events_raises_nothing_and_sends_data_to_proven_endpoints_alone(data: st.DataObject) -> None:
    world = World(data.draw(st.integers(0, 5)))
    nats = st.sampled_from(list(Nat))
    a, b = world.add(data.draw(nats)), world.add(data.draw(nats))
    world.start()
    where = Endpoint(str(ip_address(0xC0000200 + 7)), 7)
    both = (a, b)
    events: dict[str, Callable[[Host, Host], object]] = {
        "send": lambda host, other: world.send(host, other, 1),
        "burst": lambda host, other: world.run_sending(host, other, 1.0, every=0.1),
        "short": lambda host, other: world.run(0.3),
        "long": lambda host, other: world.run(10.0),
        "idle": lambda host, other: world.run(70.0),
        "cut": lambda host, other: setattr(host.site, "cut", not host.site.cut),
        "relay off": lambda host, other: world.perform(host, host.paths.relay_connected(False, world.now)),
        "relay on": lambda host, other: world.perform(host, host.paths.relay_connected(True, world.now)),
        "network": lambda host, other: world.perform(host, host.paths.network_changed(world.now)),
        "candidates": lambda host, other: world.perform(host, host.paths.peer_candidates(other.id, (where, other.address), world.now)),
        "from elsewhere": lambda host, other: world.perform(host, host.paths.data_received(other.id, Source(where), world.now)),
        "by relay": lambda host, other: world.perform(host, host.paths.data_received(other.id, Source(None, other.id), world.now)),
        "junk": lambda host, other: world.perform(host, host.paths.receive_probe(bytes(200), Source(where), world.now)),
        "ping": lambda host, other: world.perform(host, host.paths.ping(other.id, world.now)[1]),
        "peers": lambda host, other: world.perform(host, host.paths.set_peers([world.peer(other, (where,))], world.now)),
        "way": lambda host, other: world.perform(host, host.paths.set_ways({other.id: data.draw(st.sampled_from(Way))}, world.now)),
        "early": lambda host, other: world.perform(host, host.paths.on_timer(world.now)),
    }
    for name in data.draw(st.lists(st.sampled_from(sorted(events)), max_size=25)):
        position = data.draw(st.integers(0, 1))
        event = events[name]
        event(both[position], both[1 - position])
        for host, other in (both, both[::-1]):
            (way, route), told = (host.paths.view(other.id, world.now).way, host.paths.route(other.id)), host.effects(PathChanged)
            assert not (way is Way.DIRECT and route.relay)
            assert not (way is Way.RELAY and route.endpoint is not None)
            assert route.endpoint == (told[-1].new.endpoint if told and isinstance(told[-1], PathChanged) else None)
    for host in both:
        assert_data_only_to_proven(host)
        assert where not in {endpoint for _, endpoint in host.data_to}


def test_thousands_of_peers_cost_nothing_while_idle() -> None:
    world = World()
    a = world.add(Nat.OPEN)
    one = DiscoveryKey(PrivateKey.generate(world.random.randbytes).public)
    peers = [Peer(id=NodeId(n), name=str(n), node_key=NodeKey(n.to_bytes(32, "big")), addresses=(), discovery_key=one) for n in range(2, 3_000)]
    assert a.paths.set_peers(peers, world.now) == []
    assert a.paths.relay_connected(True, world.now) == []
    assert a.paths.next_deadline() is None
    assert a.paths.route(NodeId(7)) == RELAY
