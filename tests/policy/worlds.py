"""Random policies, nodes and packets, and an evaluator so slow and obvious that it can be the judge: it reads the policy's JSON, rule by rule, address by
address, and shares nothing with the code under test."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from calnet.model import Address, NodeId, UserId
from calnet.policy.engine import PolicyNode
from tests.policy import craft

OVERLAY = (ipaddress.ip_network("100.70.0.0/24"), ipaddress.ip_network("fd00::/64"))
USERS = {1: ("alice@", "alice@example.com"), 2: ("bob@",), 3: ("Carol@", "c@example.org")}
ROLES = {1: "owner", 2: "admin", 3: "user"}
LANS = ("192.168.1.0/24", "192.168.0.0/16", "10.9.0.0/30", "fd99::/64")
POINTS = tuple(ipaddress.ip_address(text) for text in ("192.168.1.7", "192.168.1.200", "192.168.5.5", "10.9.0.1", "fd99::7"))
HOSTS = {"one": "100.70.0.1", "four": "100.70.0.4/30", "six": "fd00::2", "lan": "192.168.1.0/24", "printer": "192.168.1.7", "wide": "192.0.0.0/8"}

Json = dict[str, Any]


def node(number: int, user: int | None = 1, *, tags: tuple[str, ...] = (), routes: tuple[str, ...] = ()) -> PolicyNode:
    """A node of a user; with tags, or without a user, a tagged one."""
    return PolicyNode(
        id=NodeId(number),
        user=None if user is None else UserId(user),
        tagged=user is None or bool(tags),
        addresses=(ipaddress.ip_address(f"100.70.0.{number}"), ipaddress.ip_address(f"fd00::{number:x}")),
        routes=tuple(ipaddress.ip_network(route) for route in routes),
        name=f"n{number}",
        user_names=() if user is None else USERS[user],
        role="" if user is None else ROLES[user],
        tags=tags,
    )


@dataclass(frozen=True)
class Face:
    """One address that a node can speak from, or be spoken to at."""

    node: PolicyNode
    address: Address
    routed: bool


def faces(one: PolicyNode) -> list[Face]:
    behind = [point for point in POINTS if any(point.version == route.version and point in route for route in one.routes)]
    return [*(Face(one, address, routed=False) for address in one.addresses), *(Face(one, address, routed=True) for address in behind)]


# --- the slow evaluator


def means(policy: Json, text: str, face: Face) -> bool:
    one = face.node
    if text == "*":
        return True
    text = policy.get("hosts", {}).get(text, text)
    try:
        prefix = ipaddress.ip_network(text.strip("[]"))
    except ValueError:
        pass
    else:
        return face.address.version == prefix.version and face.address in prefix
    if face.routed:
        return False
    if text.startswith("tag:"):
        return text in one.tags
    if text == "autogroup:tagged":
        return one.tagged
    if one.tagged:
        return False
    if text == "autogroup:member":
        return True
    if text.startswith("autogroup:"):
        return text == f"autogroup:{one.role}"
    names = {name.lower() for name in one.user_names}
    return bool(names & {member.lower() for member in policy.get("groups", {}).get(text, [text])})


def in_ports(text: str, port: int | None) -> bool:
    if text == "*":
        return True
    for part in text.split(","):
        low, _, high = part.partition("-")
        if port is not None and int(low) <= port <= int(high or low):
            return True
    return False


NUMBERS = {"tcp": {6}, "udp": {17}, "icmp": {1, 58}, "gre": {47}, "sctp": {132}, "47": {47}, "ipv6-icmp": {58}}


def serves(proto: str | None, ports: str, protocol: int, port: int | None) -> bool:
    if proto is None:
        return protocol in (1, 58) or (protocol in (6, 17) and in_ports(ports, port))
    return protocol in NUMBERS[proto] and in_ports(ports, port)


def allowed(policy: Json, source: Face, target: Face, protocol: int, port: int | None) -> bool:
    """Whether a packet of a new flow may go."""

    def is_target(text: str) -> bool:
        if text == "autogroup:self":
            users = source.node.user, target.node.user
            apart = source.node.id != target.node.id and not source.node.tagged and not target.node.tagged
            return apart and not source.routed and not target.routed and None not in users and users[0] == users[1]
        return means(policy, text, target)

    for rule in policy.get("acls", []):
        if any(means(policy, text, source) for text in rule["src"]):
            for text in rule["dst"]:
                name, _, ports = text.rpartition(":")
                if is_target(name) and serves(rule.get("proto"), ports, protocol, port):
                    return True
    for grant in policy.get("grants", []):
        if any(means(policy, text, source) for text in grant["src"]) and any(is_target(text) for text in grant["dst"]):
            for text in grant["ip"]:
                proto, colon, ports = text.rpartition(":")
                if text == "*" or serves(proto if colon else None, ports, protocol, port):
                    return True
    return False


def related(policy: Json, one: PolicyNode, other: PolicyNode) -> bool:
    """Whether a rule has something of `one` as a source and something of `other` as a target, of one family of addresses."""
    rules = [(rule["src"], [text.rpartition(":")[0] for text in rule["dst"]]) for rule in policy.get("acls", [])]
    rules += [(grant["src"], grant["dst"]) for grant in policy.get("grants", [])]
    return any(_any(policy, sources, one, one, family) and _any(policy, targets, other, one, family) for sources, targets in rules for family in (4, 6))


def _any(policy: Json, texts: list[str], subject: PolicyNode, asking: PolicyNode, family: int) -> bool:
    if "autogroup:self" in texts and not subject.tagged and not asking.tagged and subject.user == asking.user:
        return True
    within = [face for face in faces(subject) if face.address.version == family]
    return any(means(policy, text, face) for text in texts for face in within) or any(_overlaps(policy, text, subject, family) for text in texts)


def _overlaps(policy: Json, text: str, subject: PolicyNode, family: int) -> bool:
    try:
        prefix = ipaddress.ip_network(policy.get("hosts", {}).get(text, text).strip("[]"))
    except ValueError:
        return False
    return any(prefix.version == route.version == family and prefix.overlaps(route) for route in subject.routes)


# --- packets

ASKED: tuple[tuple[int, int | None], ...] = ((6, 22), (6, 80), (6, 443), (17, 53), (17, 150), (1, None), (47, None), (132, 80))


def packet(source: Address, target: Address, protocol: int, port: int | None) -> bytes:
    """A first packet of a flow. ICMP is an echo request of the addresses' family."""
    if protocol == craft.TCP:
        return craft.tcp(str(source), str(target), 40_000, port or 0)
    if protocol == 1:
        return craft.icmp(str(source), str(target), 8 if source.version == 4 else 128, 5)
    if port is None:
        return craft.ip(str(source), str(target), protocol, bytes(8))
    return craft.ip(str(source), str(target), protocol, (40_000).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(8))


def questions(one: PolicyNode, other: PolicyNode) -> Iterator[tuple[Face, Face, int, int | None]]:
    """All that a test asks of a pair of nodes; the protocol of ICMP is that of the family."""
    for source in faces(one):
        for target in faces(other):
            if source.address.version == target.address.version:
                for protocol, port in ASKED:
                    yield source, target, 58 if protocol == 1 and source.address.version == 6 else protocol, port


# --- strategies

PEOPLE = ["alice@", "ALICE@example.com", "bob@", "carol@", "nobody@", "group:a", "group:b", "autogroup:member", "autogroup:owner", "autogroup:admin"]
THINGS = ["*", "tag:x", "tag:y", "autogroup:tagged", *HOSTS, "100.70.0.2", "fd00::4/126", "192.168.1.128/25", "10.9.0.0/16", "0.0.0.0/0"]
PORTS = st.sampled_from(["*", "80", "22,443", "100-200", "53,400-500"])
GRANTED = st.sampled_from(["*", "tcp:443", "tcp:*", "udp:100-200", "icmp:*", "80", "gre:*", "47:*", "sctp:80", "ipv6-icmp:*"])


def _some(of: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(of), min_size=1, max_size=3)


@st.composite
def rules(draw: st.DrawFn) -> Json:
    mine = draw(st.integers(0, 4)) == 0
    sources = draw(_some(PEOPLE if mine else PEOPLE + THINGS))
    targets = draw(_some(PEOPLE + THINGS)) + (["autogroup:self"] if mine else [])
    if draw(st.booleans()):
        return {"src": sources, "dst": targets, "ip": draw(st.lists(GRANTED, min_size=1, max_size=3))}
    proto = draw(st.sampled_from([None, None, "tcp", "udp", "icmp", "gre", "sctp"]))
    ports = st.just("*") if proto in ("icmp", "gre") else PORTS
    rule = {"action": "accept", "src": sources, "dst": [f"{target}:{draw(ports)}" for target in targets]}
    return rule if proto is None else {**rule, "proto": proto}


@st.composite
def policies(draw: st.DrawFn) -> Json:
    """The JSON of a policy that compiles."""
    drawn = draw(st.lists(rules(), max_size=5))
    members = st.lists(st.sampled_from(["alice@", "bob@", "Bob@", "c@example.org", "nobody@"]), max_size=2)
    return {
        "groups": {"group:a": draw(members), "group:b": draw(members)},
        "tagOwners": {"tag:x": [], "tag:y": []},
        "hosts": HOSTS,
        "acls": [rule for rule in drawn if "action" in rule],
        "grants": [rule for rule in drawn if "ip" in rule],
    }


KINDS = st.tuples(
    st.sampled_from([1, 1, 2, 3, None, -1]),  # -1: tagged, and yet alice's
    st.sampled_from([("tag:x",), ("tag:x", "tag:y"), ("tag:z",)]),
    st.lists(st.sampled_from(LANS), max_size=2, unique=True),
)
NODES = st.lists(KINDS, min_size=1, max_size=5).map(
    lambda kinds: [
        node(number, user and abs(user), tags=() if (user or 0) > 0 else tags, routes=tuple(routes)) for number, (user, tags, routes) in enumerate(kinds, 1)
    ]
)


def text_of(policy: Json) -> str:
    return json.dumps(policy)
