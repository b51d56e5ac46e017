"""Whether the NAT leads back in what is sent to its outside, found out by sending there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from calnet.host.memory import MemoryUdp
from calnet.host.receiving import RECEIVE_SIZE, Receive
from calnet.model import Endpoint
from calnet.wire.stun import answer
from tests.roles.node.datapath_world import Node, World, play

OUTSIDE = Endpoint("198.51.100.7", 4000)
STUN = Endpoint("192.0.2.250", 3478)


def _serve(port: MemoryUdp, take: Callable[[bytes, Endpoint], None]) -> None:
    buffer = memoryview(bytearray(RECEIVE_SIZE))

    def ready(receive: Receive) -> None:
        while (got := receive(buffer)) is not None:
            take(bytes(buffer[: got.length]), got.source)

    port.watch(asyncio.get_running_loop(), ready)


async def _behind_nat(world: World) -> Node:
    """A node that a STUN server sees as OUTSIDE."""
    one, server = world.node(1), world.network.open((STUN.host,), STUN.port)

    def reply(request: bytes, source: Endpoint) -> None:
        made = answer(request, OUTSIDE)
        assert made is not None
        server.send(source, made, len(made))

    _serve(server, reply)
    one.path.local_endpoints([one.endpoint])
    one.path.stun_servers([STUN])
    await world.passes()
    assert one.paths.reflexive() == (OUTSIDE,)
    return one


@pytest.mark.parametrize("leads_back", [True, False])
def test_hairpin_is_found_out_and_leaves_nothing_open(leads_back: bool) -> None:
    async def scene(world: World) -> None:
        one = await _behind_nat(world)
        if leads_back:
            outside = world.network.open((OUTSIDE.host,), OUTSIDE.port)
            _serve(outside, lambda datagram, source: (outside.send(one.endpoint, datagram, len(datagram)), None)[1])
        ports = world.network.open_ports
        assert await one.path.hairpin(1.0) is leads_back
        assert world.network.open_ports == ports

    play(scene)


def test_without_a_nat_there_is_nothing_to_find_out() -> None:
    async def scene(world: World) -> None:
        one = world.node(1)
        assert await one.path.hairpin(1.0) is None

    play(scene)
