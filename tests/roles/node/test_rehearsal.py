"""Rehearsals: what they run, when they are, and what they cost."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from calnet.crypto.batch import portable_batch
from calnet.errors import HostError
from calnet.host.tun import Offloads
from calnet.roles.node import rehearsal
from calnet.roles.node.rehearsal import MAX_LOST, PATIENCE_S, PAUSE_S, REST, TICK_S, WINDOW_S, KeepWarm, Rehearsal, keep_warm
from tests.ip_packets import icmp_echo, is_sound
from tests.roles.node.datapath_world import VirtualLoop, World, ends, give, play

BOUND_S = 30.0


class Shifted:
    """A clock that can be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.mark.parametrize("offloads", [Offloads(vnet_header=True, tcp=True, udp=True), Offloads(vnet_header=False)])
def test_packets_go_the_whole_way_both_ways_however_much_time_passes_between(offloads: Offloads) -> None:
    async def scene() -> None:
        loop, came, clock = asyncio.get_running_loop(), asyncio.Event(), Shifted()
        one = Rehearsal(loop, offloads, monotonic=clock, random=os.urandom, new_batch=portable_batch, came=came.set)
        tunnels = [path._tunnel for path in one._paths]
        for jump in (0, 0, 0, 121, 0, 0, 200, 0, 86_400, 0, 30, 600, 0):
            clock.ahead += jump
            for _ in range(4):
                came.clear()
                one.begin()
                async with asyncio.timeout(BOUND_S):
                    await came.wait()
        for tunnel in tunnels:
            (peer,) = tunnel.peers
            assert peer.current is not None
            assert peer.rx_bytes > 0 < peer.tx_bytes
        sizes = [next(iter(tunnel.peers)).tx_bytes for tunnel in tunnels], [next(iter(tunnel.peers)).rx_bytes for tunnel in tunnels]
        assert sizes[0] == sizes[1][::-1]
        assert [path.dropped for path in one._paths] == [0, 0]
        for packet in one._packets:
            assert is_sound(packet[10 if offloads.vnet_header else 0 :])
        one.close()
        one.close()

    asyncio.run(scene())


def test_they_run_what_an_answered_packet_runs() -> None:
    """What is received comes under the session that sends, so that nothing has to be settled before it may be answered."""

    async def scene() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        one = Rehearsal(loop, Offloads(vnet_header=True), monotonic=time.monotonic, random=os.urandom, new_batch=portable_batch, came=came.set)
        news: list[bool] = []
        for path in one._paths:
            ask = path._has_news

            def note(ask: Callable[[], bool] = ask) -> bool:
                news.append(ask())
                return news[-1]

            path._has_news = note  # type: ignore[method-assign]
        for _ in range(12):
            came.clear()
            one.begin()
            async with asyncio.timeout(BOUND_S):
                await came.wait()
        assert not any(news[-12:])
        one.close()

    asyncio.run(scene())


def test_what_can_not_be_opened_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        files = len(os.listdir("/proc/self/fd"))
        add, calls = loop.add_reader, []

        def some(*what: Any) -> None:
            calls.append(what)
            if len(calls) == 5:
                refuse()
            add(*what)

        monkeypatch.setattr(loop, "add_reader", some)
        with pytest.raises(HostError, match="too many open files"):
            Rehearsal(loop, Offloads(vnet_header=True), monotonic=time.monotonic, random=os.urandom, new_batch=portable_batch, came=lambda: None)
        assert len(os.listdir("/proc/self/fd")) == files

    asyncio.run(scene())


class Scene:
    """A KeepWarm in virtual time; rehearsals last `takes` seconds, or for ever."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.takes = loop, 0.0001
        self.begun: list[float] = []
        self.warm = KeepWarm(loop, loop.time)
        self.warm.begin = self._begin

    def _begin(self) -> None:
        self.begun.append(self.loop.time())
        if self.takes < float("inf"):
            self.loop.call_later(self.takes, self.warm.came_back)

    async def packets(self, count: int, gap: float) -> None:
        """So many, `gap` seconds before each."""
        for _ in range(count):
            await asyncio.sleep(gap)
            self.warm.packets(self.loop.time())


def _play(script: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await script(Scene(asyncio.get_running_loop()))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


@pytest.mark.parametrize("answer_after", [0.0005, 0.03])
def test_stray_packets_and_their_answers_start_nothing(answer_after: float) -> None:
    async def script(scene: Scene) -> None:
        await scene.packets(20, WINDOW_S * 1.01)
        for _ in range(20):
            await scene.packets(1, WINDOW_S * 1.01)
            await scene.packets(1, answer_after)
        await asyncio.sleep(1)
        assert scene.begun == []

    _play(script)


def test_between_packets_there_are_rehearsals_and_soon_after_the_last_none() -> None:
    async def script(scene: Scene) -> None:
        await scene.packets(3, WINDOW_S / 2)
        last = scene.loop.time()
        await asyncio.sleep(10)
        gaps = [after - before for before, after in zip([last, *scene.begun], scene.begun, strict=False)]
        assert len(gaps) > WINDOW_S / TICK_S / 2
        assert all(gap == pytest.approx(TICK_S) for gap in gaps)
        assert scene.begun[-1] < last + WINDOW_S
        await scene.packets(3, WINDOW_S / 2)
        await asyncio.sleep(10)
        assert len(scene.begun) == 2 * len(gaps), "and so again"

    _play(script)


def test_none_is_needed_where_packets_come_anyway() -> None:
    async def script(scene: Scene) -> None:
        await scene.packets(10_000, TICK_S / 4)
        assert scene.begun == []

    _play(script)


@pytest.mark.parametrize("takes", [0.0001, 0.0004, 0.002, 0.01])
def test_rest_bounds_what_they_cost(takes: float) -> None:
    async def script(scene: Scene) -> None:
        scene.takes = takes
        await scene.packets(1000, WINDOW_S / 4)
        share = takes * len(scene.begun) / scene.loop.time()
        assert 0 < share <= 1 / (1 + REST)
        gaps = [after - before for before, after in zip(scene.begun, scene.begun[1:], strict=False)]
        assert min(gaps) >= takes * (1 + REST) - 1e-9

    _play(script)


def test_where_none_comes_back_pauses_are_long() -> None:
    async def script(scene: Scene) -> None:
        scene.takes = float("inf")
        await scene.packets(100, WINDOW_S / 2)
        assert len(scene.begun) == MAX_LOST
        await scene.packets(round(PAUSE_S / WINDOW_S), WINDOW_S)
        scene.takes = 0.0001
        await scene.packets(100, WINDOW_S / 2)
        assert len(scene.begun) > 3 * MAX_LOST, "and then it is tried again"

    _play(script)


@pytest.mark.parametrize("late", [PATIENCE_S * 1.5, 8 * 3600.0])
def test_one_that_comes_back_late_makes_no_long_rest(late: float) -> None:
    """A handshake had to be sent again, or the machine slept."""

    async def script(scene: Scene) -> None:
        scene.takes = float("inf")
        await scene.packets(4, WINDOW_S / 4)
        begun = len(scene.begun)
        assert begun >= 1
        await asyncio.sleep(late)
        scene.warm.came_back()
        scene.takes = 0.0001
        await asyncio.sleep(PATIENCE_S * REST)
        await scene.packets(4, WINDOW_S / 4)
        assert len(scene.begun) > begun

    _play(script)


def test_closed_it_rests() -> None:
    async def script(scene: Scene) -> None:
        await scene.packets(3, WINDOW_S / 2)
        scene.warm.close()
        await asyncio.sleep(1)
        assert scene.begun == []

    _play(script)


def test_data_path_that_packets_pass_is_kept_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        """Its sockets would not be ready in virtual time."""

        def __init__(self, *_arguments: object, came: Callable[[], None], **_named: object) -> None:
            self.begin = lambda: (begun.append(1), came())

        def close(self) -> None:
            begun.append(0)

    begun: list[int] = []
    monkeypatch.setattr(rehearsal, "Rehearsal", Never)

    async def scene(world: World) -> None:
        one, _ = world.pair()
        loop = asyncio.get_running_loop()
        offloads = one.tun.offloads
        end = keep_warm(one.path, offloads, loop, monotonic=loop.time, random=os.urandom, new_batch=portable_batch)
        for _ in range(5):
            give(one, icmp_echo(ends(1, 2)))
            await world.passes(WINDOW_S / 2)
        assert begun.count(1) > 5
        end()
        assert begun.pop() == 0
        before = len(begun)
        for _ in range(5):
            give(one, icmp_echo(ends(1, 2)))
            await world.passes(WINDOW_S / 2)
        assert len(begun) == before

    play(scene)


def test_without_sockets_a_node_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object, **_named: object) -> None:
        raise HostError("none")

    monkeypatch.setattr(rehearsal, "Mirror", refused)

    async def scene(world: World) -> None:
        one, two = world.pair()
        loop = asyncio.get_running_loop()
        end = keep_warm(one.path, one.tun.offloads, loop, monotonic=loop.time, random=os.urandom, new_batch=portable_batch)
        for _ in range(3):
            give(one, icmp_echo(ends(1, 2)))
            await world.passes(WINDOW_S / 2)
        assert len(two.packets()) == 3
        end()

    play(scene)
