from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from calnet.model import Buffer, Endpoint, NodeId, Source
from calnet.paths.effects import Route
from calnet.roles.node.sending import MAX_HELD, Sender

PEER = NodeId(7)
THERE = Endpoint("192.0.2.1", 5)
DIRECT, RELAYED, BOTH = Route(THERE, False), Route(None, True), Route(THERE, True)


class Port:
    """A UDP port that takes `room` sends."""

    port = 1

    def __init__(self) -> None:
        self.room = 1_000
        self.sent: list[tuple[Endpoint, bytes, int]] = []
        self.ready: list[Callable[[], None]] = []

    def send(self, endpoint: Endpoint, datagrams: Buffer, segment: int) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append((endpoint, bytes(datagrams), segment))
        return True

    def when_writable(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, ready: Callable[[], None]) -> None:
        self.ready.append(ready)

    def writable(self, room: int) -> None:
        self.room = room
        self.ready.pop()()


class Scene:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.port = Port()
        self.relayed: list[tuple[NodeId, list[bytes]]] = []
        self.told: list[str] = []
        self.sender = Sender(
            loop,
            self.port,  # type: ignore[arg-type]
            self.relay,
            stalled=lambda: self.told.append("stalled"),
            resumed=lambda: self.told.append("resumed"),
        )

    def relay(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        self.relayed.append((peer, [bytes(datagram) for datagram in datagrams]))

    def run(self, data: bytes, route: Route = DIRECT) -> int:
        return self.sender.run(PEER, route, memoryview(data), 2)


@pytest.fixture
def scene() -> Iterator[Scene]:
    loop = asyncio.new_event_loop()
    yield Scene(loop)
    loop.close()


def test_run_goes_by_udp_whole_and_by_relay_cut(scene: Scene) -> None:
    assert scene.run(b"aabbc", BOTH) == 0
    assert scene.port.sent == [(THERE, b"aabbc", 2)]
    assert scene.relayed == [(PEER, [b"aa", b"bb", b"c"])]


def test_run_without_a_way_goes_nowhere(scene: Scene) -> None:
    assert scene.run(b"aabb", Route(None, False)) == 0
    assert not scene.port.sent
    assert not scene.relayed


def test_one_datagram_goes_by_route_and_back_to_its_source(scene: Scene) -> None:
    scene.sender.one(PEER, BOTH, b"x")
    scene.sender.back(Source(THERE), b"y")
    scene.sender.back(Source(None, PEER), b"z")
    assert [data for _, data, _ in scene.port.sent] == [b"x", b"y"]
    assert scene.relayed == [(PEER, [b"x"]), (PEER, [b"z"])]


def test_full_socket_holds_runs_in_order_until_it_is_writable(scene: Scene) -> None:
    scene.port.room = 0
    assert [scene.run(bytes((k, k))) for k in range(3)] == [0, 0, 0]
    assert scene.sender.full
    scene.port.writable(1)
    assert scene.sender.full
    scene.port.writable(10)
    assert not scene.sender.full
    assert [data for _, data, _ in scene.port.sent] == [b"\0\0", b"\1\1", b"\2\2"]
    assert scene.told == ["stalled", "resumed"]


def test_full_socket_holds_no_more_than_its_bound(scene: Scene) -> None:
    scene.port.room = 0
    assert [scene.run(b"aa") for _ in range(MAX_HELD + 2)] == [0] * MAX_HELD + [1, 1]


def test_closed_sender_sends_nothing_that_was_held(scene: Scene) -> None:
    scene.port.room = 0
    scene.run(b"aa")
    scene.sender.close()
    scene.port.writable(10)
    assert scene.port.sent == []
    assert scene.told == ["stalled"]
