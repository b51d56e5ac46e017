"""Whether the relay carries more: each threshold from both sides, and flows of every kind over paths of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.model import Endpoint
from calnet.paths import constants as c
from calnet.paths import delivery as m
from calnet.paths.delivery import Delivery, DeliveryAction, LeavePath, Phase, ReturnToPath, SendMark, TryRelay

HERE, ELSE = Endpoint("203.0.113.1", 1), Endpoint("203.0.113.2", 2)
SENT, LOST = 100_000, 20_000
EVERY = m.MARK_EVERY


class Script:
    """A sender, and a peer that answers each mark at once."""

    def __init__(self) -> None:
        self.delivery, self.now, self.direct, self.relayed = Delivery(), 1000.0, 0, 0
        self.delivery.use(HERE, self.now)

    def interval(self, sent: int = SENT, lost: int = LOST, seconds: float = EVERY) -> Sequence[DeliveryAction]:
        """So much is sent directly and so much of it lost; a mark goes with it and is answered. What comes of that."""
        self.now += seconds
        (mark,) = self.delivery.sent(sent, 0, self.now)
        assert isinstance(mark, SendMark)
        assert not mark.relay
        self.direct += sent - lost
        return self.answer(mark)

    def answer(self, mark: SendMark) -> Sequence[DeliveryAction]:
        return self.delivery.tally(mark.number, self.direct, self.relayed, self.now, by_relay=mark.relay)

    def to_question(self, sent: int = SENT, lost: int = LOST) -> SendMark:
        """All that has to come before the relay is asked."""
        for _ in range(4):
            assert not self.interval(sent, lost)
        (mark,) = self.interval(sent, lost)
        assert isinstance(mark, SendMark)
        assert mark.relay
        return mark

    def to_trial(self, sent: int = SENT, lost: int = LOST) -> SendMark:
        """…and its answer: the trial's first mark."""
        begin, mark = self.answer(self.to_question(sent, lost))
        assert begin == TryRelay()
        assert isinstance(mark, SendMark)
        assert mark.relay
        assert self.delivery.phase is Phase.TRYING
        return mark

    def relay(self, seconds: float, sent: int, lost: int = 0) -> Sequence[DeliveryAction]:
        """So much goes by relay in a trial, and the mark behind it is answered at once."""
        self.now += seconds
        marks = [*self.delivery.sent(0, sent, self.now)] or [*self.delivery.on_timer(self.now)]
        self.relayed += sent - lost
        found: list[DeliveryAction] = []
        for mark in marks:
            found += self.answer(mark) if isinstance(mark, SendMark) else [mark]
        return found


CARRIED = (SENT - LOST) / EVERY
"""Bytes a second that Script's path carries."""


# --- marks


def test_little_data_is_not_marked_and_enough_of_it_is() -> None:
    delivery = Delivery()
    delivery.use(HERE, 0.0)
    assert not delivery.sent(m.MARK_BYTES - 1, 0, 0.0)
    assert not delivery.sent(0, 100_000, 0.0)
    assert delivery.sent(1, 0, 0.0) == [SendMark(1, relay=False)]


def test_mark_without_an_answer_is_followed_by_another_soon() -> None:
    delivery = Delivery()
    delivery.use(HERE, 0.0)
    assert delivery.sent(m.MARK_BYTES, 0, 0.0)
    assert not delivery.sent(1, 0, m.MARK_RETRY - 0.01)
    assert delivery.sent(1, 0, m.MARK_RETRY) == [SendMark(2, relay=False)]


def test_mark_with_an_answer_is_followed_by_another_after_a_while_and_enough_data() -> None:
    script = Script()
    script.interval()
    assert not script.delivery.sent(m.MARK_BYTES - 1, 0, script.now + EVERY - 0.01)
    assert not script.delivery.sent(0, 0, script.now + EVERY)
    assert script.delivery.sent(1, 0, script.now + EVERY)


def test_without_a_path_or_a_choice_nothing_is_marked_but_everything_counted() -> None:
    delivery = Delivery()
    assert not delivery.sent(m.MARK_BYTES, 5, 0.0)
    assert (delivery.sent_direct, delivery.sent_relayed) == (m.MARK_BYTES, 5)
    delivery.got(7, direct=True)
    delivery.got(9, direct=False)
    assert (delivery.got_direct, delivery.got_relayed) == (7, 9)
    delivery.use(HERE, 0.0)
    assert not delivery.sent(m.MARK_BYTES - 1, 0, 0.0)
    assert delivery.deadline() is None
    assert not delivery.on_timer(1e9)


def test_marks_that_are_remembered_are_few_and_their_numbers_32_bits() -> None:
    script = Script()
    script.delivery._number = 2**32 - 3
    numbers = []
    for _ in range(50):
        script.now += m.MARK_RETRY
        numbers += [mark.number for mark in script.delivery.sent(SENT, 0, script.now) if isinstance(mark, SendMark)]
    assert numbers[:4] == [2**32 - 2, 2**32 - 1, 0, 1]
    assert len(script.delivery._marks) == m.MAX_MARKS
    assert not script.delivery.tally(numbers[-m.MAX_MARKS - 1], 0, 0, script.now, by_relay=False)
    assert script.delivery._base is None
    script.delivery.tally(numbers[-m.MAX_MARKS], 0, 0, script.now, by_relay=False)
    assert script.delivery._base is not None


# --- what is bad enough


def test_relay_is_asked_after_six_seconds_of_loss_behind_the_first_interval_of_it() -> None:
    script = Script()
    assert not script.interval(lost=0)
    assert [bool(script.interval()) for _ in range(4)] == [False, False, False, True]


def test_relay_is_not_asked_a_moment_sooner() -> None:
    script = Script()
    for seconds in (EVERY, EVERY, 3.0, m.LASTS - 3.0 - 0.01):
        assert not script.interval(seconds=seconds)
    assert script.interval()


@pytest.mark.parametrize(("lost", "asked"), [(30_000, True), (29_999, False)])
def test_loss_that_counts_is_three_percent(lost: int, asked: bool) -> None:
    script = Script()
    assert any(script.interval(1_000_000, lost) for _ in range(20)) is asked


@pytest.mark.parametrize(("last", "asked"), [(10_923, True), (10_922, False)])
def test_loss_that_counts_is_32_kib(last: int, asked: bool) -> None:
    script = Script()
    for lost in (LOST, LOST, 10_922, 10_923):
        assert not script.interval(lost=lost)
    assert bool(script.interval(lost=last)) is asked
    assert script.interval() or asked


def test_loss_that_comes_back_is_one_trouble() -> None:
    """As measured with BBR, which keeps to a policer's rate for a while once it has recognised one, loses nothing, and then tries more."""
    script = Script()
    script.interval()
    for sent, lost in ((241_000, 122_000), (120_500, 0), (119_000, 0)):
        assert not script.interval(sent, lost)
    assert script.interval(191_600, 84_200)


def test_relay_is_not_asked_while_nothing_is_lost() -> None:
    script = Script()
    for _ in range(4):
        assert not script.interval()
    assert [bool(script.interval(lost=lost)) for lost in (0, LOST, 0)] == [False, True, False]


@pytest.mark.parametrize(("good", "asked"), [(m.REMEMBERED - 2, True), (m.REMEMBERED - 1, False)])
def test_trouble_that_is_over_is_forgotten(good: int, asked: bool) -> None:
    script = Script()
    script.interval()
    assert not script.interval(lost=SENT)
    for _ in range(good):
        assert not script.interval(lost=0)
    assert bool(script.interval(lost=SENT)) is asked


@pytest.mark.parametrize(("sent", "asked"), [(411_111, True), (411_112, False)])
def test_loss_is_that_of_all_since_the_trouble_began(sent: int, asked: bool) -> None:
    script = Script()
    script.interval()
    assert not script.interval(lost=SENT)
    for _ in range(3):
        assert not script.interval(sent, lost=0)
    assert bool(script.interval(lost=40_000)) is asked


def test_good_time_between_two_troubles_does_not_count_for_the_second() -> None:
    script = Script()
    script.interval()
    script.interval()
    for _ in range(4):
        assert not script.interval(9_000_000, lost=0)
    assert [bool(script.interval()) for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(("seconds", "goes_on"), [(m.LONGEST_INTERVAL, True), (m.LONGEST_INTERVAL + 0.01, False)])
def test_pause_of_the_application_ends_a_flow(seconds: float, goes_on: bool) -> None:
    script = Script()
    for _ in range(4):
        assert not script.interval()
    assert bool(script.interval(seconds=seconds)) is goes_on
    if not goes_on:
        assert [bool(script.interval()) for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(("arrived", "asked"), [(m.FAST, True), (m.FAST + 1, False)])
def test_fast_path_is_none_of_its_business(arrived: float, asked: bool) -> None:
    script = Script()
    lost = 1_000_000
    assert any(script.interval(int(arrived * EVERY) + lost, lost) for _ in range(8)) is asked


def test_path_that_was_fast_in_one_interval_is_fast() -> None:
    script = Script()
    script.interval()
    for sent in (SENT, SENT, 11_000_000, SENT):
        assert not script.interval(sent, sent // 20)
    assert [bool(script.interval()) for _ in range(2)] == [False, True]


def test_more_than_was_sent_has_not_come() -> None:
    script = Script()
    for _ in range(10):
        assert not script.interval(lost=-SENT)


def test_answers_that_come_twice_late_out_of_order_or_another_way_change_nothing() -> None:
    script = Script()
    script.interval()
    script.now += EVERY
    (first,) = script.delivery.sent(SENT, 0, script.now)
    (second,) = script.delivery.sent(SENT, 0, script.now + m.MARK_RETRY)
    assert isinstance(first, SendMark)
    assert isinstance(second, SendMark)
    script.now += 1.0
    assert not script.delivery.tally(second.number, 2 * SENT, 0, script.now, by_relay=True)
    base = script.delivery._base
    assert not script.delivery.tally(second.number, 2 * SENT, 0, script.now, by_relay=False), "it was spoilt"
    assert script.delivery._base == base
    for _ in range(2):
        assert not script.delivery.tally(first.number, 2 * SENT, 0, script.now, by_relay=False)
    assert script.delivery._base != base
    base = script.delivery._base
    (third,) = script.delivery.sent(SENT, 0, script.now + EVERY)
    (fourth,) = script.delivery.sent(SENT, 0, script.now + EVERY + m.MARK_RETRY)
    assert isinstance(third, SendMark)
    assert isinstance(fourth, SendMark)
    script.delivery.tally(fourth.number, 3 * SENT, 0, script.now + 4.0, by_relay=False)
    base = script.delivery._base
    script.delivery.tally(third.number, 3 * SENT, 0, script.now + 4.0, by_relay=False)
    assert script.delivery._base == base
    assert not script.delivery.tally(12_345, 9, 9, script.now, by_relay=False)


def test_next_mark_is_due_at_its_time_after_the_last_one_that_was_answered_however_late() -> None:
    script = Script()
    script.now += EVERY
    (mark,) = script.delivery.sent(SENT, 0, script.now)
    sent_at = script.now
    assert isinstance(mark, SendMark)
    script.now += 0.4
    script.answer(mark)
    assert not script.delivery.sent(SENT, 0, sent_at + EVERY - 0.01)
    assert script.delivery.sent(1, 0, sent_at + EVERY)


@pytest.mark.parametrize(("sent", "counts"), [(m.MARK_BYTES, True), (m.MARK_BYTES - 1, False)])
def test_interval_of_little_data_is_none(sent: int, counts: bool) -> None:
    """As a second mark's would be, on a path whose answers take long."""
    script = Script()
    script.now += EVERY
    (first,) = script.delivery.sent(SENT, 0, script.now)
    script.now += EVERY
    (second,) = script.delivery.sent(sent, 0, script.now)
    assert isinstance(first, SendMark)
    assert isinstance(second, SendMark)
    script.answer(first)
    base = script.delivery._base
    script.answer(second)
    assert (script.delivery._base != base) is counts


def test_second_answer_of_one_interval_is_none() -> None:
    """On a path whose answers take longer than a retry, marks lie closer together than intervals."""
    script = Script()
    script.interval()
    script.now += EVERY
    (first,) = script.delivery.sent(SENT, 0, script.now)
    (second,) = script.delivery.sent(SENT, 0, script.now + m.MARK_RETRY)
    assert isinstance(first, SendMark)
    assert isinstance(second, SendMark)
    script.answer(first)
    base = script.delivery._base
    script.answer(second)
    assert script.delivery._base == base


def test_peer_that_began_anew_is_counted_anew() -> None:
    script = Script()
    for _ in range(4):
        script.interval()
    script.direct = 0
    assert not script.interval()
    assert [bool(script.interval()) for _ in range(5)] == [False, False, False, False, True]


# --- the question


@pytest.mark.parametrize(("late", "begins"), [(m.FRESH, True), (m.FRESH + 0.01, False)])
def test_relay_that_answers_late_is_not_tried(late: float, begins: bool) -> None:
    script = Script()
    mark = script.to_question()
    script.now += late
    assert bool(script.answer(mark)) is begins


def test_relay_that_does_not_answer_is_asked_again_and_nothing_else_happens() -> None:
    script = Script()
    script.to_question()
    for _ in range(5):
        (mark,) = script.interval()
        assert isinstance(mark, SendMark)
        assert mark.relay
    assert script.delivery.phase is Phase.WATCHING


def test_path_that_is_good_again_before_the_relay_answers_is_kept() -> None:
    script = Script()
    mark = script.to_question()
    assert not script.interval(lost=0)
    assert not script.answer(mark)


# --- the trial


def test_relay_that_carries_four_times_as_much_is_taken_after_three_seconds() -> None:
    script = Script()
    script.to_trial()
    assert not script.relay(m.TRIAL_LEAST - 0.01, int(40 * CARRIED))
    (leave,) = script.relay(1.0, 0)
    assert leave == LeavePath("UDP is throttled here: 0.3 Mbit/s directly with 20% lost, 3.2 by relay")
    assert script.delivery.phase is Phase.WATCHING
    assert script.delivery.deadline() is None


@pytest.mark.parametrize(("times", "left"), [(m.CLEAR, True), (m.CLEAR - 0.01, False)])
def test_three_seconds_are_enough_where_the_outcome_is_clear(times: float, left: bool) -> None:
    script = Script()
    script.to_trial()
    assert bool(script.relay(m.TRIAL_LEAST, int(times * CARRIED * m.TRIAL_LEAST))) is left


@pytest.mark.parametrize("times", [m.GAIN, m.CLEAR - 0.01])
def test_relay_that_carries_twice_as_much_is_taken_after_six_seconds(times: float) -> None:
    script = Script()
    script.to_trial()
    for _ in range(5):
        assert not script.relay(1.0, int(times * CARRIED))
    assert [type(action) for action in script.relay(1.0, int(times * CARRIED))] == [LeavePath]


@pytest.mark.parametrize("times", [1 / m.POOR, m.GAIN - 0.01])
@pytest.mark.parametrize("missing", [0, SENT])
def test_relay_that_carries_about_as_much_is_given_fifteen_seconds(times: float, missing: int) -> None:
    script = Script()
    script.to_trial()
    seconds = 0
    while not (actions := script.relay(1.0, int(times * CARRIED) + missing, missing)):
        seconds += 1
    assert actions == [ReturnToPath()]
    assert seconds + 1 == m.TRIAL_LONGEST
    assert script.delivery._pause == m.PAUSE_FIRST


def test_flow_that_keeps_to_the_paths_rate_and_then_tries_more_is_moved() -> None:
    """As measured with BBR, which had recognised a policer just before the trial."""
    script = Script()
    script.to_trial()
    for _ in range(8):
        assert not script.relay(1.0, int(0.8 * CARRIED))
    assert [type(action) for action in script.relay(1.0, int(20 * CARRIED))] == [LeavePath]


def test_what_the_last_mark_of_six_seconds_tells_counts_though_its_answer_comes_later() -> None:
    script = Script()
    script.answer(script.to_trial())
    began = script.now
    for _ in range(5):
        assert not script.relay(1.0, int(0.4 * CARRIED))
    script.now = began + m.TRIAL
    (mark,) = script.delivery.sent(0, int(20 * CARRIED), script.now)
    assert isinstance(mark, SendMark)
    assert not script.delivery.on_timer(script.now)
    script.relayed += int(20 * CARRIED)
    script.now += 0.9
    assert [type(action) for action in script.answer(mark)] == [LeavePath]


@pytest.mark.parametrize(("got", "left"), [(m.MUCH, True), (m.MUCH - 1, False)])
def test_relay_has_to_carry_a_good_deal(got: int, left: bool) -> None:
    script = Script()
    script.to_trial(lost=SENT)
    script.relay(1.0, got)
    assert [type(action) for action in script.relay(m.TRIAL_LONGEST - 1.0, 0)] == [LeavePath if left else ReturnToPath]


def test_best_of_the_paths_intervals_counts() -> None:
    script = Script()
    for lost in (0, LOST, LOST, SENT, SENT, SENT):
        script.delivery._rest_until = script.now + 1.5 * EVERY
        assert not script.interval(lost=lost)
    (mark,) = script.interval(lost=SENT)
    assert isinstance(mark, SendMark)
    script.answer(mark)
    assert script.delivery._trial is not None
    assert script.delivery._trial.trouble.carried == CARRIED
    assert not script.relay(m.TRIAL_LEAST, int((m.CLEAR - 0.01) * CARRIED * m.TRIAL_LEAST))


def test_intervals_before_the_trouble_do_not_count() -> None:
    script = Script()
    script.interval()
    script.interval(1_000_000, 0)
    script.interval(1_000_000, 400_000)
    assert not script.interval()
    assert not script.interval(lost=5_000)
    (mark,) = script.interval()
    assert isinstance(mark, SendMark)
    script.answer(mark)
    assert script.delivery._trial is not None
    assert script.delivery._trial.trouble == m._Trouble(45_000 / (3 * SENT), (SENT - 5_000) / EVERY)


def test_what_came_by_relay_before_the_trial_and_what_was_not_sent_do_not_count() -> None:
    script = Script()
    script.delivery.sent(0, 10**8, script.now)
    script.relayed = 10**9
    script.to_trial()
    script.relayed += 10**9
    assert not script.relay(m.TRIAL_LEAST, int(CARRIED))
    lossy = Script()
    lossy.delivery.sent(0, 10**8, lossy.now)
    lossy.relayed = 10**7
    lossy.to_trial()
    assert not lossy.relay(m.TRIAL_LEAST, 10**8, 10**8 - int(CARRIED * m.TRIAL_LEAST))


def test_answers_another_way_are_none_in_a_trial() -> None:
    script = Script()
    mark = script.to_trial()
    script.delivery.tally(mark.number, script.direct, 10**9, script.now, by_relay=False)
    assert script.delivery.on_timer(script.now + m.FRESH) == [ReturnToPath()]


def test_answer_to_a_mark_on_the_path_says_nothing_of_a_trial() -> None:
    script = Script()
    for _ in range(4):
        script.interval()
    (question,) = script.interval()
    (direct,) = script.delivery.sent(SENT, 0, script.now + EVERY)
    assert isinstance(question, SendMark)
    assert isinstance(direct, SendMark)
    assert not direct.relay
    script.now += 1.9
    begin, _ = script.answer(question)
    assert begin == TryRelay()
    script.now += 0.2
    script.relayed += 10 * SENT
    assert not script.answer(direct)
    assert script.delivery.on_timer(script.now + m.FRESH - 0.2) == [ReturnToPath()]


def test_half_of_what_the_path_carried_is_not_little() -> None:
    script = Script()
    script.answer(script.to_trial())
    script.delivery._pause, script.delivery._rest_until = 2 * m.PAUSE_FIRST, script.now - 1.0
    for _ in range(14):
        assert not script.relay(1.0, int(CARRIED / m.POOR))
    assert script.relay(1.0, int(CARRIED / m.POOR)) == [ReturnToPath()]
    assert script.delivery._pause == 4 * m.PAUSE_FIRST


def test_relay_that_is_stuck_is_given_up_early() -> None:
    script = Script()
    script.to_trial()
    assert script.delivery.deadline() == script.now + m.TRIAL_MARK_EVERY
    began = script.now
    script.delivery.sent(0, 10_000, began + m.TRIAL_MARK_EVERY)
    assert script.delivery.deadline() == began + m.FRESH
    assert not script.delivery.on_timer(began + m.FRESH - 0.01)
    assert script.delivery.on_timer(began + m.FRESH) == [ReturnToPath()]
    assert script.delivery._rest_until == began + m.FRESH + m.PAUSE_FIRST
    assert script.delivery._pause == m.PAUSE_FIRST, "though nothing was missing"


def test_trial_is_marked_each_second_and_ends_in_time_where_nothing_is_sent() -> None:
    script = Script()
    mark = script.to_trial()
    began = script.now
    script.answer(mark)
    for second in range(1, 6):
        assert script.delivery.deadline() == began + second
        assert not script.relay(0.99, 0)
        script.now = began + second
        marks = script.delivery.on_timer(script.now)
        assert [type(one) for one in marks] == [SendMark]
        assert not script.answer(marks[0])  # type: ignore[arg-type]
    assert script.delivery.deadline() == began + m.TRIAL
    script.now = began + m.TRIAL
    (last,) = script.delivery.on_timer(script.now)
    assert isinstance(last, SendMark)
    assert script.answer(last) == [ReturnToPath()]


@pytest.mark.parametrize(("told", "ends"), [(1, m.TRIAL), (5, 5 + m.FRESH), (12, 12 + m.FRESH)])
def test_relay_that_answers_no_more_ends_the_trial(told: int, ends: float) -> None:
    script = Script()
    script.answer(script.to_trial())
    began = script.now
    for _ in range(told):
        assert not script.relay(1.0, int(CARRIED))
    while script.now < began + ends - 0.5:
        script.now += 0.5
        script.delivery.sent(0, SENT, script.now)
        assert ReturnToPath() not in script.delivery.on_timer(script.now)
    assert script.delivery.on_timer(began + ends) == [ReturnToPath()]
    assert script.delivery._pause == m.PAUSE_FIRST


def test_relay_that_carries_less_is_given_up_after_three_seconds() -> None:
    script = Script()
    script.answer(script.to_trial())
    slow = int(CARRIED / m.POOR * 0.9)
    assert not script.relay(1.0, SENT, SENT - slow)
    assert not script.relay(1.0, SENT, SENT - slow)
    assert script.relay(1.0, SENT, SENT - slow) == [ReturnToPath()]


@pytest.mark.parametrize(("took", "ends"), [(2 * 0.2 + m.LATE - 0.001, False), (2 * 0.2 + m.LATE + 0.001, True)])
def test_what_is_still_on_its_way_by_relay_is_not_missing_unless_its_queue_grew(took: float, ends: bool) -> None:
    script = Script()
    question = script.to_question()
    script.now += 0.2
    script.answer(question)
    for _ in range(2):
        script.relay(1.0, 10_000)
    script.now += 1.0
    (mark,) = script.delivery.sent(0, 10_000, script.now)
    assert isinstance(mark, SendMark)
    script.relayed += 10_000
    script.now += took
    script.delivery.sent(0, 10_000, script.now)
    assert list(script.answer(mark)) == ([ReturnToPath()] if ends else [])


def test_relay_that_carries_little_less_is_given_its_time() -> None:
    script = Script()
    script.answer(script.to_trial())
    for _ in range(14):
        assert not script.relay(1.0, SENT, SENT - int(CARRIED / m.POOR * 1.01))
    assert script.relay(1.0, SENT, SENT - int(CARRIED)) == [ReturnToPath()]


@pytest.mark.parametrize(("missing", "doubled"), [(m.NOTHING_MISSING, False), (m.NOTHING_MISSING + 1, True)])
def test_application_that_fell_quiet_says_nothing_of_the_relay(missing: int, doubled: bool) -> None:
    script = Script()
    script.delivery.sent(0, 10**8, script.now)
    script.answer(script.to_trial())
    script.delivery._pause = 2 * m.PAUSE_FIRST
    script.delivery._rest_until = script.now - 1.0
    script.relay(1.0, 10_000)
    script.relay(1.0, missing, missing)
    actions = [*script.relay(m.TRIAL - 2.0, 0)] or [*script.delivery.on_timer(script.now)]
    assert actions == [ReturnToPath()]
    assert script.delivery._pause == (4 if doubled else 2) * m.PAUSE_FIRST
    assert script.delivery._rest_until == script.now + (4 if doubled else 1) * m.PAUSE_FIRST


def test_flow_that_goes_on_at_its_own_pace_counts_as_a_trial_in_vain() -> None:
    script = Script()
    script.answer(script.to_trial())
    for _ in range(14):
        assert not script.relay(1.0, SENT // 2)
    assert script.relay(1.0, SENT // 2) == [ReturnToPath()]
    assert script.delivery._pause == m.PAUSE_FIRST


def test_trial_is_shorter_than_what_makes_the_peer_leave_the_path() -> None:
    assert m.TRIAL_LONGEST + m.FRESH < c.AVOIDED_AFTER


def test_peer_that_begins_anew_in_a_trial_ends_it() -> None:
    script = Script()
    script.answer(script.to_trial())
    script.relay(1.0, SENT)
    script.relayed = 0
    assert script.relay(1.0, 1) == [ReturnToPath()]


# --- pauses


def in_vain(script: Script) -> float:
    """One trial that carries less, from now on; when it was over."""
    while not (actions := script.interval()):
        pass
    (mark,) = actions
    assert isinstance(mark, SendMark)
    script.answer(mark)
    assert script.delivery.on_timer(script.now + m.FRESH) == [ReturnToPath()]
    script.now += m.FRESH
    script.delivery.heard(script.now + 0.01)
    return script.now


def test_pause_between_trials_in_vain_doubles_from_a_minute_to_an_hour() -> None:
    script = Script()
    ends = [in_vain(script) for _ in range(9)]
    pauses = [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
    for before, after, pause in zip(ends, ends[1:], pauses, strict=False):
        assert pause <= after - before <= pause + 2 * EVERY + m.FRESH


def test_pause_is_forgotten_after_as_long_again_and_by_a_success() -> None:
    script = Script()
    in_vain(script)
    in_vain(script)
    assert script.delivery._pause == 2 * m.PAUSE_FIRST
    script.now = script.delivery._rest_until + script.delivery._pause - m.LASTS - 6 * EVERY - m.FRESH
    in_vain(script)
    assert script.delivery._pause == 4 * m.PAUSE_FIRST
    script.now = script.delivery._rest_until + script.delivery._pause
    in_vain(script)
    assert script.delivery._pause == m.PAUSE_FIRST
    script.now = script.delivery._rest_until
    while not (actions := script.interval()):
        pass
    script.answer(actions[0])  # type: ignore[arg-type]
    assert [type(action) for action in script.relay(m.TRIAL_LEAST - 1.5, 10 * SENT)] == []
    assert [type(action) for action in script.relay(1.5, 10 * SENT)] == [LeavePath]
    assert script.delivery._pause == 0.0


@pytest.mark.parametrize(("sooner", "doubled"), [(0.0, False), (0.5, True)])
def test_pause_is_forgotten_when_it_is_over_for_as_long_again(sooner: float, doubled: bool) -> None:
    script = Script()
    in_vain(script)
    ends = script.delivery._rest_until + script.delivery._pause - sooner
    script.now = ends - 5 * EVERY - m.FRESH
    assert in_vain(script) == ends
    assert script.delivery._pause == (2 if doubled else 1) * m.PAUSE_FIRST


def test_trial_begins_again_at_the_end_of_the_pause() -> None:
    script = Script()
    script.to_trial()
    script.delivery.on_timer(script.now + m.FRESH)
    script.delivery.heard(script.now + m.FRESH + 0.01)
    ends = script.now + m.FRESH + m.PAUSE_FIRST
    while script.now + 2 * EVERY < ends:
        assert not script.interval()
    assert script.interval(seconds=ends - script.now), "these times are whole seconds"
    assert script.now == ends


def test_other_path_is_counted_anew_and_ends_a_trial_in_vain() -> None:
    script = Script()
    script.to_trial()
    script.delivery.use(ELSE, script.now)
    assert script.delivery.phase is Phase.WATCHING
    assert script.delivery._pause == m.PAUSE_FIRST
    assert [bool(script.interval()) for _ in range(10)] == [False] * 10
    same = Script()
    same.to_question()
    same.delivery.use(HERE, same.now)
    assert same.interval()


def test_network_that_changed_forgets_everything() -> None:
    script = Script()
    in_vain(script)
    script.delivery.forget()
    assert [bool(script.interval()) for _ in range(5)] == [False, False, False, False, True]


# --- the return


def test_data_goes_both_ways_until_the_path_is_heard_again() -> None:
    script = Script()
    script.to_trial()
    over = script.now + m.FRESH
    script.delivery.on_timer(over)
    assert not script.delivery.sent(SENT, SENT, over + 0.1)
    phases = []
    for heard in (over - 1.0, over, over + 0.01):
        script.delivery.heard(heard)
        phases.append(script.delivery.phase)
    assert phases == [Phase.RETURNING, Phase.RETURNING, Phase.WATCHING]


def test_return_ends_by_itself() -> None:
    script = Script()
    script.to_trial()
    over = script.now + m.FRESH
    script.delivery.on_timer(over)
    assert script.delivery.deadline() == over + m.RETURN_WITHIN
    phases = []
    for at in (over + m.RETURN_WITHIN - 0.01, over + m.RETURN_WITHIN):
        script.delivery.on_timer(at)
        phases.append(script.delivery.phase)
    assert phases == [Phase.RETURNING, Phase.WATCHING]


# --- flows


@dataclass
class Play:
    """A flow in virtual time: `offered(now, room)` bytes in each STEP, `room` being what the way in use carries; what arrives; and what the machine did."""

    offered: Callable[[float, float], float]
    loss: float = 0.0
    direct_rate: float = 1e9
    relay_rate: float = 1e9
    seed: int = 1
    rtt: float = 0.05
    now: float = 1000.0
    left: list[tuple[float, str]] = field(default_factory=list)
    tried: int = 0

    STEP = 0.05
    PACKET = 1300

    def run(self, seconds: float) -> Play:
        delivery, draw = Delivery(), random.Random(self.seed)
        delivery.use(HERE, self.now)
        began, owed, queue, got = self.now, 0.0, 0.0, [0, 0]
        answers: list[tuple[float, int, int, int, bool]] = []
        while self.now < began + seconds:
            self.now += self.STEP
            relay = delivery.phase is Phase.TRYING
            owed += self.offered(self.now - began, self.relay_rate if relay else self.direct_rate) * self.STEP
            packets = int(owed // self.PACKET)
            owed -= packets * self.PACKET
            if relay:
                queue += packets * self.PACKET
            else:
                room = self.direct_rate * self.STEP
                for _ in range(packets):
                    if room >= self.PACKET and draw.random() >= self.loss:
                        got[0] += self.PACKET
                        room -= self.PACKET
            through = min(queue, self.relay_rate * self.STEP)
            queue -= through
            got[1] += int(through)
            length = packets * self.PACKET
            wishes = [*delivery.sent(0 if relay else length, length if relay else 0, self.now), *delivery.on_timer(self.now)]
            while answers and answers[0][0] <= self.now:
                _, number, direct, relayed, by_relay = answers.pop(0)
                wishes += delivery.tally(number, direct, relayed, self.now, by_relay=by_relay)
            for wish in wishes:
                match wish:
                    case SendMark():
                        if wish.relay or draw.random() >= self.loss:
                            late = self.rtt + (queue / self.relay_rate if wish.relay else 0.0)
                            answers.append((self.now + late, wish.number, got[0], got[1] + (int(queue) if wish.relay else 0), wish.relay))
                            answers.sort()
                    case TryRelay():
                        self.tried += 1
                    case ReturnToPath():
                        delivery.heard(self.now + 0.001)
                    case LeavePath():
                        self.left.append((self.now - began, wish.why))
                        return self
        return self


def greedy(now: float, room: float) -> float:
    """A third more than there is room for, as a flow that feels its way; no more than 2 MB/s."""
    return min(1.3 * room, 2e6)


def paced(rate: float) -> Callable[[float, float], float]:
    return lambda now, room: rate


def bursts(size: float, every: float) -> Callable[[float, float], float]:
    """As much at once, then nothing."""
    return lambda now, room: size / Play.STEP if now % every < Play.STEP else 0.0


@pytest.mark.parametrize("rtt", [0.001, 0.05, 0.4])
@pytest.mark.parametrize("rate", [16_000.0, 32_000.0, 125_000.0, 1e6 / 1.3])
def test_throttled_flow_is_moved_soon(rate: float, rtt: float) -> None:
    (left,) = Play(greedy, direct_rate=rate, relay_rate=1e7, rtt=rtt).run(60.0).left
    assert left[0] < 25.0


def recognising(rate: float, calm: float, ahead: float) -> Callable[[float, float], float]:
    """A flow that feels its way for 2.5 s, then keeps to a little less than the path's rate for a while, whichever way it goes: as BBR does over a policer."""
    return lambda now, room: greedy(now, room) if (now + ahead) % (2.5 + calm) < 2.5 else 0.9 * rate


@pytest.mark.parametrize("ahead", range(8))
@pytest.mark.parametrize("calm", [3.0, 5.5, 8.0, 11.0])
@pytest.mark.parametrize("rate", [32_000.0, 60_000.0, 250_000.0])
def test_throttled_flow_that_keeps_to_the_rate_it_found_is_moved_too(rate: float, calm: float, ahead: float) -> None:
    (left,) = Play(recognising(rate, calm, ahead), direct_rate=rate, relay_rate=1e7).run(90.0).left
    assert left[0] < 45.0


def changing(least: float, most: float, every: float) -> Callable[[float, float], float]:
    """One pace, then another."""
    return lambda now, room: least if now % (2 * every) < every else most


@pytest.mark.parametrize("every", [3.0, 5.0, 7.0, 9.0, 11.0])
@pytest.mark.parametrize("loss", [0.05, 0.15])
@pytest.mark.parametrize("most", [100_000.0, 400_000.0])
def test_application_that_was_in_earnest_half_a_minute_ago_moves_nothing(most: float, loss: float, every: float) -> None:
    assert Play(changing(20_000.0, most, every), loss=loss).run(600.0).left == []


@pytest.mark.parametrize("rate", [20_000.0, 100_000.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_loss_of_one_percent_is_never_tried(rate: float, seed: int) -> None:
    assert Play(paced(rate), loss=0.01, seed=seed).run(300.0).tried == 0


def test_slow_flow_without_loss_is_never_tried() -> None:
    assert Play(greedy, direct_rate=1e9, relay_rate=1e9).run(60.0).tried == 0
    assert Play(paced(3_000.0), loss=0.3).run(300.0).tried == 0


@pytest.mark.parametrize(
    "offered", [paced(50_000.0), bursts(100_000.0, 5.0), bursts(300_000.0, 7.0), bursts(40_000.0, 2.5)], ids=["paced", "bursts", "long pauses", "short pauses"]
)
@pytest.mark.parametrize("loss", [0.05, 0.15])
@pytest.mark.parametrize("seed", range(3))
def test_application_at_its_own_pace_moves_nothing(offered: Callable[[float, float], float], loss: float, seed: int) -> None:
    played = Play(offered, loss=loss, seed=seed).run(900.0)
    assert played.left == []
    assert played.tried <= 14, "one that is quiet for six seconds is tried again each minute"


@pytest.mark.parametrize("relay", [10_000.0, 100_000.0, 180_000.0])
def test_relay_that_is_no_better_is_tried_more_and_more_seldom(relay: float) -> None:
    played = Play(greedy, direct_rate=125_000.0, relay_rate=relay).run(900.0)
    assert played.left == []
    assert 3 <= played.tried <= 5


class Withholder(Script):
    """A peer that answers marks when it likes: those among the data in order, the relay's at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.withheld: list[tuple[SendMark, int]] = []
        self.asked: list[SendMark] = []

    def flow(self, lost: int, seconds: float = EVERY) -> None:
        self.now += seconds
        marks = self.delivery.sent(SENT, 0, self.now)
        self.direct += SENT - lost
        for mark in marks:
            if isinstance(mark, SendMark) and mark.relay:
                self.asked.append(mark)
            elif isinstance(mark, SendMark):
                self.withheld.append((mark, self.direct))

    def tell(self) -> None:
        """All that was withheld."""
        while self.withheld:
            mark, direct = self.withheld.pop(0)
            told = self.delivery.tally(mark.number, direct, self.relayed, self.now, by_relay=False)
            self.asked += [one for one in told if isinstance(one, SendMark)]


def test_relay_that_answers_when_the_loss_is_another_than_it_was_asked_for_is_not_tried() -> None:
    script = Withholder()
    for _ in range(4):
        script.interval()
    for lost in (LOST, *[0] * m.REMEMBERED, LOST):
        script.flow(lost)
    script.tell()
    (question,) = script.asked
    assert question.relay
    assert not script.answer(question)
    assert script.delivery.phase is Phase.WATCHING


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([0, LOST]), st.booleans(), st.booleans(), st.sampled_from([0.5, EVERY, 4.0])), max_size=40))
def test_tallies_withheld_and_told_in_any_order_raise_nothing(script: list[tuple[int, bool, bool, float]]) -> None:
    peer = Withholder()
    for _ in range(4):
        peer.interval()
    for lost, tells, answers, seconds in script:
        peer.flow(lost, seconds)
        peer.delivery.on_timer(peer.now)
        if tells:
            peer.tell()
        if answers and peer.asked:
            peer.answer(peer.asked.pop())
        assert (peer.delivery._trial is not None) == (peer.delivery.phase is Phase.TRYING)


events = st.one_of(
    st.tuples(st.just("sent"), st.integers(0, 200_000), st.integers(0, 200_000)),
    st.tuples(st.just("tally"), st.integers(0, 3), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("honest"), st.integers(0, 3), st.integers(0, 100)),
    st.tuples(st.just("use"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("heard"), st.just(0), st.just(0)),
    st.tuples(st.just("timer"), st.just(0), st.just(0)),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.0, 3.0), events, st.booleans()), max_size=120))
def test_whatever_a_peer_tells_a_trial_ends_and_memory_is_bounded(script: list[tuple[float, tuple[str, int, int], bool]]) -> None:
    delivery, now, since = Delivery(), 1000.0, None
    delivery.use(HERE, now)
    for seconds, (what, one, other), by_relay in script:
        now += seconds
        deadline = delivery.deadline()
        if deadline is not None and deadline < now:
            delivery.on_timer(max(deadline, now - seconds))
            delivery.on_timer(now)
        match what:
            case "sent":
                delivery.sent(one, other, now)
            case "tally":
                delivery.tally(delivery._number - one, other, other // 2, now, by_relay=by_relay)
            case "honest":
                delivery.tally(delivery._number - one, delivery.sent_direct * other // 100, delivery.sent_relayed, now, by_relay=by_relay)
            case "use":
                delivery.use((None, HERE, ELSE)[one], now)
            case "heard":
                delivery.heard(now)
            case _:
                delivery.on_timer(now)
        since = (since or now) if delivery.phase is Phase.TRYING else None
        assert since is None or now - since < m.TRIAL_LONGEST + m.FRESH + 3.1
        assert len(delivery._marks) <= m.MAX_MARKS
        assert (delivery._trial is not None) == (delivery.phase is Phase.TRYING)


def test_rates_are_told_in_megabits() -> None:
    assert m.describe(32_000, 0.123, 1_775_000) == "UDP is throttled here: 0.3 Mbit/s directly with 12% lost, 14.2 by relay"
    assert m.describe(4_000, 0.5, 11_874) == "UDP is throttled here: 0.03 Mbit/s directly with 50% lost, 0.09 by relay"
    assert m.describe(4_000, 0.5, 11_876) == "UDP is throttled here: 0.03 Mbit/s directly with 50% lost, 0.1 by relay"
