from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from calnet.host.udp import UdpTransport
from calnet.model import Buffer, Endpoint, NodeId, Source
from calnet.paths.effects import Route
from calnet.roles.node.sending import IDLE_S, MAX_HELD, MAX_IN_USE, Sender

PEER = NodeId(7)
THERE = Endpoint("192.0.2.1", 5)
DIRECT, RELAYED, BOTH = Route(THERE, False), Route(None, True), Route(THERE, True)


class Port:
    """A UDP port that takes `room` sends."""

    port = 1

    def __init__(self) -> None:
        self.room = 1_000
        self.sent: list[tuple[Endpoint, bytes, int]] = []
        self.short: list[tuple[Endpoint, bytes, int]] = []
        self.ready: list[Callable[[], None]] = []

    def send(self, endpoint: Endpoint, datagrams: Buffer, segment: int) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append((endpoint, bytes(datagrams), segment))
        return True

    def send_short(self, endpoint: Endpoint, datagram: Buffer, hops: int) -> None:
        self.short.append((endpoint, bytes(datagram), hops))

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
    assert scene.sender.held
    scene.port.writable(1)
    assert scene.sender.held
    scene.port.writable(10)
    assert not scene.sender.held
    assert [data for _, data, _ in scene.port.sent] == [b"\0\0", b"\1\1", b"\2\2"]
    assert scene.told == ["stalled", "resumed"]


def test_what_is_held_for_the_first_socket_does_not_knock_from_the_one_that_takes_its_place(scene: Scene) -> None:
    scene.port.room = 0
    scene.run(b"aa")
    other = Port()
    scene.sender.change_socket(other)  # type: ignore[arg-type]
    scene.run(b"bb")
    assert [data for _, data, _ in other.sent] == [b"bb"]
    assert scene.told == ["stalled", "resumed"]
    assert not scene.port.sent


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


def test_datagram_with_few_hops_goes_as_such_from_the_socket_in_use(scene: Scene) -> None:
    scene.sender.to(THERE, b"opens", hops=2)
    assert (scene.port.sent, scene.port.short) == ([], [(THERE, b"opens", 2)])


class Opened(Port):
    """A further socket."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.closed = number, False

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ready.clear()

    def forget_failures(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_more_sockets_are_opened_as_they_are_named_and_used_for_their_endpoints() -> None:
    loop = asyncio.new_event_loop()
    opened: dict[int, Opened] = {}

    def open_socket(number: int) -> UdpTransport | None:
        if number == 9:
            return None  # there is none to be had
        opened[number] = Opened(number)
        return opened[number]  # type: ignore[return-value]

    first, other = Port(), Endpoint("192.0.2.2", 6)
    sender = Sender(loop, first, lambda peer, datagrams: None, stalled=lambda: None, resumed=lambda: None, open_socket=open_socket)  # type: ignore[arg-type]
    for number in (1, 2, 9):
        sender.to(THERE, b"try", number)
    sender.to(THERE, b"plain")
    assert ([datagram for _, datagram, _ in first.sent], sorted(opened)) == ([b"plain"], [1, 2])
    assert [datagram for _, datagram, _ in opened[1].sent] == [b"try"]
    sender.use(THERE, 2)
    sender.use(other, 7)  # never opened: the first stays
    sender.to(THERE, b"mapped")
    sender.to(other, b"plain")
    sender.back(Source(THERE, None, 1), b"where it came")
    sender.run(PEER, DIRECT, memoryview(b"bulk"), 2)
    assert [datagram for _, datagram, _ in opened[2].sent][1:] == [b"mapped", b"bulk"]
    assert [datagram for _, datagram, _ in opened[1].sent][1:] == [b"where it came"]
    sender.close_sockets(all_=False)
    assert (opened[1].closed, opened[2].closed) == (True, False)
    sender.to(THERE, b"anew", 1)
    assert opened[1].closed is False
    opened[2].room = 0
    sender.run(PEER, DIRECT, memoryview(b"held"), 2)
    assert sender.held
    opened[2].writable(5)
    assert not sender.held
    sender.close_sockets(all_=True)
    sender.to(THERE, b"first again")
    assert first.sent[-1][1] == b"first again"
    assert opened[2].closed
    loop.close()


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time is set by hand."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Sockets:
    """A sender with `count` sockets beside the first, and what it told."""

    def __init__(self, count: int) -> None:
        self.loop, self.first, self.told = Clock(), Port(), list[str]()
        self.opened: dict[int, Opened] = {}
        self.sender = Sender(
            self.loop,
            self.first,  # type: ignore[arg-type]
            lambda peer, datagrams: None,
            stalled=lambda: self.told.append("stalled"),
            resumed=lambda: self.told.append("resumed"),
            open_socket=self.open_socket,
        )
        for number in range(1, count + 1):
            self.sender.to(THERE, b"try", number)

    def open_socket(self, number: int) -> UdpTransport | None:
        self.opened[number] = Opened(number)
        return self.opened[number]  # type: ignore[return-value]

    def left(self) -> list[int]:
        return [number for number, port in self.opened.items() if not port.closed]

    def run(self, endpoint: Endpoint = THERE) -> int:
        return self.sender.run(PEER, Route(endpoint, False), memoryview(b"data"), 4)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets(256)
    yield made
    made.loop.close()


def test_flood_of_named_endpoints_is_bounded_and_moves_none_that_is_sent_to(sockets: Sockets) -> None:
    sockets.sender.use(THERE, 7)
    sockets.run()
    for number in range(50_000):
        sockets.sender.use(Endpoint(f"198.51.{number >> 8}.{number & 255}", 1), 1 + number % 256)
    sockets.run()
    assert [data for _, data, _ in sockets.opened[7].sent] == [b"try", b"data", b"data"]
    sockets.sender.close_sockets(all_=False)
    assert 7 in sockets.left()
    assert len(sockets.left()) <= MAX_IN_USE


def test_new_endpoint_takes_the_place_of_the_one_sent_to_longest_ago(sockets: Sockets) -> None:
    others = [Endpoint("198.51.100.1", port) for port in range(1, MAX_IN_USE + 1)]
    for number, endpoint in enumerate(others, start=1):
        sockets.sender.use(endpoint, number)
        sockets.loop.now += 1
        sockets.run(endpoint)
    sockets.loop.now += 1
    sockets.run(others[0])
    sockets.sender.use(THERE, 200)
    sockets.sender.close_sockets(all_=False)
    assert sorted(sockets.left()) == [1, *range(3, MAX_IN_USE + 1), 200]


def test_endpoint_that_nothing_was_sent_to_for_long_keeps_no_socket(sockets: Sockets) -> None:
    other = Endpoint("198.51.100.1", 1)
    sockets.sender.use(THERE, 1)
    sockets.sender.use(other, 2)
    sockets.loop.now += IDLE_S - 1
    sockets.run(other)
    sockets.sender.close_sockets(all_=False)
    assert sockets.left() == [1, 2]
    sockets.loop.now += 1
    sockets.sender.close_sockets(all_=False)
    assert sockets.left() == [2]
    sockets.run()
    assert sockets.first.sent == [(THERE, b"data", 4)]


def test_endpoint_reached_from_the_first_socket_again_closes_the_one_it_had(sockets: Sockets) -> None:
    other = Endpoint("198.51.100.1", 1)
    for endpoint in (THERE, other):
        sockets.sender.use(endpoint, 3)
    sockets.sender.use(THERE, 0)
    assert not sockets.opened[3].closed
    sockets.sender.use(other, 0)
    assert sockets.opened[3].closed
    assert len(sockets.left()) == 255


@pytest.mark.parametrize("all_", [True, False])
def test_full_socket_that_is_closed_holds_nothing_back(sockets: Sockets, all_: bool) -> None:
    sockets.sender.use(THERE, 7)
    sockets.opened[7].room = 0
    assert sockets.run() == 0
    sockets.loop.now += IDLE_S
    sockets.sender.close_sockets(all_=all_)
    assert sockets.told == ["stalled", "resumed"]
    assert not sockets.sender.held
    assert sockets.first.sent == [(THERE, b"data", 4)]


def test_full_socket_that_is_closed_leaves_its_runs_to_the_first_as_soon_as_that_takes_them(sockets: Sockets) -> None:
    sockets.sender.use(THERE, 7)
    sockets.opened[7].room = sockets.first.room = 0
    assert [sockets.run(), sockets.run()] == [0, 0]
    sockets.sender.close_sockets(all_=True)
    assert sockets.told == ["stalled"]
    assert sockets.sender.held
    sockets.first.writable(5)
    assert sockets.told == ["stalled", "resumed"]
    assert len(sockets.first.sent) == 2
