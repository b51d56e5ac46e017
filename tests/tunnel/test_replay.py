"""The replay window against a slow twin, and its edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.tunnel.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW
from calnet.tunnel.replay import ReplayWindow


class _Twin:
    """The rule itself: a set of all counters accepted."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        greatest = max(self.seen, default=-1)
        if counter in self.seen or counter <= greatest - REPLAY_WINDOW or counter >= REJECT_AFTER_MESSAGES:
            return False
        self.seen.add(counter)
        return True

    def accept_run(self, first: int, count: int) -> bool:
        before = set(self.seen)
        greatest = max(self.seen, default=-1)
        overlaps = first <= greatest < first + count - 1
        if not overlaps and all(self.accept(counter) for counter in range(first, first + count)):
            return True
        self.seen = before
        return False


NEAR = st.integers(0, 40) | st.integers(REPLAY_WINDOW - 20, REPLAY_WINDOW + 40) | st.integers(2 * REPLAY_WINDOW, 2 * REPLAY_WINDOW + 40)


@given(st.lists(st.tuples(NEAR, st.integers(1, 60), st.booleans()), max_size=40))
def test_window_any_sequence_agrees_with_the_twin(steps: list[tuple[int, int, bool]]) -> None:
    window, twin = ReplayWindow(), _Twin()
    for counter, count, single in steps:
        if single:
            assert window.accept(counter) == twin.accept(counter)
        else:
            assert window.accept_run(counter, count) == twin.accept_run(counter, count)
        assert window.greatest == max(twin.seen, default=-1)


def test_window_is_as_wide_as_promised() -> None:
    window = ReplayWindow()
    assert REPLAY_WINDOW >= 8192
    assert window.accept(REPLAY_WINDOW)
    assert window.accept(1)
    assert not window.accept(0)
    assert not window.accept(1)


@pytest.mark.parametrize("jump", [REPLAY_WINDOW - 1, REPLAY_WINDOW, REPLAY_WINDOW + 1, 2**50])
def test_accept_far_ahead_forgets_only_what_leaves_the_window(jump: int) -> None:
    window = ReplayWindow()
    window.accept(0)
    assert window.accept(jump)
    assert not window.accept(0)
    assert not window.accept(jump)
    assert window.accept(jump - 1)


def test_counter_at_the_message_limit_is_refused() -> None:
    window = ReplayWindow()
    assert not window.accept(REJECT_AFTER_MESSAGES)
    assert not window.accept_run(REJECT_AFTER_MESSAGES - 1, 2)
    assert window.accept_run(REJECT_AFTER_MESSAGES - 2, 2)


@pytest.mark.parametrize("count", [1, 44, REPLAY_WINDOW - 1, REPLAY_WINDOW, REPLAY_WINDOW + 9])
def test_accept_run_in_order_is_accepted_once(count: int) -> None:
    window = ReplayWindow()
    assert window.accept_run(0, count)
    assert not window.accept_run(0, count)
    assert window.accept_run(count, count)
    assert not window.accept(2 * count - 1)
    assert window.greatest == 2 * count - 1


def test_accept_run_with_one_seen_changes_nothing() -> None:
    window = ReplayWindow()
    window.accept(100)
    window.accept(50)
    assert not window.accept_run(40, 20)
    assert window.accept(40)
    assert window.accept_run(60, 20)


def test_accept_run_across_the_greatest_is_left_to_one_by_one() -> None:
    window = ReplayWindow()
    window.accept(10)
    assert not window.accept_run(5, 10)
    assert window.accept(5)
