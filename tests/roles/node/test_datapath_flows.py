"""What the data path knows of flows, and in which order it reads, answers and accounts: nobody's packet is taken for another's, and none waits needlessly."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest

from calnet.host.receiving import Received
from calnet.host.tun import Offloads
from calnet.model import Buffer, NodeId
from calnet.paths.effects import Route, UseSocket
from calnet.roles.node.datapath import REUSE_S
from calnet.roles.node.flows import MAX_FLOWS
from calnet.tunnel.constants import REKEY_TIMEOUT
from tests.ip_packets import as_kernel_gives, cut, icmp_echo, ip_packet, tcp, udp, with_extension
from tests.roles.node.datapath_world import Node, Scripted, World, ends, give, play


def test_of_acknowledgements_that_wait_together_the_last_goes() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        way = ends(1, 2)
        give(one, udp(b"first", way))
        await world.passes()
        acks = [tcp(b"", way, acknowledged=100 * k) for k in range(1, 30)]
        others = [tcp(b"", way, ports=(5, 6), acknowledged=100 * k) for k in range(1, 30)]
        six = [tcp(b"", ends(1, 2, six=True), acknowledged=100 * k) for k in range(1, 30)]
        for three in zip(acks, others, six, strict=True):
            for packet in three:
                give(one, packet)
        await world.passes()
        alone, *came = two.packets()[1:]
        assert alone == acks[0], "as it may have come alone, it does not wait for others"
        assert set(came[-3:]) == {acks[-1], others[-1], six[-1]}
        assert len(came) == 6, "two turns of the data path, in each the last one of each flow"
        doubled = [tcp(b"", way, acknowledged=2900)] * 3
        data = tcp(b"data", way, acknowledged=3000)
        for packet in (*doubled, udp(b"between", way), tcp(b"", way, acknowledged=2950), data, tcp(b"", way, acknowledged=3100)):
            give(one, packet)
        await world.passes()
        assert two.packets() == [*doubled, udp(b"between", way), tcp(b"", way, acknowledged=2950), data, tcp(b"", way, acknowledged=3100)]
        assert one.path.dropped == 0

    play(scene)


def test_streams_whose_headers_are_longer_than_usual_go_each_its_own_way() -> None:
    """They share the key of a stream with others: with IP options, nearly all do."""

    async def scene(world: World) -> None:
        one, two, three = (world.node(number, capabilities=("chunks",)) for number in (1, 2, 3))
        one.knows(two.as_peer(), three.as_peer())
        two.knows(one.as_peer())
        three.knows(one.as_peer())
        for peer in (2, 3):
            give(one, icmp_echo(ends(1, peer)))
        await world.passes()
        options = b"\1" * 4
        to_two, to_three = (tcp(fill * 5000, ends(1, peer), ip_options=options) for fill, peer in ((b"A", 2), (b"B", 3)))
        before = one.path.dropped
        for packet in (to_two, to_three, tcp(b"C" * 5000, ("8.8.8.8", "10.77.0.2"), ip_options=options), tcp(b"D" * 5000, ends(1, 9), ip_options=options)):
            give(one, packet, 1000)
        await world.passes(REUSE_S / 5)
        assert two.packets()[1:] == cut(to_two, 1000)
        assert three.packets()[1:] == cut(to_three, 1000)
        assert one.path.dropped - before == 2
        extension = (60, bytes((0, 0)) + b"\1\4" + bytes(4))
        here, there = (with_extension(tcp(bytes(5000), ends(1, peer, six=True), ports=(1000, 2000 + peer)), extension) for peer in (2, 3))
        give(one, here, 1000)
        give(one, there, 1000)
        await world.passes(REUSE_S / 5)
        assert (two.packets(), three.packets()) == (cut(here, 1000), cut(there, 1000))

    play(scene)


def test_reset_lets_nothing_but_itself_out_of_a_flow_that_was_cut() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        there, back = ends(2, 1), ends(1, 2)
        data, reset = (tcp(b"" if flags & 4 else b"data", back, flags=flags, ports=(22, 5000)) for flags in (0x18, 0x14))
        give(two, tcp(b"", there, flags=0x02, ports=(5000, 22)))
        await world.passes()
        give(one, tcp(b"", back, flags=0x12, ports=(22, 5000)))
        await world.passes()
        assert len(one.packets()) == len(two.packets()) == 1
        one.knows(two.as_peer(), rules=())
        for packet in (data, reset, data, data, reset, data):
            give(one, packet)
        await world.passes(REUSE_S / 5)
        assert two.packets() == [reset, reset]
        give(one, tcp(b"", back, flags=0x02, ports=(22, 5000)))
        await world.passes(REUSE_S / 5)
        answer = tcp(b"", there, flags=0x12, ports=(5000, 22))
        give(two, answer)
        await world.passes()
        assert one.packets() == [answer], "it belongs to a connection of our own"

    play(scene)


def _answers_echoes_at_once(node: Node) -> None:
    """As a kernel does: the answer can be read as soon as the request was written."""

    def write(parts: list[Buffer]) -> None:
        node.tun.write(parts)
        packet = b"".join(parts)[10:]
        if packet[9] == 1 and packet[20] == 8:
            node.tun.inject(icmp_echo(ends(1, 2), kind=0))

    node.path._inbound._write = write


def test_stock_peer_that_moved_is_answered_where_it_is_now() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        _answers_echoes_at_once(one)
        for _ in range(2):
            give(two, icmp_echo(ends(2, 1)))
            await world.passes()
        assert len(two.packets()) == 2
        for _ in range(3):
            old = two.path._udp
            two.path.change_port()
            two.path._end_port(old)
            give(two, icmp_echo(ends(2, 1)))
            await world.passes()
            assert len(two.packets()) == 1

    play(scene)


def test_what_waited_for_a_session_leaves_before_what_came_with_it() -> None:
    async def scene(world: World) -> None:
        one, two = world.node(1), world.node(2)
        one.knows(two.as_peer())
        two.knows(one.as_peer())
        packets = [udp(bytes([n]) * 20, ends(1, 2)) for n in range(4)]
        for packet in packets[:3]:
            give(one, packet)
        receive = one.tunnel.receive

        def receive_and_give(datagram: memoryview, *rest: Any) -> Any:
            effects = receive(datagram, *rest)
            if datagram[0] == 2:
                give(one, packets[3])
            return effects

        one.tunnel.receive = receive_and_give  # type: ignore[method-assign, assignment]
        await world.passes(1)
        assert [packet[28] for packet in two.packets()] == [0, 1, 2, 3]

    play(scene)


def test_packet_that_is_cut_short_behind_one_without_a_flow_costs_nobody_else() -> None:
    async def scene(world: World) -> None:
        escaped: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
        one, two = world.pair(capabilities=("chunks",))
        echo = icmp_echo(ends(1, 2))
        give(one, echo)
        await world.passes()
        two.packets()
        strange = with_extension(tcp(bytes(50), ends(1, 2, six=True)), (43, bytes((0, 2, 0, 0)) + bytes(20)))
        error = ip_packet(bytes((3, 1, *bytes(6), 6)), 1, ends(1, 2))  # an ICMP error whose last byte is TCP's number, shorter than a TCP packet
        for packet in (strange, strange, b"\x60\0\0", error, echo):
            one.tun.inject(packet)
        await world.passes()
        assert two.packets()[-1] == echo
        assert not escaped

    play(scene)


@pytest.mark.parametrize("six", [False, True])
def test_super_packet_of_one_packet_and_any_segment_size_goes(six: bool) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, icmp_echo(ends(1, 2)))
        await world.passes()
        two.packets()
        packets = [tcp(b"d" * 100, ends(1, 2, six=six)), udp(b"d" * 100, ends(1, 2, six=six))]
        for packet in packets:
            one.tun.inject(as_kernel_gives(packet, 65530)[10:], as_kernel_gives(packet, 50)[:4] + b"\xfa\xff" + as_kernel_gives(packet, 50)[6:10])
        await world.passes()
        assert two.packets() == packets

    play(scene)


def _one_datagram(world: World, before: Callable[[], None]) -> Callable[[memoryview], Received | None]:
    """A receive function of node 1: one datagram of node 2, as `before` was called."""
    session = world.nodes[NodeId(2)].tunnel.peer(NodeId(1)).current  # type: ignore[union-attr]
    assert session is not None
    datagrams = [session.seal(udp(b"q", ends(2, 1)).ljust(32, b"\0"))]

    def receive(buffer: memoryview) -> Received | None:
        if not datagrams:
            return None
        before()
        datagram = datagrams.pop()
        buffer[: len(datagram)] = datagram
        return Received(len(datagram), len(datagram), world.nodes[NodeId(2)].endpoint)

    return receive


def test_answer_counts_as_sent_after_what_it_answers_whoever_else_is_sent_to() -> None:
    async def scene(world: World) -> None:
        one, two, three = (world.node(number) for number in (1, 2, 3))
        one.knows(two.as_peer(), three.as_peer())
        two.knows(one.as_peer())
        three.knows(one.as_peer())
        for here, there in ((2, 1), (1, 2), (3, 1), (1, 3)):
            give(world.nodes[NodeId(here)], udp(b"x", ends(here, there)))
            await world.passes()
        await world.passes(15)

        def answers() -> None:
            give(one, udp(b"answer", ends(1, 2)))
            give(one, udp(b"to another", ends(1, 3)))

        one.tun.unwatch(asyncio.get_running_loop())
        one.path._on_udp(_one_datagram(world, answers))
        timers = one.tunnel.peer(two.id).timers  # type: ignore[union-attr]
        assert timers.keepalive_at == float("inf"), "it was answered"
        assert timers.new_handshake_at < float("inf"), "and is to answer in turn"

    play(scene)


def test_answers_do_not_wait_for_what_else_is_to_be_received() -> None:
    async def scene(world: World) -> None:
        one, _ = world.pair()
        for here, there in ((2, 1), (1, 2)):
            give(world.nodes[NodeId(here)], udp(b"x", ends(here, there)))
            await world.passes()
        one.tun.unwatch(asyncio.get_running_loop())

        def answers() -> None:
            for size in (20, 50):
                give(one, udp(bytes(size), ends(1, 2)))

        receive = _one_datagram(world, answers)
        sent: list[int] = []

        def receive_on(buffer: memoryview) -> Received | None:
            sent.append(one.tunnel.peer(NodeId(2)).current.send_counter)  # type: ignore[union-attr]
            return receive(buffer)

        one.path._on_udp(receive_on)
        assert sent[1] == sent[0] + 2

    play(scene)


def test_what_is_not_genuine_is_in_the_figures() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        give(one, icmp_echo(ends(1, 2)))
        await world.passes()
        session = one.tunnel.peer(two.id).current  # type: ignore[union-attr]
        assert session is not None
        datagram = session.seal(icmp_echo(ends(1, 2)))
        forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
        before = two.path.dropped
        two.path.relayed(one.id, [datagram, forged, datagram])
        assert two.path.dropped - before == 2

    play(scene)


async def _one_by_one(world: World, node: Node, *packets: bytes, gap: float = REUSE_S / 10) -> None:
    for packet in packets:
        give(node, packet)
        await world.passes(gap)


def _taken_alone(node: Node) -> list[bool]:
    """Whether packets that came alone took the short way, from now on."""
    taken: list[bool] = []
    take = node.path.take_alone

    def note(end: int) -> bool:
        taken.append(take(end))
        return taken[-1]

    node.path.take_alone = note  # type: ignore[method-assign]
    return taken


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("offloads", [None, Offloads(vnet_header=False)])
def test_packets_that_come_one_by_one_leave_as_they_came(six: bool, offloads: Offloads | None) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(offloads=offloads)
        there = ends(1, 2, six=six)
        await _one_by_one(world, one, icmp_echo(there), icmp_echo(there), gap=0.5)
        two.packets()
        taken = _taken_alone(one)
        kinds: list[Callable[[int], bytes]] = [
            lambda n: icmp_echo(there, bytes(n)),
            lambda n: udp(bytes(range(n)), there),
            lambda n: tcp(bytes(range(n)), there, sequence=n + 1),
        ]
        for kind in kinds:
            packets = [kind(n) for n in (0, 1, 17, 200, 3)]
            await _one_by_one(world, one, *packets)
            assert two.packets() == packets
        assert taken == [False, True, True, True, True] * 3
        before = one.tunnel.peer(two.id).tx_bytes, two.tunnel.peer(one.id).rx_bytes  # type: ignore[union-attr]
        await _one_by_one(world, one, icmp_echo(there), icmp_echo(there))
        after = one.tunnel.peer(two.id).tx_bytes, two.tunnel.peer(one.id).rx_bytes  # type: ignore[union-attr]
        assert after[0] - before[0] == after[1] - before[1] > 0, "both count them"
        assert (one.path.dropped, two.path.dropped) == (0, 0)

    play(scene)


def test_what_opens_or_resets_a_connection_and_what_is_long_is_looked_at_even_alone() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(mtu=1500)
        there = ends(1, 2)
        data = tcp(b"data", there)
        await _one_by_one(world, one, data, data, gap=0.5)
        two.packets()
        others = [tcp(b"", there, flags=0x02), tcp(b"", there, flags=0x14), tcp(bytes(1400), there)]
        await _one_by_one(world, one, data, data)
        taken = _taken_alone(one)
        await _one_by_one(world, one, data, *others, data)
        assert taken == [True, False, False, False, True]
        assert two.packets() == [data, data, data, *others, data]
        for length, segment in ((3000, 1000), (1000, 400)):
            long = tcp(bytes(length), there)
            give(one, long, segment)
            await world.passes(REUSE_S / 10)
            assert taken[-1] is False
            assert two.packets() == cut(long, segment)

    play(scene)


def test_short_way_ends_with_what_it_rests_on() -> None:
    """The peer's endpoint, our port, the filter, the session."""

    async def scene(world: World) -> None:
        one, two = world.pair()
        echo = icmp_echo(ends(1, 2))
        taken = _taken_alone(one)
        await _one_by_one(world, one, echo, echo, gap=0.5)

        async def known() -> None:
            await _one_by_one(world, one, echo, echo)
            assert taken[-1], "the short way was taken"
            two.packets()

        await known()
        old = two.path._udp
        two.path.change_port()
        two.path._end_port(old)
        two.udp = two.path._udp  # type: ignore[assignment]
        one.knows(two.as_peer())
        await _one_by_one(world, one, echo)
        assert two.packets() == [echo], "to where it is now"
        await known()
        one.udp.send = lambda *_: True  # type: ignore[method-assign]  # as a closed one: nothing leaves
        one.path.change_port()
        await _one_by_one(world, one, echo)
        assert two.packets() == [echo], "from where we are now"
        await known()
        old_session = one.tunnel.peer(two.id).current  # type: ignore[union-attr]
        old_session.send_counter = old_session.reject_after  # type: ignore[union-attr]
        dropped = one.path.dropped
        await _one_by_one(world, one, echo)
        assert (two.packets(), one.path.dropped) == ([], dropped + 1), "a session without counters sends nothing more"
        await world.passes(REKEY_TIMEOUT)
        await _one_by_one(world, one, echo, gap=0.5)
        assert two.packets() == [echo], "a new one does"
        await known()
        carried = world.network.carried
        one.knows()
        await _one_by_one(world, one, echo)
        assert taken[-1] is False
        assert world.network.carried == carried

    play(scene)


def test_short_way_ends_where_the_filter_cuts_a_flow() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        there, back = ends(2, 1), ends(1, 2)
        question, answer = udp(b"question", there, ports=(5000, 53)), udp(b"answer", back, ports=(53, 5000))
        taken = _taken_alone(one)
        for _ in range(2):
            give(two, question)
            await world.passes(REUSE_S / 10)
            await _one_by_one(world, one, answer)
        await _one_by_one(world, one, answer, answer)
        assert taken[-1]
        two.packets()
        one.knows(two.as_peer(), rules=())
        await _one_by_one(world, one, answer)
        assert taken[-1] is False
        assert two.packets() == [], "no rule lets the flow in that it belongs to"

    play(scene)


def test_short_way_is_for_the_first_socket_and_the_direct_path_alone() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        echo = icmp_echo(ends(1, 2))
        taken = _taken_alone(one)
        await _one_by_one(world, one, echo, echo, gap=0.5)
        one.path._perform(UseSocket(two.endpoint, 7), set())  # a socket that was found to serve this endpoint
        one.path._sender._more[7] = world.network.open(("192.0.2.1",))
        one.path._perform(UseSocket(two.endpoint, 7), set())
        one.path._forget_flows()
        await _one_by_one(world, one, echo, echo, echo)
        assert not any(taken[-3:])
        assert one.path._sender._in_use[two.endpoint].sent_at > 0, "its use is noted"

    play(scene)


def test_short_way_is_not_for_what_goes_by_relay_too() -> None:
    async def scene(world: World) -> None:
        paths = Scripted()
        one, two = world.node(1, paths=lambda: paths), world.node(2)
        paths.where = Route(two.endpoint, False)
        one.knows(two.as_peer())
        two.knows(one.as_peer())
        echo = icmp_echo(ends(1, 2))
        taken = _taken_alone(one)
        await _one_by_one(world, one, echo, gap=1)
        await _one_by_one(world, one, echo, echo)
        assert taken[-1]
        paths.where = Route(two.endpoint, True)
        one.path._forget_flows()
        relayed = one.relayed
        await _one_by_one(world, one, echo, echo, echo)
        assert not any(taken[-3:])
        assert one.relayed == relayed + 3

    play(scene)


def test_short_ways_are_bounded_as_flows_are() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        await _one_by_one(world, one, udp(b"", ends(1, 2)), udp(b"", ends(1, 2)), gap=0.5)
        for port in range(3 * MAX_FLOWS):
            await _one_by_one(world, one, udp(b"x", ends(1, 2), ports=(port, 9)), gap=REUSE_S / 1000)
            assert len(one.path._flows._short_ways) <= len(one.path._flows._sessions) <= MAX_FLOWS
        assert len(two.packets()) == 3 * MAX_FLOWS + 2

    play(scene)


def test_checksum_that_can_not_be_completed_costs_that_packet_alone() -> None:
    """A virtual machine behind this node can have its kernel send such a header."""

    async def scene(world: World) -> None:
        raised: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
        one, two = world.pair()
        data = udp(b"data", ends(1, 2))
        await _one_by_one(world, one, data, data, gap=0.5)
        for gap in (REUSE_S / 10, 1.0):  # the short way, the long way
            await _one_by_one(world, one, data, data)
            await world.passes(gap)
            dropped = one.path.dropped
            one.tun.inject(data, struct.pack("<BBHHHH", 1, 0, 0, 0, 6, 6))
            await world.passes(REUSE_S / 10)
            assert one.path.dropped == dropped + 1
        await _one_by_one(world, one, data)
        assert set(two.packets()) == {data}
        assert raised == []

    play(scene)


def test_turns_are_told_of_that_carried_packets_and_of_no_others() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        told: list[float] = []
        await _one_by_one(world, one, icmp_echo(ends(1, 2)), gap=0.5)
        one.path.on_packets = told.append
        stranger = world.network.open(("198.51.100.9",))
        for _ in range(20):
            stranger.send(one.endpoint, b"x" * 40, 40)
            await world.passes(0.02)
        await world.passes(200)
        assert told == [], "neither what strangers send nor what keeps sessions"
        await _one_by_one(world, one, icmp_echo(ends(1, 2)), gap=0.5)
        give(two, icmp_echo(ends(2, 1)))
        await world.passes()
        assert len(told) >= 2

    play(scene)


def test_socket_that_is_full_loses_no_packet_of_the_short_way() -> None:
    async def scene(world: World) -> None:
        one, two = world.pair()
        echoes = [icmp_echo(ends(1, 2), bytes([n])) for n in range(4)]
        await _one_by_one(world, one, echoes[0], echoes[0], gap=0.5)
        await _one_by_one(world, one, echoes[0])
        two.packets()
        send, refused = one.udp.send, [True, True, False, False]
        one.udp.send = lambda *what: not refused.pop(0) and send(*what) if refused else send(*what)  # type: ignore[method-assign]
        await _one_by_one(world, one, *echoes[1:])
        assert not refused
        assert two.packets() == echoes[1:]
        assert one.path.dropped == 0

    play(scene)
