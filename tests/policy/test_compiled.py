"""Compiled policies against the slow evaluator, and node by node against built whole."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.model import FilterRule, NodeId
from calnet.policy.bits import ids_of
from calnet.policy.compiled import CompiledPolicy
from calnet.policy.document import parse_policy
from calnet.policy.engine import PolicyNode
from calnet.policy.filter import PacketFilter
from calnet.policy.prefixes import HOLE_COST
from tests.policy.worlds import NODES, OVERLAY, Json, allowed, node, packet, policies, questions, related, text_of


def check(policy: CompiledPolicy, document: Json, nodes: list[PolicyNode]) -> None:
    filters = {one.id: PacketFilter(policy.rules(one.id)) for one in nodes}
    for source, there in permutations(nodes, 2):
        expected = related(document, source, there) or related(document, there, source)
        assert policy.sees(source.id, there.id) == expected, (source.name, there.name)
        assert (there.id in policy.visible(source.id)) == expected
        assert policy.visible(source.id, {there.id, source.id}) == ({there.id} if expected else set())
        for one, other, protocol, port in questions(source, there):
            verdict = allowed(document, one, other, protocol, port)
            if expected:  # else no tunnel carries the packet
                assert filters[there.id].inbound(packet(one.address, other.address, protocol, port), 0.0) == verdict, (one, other, protocol, port)
            else:
                assert not verdict
    for subject in nodes:
        assert subject.id not in policy.visible(subject.id)
        assert ids_of(policy.sight(subject.id)) == sorted(policy.visible(subject.id))


@settings(max_examples=200)
@given(policies(), NODES)
@pytest.mark.parametrize("hole_cost", [HOLE_COST, 0])
def test_compiled_policy_is_what_its_rules_say(hole_cost: int, document: Json, nodes: list[PolicyNode]) -> None:
    check(CompiledPolicy(parse_policy(text_of(document)), OVERLAY, nodes, hole_cost=hole_cost), document, nodes)


@settings(max_examples=60)
@given(policies(), NODES, NODES, st.data())
def test_policy_changed_node_by_node_is_that_of_the_last_nodes(document: Json, before: list[PolicyNode], after: list[PolicyNode], data: st.DataObject) -> None:
    parsed = parse_policy(text_of(document))
    policy = CompiledPolicy(parsed, OVERLAY, before)
    for one in before:
        policy.rules(one.id)
        policy.sight(one.id)
    for one in data.draw(st.permutations(after)):
        policy.put(one)
        policy.rules(one.id)
    for one in before[len(after) :]:
        policy.remove(one.id)
    fresh = CompiledPolicy(parsed, OVERLAY, after)
    assert [policy.rules(one.id) for one in after] == [fresh.rules(one.id) for one in after]
    assert [policy.visible(one.id) for one in after] == [fresh.visible(one.id) for one in after]
    assert [policy.sight(one.id) for one in after] == [fresh.sight(one.id) for one in after]


def compiled(text: str, *nodes: PolicyNode) -> CompiledPolicy:
    return CompiledPolicy(parse_policy(text), OVERLAY, nodes)


def test_unknown_node_sees_and_accepts_nothing() -> None:
    policy = compiled('{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}', node(1))
    assert policy.visible(NodeId(9)) == set()
    assert policy.sight(NodeId(9)) == 0
    assert policy.rules(NodeId(9)) == ()
    assert not policy.sees(NodeId(9), NodeId(1))
    assert not policy.sees(NodeId(1), NodeId(9))
    assert not policy.sees(NodeId(1), NodeId(1))
    policy.remove(NodeId(9))


def test_empty_policy_lets_nobody_reach_anybody() -> None:
    policy = compiled("{}", node(1), node(2), node(3, None, tags=("tag:x",)))
    assert [policy.rules(NodeId(number)) for number in (1, 2, 3)] == [(), (), ()]
    assert policy.visible(NodeId(1)) == set()


def test_filter_does_not_change_with_each_node_where_all_in_sight_are_sources() -> None:
    policy = compiled("""{"acls": [{"action": "accept", "src": ["group:a"], "dst": ["tag:x:443"]}],
        "groups": {"group:a": ["alice@"]}, "tagOwners": {"tag:x": []}}""")
    for one in (node(1), node(2), node(3, None, tags=("tag:x",))):
        policy.put(one)
    rules = policy.rules(NodeId(3))
    assert rules[0].sources == OVERLAY
    policy.put(node(4))
    policy.put(node(5, 2))
    assert policy.rules(NodeId(3)) == rules


def test_filter_leaves_out_the_few_in_sight_that_are_no_sources_and_does_not_change_with_each_node() -> None:
    text = """{"grants": [{"src": ["autogroup:member"], "dst": ["tag:x"], "ip": ["tcp:22"]}, {"src": ["tag:y"], "dst": ["tag:x"], "ip": ["tcp:80"]}],
        "tagOwners": {"tag:x": [], "tag:y": []}}"""
    policy = compiled(text, *(node(number) for number in range(1, 100)), node(200, None, tags=("tag:x",)), node(201, None, tags=("tag:y",)))
    rules = policy.rules(NodeId(200))
    assert len(rules[0].sources) == 8 + 64
    assert not any(ipaddress.ip_address("100.70.0.201") in prefix for prefix in rules[0].sources)
    policy.put(node(100))
    assert policy.rules(NodeId(200)) == rules
    policy.put(node(202, None, tags=("tag:y",)))
    assert policy.rules(NodeId(200)) != rules


def test_filter_tells_sources_apart_where_it_has_to() -> None:
    text = """{"grants": [{"src": ["alice@"], "dst": ["tag:x"], "ip": ["tcp:22"]}, {"src": ["bob@"], "dst": ["tag:x"], "ip": ["tcp:80"]}],
        "tagOwners": {"tag:x": []}}"""
    policy = compiled(text, node(2), node(3), node(4, 2), node(5, None, tags=("tag:x",)))
    assert [tuple(map(str, rule.sources)) for rule in policy.rules(NodeId(5))] == [("100.70.0.2/31", "fd00::2/127"), ("100.70.0.4/32", "fd00::4/128")]


@pytest.mark.parametrize("action", ["drop", "reject"])
def test_default_action_is_the_engines(action: str) -> None:
    assert compiled(f'{{"defaultAction": "{action}"}}').reject == (action == "reject")


def test_what_a_router_has_is_filtered_by_the_router_and_no_wider_than_asked() -> None:
    text = '{"grants": [{"src": ["alice@"], "dst": ["192.168.1.7", "10.0.0.0/8"], "ip": ["tcp:9100"]}]}'
    policy = compiled(text, node(1), node(2, 2, routes=("192.168.1.0/24", "10.9.0.0/30")), node(3, 2, routes=("192.168.2.0/24",)))
    (first, second) = policy.rules(NodeId(2))
    assert [tuple(map(str, rule.destinations)) for rule in (first, second)] == [("192.168.1.7/32",), ("10.9.0.0/30",)]
    assert policy.rules(NodeId(3)) == ()
    assert policy.visible(NodeId(1)) == {NodeId(2)}


def test_equal_rules_of_several_lines_are_one() -> None:
    policy = compiled('{"grants": [{"src": ["alice@"], "dst": ["bob@", "autogroup:member"], "ip": ["*"]}]}', node(1), node(2, 2))
    assert policy.rules(NodeId(2)) == (FilterRule(OVERLAY, tuple(ipaddress.ip_network(address) for address in node(2).addresses)),)


def test_two_thousand_nodes_see_whom_they_should() -> None:
    policy = compiled("""{"groups": {"group:a": ["alice@"], "group:b": ["bob@", "carol@"]}, "tagOwners": {"tag:x": []}, "acls": [
        {"action": "accept", "src": ["group:a"], "dst": ["tag:x:22"]}, {"action": "accept", "src": ["group:b"], "dst": ["tag:x:443"]},
        {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}""")
    for number in range(2000):
        one = node(1, None, tags=("tag:x",)) if number % 10 == 0 else node(1, number % 3 + 1)
        addresses = (ipaddress.ip_address((100 << 24) + number), ipaddress.ip_address((0xFD << 120) + number))
        policy.put(replace(one, id=NodeId(number), addresses=addresses))
    assert len(policy.visible(NodeId(10))) == 1800
    assert len(policy.visible(NodeId(1))) == 200 + 599
    assert len(policy.rules(NodeId(10))) == 4
