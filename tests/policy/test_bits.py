"""Sets as bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calnet.model import NodeId
from calnet.policy.bits import Masks, ids_of, mask_of

SETS = st.sets(st.integers(0, 300).map(NodeId))


@given(SETS)
def test_mask_holds_the_ids_it_was_made_of(nodes: set[NodeId]) -> None:
    assert ids_of(mask_of(nodes)) == sorted(nodes)


@given(st.lists(SETS), st.integers(0, 300).map(NodeId))
def test_union_of_sets_is_theirs_also_after_a_change(sets: list[set[NodeId]], more: NodeId) -> None:
    masks = Masks()
    assert ids_of(masks.union(sets)) == sorted(set().union(*sets))
    if sets:
        sets[0].add(more)
        masks.clear()
        assert ids_of(masks.union(sets)) == sorted(set().union(*sets))
