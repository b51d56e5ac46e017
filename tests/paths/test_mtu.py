"""The search for a path's MTU, on paths of any width that lose packets, shrink, grow and fall silent."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.model import Endpoint
from calnet.paths.mtu import BASE, CONFIRM, RAISE, RETRY, SIZES, TRIES, PathMtu

HERE, THERE = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)
RTT = 0.03


class Path:
    """What takes packets of `width` bytes at most, and answers after RTT; `used`: longer packets than BASE flow."""

    def __init__(self, ceiling: int, width: int, *, loss: float = 0.0, seed: int = 0) -> None:
        self.mtu, self.width, self.loss, self.alive, self.used = PathMtu(ceiling), width, loss, True, False
        self.now, self.heard_at, self.probes = 1000.0, 1000.0, 0
        self._draw = random.Random(seed)
        self.mtu.use_path(HERE)

    def pass_(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            due = self.mtu.deadline()
            self.now = min(end, max(self.now + 0.01, self.now + 0.05 if due is None else min(due, self.now + 0.05)))
            if self.alive:
                self.heard_at = self.now - 0.001
            if self.used:
                self.mtu.used(self.now)
            size = self.mtu.on_timer(self.now, self.heard_at)
            if size is not None:
                self.probes += 1
                if self.alive and size <= self.width and self._draw.random() >= self.loss:
                    self.now += RTT
                    self.mtu.answered(size, self.now)


def best(ceiling: int, width: int) -> int:
    """The longest of the sizes that a path of this width takes."""
    return max((size for size in (BASE, *SIZES, ceiling) if size <= min(ceiling, width)), default=BASE)


@given(st.integers(BASE, 9000), st.integers(BASE, 9100))
def test_path_of_any_width_is_used_as_far_as_it_goes(ceiling: int, width: int) -> None:
    path = Path(ceiling, width)
    path.pass_(30.0)
    assert (path.mtu.limit, path.mtu.settled, path.mtu.thin) == (best(ceiling, width), True, False)
    assert path.probes <= 1 + TRIES * 5
    before = path.probes
    path.pass_(RAISE / 2)
    assert path.probes == before


def test_most_paths_take_one_probe() -> None:
    path = Path(1420, 1420)
    path.pass_(0.1)
    assert (path.mtu.limit, path.mtu.settled, path.probes) == (1420, True, 1)
    path.pass_(10 * RAISE)
    assert path.probes == 1


def test_path_that_shrinks_is_noticed_while_it_is_used() -> None:
    path = Path(1420, 1420)
    path.used = True
    path.pass_(5.0)
    path.width = 1350
    path.pass_(CONFIRM + TRIES * RETRY)
    assert path.mtu.limit == BASE or path.mtu.limit == 1344
    path.pass_(10.0)
    assert path.mtu.limit == 1344


def test_unused_path_is_not_asked_again() -> None:
    path = Path(1420, 1420)
    path.pass_(5.0)
    path.width = 1350
    path.pass_(60.0)
    assert (path.mtu.limit, path.probes) == (1420, 1)


def test_path_that_grows_is_raised_after_a_while() -> None:
    path = Path(1420, 1300)
    path.pass_(30.0)
    assert path.mtu.limit == BASE
    path.width = 1500
    path.pass_(RAISE)
    assert path.mtu.limit == 1420


def test_silent_path_says_nothing_of_its_width() -> None:
    path = Path(1420, 1420)
    path.used = True
    path.pass_(5.0)
    path.alive = False
    path.pass_(60.0)
    assert (path.mtu.limit, path.mtu.thin) == (1420, False)
    path.alive = True
    path.pass_(5.0)
    assert path.mtu.limit == 1420


def test_path_that_does_not_take_base_is_thin_until_another_is_used() -> None:
    path = Path(1420, 1000)
    path.pass_(30.0)
    assert (path.mtu.thin, path.mtu.limit) == (True, BASE)
    path.mtu.use_path(THERE)
    assert not path.mtu.thin
    path.width = 1500
    path.pass_(5.0)
    assert path.mtu.limit == 1420


def test_least_interface_asks_for_base_once() -> None:
    path = Path(BASE, 1500)
    path.pass_(100.0)
    assert (path.mtu.limit, path.mtu.settled, path.probes) == (BASE, True, 1)


def test_network_change_forgets_what_held() -> None:
    path = Path(1420, 1420)
    path.pass_(5.0)
    path.mtu.forget()
    assert (path.mtu.limit, path.mtu.settled) == (BASE, False)
    path.pass_(1.0)
    assert path.mtu.limit == 1420


def test_answers_to_what_was_never_asked_change_nothing() -> None:
    path = Path(1420, 1300)
    for size in (0, 1300, 9000, 100_000):
        path.mtu.answered(size, path.now)
    assert path.mtu.limit == BASE


@pytest.mark.parametrize("loss", [0.05, 0.2, 0.4])
def test_loss_leads_to_no_more_than_the_path_takes(loss: float) -> None:
    found = []
    for seed in range(20):
        path = Path(1420, 1400, loss=loss, seed=seed)
        path.used = True
        path.pass_(120.0)
        assert path.mtu.limit <= 1392
        found.append(path.mtu.limit)
    if loss < 0.1:
        assert found.count(1392) >= 18
