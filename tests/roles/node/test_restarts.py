"""When a data path that ended by itself is opened again."""

from __future__ import annotations

import pytest

from calnet.roles.node.restarts import LASTING_S, Restarts, soon


def test_first_end_is_followed_at_once_and_later_ones_after_growing_bounded_pauses() -> None:
    restarts, now, pauses = Restarts(), 1000.0, []
    for _ in range(30):
        restarts.opened(now)
        pauses.append(restarts.ended(now + 1, 0.5))
        now += 1 + pauses[-1]
        assert restarts.may_open(now)
        if pauses[-1]:
            assert not restarts.may_open(now - 0.01)
    assert pauses[0] == 0.0
    assert 0.25 <= pauses[1] <= 0.5
    assert pauses == sorted(pauses)
    assert max(pauses) <= 30.0


def test_one_that_lasted_starts_the_pauses_anew() -> None:
    restarts = Restarts()
    for now in (0.0, 1.0, 3.0):
        restarts.opened(now)
        restarts.ended(now + 0.5, 0.5)
    restarts.opened(10.0)
    assert restarts.ended(10.0 + LASTING_S, 0.5) > 0.0
    restarts.opened(100.0)
    assert restarts.ended(100.1 + LASTING_S, 0.5) == 0.0


def test_failure_to_open_is_tried_again_only_where_one_had_run() -> None:
    restarts = Restarts()
    assert restarts.failed(0.0, 0.5) is None
    assert restarts.may_open(0.0)
    restarts.opened(1.0)
    restarts.ended(2.0, 0.5)
    pauses = [restarts.failed(2.0, 0.5) for _ in range(20)]
    assert all(pause is not None and 0.25 <= pause <= 30.0 for pause in pauses)
    assert not restarts.may_open(2.0)


@pytest.mark.parametrize("ends", [1, 5])
def test_one_that_is_not_wanted_forgets_all(ends: int) -> None:
    restarts = Restarts()
    for _ in range(ends):
        restarts.opened(0.0)
        restarts.ended(0.0, 0.5)
    restarts.unwanted()
    assert restarts.may_open(0.0)
    assert restarts.failed(0.0, 0.5) is None


@pytest.mark.parametrize(("pause", "words"), [(0.0, "now"), (0.4, "now"), (1.0, "in 1 s"), (29.6, "in 30 s")])
def test_pause_in_words(pause: float, words: str) -> None:
    assert soon(pause) == words
