"""The data path on in-memory TUN and network, in virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from ipaddress import ip_network

import pytest

from calnet.errors import TimedOutError, UnreachableError
from calnet.host.memory import Weather
from calnet.host.receiving import Received
from calnet.host.tun import Offloads
from calnet.model import Endpoint, FilterRule, NodeId, PeerKind, PortRange, Source
from calnet.paths.effects import PathChanged, PongReceived, PublishEndpoints, Route, SendCandidates, SendDatagram, SendRelayed, describe_route
from calnet.roles.node.datapath import REUSE_S
from calnet.roles.node.outgoing import ERRORS_PER_SECOND
from calnet.roles.node.ports import LEFT_S
from calnet.roles.node.reading import READ_BATCH
from calnet.roles.node.waiting import QUEUE_PACKETS
from tests.ip_packets import V4, as_kernel_gives, cut, icmp_echo, is_sound, tcp, udp
from tests.roles.node.datapath_world import EVERYWHERE, Scripted, World, ends, give, play

PLAIN = Offloads(vnet_header=False)


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("offloads", [None, PLAIN])
def test_first_packets_wait_for_the_handshake_and_all_arrive_in_order(six: bool, offloads: Offloads | None) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(offloads=offloads)
        sent = [udp(bytes((k,)) * (k + 1), ends(1, 2, six=six), ident=k) for k in range(20)] + [icmp_echo(ends(1, 2, six=six))]
        for packet in sent:
            give(one, packet)
        await world.passes()
        assert two.packets() == sent
        back = tcp(b"reply", ends(2, 1, six=six))
        give(two, back)
        await world.passes()
        assert one.packets() == [back]
        assert one.path.dropped == two.path.dropped == 0
        status = one.path.peer_status(two.id)
        assert (status.path, status.endpoint) == ("direct", two.endpoint)
        assert status.last_handshake_at is not None
        assert status.tx_bytes > 0 < status.rx_bytes
        assert [sent for _, _, sent in one.stamps] == [True]
        assert [sent for _, _, sent in two.stamps] == [False]

    play(scene)


@pytest.mark.parametrize("six", [False, True])
def test_super_packets_cross_whole_and_as_one_write(six: bool) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        packet = tcp(random.Random(1).randbytes(50_000), ends(1, 2, six=six), flags=0x18)
        give(one, packet, 1208)
        await world.passes()
        assert two.packets() == cut(packet, 1208)
        give(one, packet, 1208)
        await world.passes()
        assert len(two.tun.delivered) == 1
        assert two.packets() == cut(packet, 1208)

    play(scene)


def test_both_speak_at_once_and_nothing_is_lost() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        for k in range(50):
            give(one, udp(b"a%d" % k, ends(1, 2)))
            give(two, udp(b"b%d" % k, ends(2, 1)))
        await world.passes(12)
        assert len(one.packets()) == len(two.packets()) == 50

    play(scene)


def test_lossy_network_delivers_each_packet_at_most_once() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        sent = []
        for k in range(300):
            packet = udp(k.to_bytes(4, "big") * 5, ends(1, 2), ident=k)
            sent.append(packet)
            give(one, packet)
            if k % 7 == 0:
                await world.passes(0.5)
        await world.passes(20)
        got = [packet[20:] for packet in two.packets()]
        assert len(got) == len(set(got))
        assert set(got) <= {packet[20:] for packet in sent}
        assert len(got) > 100

    play(scene, Weather(loss=0.1, duplicate=0.2, reorder=0.2, latency_s=0.01))


def test_queue_keeps_the_newest() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        world.network.blocked = lambda source, target: True
        sent = [udp(k.to_bytes(2, "big"), ends(1, 2), ident=k) for k in range(QUEUE_PACKETS + 40)]
        for packet in sent:
            give(one, packet)
        await world.passes(2)
        world.network.blocked = lambda source, target: False
        await world.passes(10)
        assert two.packets() == sent[40:]
        assert one.path.dropped == 40

    play(scene)


def test_queue_is_bounded_in_bytes_too_and_goes_with_the_handshake() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair()
        world.network.blocked = lambda source, target: True
        for _ in range(10):
            give(one, tcp(b"x" * 50_000, ends(1, 2)), 1228)
        await world.passes(1)
        assert one.path.dropped == 5
        await world.passes(120)
        assert one.path.dropped == 10

    play(scene)


def test_packet_for_nobody_is_answered_unreachable_and_not_too_often() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair()
        give(one, udp(b"x", ends(1, 9)))
        give(one, tcp(b"x", ends(1, 9, six=True)))
        await world.passes()
        answers = one.packets()
        assert [answer[20] if answer[0] >> 4 == 4 else answer[40] for answer in answers] == [3, 1]
        assert all(is_sound(answer) for answer in answers)
        await world.passes(1.5)
        for _ in range(2 * ERRORS_PER_SECOND):
            give(one, udp(b"x", ends(1, 9)))
        await world.passes(0.1)
        assert len(one.packets()) == ERRORS_PER_SECOND

    play(scene)


def test_plain_tun_gets_the_unreachable_without_a_header() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair(offloads=PLAIN)
        give(one, udp(b"x", ends(1, 9)))
        await world.passes()
        assert one.packets()[0][20] == 3

    play(scene)


@pytest.mark.parametrize("source", ["192.168.7.7", "10.77.0.2", "127.0.0.1"])
def test_packet_from_a_source_that_is_not_ours_does_not_leave(source: str) -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair()
        give(one, udp(b"x", (source, "10.77.0.2")))
        await world.passes()
        assert world.network.carried == 0
        assert one.path.dropped == 1

    play(scene)


def test_routed_prefixes_pass_where_they_are_accepted() -> None:
    async def scene(world: World) -> None:
        one, two = world.node(1), world.node(2)
        lan = ("10.77.0.1", "192.168.5.9")
        router = replace(two.as_peer(), routes=(ip_network("192.168.5.0/24"),))
        one.knows(router, accept_routes=True)
        two.knows(one.as_peer(), routes=("192.168.5.0/24",))
        give(one, udp(b"to the lan", lan))
        await world.passes()
        assert two.packets() == [udp(b"to the lan", lan)]
        give(two, udp(b"back", lan[::-1], ports=(2000, 1000)))
        await world.passes()
        assert one.packets() == [udp(b"back", lan[::-1], ports=(2000, 1000))]
        one.knows(router, accept_routes=False)
        give(two, udp(b"back", lan[::-1], ports=(2000, 1000)))
        give(one, udp(b"to the lan", lan))
        await world.passes()
        assert two.packets() == []
        assert [packet[9] for packet in one.packets()] == [1]

    play(scene)


def test_filter_holds_back_what_no_rule_allows_and_lets_replies_in() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        one.knows(two.as_peer(), rules=())
        two.knows(one.as_peer(), rules=(FilterRule(EVERYWHERE, EVERYWHERE, (17,), (PortRange(2000, 2000),)),))
        for port in (2000, 2001):
            give(one, udp(b"x", ends(1, 2), ports=(1000, port)))
        await world.passes()
        assert two.packets() == [udp(b"x", ends(1, 2), ports=(1000, 2000))]
        give(two, udp(b"reply", ends(2, 1), ports=(2000, 1000)))
        give(two, udp(b"new", ends(2, 1), ports=(2000, 1001)))
        await world.passes()
        assert one.packets() == [udp(b"reply", ends(2, 1), ports=(2000, 1000))]

    play(scene)


@pytest.mark.parametrize("six", [False, True])
def test_filter_changed_within_a_flow_holds_for_its_next_packet(six: bool) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        two.knows(one.as_peer(), rules=(FilterRule(EVERYWHERE, EVERYWHERE, (17,)),))
        packet = udp(b"x", ends(1, 2, six=six), ports=(1000, 2000))
        give(one, packet)
        await world.passes()
        give(one, packet)
        await world.passes(REUSE_S / 10)
        assert two.packets() == [packet] * 2
        two.knows(one.as_peer(), rules=())
        give(one, packet)
        await world.passes(REUSE_S / 10)
        assert two.packets() == []

    play(scene)


@pytest.mark.parametrize("six", [False, True])
def test_verdict_for_a_flow_is_not_anothers_of_the_same_addresses_and_ports(six: bool) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        two.knows(one.as_peer(), rules=(FilterRule(EVERYWHERE, EVERYWHERE, (17,)),))
        allowed, refused = udp(b"x", ends(1, 2, six=six), ports=(1000, 2000)), tcp(b"x", ends(1, 2, six=six), ports=(1000, 2000))
        for packet in (allowed, refused, allowed, refused, refused, allowed):
            give(one, packet)
        await world.passes()
        assert two.packets() == [allowed] * 3

    play(scene)


@pytest.mark.parametrize("six", [False, True])
def test_flow_that_rules_no_longer_accept_ends_in_both_directions(six: bool) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        two.knows(one.as_peer(), rules=(FilterRule(EVERYWHERE, EVERYWHERE, (6,)),))
        there, back = tcp(b"x", ends(1, 2, six=six), ports=(1000, 22)), tcp(b"y", ends(2, 1, six=six), ports=(22, 1000))
        give(one, there)
        await world.passes()
        give(two, back)
        await world.passes()
        assert (two.packets(), one.packets()) == ([there], [back])
        two.knows(one.as_peer(), rules=())
        for _ in range(3):
            give(one, there)
            give(two, back)
        await world.passes()
        assert (two.packets(), one.packets()) == ([], [])

    play(scene)


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("offloads", [None, PLAIN])
def test_refused_packets_are_answered_where_the_network_rejects(six: bool, offloads: Offloads | None) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(offloads=offloads)
        two.knows(one.as_peer(), rules=(), reject=True)
        for packet in (tcp(b"", ends(1, 2, six=six), ports=(1000, 22), flags=2), udp(b"x", ends(1, 2, six=six), ports=(1000, 53))):
            give(one, packet)
        await world.passes()
        reset, prohibited = one.packets()
        start = 40 if six else 20
        assert (reset[start : start + 4], reset[start + 13]) == (b"\0\x16\x03\xe8", 0x14)
        assert prohibited[start : start + 2] == (b"\x01\x01" if six else b"\x03\x0d")
        assert is_sound(reset)
        assert is_sound(prohibited)
        assert two.packets() == []
        give(one, tcp(b"", ends(1, 2, six=six), ports=(1000, 22), flags=2))
        await world.passes()
        assert len(one.packets()) == 1
        assert two.packets() == []

    play(scene)


@pytest.mark.parametrize("offloads", [None, PLAIN])
def test_host_that_goes_on_in_a_forbidden_flow_is_reset_where_the_network_rejects(offloads: Offloads | None) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(offloads=offloads)
        two.knows(one.as_peer(), rules=(FilterRule(EVERYWHERE, EVERYWHERE, (6,)),), reject=True)
        give(one, tcp(b"x", ends(1, 2), ports=(1000, 22)))
        await world.passes()
        two.packets()
        two.knows(one.as_peer(), rules=(), reject=True)
        give(two, tcp(b"y", ends(2, 1), ports=(22, 1000), acknowledged=7))
        await world.passes()
        (reset,) = two.packets()
        assert (reset[20:28], reset[33]) == (b"\x03\xe8\0\x16\0\0\0\x07", 4)
        assert one.packets() == []

    play(scene)


def test_session_is_renewed_and_survives_hours() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        count = 0
        for minute in range(40):
            give(one, udp(minute.to_bytes(2, "big"), ends(1, 2)))
            await world.passes(29)
            count += len(two.packets())
        assert count == 40
        assert len(one.stamps) > 5

    play(scene)


def test_relay_carries_the_handshake_and_data() -> None:
    async def scene(world: World) -> None:
        one, two = world.relayed_pair()
        packet = tcp(b"x" * 20_000, ends(1, 2))
        give(one, packet, 1228)
        await world.passes(1)
        assert two.packets() == cut(packet, 1228)
        assert one.path.peer_status(two.id).path == "relay"
        give(two, udp(b"back", ends(2, 1)))
        await world.passes(1)
        assert one.packets() == [udp(b"back", ends(2, 1))]

    play(scene)


def test_what_one_node_sends_and_what_its_peer_gets_are_counted_alike_by_the_way_it_goes() -> None:
    async def scene(world: World) -> None:
        one, two = world.relayed_pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(1)
        before = two.paths._deliveries[one.id].got_relayed
        assert before == one.paths._deliveries[two.id].sent_relayed > 0
        give(one, tcp(b"x" * 20_000, ends(1, 2)), 1228)
        await world.passes(1)
        sent, got = one.paths._deliveries[two.id], two.paths._deliveries[one.id]
        assert got.got_relayed == sent.sent_relayed >= before + 20_000
        assert (got.got_direct, sent.sent_direct) == (0, 0)
        for node, peer in ((one, two), (two, one)):
            node.path.candidates(peer.id, [peer.endpoint])
        await world.passes(2)
        assert one.path.peer_status(two.id).path == "direct"
        give(one, tcp(b"x" * 20_000, ends(1, 2)), 1228)
        await world.passes(1)
        assert got.got_direct == sent.sent_direct >= 20_000
        assert sent.sent_direct + sent.sent_relayed == one.path.peer_status(two.id).tx_bytes

    play(scene)


def test_relayed_datagram_under_another_peers_name_is_dropped() -> None:
    async def scene(world: World) -> None:
        one, two = world.relayed_pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(1)
        two.packets()
        session = one.tunnel.peer(two.id).current  # type: ignore[union-attr]
        assert session is not None
        datagram = session.seal(udp(b"y", ends(1, 2)))
        two.path.relayed(NodeId(7), [datagram])
        assert two.packets() == []
        two.path.relayed(one.id, [datagram])
        assert two.packets() == [udp(b"y", ends(1, 2))]
        two.path.relayed(one.id, [b""])
        two.path.relayed(one.id, [bytes(70_000)])
        two.path.relayed(one.id, [b"\0\1\0\0\x21\x12\xa4\x42" + bytes(20)])
        assert two.path.dropped == 4

    play(scene)


def test_route_with_endpoint_and_relay_sends_both_and_delivers_once() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(paths=Scripted)
        for node, peer in ((one, two), (two, one)):
            node.paths.where = Route(peer.endpoint, True)
        packet = tcp(b"x" * 20_000, ends(1, 2))
        give(one, packet, 1228)
        await world.passes(1)
        give(one, packet, 1228)
        await world.passes(1)
        assert two.packets() == cut(packet, 1228) * 2
        assert one.relayed > 30

    play(scene)


def test_other_port_is_used_at_once_and_what_still_comes_to_the_old_one_is_taken_for_a_moment() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(paths=Scripted)
        for node, peer in ((one, two), (two, one)):
            node.paths.where = Route(peer.endpoint, False)
        give(one, udp(b"1", ends(1, 2)))
        await world.passes(1)
        two.packets()
        old = one.udp
        one.path.change_port()
        assert one.path.port != old.port
        two.paths.calls.clear()
        give(one, udp(b"2", ends(1, 2)))
        give(two, udp(b"3", ends(2, 1)))  # to the old port: nobody has told it
        await world.passes(1)
        assert two.packets() == [udp(b"2", ends(1, 2))]
        sources = {call[2].endpoint for call in two.paths.calls if call[0] == "data_received"}
        assert sources == {Endpoint("192.0.2.1", one.path.port)}
        assert one.packets() == [udp(b"3", ends(2, 1))]
        one.paths.calls.clear()
        two.udp.send(one.endpoint, b"\xca\x17" + bytes(60), 62)
        await world.passes(1)
        assert not [call for call in one.paths.calls if call[0] == "receive_probe"], "the answer would come from elsewhere"
        await world.passes(LEFT_S)
        assert old not in world.network._ports.values()
        give(two, udp(b"4", ends(2, 1)))
        await world.passes(1)
        assert one.packets() == []

    play(scene)


def test_port_stays_where_no_other_can_be_had_and_all_are_closed_at_the_end() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair()
        first = one.udp
        one.path.change_port()
        port = one.path.port
        one.path._ports._more = None
        one.path.change_port()
        assert one.path.port == port
        second = one.path._ports.udp
        one.path.close()
        assert not {first, second} & set(world.network._ports.values())

    play(scene)


def test_calls_of_the_daemon_reach_the_paths() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair(paths=Scripted)
        scripted = one.paths
        scripted.calls.clear()
        here = Endpoint("192.0.2.77", 5)
        one.path.local_endpoints([here])
        one.path.network_changed([here])
        one.path.stun_servers([here])
        one.path.candidates(NodeId(2), [here])
        one.path.relay_connected(True)
        names = [call[0] for call in scripted.calls]
        assert names == ["set_local_endpoints", "network_changed", "set_stun_servers", "peer_candidates", "relay_connected"]
        assert scripted.calls[3][1:3] == (2, (here,))
        stun = b"\1\1\0\0\x21\x12\xa4\x42" + bytes(12)
        scripted.calls.clear()
        sender = world.network.open(("192.0.2.50",))
        for datagram in (stun, b"\xca\x17" + bytes(60), b"\1" + bytes(147), b"junk"):
            sender.send(one.endpoint, datagram, len(datagram))
        await world.passes()
        source = Source(Endpoint("192.0.2.50", sender.port))
        assert [call[:3] for call in scripted.calls] == [("receive_stun", stun, source.endpoint), ("receive_probe", b"\xca\x17" + bytes(60), source)]

    play(scene)


def test_what_paths_want_is_done_in_order() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(paths=Scripted)
        listener = world.network.open(("192.0.2.60",))
        scripted = one.paths
        here = Endpoint("192.0.2.60", listener.port)
        pong = PongReceived(two.id, 5, Source(here), 0.02)
        scripted.answer = [
            SendDatagram(here, b"probe"),
            SendRelayed(two.id, b"\xca\x17relayed"),
            SendCandidates(two.id, (here,)),
            PublishEndpoints((here,)),
            PathChanged(two.id, Route(None, True), Route(here, False), "it answers"),
            PongReceived(two.id, 99, Source(here), 0.5),
            pong,
            pong,
        ]
        answer = await one.path.ping(two.id, 1.0)
        assert (answer.via, answer.endpoint, answer.rtt_s) == ("direct", here, 0.02)
        assert one.changes == [f"direct {here} (it answers)"]
        assert one.published == [(here,)]
        assert one.relayed == 1
        scripted.answer = [PongReceived(two.id, 5, Source(None, two.id), 0.03)]
        assert (await one.path.ping(two.id, 1.0)).via == "relay"
        scripted.answer = []
        with pytest.raises(TimedOutError):
            await one.path.ping(two.id, 1.0)
        waiting = asyncio.ensure_future(one.path.ping(two.id, 100.0))
        await world.passes(0.1)
        one.path.close()
        with pytest.raises(UnreachableError):
            await waiting

    play(scene)


def test_stamp_that_cannot_be_kept_stops_the_handshake_and_is_told() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        one.disk_full = True
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(1)
        assert world.network.carried == 0
        assert "full" in one.healths["stamps"]
        one.disk_full, two.disk_full = False, True
        await world.passes(8)
        assert world.network.carried >= 1
        assert two.packets() == []
        two.disk_full = False
        await world.passes(20)
        assert two.packets() == [udp(b"x", ends(1, 2))]

    play(scene)


def test_other_preshared_key_is_told_after_three_refusals_and_cleared_by_success() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        one.knows(two.as_peer(preshared_key=b"p" * 32))
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(30)
        assert "pre-shared" in one.healths["handshake-rejected-2"]
        assert two.packets() == []
        one.knows(two.as_peer())
        give(one, udp(b"y", ends(1, 2)))
        await world.passes(30)
        assert two.packets()[-1] == udp(b"y", ends(1, 2))
        assert one.healths == {}

    play(scene)


def test_clock_of_a_peer_far_ahead_is_told() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        one.clock_ahead = 3600.0
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(3)
        assert "3600 s ahead" in two.healths["peer-clock-1"]

    play(scene)


def test_receiver_that_is_silent_sends_a_keepalive() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(1)
        before = one.path.peer_status(two.id).rx_bytes
        await world.passes(12)
        assert one.path.peer_status(two.id).rx_bytes == before + 32

    play(scene)


def test_answering_side_alone_gets_the_initiators_confirmation() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        one.knows(two.as_peer(keepalive_s=5))
        await world.passes(8)
        assert two.tunnel.peer(one.id).current is not None  # type: ignore[union-attr]
        give(two, udp(b"from the responder", ends(2, 1)))
        await world.passes(1)
        assert one.packets() == [udp(b"from the responder", ends(2, 1))]

    play(scene)


def test_peer_that_leaves_the_netmap_gets_and_sends_nothing_more() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes()
        two.packets()
        two.knows()
        give(one, udp(b"y", ends(1, 2)))
        give(two, udp(b"z", ends(2, 1)))
        await world.passes()
        assert one.packets() == []
        assert [packet[9] for packet in two.packets()] == [1]
        assert two.path.peer_status(one.id).path == "none"

    play(scene)


def test_tun_that_is_gone_is_told_once() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair()
        one.tun.close()
        one.tun.inject(b"wakes the reader")
        await world.passes()
        assert "gone" in one.healths["tun-gone"]

    play(scene)


def test_full_socket_holds_the_tun_back_and_loses_nothing() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes()
        two.packets()
        real, refusals = one.udp.send, [0]

        def full(endpoint: Endpoint, datagrams: bytes, segment: int) -> bool:
            refusals[0] += 1
            return refusals[0] % 3 != 1 and real(endpoint, datagrams, segment)

        one.udp.send = full  # type: ignore[method-assign,assignment]
        sent = [udp(k.to_bytes(2, "big") * (k + 1), ends(1, 2), ident=k) for k in range(3 * READ_BATCH)]
        for packet in sent:
            give(one, packet)
        await world.passes(1)
        assert two.packets() == sent
        assert one.path.dropped == 0
        assert refusals[0] > 20

    play(scene)


def test_socket_that_is_never_dry_has_its_turns_one_at_a_time() -> None:
    """Else each turn of the loop would have one more of them than the last."""

    async def scene(world: World) -> None:
        one, _ = world.pair()
        calls: list[float] = []

        def receive(buffer: memoryview) -> Received | None:
            calls.append(0.0)
            if len(calls) > 64 * 100:
                return None
            buffer[:4] = b"junk"
            return Received(4, 4, one.endpoint)

        turns = 0
        while len(calls) <= 64 * 100:
            before = len(calls)
            one.path._on_udp(0, receive)  # as the reader, whose socket is readable still
            await asyncio.sleep(0)
            assert len(calls) - before <= 2 * 64 + 1
            turns += 1
        assert turns >= 50

    play(scene)


def test_session_without_counters_costs_its_packets_alone() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"first", ends(1, 2)))
        await world.passes()
        session = one.tunnel.peer(two.id).current  # type: ignore[union-attr]
        assert session is not None
        session.send_counter = session.reject_after - 1
        give(one, tcp(bytes(5000), ends(1, 2)), 1000)
        await world.passes()
        assert one.path.dropped == 5
        give(one, udp(b"last", ends(1, 2)))
        await world.passes()
        assert two.packets() == [udp(b"first", ends(1, 2)), udp(b"last", ends(1, 2))]

    play(scene)


def test_more_than_one_batch_waits_its_turn_and_arrives() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"first", ends(1, 2)))
        await world.passes()
        for k in range(5 * READ_BATCH):
            give(one, udp(k.to_bytes(2, "big"), ends(1, 2), ident=k))
        await world.passes()
        assert len(two.packets()) == 5 * READ_BATCH + 1

    play(scene)


def test_garbage_on_the_tun_is_dropped() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes()
        two.packets()
        draw = random.Random(9)
        for _ in range(300):
            one.tun.inject(draw.randbytes(draw.randrange(1, 80)), draw.randbytes(10))
            damaged = bytearray(as_kernel_gives(tcp(b"y" * 300, V4), draw.choice((0, 100))))
            for _ in range(3):
                damaged[draw.randrange(60)] = draw.randrange(256)
            one.tun.inject(bytes(damaged[10:]), bytes(damaged[:10]))
        give(one, udp(b"after", ends(1, 2)))
        await world.passes()
        assert udp(b"after", ends(1, 2)) in two.packets()
        assert one.path.dropped > 300

    play(scene)


def test_garbage_from_the_network_is_dropped() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, udp(b"x", ends(1, 2)))
        await world.passes()
        two.packets()
        sender, draw = world.network.open(("192.0.2.50",)), random.Random(8)
        for _ in range(500):
            datagram = draw.choice((b"", b"\4\0\0\0", b"\1\0\0\0", b"\xca\x17")) + draw.randbytes(draw.randrange(0, 200))
            sender.send(two.endpoint, datagram, draw.randrange(1, 200))
        await world.passes()
        assert two.packets() == []
        give(one, udp(b"after", ends(1, 2)))
        await world.passes()
        assert two.packets() == [udp(b"after", ends(1, 2))]

    play(scene)


def test_old_key_of_a_renewed_peer_still_answers() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        two.knows(one.as_peer(node_key=b"n" * 32, previous_node_key=one.key.public, kind=PeerKind.WIREGUARD))
        give(one, udp(b"x", ends(1, 2)))
        await world.passes()
        assert two.packets() == [udp(b"x", ends(1, 2))]

    play(scene)


def test_calnet_peers_move_from_relay_to_direct_and_back_without_a_lost_packet() -> None:
    async def scene(world: World) -> None:
        one, two = world.node(1), world.node(2)
        for node in (one, two):
            node.path.relay_connected(True)
            node.path.local_endpoints([node.endpoint])
        for node, peer in ((one, two), (two, one)):
            node.knows(peer.as_peer(kind=PeerKind.CALNET, endpoints=(peer.endpoint,), discovery_key=peer.discovery.public))
        sent, got, seen = [], [], []
        for k in range(600):
            if k == 300:
                world.network.blocked = lambda source, target: True
            packet = udp(k.to_bytes(2, "big"), ends(1, 2), ident=k)
            sent.append(packet[20:])
            give(one, packet)
            give(two, udp(b"back", ends(2, 1), ident=k))
            await world.passes(0.05)
            got += [packet[20:] for packet in two.packets()]
            seen.append(one.path.peer_status(two.id).path)
            one.packets()
        await world.passes(2)
        got += [packet[20:] for packet in two.packets()]
        assert "direct" in seen[:100]
        assert seen[299] == "direct"
        assert seen[-1] == "relay"
        assert len(got) == len(set(got))
        assert set(sent[:300]) <= set(got)
        # What was under way, or sent before the silence was noticed, is gone with the path.
        assert len(set(sent[330:]) - set(got)) == 0
        assert len(one.changes) >= 2

    play(scene, Weather(latency_s=0.01))


def test_route_is_described() -> None:
    here = Endpoint("2001:db8::1", 5)
    routes = (Route(here, False), Route(here, True), Route(None, True), Route(None, False))
    assert [describe_route(route) for route in routes] == ["direct [2001:db8::1]:5", "direct [2001:db8::1]:5 and relay", "relay", "none"]
