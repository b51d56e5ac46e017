"""The log of changes against a list of all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calnet.model import NodeId
from calnet.roles.server.changelog import MAX_GONE, ChangeLog


def since(log: ChangeLog, number: int) -> set[int] | None:
    """As the log says."""
    found = log.since(number)
    return None if found is None else set(found)


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans())), st.integers(0, 40))
def test_since_names_the_nodes_that_changed_after(changes: list[tuple[int, bool]], back: int) -> None:
    log, numbered = ChangeLog(100), []
    for node, gone in changes:
        log.add(NodeId(node), gone=gone)
        numbered.append((log.last, NodeId(node)))
        assert log.changed(NodeId(node)) == log.last
    number = log.last - back
    assert since(log, number) == {node for at, node in numbered if at > number}
    assert since(log, number) == since(log, number)


def test_tick_is_a_change_of_no_node() -> None:
    log = ChangeLog(100)
    log.add(NodeId(1))
    assert log.tick() == log.last == 102
    assert since(log, 100) == {1}
    assert since(log, 101) == since(log, 102) == set()


def test_nodes_that_are_gone_are_forgotten_at_last_and_that_is_said() -> None:
    log = ChangeLog(0)
    for node in range(MAX_GONE + 1):
        log.add(NodeId(node), gone=True)
    assert since(log, 0) is None
    assert since(log, 1) == set(range(1, MAX_GONE + 1))
    assert log.changed(NodeId(0)) == 0


def test_log_that_goes_on_knows_what_was_before() -> None:
    log = ChangeLog(50, {NodeId(1): 20, NodeId(2): 40, NodeId(3): 30})
    assert since(log, 25) == {2, 3}
    log.add(NodeId(1))
    assert (since(log, 25), since(log, 50)) == ({1, 2, 3}, {1})
