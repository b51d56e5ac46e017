"""The built-in policy against a slow obvious one."""

from __future__ import annotations

import ipaddress
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.model import Address, NodeId, Prefix, UserId
from calnet.policy.bits import ids_of
from calnet.policy.builtin import BuiltinPolicy
from calnet.policy.engine import PolicyNode
from calnet.policy.prefixes import HOLE_COST

OVERLAY = (ipaddress.ip_network("100.70.0.0/24"), ipaddress.ip_network("fd00::/64"))
LAN = ipaddress.ip_network("192.168.1.0/24")
LAN_HOST = ipaddress.ip_address("192.168.1.7")


def node(number: int, user: int | None = 1, *, routes: tuple[Prefix, ...] = ()) -> PolicyNode:
    """A node of a user, or a tagged one (None)."""
    addresses = (ipaddress.ip_address(f"100.70.0.{number}"), ipaddress.ip_address(f"fd00::{number:x}"))
    return PolicyNode(NodeId(number), None if user is None else UserId(user), user is None, addresses, routes)


def may_reach(source: PolicyNode, destination: PolicyNode) -> bool:
    """The policy as `calnet admin policy show` says it, routes aside."""
    return destination.tagged or (source.user is not None and source.user == destination.user)


def accepts(policy: BuiltinPolicy, source: PolicyNode, at: PolicyNode, destination: Address) -> bool:
    """Whether `at` takes a packet in: its sender must be in its netmap, and a rule let it."""
    return policy.sees(source.id, at.id) and any(
        any(address in prefix for prefix in rule.sources) and any(destination in prefix for prefix in rule.destinations)
        for rule in policy.rules(at.id)
        for address in source.addresses
        if address.version == destination.version
    )


def check(policy: BuiltinPolicy, nodes: list[PolicyNode]) -> None:
    for source, there in permutations(nodes, 2):
        reach, back = may_reach(source, there), may_reach(there, source)
        routed = bool(there.routes or source.routes)
        assert policy.sees(source.id, there.id) == (reach or back or routed)
        assert (there.id in policy.visible(source.id)) == (reach or back or routed)
        assert policy.visible(source.id, {there.id, source.id}) == ({there.id} if reach or back or routed else set())
        for address in there.addresses:
            assert accepts(policy, source, there, address) == reach
        assert accepts(policy, source, there, LAN_HOST) == bool(there.routes)
    for one in nodes:
        assert one.id not in policy.visible(one.id)
        assert ids_of(policy.sight(one.id)) == sorted(policy.visible(one.id))


NODES = st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.booleans()), max_size=8).map(
    lambda kinds: [node(number, user, routes=(LAN,) if routed else ()) for number, (user, routed) in enumerate(kinds, 1)]
)


@given(NODES)
@pytest.mark.parametrize("hole_cost", [HOLE_COST, 0])
def test_policy_of_any_nodes_is_what_the_sentence_says(hole_cost: int, nodes: list[PolicyNode]) -> None:
    check(BuiltinPolicy(OVERLAY, nodes, hole_cost=hole_cost), nodes)


@given(NODES, NODES, st.data())
@pytest.mark.parametrize("hole_cost", [HOLE_COST, 0])
def test_policy_changed_node_by_node_is_that_of_the_last_nodes(hole_cost: int, before: list[PolicyNode], after: list[PolicyNode], data: st.DataObject) -> None:
    policy = BuiltinPolicy(OVERLAY, before, hole_cost=hole_cost)
    for one in before:
        policy.rules(one.id)
        policy.sight(one.id)
    for one in data.draw(st.permutations(after)):
        policy.put(one)
    for one in before[len(after) :]:
        policy.remove(one.id)
    check(policy, after)
    fresh = BuiltinPolicy(OVERLAY, after, hole_cost=hole_cost)
    assert [policy.rules(one.id) for one in after] == [fresh.rules(one.id) for one in after]
    assert [policy.visible(one.id) for one in after] == [fresh.visible(one.id) for one in after]
    assert [policy.sight(one.id) for one in after] == [fresh.sight(one.id) for one in after]


def test_unknown_node_sees_and_accepts_nothing() -> None:
    policy = BuiltinPolicy(OVERLAY, [node(1)])
    assert policy.visible(NodeId(9)) == set()
    assert policy.sight(NodeId(9)) == 0
    assert policy.rules(NodeId(9)) == ()
    assert not policy.sees(NodeId(9), NodeId(1))
    assert not policy.sees(NodeId(1), NodeId(9))
    assert not policy.sees(NodeId(1), NodeId(1))
    policy.remove(NodeId(9))


def test_filter_of_one_users_network_does_not_change_with_each_node() -> None:
    policy = BuiltinPolicy(OVERLAY, [node(1), node(2)])
    rules = policy.rules(NodeId(1))
    policy.put(node(3))
    assert policy.rules(NodeId(1)) == rules
    policy.put(node(4, 2))
    assert policy.rules(NodeId(1)) == rules
    policy.put(node(5, None))
    assert policy.rules(NodeId(1)) != rules


def test_filter_of_one_users_network_does_not_change_with_each_node_for_a_few_tagged_ones() -> None:
    policy = BuiltinPolicy(OVERLAY, [*(node(number) for number in range(1, 100)), node(200, None)])
    rules = policy.rules(NodeId(1))
    assert len(rules[0].sources) == 8 + 64
    policy.put(node(100))
    assert policy.rules(NodeId(1)) == rules
    policy.put(node(201, None))
    assert policy.rules(NodeId(1)) != rules
    check(policy, [*(node(number) for number in range(1, 101)), node(200, None), node(201, None)])


def test_retagged_node_is_no_longer_its_users() -> None:
    policy = BuiltinPolicy(OVERLAY, [node(1), node(2), node(3)])
    policy.put(node(2, None))
    check(policy, [node(1), node(2, None), node(3)])
