"""What the data path knows of flows, and in which order it reads, answers and accounts: nobody's packet is taken for another's, and none waits needlessly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from calnet.host.receiving import Received
from calnet.model import Buffer, NodeId
from calnet.roles.node.datapath import REUSE_S
from tests.ip_packets import as_kernel_gives, cut, icmp_echo, ip_packet, tcp, udp, with_extension
from tests.roles.node.datapath_world import Node, World, ends, give, play


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
            old = two.path._ports.udp
            two.path.change_port()
            two.path._ports._end(old)
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
        one.path._on_udp(0, _one_datagram(world, answers))
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

        one.path._on_udp(0, receive_on)
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
