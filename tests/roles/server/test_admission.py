"""Bounds on who may knock: the gate."""

from __future__ import annotations

from calnet.roles.server.admission import Gate


def test_gate_at_its_source_bound_refuses_that_source_alone() -> None:
    gate = Gate(limit=10, per_source=2)
    assert [gate.enter(b"a") for _ in range(3)] == [True, True, False]
    assert gate.enter(b"b")
    assert gate.enter(b"a", trusted=True)


def test_gate_at_its_whole_bound_refuses_everybody_until_one_leaves() -> None:
    gate = Gate(limit=2, per_source=2)
    assert gate.enter(b"a")
    assert gate.enter(b"b")
    assert not gate.enter(b"c", trusted=True)
    gate.leave(b"a")
    assert gate.enter(b"c")
