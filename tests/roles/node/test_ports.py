"""The data path's UDP ports: the one in use, those left a moment ago, those beside."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from calnet.errors import HostError
from calnet.host.memory import MemoryUdp, MemoryUnderlay
from calnet.host.receiving import RECEIVE_SIZE, Receive
from calnet.model import Endpoint
from calnet.roles.node.ports import LEFT, LEFT_S, Ports
from tests.roles.node.datapath_world import VirtualLoop

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Scene:
    """Ports of a machine, and another one that sends to them; `came` says which socket got what."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int = 9) -> None:
        self.network = MemoryUnderlay(random.Random(1).random)
        self.other = self.network.open((THERE,))
        self.opened: list[MemoryUdp] = []
        self.most = most
        self.came: list[tuple[int, bytes]] = []
        self.first = self.network.open((HERE,))
        self.ports = Ports(loop, self.first, self._more, self._on_udp)

    def _more(self) -> MemoryUdp:
        if len(self.opened) == self.most:
            raise HostError("no more of them")
        self.opened.append(self.network.open((HERE,)))
        return self.opened[-1]

    def _on_udp(self, number: int, receive: Receive) -> None:
        buffer = memoryview(bytearray(RECEIVE_SIZE))
        while batch := receive(buffer):
            self.came.append((number, bytes(buffer[: batch.length])))

    async def knock(self, *ports: int) -> list[tuple[int, bytes]]:
        """Send to each of these ports; which sockets got it."""
        self.came.clear()
        for port in ports:
            self.other.send(Endpoint(HERE, port), b"%d" % port, 99)
        await asyncio.sleep(0.01)
        return self.came


def run(script: Callable[[Scene], Coroutine[Any, Any, None]], *, most: int = 9) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(script(Scene(loop, most=most)))
    finally:
        loop.close()


def test_port_left_is_read_for_a_while_under_another_number_then_closed() -> None:
    async def script(scene: Scene) -> None:
        ports, old = scene.ports, scene.first.port
        ports.start()
        assert await scene.knock(old) == [(0, b"%d" % old)]
        assert ports.change()
        new = ports.udp.port
        assert new != old
        assert await scene.knock(old, new) == [(LEFT, b"%d" % old), (0, b"%d" % new)]
        await asyncio.sleep(LEFT_S)
        assert await scene.knock(old, new) == [(0, b"%d" % new)]
        scene.network.open((HERE,), old).close()

    run(script)


def test_ports_left_one_after_the_other_end_one_after_the_other() -> None:
    async def script(scene: Scene) -> None:
        ports = scene.ports
        ports.start()
        first = ports.udp.port
        ports.change()
        await asyncio.sleep(LEFT_S / 2)
        second = ports.udp.port
        ports.change()
        assert [number for number, _ in await scene.knock(first, second, ports.udp.port)] == [LEFT, LEFT, 0]
        await asyncio.sleep(LEFT_S / 2)
        assert [number for number, _ in await scene.knock(first, second, ports.udp.port)] == [LEFT, 0]

    run(script)


def test_where_no_other_port_is_to_be_had_nothing_changes() -> None:
    async def script(scene: Scene) -> None:
        ports = scene.ports
        assert not ports.change(), "nor before the start"
        ports.start()
        before = ports.udp
        assert not ports.change()
        assert ports.open_beside(3) is None
        assert ports.udp is before
        assert await scene.knock(before.port) == [(0, b"%d" % before.port)]

    run(script, most=0)


def test_socket_beside_is_read_under_its_number_and_is_its_callers_to_close() -> None:
    async def script(scene: Scene) -> None:
        ports = scene.ports
        assert ports.open_beside(7) is None, "none before the start"
        ports.start()
        beside = ports.open_beside(7)
        assert beside is not None
        assert await scene.knock(beside.port) == [(7, b"%d" % beside.port)]
        ports.close()
        assert await scene.knock(beside.port) == [(7, b"%d" % beside.port)]
        assert ports.open_beside(8) is None, "none after the end"
        assert ports.open_other() is None

    run(script)


def test_closing_ends_the_port_in_use_and_those_left_once() -> None:
    async def script(scene: Scene) -> None:
        ports = scene.ports
        ports.start()
        first = ports.udp.port
        ports.change()
        second = ports.udp.port
        ports.close()
        assert await scene.knock(first, second) == []
        again = scene.network.open((HERE,), first)
        await asyncio.sleep(2 * LEFT_S)  # its end was set before: it must not be somebody else's now
        again.close()

    run(script)
