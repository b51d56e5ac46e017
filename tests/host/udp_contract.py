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


LOST: list[set[int]] = [set(), {3}, {0}, {9}, {8, 9}, {5, 12, 13, 27}, {19, 20}, set(range(4, 38))]
"""For `check_groups`."""


async def check_groups(one: UdpTransport, two: UdpTransport, host: str, lost: set[int], *, short: bool) -> None:
    """Where it is said which datagrams belong together, groups of 10 here, those that `one` sends singly to `two` are given out so, in their order, whatever
    was `lost` of 60. `short`: each group's last one is shorter."""
    target = Endpoint(host, two.port)
    wanted = [b"%04d" % k + bytes(96 - 40 * (short and k % 10 == 9)) for k in range(60) if k not in lost]
    for _ in range(3):  # so that it is known that they come singly
        one.send(target, b"9999" + bytes(96), 100)
    for datagram in wanted:
        one.send(target, datagram, 100)
    batches: list[list[bytes]] = []
    buffer, done = memoryview(bytearray(RECEIVE_SIZE)), asyncio.Event()

    def ready(receive: Receive) -> None:
        while batch := receive(buffer):
            batches.append(pieces(bytes(buffer[: batch.length]), batch.segment))
        if sum(map(len, batches)) == len(wanted) + 3:
            done.set()

    loop = asyncio.get_running_loop()
    two.watch(loop, ready, _of_group)
    async with asyncio.timeout(BOUND_S):
        await done.wait()
    two.unwatch(loop)
    given = [batch for batch in batches if not batch[0].startswith(b"9999")]
    assert [datagram for batch in given for datagram in batch] == wanted
    if not lost:
        assert [len(batch) for batch in given] == [10] * 6
    if len(lost) < 6 and not short:
        assert all(len({int(datagram[:4]) // 10 for datagram in batch}) == 1 for batch in given), "none holds a part of two groups"
        assert len(given) == 6, "and each of them is whole, if the one before lost some"


def _of_group(datagram: memoryview) -> int:
    """How many of its group come behind a datagram that begins with its number."""
    return 9 - int(bytes(datagram[:4])) % 10
