"""Telling many sessions of changes that never end, on a loop whose time the test moves: each is woken as often as there is time for, and no more."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import pytest

from calnet.model import NodeId
from calnet.roles.server.control_hub import AT_ONCE, LEAST_GATHER_S, QUIET_S, ControlHub, Session
from calnet.roles.server.registry import Registry
from calnet.roles.server.standing import Changed
from calnet.roles.server.timing import Timing

SESSIONS = 20 * AT_ONCE
STEP_S = 0.1
"""What the waking of AT_ONCE sessions costs: telling all takes two seconds, longer than QUIET_S."""


class Loop:
    """An event loop's calls, carried out one by one; each that is due at once costs STEP_S."""

    def __init__(self) -> None:
        self.now, self._numbers = 0.0, count()
        self._calls: list[tuple[float, int, asyncio.TimerHandle | None, Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, act: Callable[..., object], *args: object) -> None:
        heapq.heappush(self._calls, (self.now + STEP_S, next(self._numbers), None, act, args))

    def call_later(self, delay: float, act: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, act, args, cast(Any, self))
        heapq.heappush(self._calls, (self.now + delay, next(self._numbers), handle, act, args))
        return handle

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """What a loop's handles call."""

    def run_until(self, end: float) -> None:
        while self._calls and self._calls[0][0] <= end:
            at, _, handle, act, args = heapq.heappop(self._calls)
            if handle is None or not handle.cancelled():
                self.now = max(self.now, at)
                act(*args)
        self.now = max(self.now, end)


class Sitter:
    """A session that counts how often it is woken."""

    def __init__(self, number: int) -> None:
        self.control_key, self.node, self.source = number.to_bytes(32, "big"), NodeId(number), b"\x7f\0\0\1"
        self.woken: list[float] = []

    def attend(self, loop: Loop) -> Session:
        self.netmap_due = lambda: self.woken.append(loop.now)
        return cast(Session, self)


class Nobody:
    """A registry that takes note of nothing."""

    def connected(self, node: NodeId, source: bytes) -> None:
        pass


class Hall:
    """A hub with its sessions on such a loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.hub = ControlHub(
            cast(Registry, Nobody()), loop=cast(Any, self.loop), clock=lambda: 0.0, public_url=None, stun_ports=(), timing=Timing(), handover=None
        )
        self.sitters = [Sitter(number) for number in range(1, SESSIONS + 1)]
        for sitter in self.sitters:
            assert self.hub.admit(sitter.attend(self.loop))
        self.loop.run_until(10 * QUIET_S)

    def change(self, *, urgent: bool = False) -> None:
        self.hub.changed(Changed(frozenset(NodeId(number) for number in range(1, SESSIONS + 1)), frozenset(), urgent=urgent))

    def woken(self) -> set[int]:
        return {len(sitter.woken) for sitter in self.sitters}


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_change_after_a_quiet_while_is_told_soon(hall: Hall) -> None:
    began = hall.loop.now
    hall.change()
    hall.loop.run_until(began + 10)
    assert hall.woken() == {1}
    assert hall.sitters[0].woken[0] - began == pytest.approx(LEAST_GATHER_S)


def test_changes_without_end_wake_each_session_no_more_often_than_all_can_be_told(hall: Hall) -> None:
    began = hall.loop.now
    for number in range(1, 2000):
        hall.change()
        hall.loop.run_until(began + 0.02 * number)
    hall.loop.run_until(began + 60)
    assert max(hall.woken()) <= 40 / (SESSIONS / AT_ONCE * STEP_S) / 2
    assert min(hall.woken()) >= 5
    assert all(sitter.woken[-1] > began + 40 for sitter in hall.sitters), "the last change reached everybody"


def test_urgent_change_while_all_are_told_wakes_those_who_were_told_again_and_nobody_twice(hall: Hall) -> None:
    began = hall.loop.now
    hall.change()
    hall.loop.run_until(began + 1.05)
    told = [bool(sitter.woken) for sitter in hall.sitters]
    assert {True, False} == set(told)
    hall.change(urgent=True)
    hall.loop.run_until(began + 30)
    assert [len(sitter.woken) for sitter in hall.sitters] == [2 if before else 1 for before in told]
