"""TAI64N timestamps: whitening, order, and clocks that go wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.tunnel.constants import MAX_CLOCK_AHEAD
from calnet.tunnel.timestamps import TimestampLog, clock_ahead, seconds_of, step_after, timestamp_of

NOW = 1_800_000_000.0
YEAR = 365 * 86400.0
KEY = b"k" * 32


def test_timestamp_of_a_known_second_is_tai64n() -> None:
    assert timestamp_of(NOW).hex() == "400000006b49d20a" + "00000000"


@given(st.floats(0, 4e9))
def test_timestamp_is_whitened_to_16_7_ms_and_close(wall: float) -> None:
    stamp = timestamp_of(wall)
    assert len(stamp) == 12
    assert int.from_bytes(stamp[8:], "big") % 2**24 == 0
    assert 0 <= wall - seconds_of(stamp) < 0.0169


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_timestamps_sort_as_their_times(first: float, second: float) -> None:
    if first <= second:
        assert timestamp_of(first) <= timestamp_of(second)


@given(st.floats(0, 4e9))
def test_step_after_is_later_by_a_little(wall: float) -> None:
    stamp = timestamp_of(wall)
    assert stamp < step_after(stamp)
    assert seconds_of(step_after(stamp)) - seconds_of(stamp) < 0.04
    assert int.from_bytes(step_after(stamp)[8:], "big") < 1_000_000_000


def test_seconds_of_nonsense_is_only_far_away() -> None:
    assert seconds_of(b"\xff" * 12) > NOW + YEAR
    assert seconds_of(bytes(12)) < 0


@pytest.mark.parametrize(("offset", "refused"), [(-YEAR, False), (0.0, False), (MAX_CLOCK_AHEAD - 1, False), (MAX_CLOCK_AHEAD + 1, True), (YEAR, True)])
def test_clock_ahead_judges_by_ten_minutes(offset: float, refused: bool) -> None:
    ahead = clock_ahead(timestamp_of(NOW + offset), NOW)
    assert (ahead > 0) == refused
    if refused:
        assert ahead == pytest.approx(offset, abs=0.02)


def test_log_accepts_only_what_is_later() -> None:
    log = TimestampLog()
    assert log.is_new(KEY, timestamp_of(NOW))
    log.accept(KEY, timestamp_of(NOW))
    assert not log.is_new(KEY, timestamp_of(NOW))
    assert not log.is_new(KEY, timestamp_of(NOW - 1))
    assert log.is_new(KEY, timestamp_of(NOW + 1))
    assert log.is_new(b"o" * 32, timestamp_of(NOW - 1))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.booleans())
def test_log_next_is_strictly_later_whatever_the_clock_does(offsets: list[float], may_go_back: bool) -> None:
    log = TimestampLog()
    stamps = [log.next(KEY, NOW + offset, may_go_back=may_go_back) for offset in offsets]
    assert stamps == sorted(set(stamps))


def test_log_next_goes_on_from_what_was_loaded() -> None:
    log = TimestampLog()
    log.load({}, {KEY: timestamp_of(NOW + 60)})
    assert log.next(KEY, NOW, may_go_back=True) == step_after(timestamp_of(NOW + 60))


def test_log_next_after_a_clock_a_year_ahead_comes_back_where_such_stamps_are_dropped() -> None:
    log = TimestampLog()
    log.load({}, {KEY: timestamp_of(NOW + YEAR)})
    assert log.next(KEY, NOW, may_go_back=True) == timestamp_of(NOW)
    log.load({}, {KEY: timestamp_of(NOW + YEAR)})
    assert log.next(KEY, NOW, may_go_back=False) == step_after(timestamp_of(NOW + YEAR))


def test_log_load_keeps_the_greater_and_leaves_out_damaged_ones() -> None:
    log = TimestampLog()
    log.accept(KEY, timestamp_of(NOW))
    log.load({KEY: timestamp_of(NOW - 9), b"o" * 32: b"short", b"p" * 32: timestamp_of(NOW)}, {})
    assert not log.is_new(KEY, timestamp_of(NOW))
    assert log.is_new(b"o" * 32, timestamp_of(0.0))
    assert not log.is_new(b"p" * 32, timestamp_of(NOW))
