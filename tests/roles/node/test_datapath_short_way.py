"""Packets that come one by one leave in few steps, and no otherwise than others: nothing is skipped that could have changed."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest

from calnet.host.tun import Offloads
from calnet.paths.effects import Route, UseSocket
from calnet.roles.node.datapath import REUSE_S
from calnet.roles.node.flows import MAX_FLOWS
from calnet.tunnel.constants import REKEY_TIMEOUT
from tests.ip_packets import cut, icmp_echo, tcp, udp
from tests.roles.node.datapath_world import Node, Scripted, World, ends, give, play


async def _one_by_one(world: World, node: Node, *packets: bytes, gap: float = REUSE_S / 10) -> None:
    for packet in packets:
        give(node, packet)
        await world.passes(gap)


def _taken_alone(node: Node) -> list[bool]:
    """Whether packets that came alone took the short way, from now on."""
    taken: list[bool] = []
    take = node.path._outgoing.take_alone

    def note(end: int) -> bool:
        taken.append(take(end))
        return taken[-1]

    node.path._outgoing.take_alone = note  # type: ignore[method-assign]
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
        old = two.path._ports.udp
        two.path.change_port()
        two.path._ports._end(old)
        two.udp = two.path._ports.udp  # type: ignore[assignment]
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
