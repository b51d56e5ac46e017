from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calnet.model import NodeId
from calnet.paths.schedule import Schedule


def test_schedule_earlier_time_replaces_a_later_one() -> None:
    schedule = Schedule()
    assert schedule.next() is None
    schedule.no_later_than(NodeId(1), 5.0)
    schedule.no_later_than(NodeId(1), 9.0)
    schedule.no_later_than(NodeId(2), 7.0)
    assert (schedule.next(), schedule.due(NodeId(1)), schedule.due(NodeId(3))) == (5.0, 5.0, float("inf"))
    schedule.no_later_than(NodeId(2), 3.0)
    assert schedule.take(5.0) == [NodeId(2), NodeId(1)]
    assert schedule.take(100.0) == []


def test_schedule_dropped_peer_is_due_no_more() -> None:
    schedule = Schedule()
    schedule.no_later_than(NodeId(1), 5.0)
    schedule.drop(NodeId(1))
    schedule.drop(NodeId(2))
    assert schedule.next() is None
    assert schedule.take(10.0) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 20)), st.booleans()), max_size=60))
def test_schedule_agrees_with_a_plain_table(script: list[tuple[int, int | None, bool]]) -> None:
    schedule = Schedule()
    table: dict[int, float] = {}
    for peer, when, take in script:
        if when is None:
            schedule.drop(NodeId(peer))
            table.pop(peer, None)
        elif take:
            due = [number for number, at in table.items() if at <= when]
            assert sorted(schedule.take(when)) == sorted(due)
            for number in due:
                del table[number]
        else:
            schedule.no_later_than(NodeId(peer), when)
            table[peer] = min(table.get(peer, when), when)
        assert schedule.next() == min(table.values(), default=None)
