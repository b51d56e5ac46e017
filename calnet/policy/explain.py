"""Whether policy lets one reach another, and why, in words: for `can`, the tests of a policy, and admins who wonder. Pure.

A user or tag as an end stands for all of its nodes: it can reach what every one of them can. One that has no node yet stands for a node that it might have.
A node stands for its addresses: it can be reached where one of them can, by a source's address of the same family.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from calnet.errors import NotFoundError
from calnet.model import Address, NodeId, Prefix, UserId
from calnet.policy.document import Permit, Policy
from calnet.policy.engine import PolicyNode
from calnet.policy.selectors import ICMP, ICMPV6, PROTOCOL_NAMES, TCP, PolicyTest, Selector, Service, Target

_NOBODY: Final = NodeId(-1)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a question: a node, one of its addresses, or an address behind it. `name` is how the question called it."""

    name: str
    node: PolicyNode
    address: Address | None = None
    """The one that is meant; None for any of the node's own."""
    route: Prefix | None = None
    """The prefix by which the node routes for the address, which then isn't its own."""

    @property
    def routed(self) -> bool:
        """Whether the address is no node's."""
        return self.route is not None

    def faces(self) -> tuple[Address | None, ...]:
        """The addresses that are meant; None for that of a node that is not there."""
        return (self.address,) if self.address is not None else self.node.addresses or (None,)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, on the pair `source` and `destination`. `permit` is the rule that allows, None where none does or the built-in policy decides."""

    allowed: bool
    reason: str
    source: End
    destination: End
    permit: Permit | None = None


@dataclass(frozen=True, slots=True)
class TestResult:
    """One line of a policy's test: whether it came out as wanted, and why."""

    test: PolicyTest
    target: str
    port: int
    wanted: bool
    verdict: Verdict

    @property
    def passed(self) -> bool:
        return self.verdict.allowed == self.wanted


class Directory:
    """The nodes and users that a question may name."""

    def __init__(self, nodes: Iterable[PolicyNode], users: Mapping[str, PolicyNode], primaries: Mapping[Prefix, NodeId] | None = None) -> None:
        """`users` gives for each user name (`alice`) a node that stands for one it might have; `primaries` the router of each prefix now."""
        self._nodes = {node.id: node for node in nodes}
        self._users = users
        self._primaries = primaries or {}

    def ends(self, text: str) -> tuple[End, ...]:
        """The nodes or the address that the text names; NotFoundError for a name that is none."""
        if text.startswith("tag:"):
            found = [node for node in self._nodes.values() if text in node.tags]
            return tuple(End(text, node) for node in found) or (End(text, _imagined(tags=(text,))),)
        named = [node for node in self._nodes.values() if node.name == text.lower() or str(node.id) == text]
        if named:
            return (End(text, named[0]),)
        user = self._user(text)
        if user is not None:
            owned = [node for node in self._nodes.values() if node.user == user.user and not node.tagged]
            return tuple(End(text, node) for node in owned) or (End(text, user),)
        return (self._end_of_address(text),)

    def _user(self, text: str) -> PolicyNode | None:
        wanted = text.lower()
        return next((user for name, user in self._users.items() if wanted in (name, *(known.lower() for known in user.user_names))), None)

    def _end_of_address(self, text: str) -> End:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise NotFoundError(f"{text!r} is no node, address, user or tag here") from error
        for node in self._nodes.values():
            if address in node.addresses:
                return End(text, node, address)
        routes = [(route, node) for node in self._nodes.values() for route in node.routes if address.version == route.version and address in route]
        if not routes:
            raise NotFoundError(f"no node has the address {address}, and none routes it")
        longest = max(route.prefixlen for route, _ in routes)
        choices = {node.id: (route, node) for route, node in routes if route.prefixlen == longest}
        route = next(iter(choices.values()))[0]
        route, node = choices.get(self._primaries.get(route, _NOBODY), next(iter(choices.values())))
        return End(text, node, address, route)


def _imagined(**facts: object) -> PolicyNode:
    return replace(PolicyNode(_NOBODY, None, True, ()), **facts)  # type: ignore[arg-type]


def imagined_of(user: UserId, user_names: tuple[str, ...], role: str) -> PolicyNode:
    """A node that the user might have."""
    return PolicyNode(_NOBODY, user, False, (), user_names=user_names, role=role)


def explain(policy: Policy | None, directory: Directory, source: str, destination: str, protocol: int, port: int | None) -> Verdict:
    """The verdict of the policy (None: the built-in one) on a new flow. An end may be one of the policy's hosts too. NotFoundError for a name that is none."""
    pairs = [(one, other) for one in _ends(policy, directory, source) for other in _ends(policy, directory, destination)]
    apart = [(one, other) for one, other in pairs if not _is_itself(one, other)]
    verdicts = [decide(policy, one, other, protocol, port) for one, other in apart or pairs]
    return next((verdict for verdict in verdicts if not verdict.allowed), verdicts[0])  # each name stands for one end at least


def _ends(policy: Policy | None, directory: Directory, text: str) -> tuple[End, ...]:
    try:
        return directory.ends(text)
    except NotFoundError:
        host = None if policy is None else policy.hosts.get(text)
        if host is None:
            raise
        return tuple(replace(end, name=text) for end in directory.ends(str(host.network_address)))


# --- tests of a policy


def run_tests(policy: Policy, directory: Directory) -> tuple[TestResult, ...]:
    """The policy's own tests, on the nodes there are. `accept` wants every pair of what is named allowed, `deny` none; a group without members has none.

    A node stands against itself as another of its kind would: what is asked is what the rules say.
    """
    return tuple(
        TestResult(test, target, port, wanted, _tested(policy, directory, test, target, port, wanted=wanted))
        for test in policy.tests
        for wanted, targets in ((True, test.accept), (False, test.deny))
        for target, port in targets
    )


def _tested(policy: Policy, directory: Directory, test: PolicyTest, target: str, port: int, *, wanted: bool) -> Verdict:
    """The first verdict that is not as wanted, else the last one."""
    sources, destinations = _ends_of_test(policy, directory, test.source), _ends_of_test(policy, directory, target)
    empty = target if sources else test.source
    verdict = Verdict(False, f"{empty} has no members", End(test.source, _imagined()), End(target, _imagined()))
    protocol = TCP if test.protocol is None else test.protocol
    for source in sources:
        for destination in destinations:
            verdict = _decide_by_rules(policy, source, destination, protocol, port)
            if verdict.allowed != wanted:
                return verdict
    return verdict


def _ends_of_test(policy: Policy, directory: Directory, text: str) -> tuple[End, ...]:
    """What a user, group, tag, host, address or prefix (its first address) stands for: one that is not there yet is imagined."""
    if text.startswith("group:"):
        return tuple(end for member in policy.groups[text] for end in _ends_of_member(directory, member))
    if text.startswith("tag:"):
        return directory.ends(text)
    if "@" in text:
        return _ends_of_member(directory, text)
    host = policy.hosts.get(text)
    words = text.strip("[]").partition("/")[0] if host is None else str(host.network_address)
    try:
        return tuple(replace(end, name=text) for end in directory.ends(words))
    except NotFoundError:
        address = ipaddress.ip_address(words)
        return (End(text, _imagined(), address, ipaddress.ip_network(address)),)


def _ends_of_member(directory: Directory, member: str) -> tuple[End, ...]:
    try:
        return directory.ends(member)
    except NotFoundError:
        number = -2 - int.from_bytes(member.lower().encode(), "big")  # each user that is not there is another one
        return (End(member, PolicyNode(_NOBODY, UserId(number), False, (), user_names=(member,), role="user")),)


# --- one pair


def decide(policy: Policy | None, source: End, destination: End, protocol: int, port: int | None) -> Verdict:
    """The verdict on one pair: allowed where it is by one family of addresses."""
    if _is_itself(source, destination):
        return Verdict(True, "a node reaches itself, and what it routes, without asking the policy", source, destination)
    return _decide_by_rules(policy, source, destination, protocol, port)


def _is_itself(source: End, destination: End) -> bool:
    return source.node.id == destination.node.id != _NOBODY


def _decide_by_rules(policy: Policy | None, source: End, destination: End, protocol: int, port: int | None) -> Verdict:
    verdicts = [
        _decide_pair(policy, replace(source, address=one), replace(destination, address=other), _protocol_of(one, other, protocol), port)
        for one in source.faces()
        for other in destination.faces()
        if one is None or other is None or (one.version == other.version and (protocol != ICMPV6 or one.version == 6))
    ]
    if not verdicts:
        return Verdict(False, "they have no family of addresses in common that this protocol is for", source, destination)
    best = next((verdict for verdict in verdicts if verdict.allowed), verdicts[0])
    missing = [verdict for verdict in verdicts if verdict.allowed != best.allowed]
    only = f", by {best.destination.address} alone" if missing and source.address is None and destination.address is None else ""
    return replace(best, reason=best.reason + only, source=source, destination=destination)


def _protocol_of(source: Address | None, destination: Address | None, protocol: int) -> int:
    known = source or destination
    return ICMPV6 if protocol == ICMP and known is not None and known.version == 6 else protocol


def _decide_pair(policy: Policy | None, source: End, destination: End, protocol: int, port: int | None) -> Verdict:
    if policy is None:
        return decide_builtin(source, destination)
    near: tuple[Permit, Target] | None = None
    for permit in policy.permits:
        by = source_of(permit, source)
        if by is None:
            continue
        for target in permit.targets:
            if is_target(target, source, destination):
                if any(service.accepts(protocol, port) for service in target.services):
                    way = f", through the router {destination.node.name} of {destination.route}" if destination.route and destination.node.name else ""
                    matched = f"{by.text} to {target.selector.text}"
                    return Verdict(True, f"by the rule in line {permit.line} ({matched}): {permit.text}{way}", source, destination, permit)
                near = near or (permit, target)
    if near is None:
        return Verdict(False, "no rule has this source and this destination", source, destination)
    permit, target = near
    offered = ", ".join(dict.fromkeys(service_text(service) for service in target.services))
    reason = f"no rule allows {_asked(protocol, port)} between them; the one in line {permit.line} ({target.selector.text}) allows {offered}"
    return Verdict(False, reason, source, destination)


def decide_builtin(source: End, destination: End) -> Verdict:
    """The built-in policy's verdict on one pair."""
    there = destination.node
    if source.routed:
        return Verdict(False, "built-in policy: what is behind a router reaches nobody (unless its router puts its own address on)", source, destination)
    if destination.routed:
        return Verdict(True, "built-in policy: approved routes are reachable by all nodes", source, destination)
    if there.tagged:
        return Verdict(True, "built-in policy: tagged nodes are reachable by all nodes", source, destination)
    if _same_user(source, destination):
        return Verdict(True, "built-in policy: nodes of one user reach each other", source, destination)
    return Verdict(False, "built-in policy: nodes of different users do not reach each other", source, destination)


def source_of(permit: Permit, source: End) -> Selector | None:
    """The first of the rule's sources that means this one."""
    return next((selector for selector in permit.sources if selector.means(source.node, source.address, routed=source.routed)), None)


def is_target(target: Target, source: End, destination: End) -> bool:
    """Whether the target means this destination, for this source."""
    if target.selector.kind == "self":
        return not source.routed and not destination.routed and _same_user(source, destination)
    return target.selector.means(destination.node, destination.address, routed=destination.routed)


def _same_user(source: End, destination: End) -> bool:
    one, other = source.node, destination.node
    return not one.tagged and not other.tagged and one.user is not None and one.user == other.user


# --- words


def _asked(protocol: int, port: int | None) -> str:
    name = PROTOCOL_NAMES.get(protocol, str(protocol))
    return name if port is None else f"{name}/{port}"


def service_text(service: Service) -> str:
    """`tcp/80,443`, `icmp`, `any`."""
    names = "+".join(PROTOCOL_NAMES.get(protocol, str(protocol)) for protocol in service.protocols) or "any"
    ports = ",".join(str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}" for ports in service.ports)
    return f"{names}/{ports}" if ports else names
