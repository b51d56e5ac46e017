"""Differences of policies: expanded, they are what two slow evaluators say of every pair; and how they read."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.model import NodeId
from calnet.policy.difference import ANY, OTHERS, OWN, Difference, Shift, access_texts, difference, minus
from calnet.policy.document import Policy, parse_policy
from calnet.policy.engine import PolicyNode
from calnet.policy.explain import decide
from tests.policy.test_explain import end_of
from tests.policy.worlds import NODES, Face, Json, node, policies, questions, text_of

NAMES = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "protocol 47": 47, "protocol 2": 2}


def covers(texts: tuple[str, ...], face: Face) -> bool:
    """Whether one of the names means this address."""
    one = face.node
    for text in texts:
        if " via " in text:
            prefix, _, name = text.partition(" via ")
            if face.routed and name == one.name and face.address in ipaddress.ip_network(prefix) and narrowest(texts, face) == prefix:
                return True
        elif not face.routed and (
            text in (one.name, "all nodes", "all tagged nodes" if one.tagged else "all users' nodes", *one.tags, *one.user_names[:1])
            or (text.startswith(f"{one.name} (") and str(face.address) in text)
        ):
            return True
    return False


def narrowest(texts: tuple[str, ...], face: Face) -> str:
    inside = [prefix for text in PARTS[face.node.name] if face.address in (prefix := ipaddress.ip_network(text))]
    return str(max(inside, key=lambda prefix: prefix.prefixlen))


PARTS: dict[str, set[str]] = {}
"""Of each node: the parts of its routes that differences name, which tell the addresses within from the rest."""


def includes(services: tuple[str, ...], protocol: int, port: int | None) -> bool:
    for text in services:
        name, _, ports = text.partition("/")
        if name == "everything" or (name == "other protocols" and protocol not in KNOWN[0]):
            return True
        if NAMES.get(name) == protocol:
            ranges = [part.partition("-") for part in ports.split(",")] if ports else []
            return not ranges or (port is not None and any(int(low) <= port <= int(high or low) for low, _, high in ranges))
    return False


KNOWN: list[set[int]] = [set()]


def between(shift: Shift, source: Face, target: Face) -> bool:
    users = [None if face.routed or face.node.tagged else face.node.user for face in (source, target)]
    same = users[0] is not None and users[0] == users[1]
    return shift.between == ANY or (shift.between == OWN) == same


def told(shifts: tuple[Shift, ...], source: Face, target: Face, protocol: int, port: int | None) -> bool:
    return any(
        covers(shift.sources, source) and covers(shift.destinations, target) and between(shift, source, target) and includes(shift.services, protocol, port)
        for shift in shifts
    )


def prefixes_of(policy: Policy | None) -> Iterator[str]:
    for permit in () if policy is None else policy.permits:
        for selector in (*permit.sources, *(target.selector for target in permit.targets)):
            if selector.prefix is not None:
                yield str(selector.prefix)


def protocols_of(policy: Policy | None) -> set[int]:
    targets = [target for permit in (() if policy is None else policy.permits) for target in permit.targets]
    return {number for target in targets for service in target.services for number in service.protocols}


def verdict(policy: Policy | None, source: Face, target: Face, protocol: int, port: int | None) -> bool:
    ends = [end_of(face) for face in (source, target)]
    return decide(policy, ends[0], ends[1], protocol, port).allowed


def check(old: Policy | None, new: Policy | None, nodes: list[PolicyNode]) -> None:
    found = difference(old, new, nodes)
    named = [ipaddress.ip_network(text) for text in (*prefixes_of(old), *prefixes_of(new))]
    for one in nodes:
        PARTS[one.name] = {str(route) for route in one.routes}
        PARTS[one.name] |= {str(part) for part in named for route in one.routes if part.version == route.version and part.subnet_of(route)}  # type: ignore[arg-type]
    KNOWN[0] = {1, 6, 17, 58, 132} | protocols_of(old) | protocols_of(new)
    for one, other in permutations(nodes, 2):
        for source, target, protocol, port in questions(one, other):
            before, after = (verdict(policy, source, target, protocol, port) for policy in (old, new))
            assert told(found.gained, source, target, protocol, port) == (after and not before), (source, target, protocol, port, found.gained)
            assert told(found.lost, source, target, protocol, port) == (before and not after), (source, target, protocol, port, found.lost)


@settings(max_examples=150)
@given(st.none() | policies(), st.none() | policies(), NODES)
def test_difference_is_what_changes_for_every_pair(old: Json | None, new: Json | None, nodes: list[PolicyNode]) -> None:
    check(None if old is None else parse_policy(text_of(old)), None if new is None else parse_policy(text_of(new)), nodes)


@settings(max_examples=50)
@given(policies(), NODES)
def test_difference_of_a_policy_and_itself_is_none(document: Json, nodes: list[PolicyNode]) -> None:
    policy = parse_policy(text_of(document))
    assert difference(policy, policy, nodes) == Difference((), ())


OFFICE = [
    *(node(1), node(2), node(3, 2), node(4, 3)),
    *(node(5, None, tags=("tag:x",)), node(6, None, tags=("tag:x",), routes=("192.168.1.0/24",)), node(7, None, tags=("tag:y",))),
]


def shifts(old: str | None, new: str | None) -> tuple[tuple[Shift, ...], tuple[Shift, ...]]:
    before, after = (None if text is None else parse_policy(text) for text in (old, new))
    found = difference(before, after, OFFICE)
    return found.gained, found.lost


ALL = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "proto": "*"}], "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}'


def test_everything_reads_as_everything() -> None:
    gained, lost = shifts("{}", ALL)
    lan = "192.168.1.0/24 via n6"
    assert lost == ()
    assert gained == (Shift(("all nodes",), ("all nodes", lan), ("everything",)), Shift((lan,), ("all nodes",), ("everything",)))
    assert shifts(ALL, "{}") == ((), gained)


def test_builtin_policy_given_up_reads_as_its_sentences() -> None:
    gained, lost = shifts(None, "{}")
    assert gained == ()
    assert set(lost) == {
        Shift(("all users' nodes",), ("all users' nodes",), ("everything",), OWN),
        Shift(("all nodes",), ("all tagged nodes", "192.168.1.0/24 via n6"), ("everything",)),
    }


def test_ports_and_protocols_are_grouped_and_users_and_tags_are_named() -> None:
    old = '{"grants": [{"src": ["alice@"], "dst": ["tag:x"], "ip": ["tcp:1-100", "udp:5"]}], "tagOwners": {"tag:x": []}}'
    new = '{"grants": [{"src": ["alice@", "bob@"], "dst": ["tag:x"], "ip": ["tcp:50,60-200", "gre:*"]}], "tagOwners": {"tag:x": []}}'
    assert shifts(old, new) == (
        (
            Shift(("alice@",), ("tag:x",), ("tcp/101-200", "protocol 47")),
            Shift(("n3",), ("tag:x",), ("tcp/50,60-200", "protocol 47")),
        ),
        (Shift(("alice@",), ("tag:x",), ("tcp/1-49,51-59", "udp/5")),),
    )


def test_users_are_told_from_one_another() -> None:
    mine = '{"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["tcp:22"]}]}'
    ours = '{"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:member"], "ip": ["tcp:22"]}]}'
    members = ("all users' nodes",)
    assert shifts(mine, ours) == ((Shift(members, members, ("tcp/22",), OTHERS),), ())
    assert shifts(ours, mine) == ((), (Shift(members, members, ("tcp/22",), OTHERS),))
    assert shifts("{}", mine) == ((Shift(members, members, ("tcp/22",), OWN),), ())
    assert shifts("{}", ours) == ((Shift(members, members, ("tcp/22",)),), ())


def test_parts_of_routes_and_single_addresses_are_told_apart() -> None:
    new = """{"grants": [{"src": ["bob@"], "dst": ["192.168.1.7", "100.70.0.1"], "ip": ["tcp:1"]},
        {"src": ["bob@"], "dst": ["192.168.1.0/24"], "ip": ["tcp:2"]}]}"""
    assert shifts("{}", new)[0] == (
        Shift(("n3",), ("n1 (100.70.0.1)",), ("tcp/1",)),
        Shift(("n3",), ("192.168.1.0/24 via n6",), ("tcp/2",)),
        Shift(("n3",), ("192.168.1.7/32 via n6",), ("tcp/1-2",)),
    )


def test_route_that_parts_fill_is_told_by_its_parts() -> None:
    new = '{"grants": [{"src": ["bob@"], "dst": ["192.168.1.0/25"], "ip": ["tcp:1"]}, {"src": ["bob@"], "dst": ["192.168.1.128/25"], "ip": ["tcp:2"]}]}'
    assert {shift.destinations for shift in shifts("{}", new)[0]} == {("192.168.1.0/25 via n6",), ("192.168.1.128/25 via n6",)}


def test_two_thousand_nodes_are_few_classes() -> None:
    many = [
        replace(
            node(1, number % 3 + 1) if number % 10 else node(1, None, tags=("tag:x",)),
            id=NodeId(number),
            name=f"n{number}",
            addresses=(ipaddress.ip_address((100 << 24) + number), ipaddress.ip_address((0xFD << 120) + number)),
        )
        for number in range(2000)
    ]
    found = difference(None, parse_policy(ALL), many)
    assert found.lost == ()
    assert set(found.gained) == {
        Shift(("all users' nodes",), ("all users' nodes",), ("everything",), OTHERS),
        Shift(("all tagged nodes",), ("all users' nodes",), ("everything",)),
    }


@pytest.mark.parametrize(
    ("left", "right", "rest"),
    [
        ([(0, 10)], [(3, 5)], [(0, 2), (6, 10)]),
        ([(0, 10)], [(0, 10)], None),
        ([(0, 10), (20, 30)], [(5, 25)], [(0, 4), (26, 30)]),
        ([(5, 5)], [(0, 4), (6, 9)], [(5, 5)]),
        ([(5, 5)], [], [(5, 5)]),
    ],
)
def test_minus_is_the_ports_that_are_left(left: list[tuple[int, int]], right: list[tuple[int, int]], rest: list[tuple[int, int]] | None) -> None:
    assert minus({6: left}, {6: right}) == ({} if rest is None else {6: rest})


def test_access_reads_in_order_of_protocols() -> None:
    whole = [(0, 65_535)]
    assert access_texts({-1: whole, 17: [(1, 1), (3, 4)], 6: whole, 99: whole}, (6, 17)) == ("tcp", "udp/1,3-4", "protocol 99", "other protocols")
