"""What every UdpTransport does: run on the real port and on its twin."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from calnet.host.receiving import RECEIVE_SIZE, Receive
from calnet.host.udp import UdpTransport
from calnet.model import Endpoint

BOUND_S = 10.0


class Listener:
    """Reads all that comes to a port; `datagrams` in order, each with its source."""

    def __init__(self, transport: UdpTransport) -> None:
        self.transport = transport
        self.datagrams: list[tuple[bytes, Endpoint]] = []
        self.batches = 0
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))

    def ready(self, receive: Receive) -> None:
        while (batch := receive(self._buffer)) is not None:
            self.batches += 1
            data = bytes(self._buffer[: batch.length])
            step = batch.segment or 1
            self.datagrams += [(data[at : at + step], batch.source) for at in range(0, len(data), step)] or [(b"", batch.source)]

    @contextlib.contextmanager
    def watching(self) -> Iterator[Listener]:
        loop = asyncio.get_running_loop()
        self.transport.watch(loop, self.ready)
        yield self
        self.transport.unwatch(loop)
        self.transport.unwatch(loop)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def count(self, number: int) -> None:
        await self.until(lambda: len(self.datagrams) >= number)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def check_contract(one: UdpTransport, two: UdpTransport, host: str, closed: Endpoint) -> None:
    """`one` sends to `two` at `host`; nobody listens at `closed`."""
    assert one.port != two.port
    target = Endpoint(host, two.port)
    listener = Listener(two)
    with listener.watching():
        for size in (1, 32, 148, 1452):
            listener.datagrams.clear()
            assert one.send(target, bytes(size), size)
            await listener.count(1)
            assert listener.datagrams == [(bytes(size), Endpoint(host, one.port))]
        for size, count, rest in ((100, 5, 0), (1312, 49, 0), (1312, 12, 17), (64, 64, 0), (8, 1, 7)):
            data = b"".join(k.to_bytes(4, "big") + bytes(size - 4) for k in range(count)) + b"r" * rest
            listener.datagrams.clear()
            assert one.send(target, memoryview(bytearray(data)), size)
            expected = pieces(data, size)
            await listener.count(len(expected))
            assert [datagram for datagram, _ in listener.datagrams] == expected
        for _ in range(3):
            assert one.send(closed, b"nobody", 6)
            assert one.send(closed, bytes(400), 100)
        listener.datagrams.clear()
        assert one.send(target, b"still", 5)
        await listener.count(1)
        one.send_short(target, b"near", 2)
        await listener.count(2)
        assert listener.datagrams[1] == (b"near", Endpoint(host, one.port))
    one.forget_failures()
    listener.datagrams.clear()
    one.send(target, b"later", 5)
    with listener.watching():
        await listener.count(1)
        again = asyncio.Event()
        one.when_writable(asyncio.get_running_loop(), target, again.set)
        async with asyncio.timeout(BOUND_S):
            await again.wait()
