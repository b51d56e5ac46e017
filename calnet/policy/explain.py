"""Whether policy lets one reach another, and why, in words: for `can`, the tests of a policy, and admins who wonder. Pure.

A user or tag as an end stands for all of its nodes: it can reach what every one of them can. One that has no node yet stands for a node that it might have.
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
from calnet.policy.selectors import PROTOCOL_NAMES, TCP, PolicyTest, Service, Target

_NOBODY: Final = NodeId(-1)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a question: a node, or an address behind a router. `name` is how the question called it."""

    name: str
    node: PolicyNode
    address: Address | None = None
    """An address that the node routes for, instead of the node."""
    route: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. `permit` is the rule that allows, None where none does or the built-in policy decides; `end` the pair it was decided by."""

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
                return End(text, node)
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
    """The verdict of the policy (None: the built-in one) on a new flow. NotFoundError for a name that is none."""
    verdict: Verdict | None = None
    for one in directory.ends(source):
        for other in directory.ends(destination):
            verdict = decide(policy, one, other, protocol, port)
            if not verdict.allowed:
                return verdict
    assert verdict is not None  # each name stands for one end at least
    return verdict


def run_tests(policy: Policy, directory: Directory) -> tuple[TestResult, ...]:
    """The policy's own tests, on the nodes there are. A name that stands for nobody fails its test."""
    return tuple(
        TestResult(test, target, port, wanted, _tested(policy, directory, test, target, port))
        for test in policy.tests
        for wanted, targets in ((True, test.accept), (False, test.deny))
        for target, port in targets
    )


def _tested(policy: Policy, directory: Directory, test: PolicyTest, target: str, port: int) -> Verdict:
    protocol = TCP if test.protocol is None else test.protocol
    nobody = End(test.source, _imagined())
    sources, destinations = _ends_of_test(policy, directory, test.source), _ends_of_test(policy, directory, target)
    verdict = Verdict(False, f"{test.source if not sources else target} stands for nobody", nobody, nobody)
    for source in sources:
        for destination in destinations:
            verdict = decide(policy, source, destination, protocol, port)
            if not verdict.allowed:
                return verdict
    return verdict


def _ends_of_test(policy: Policy, directory: Directory, text: str) -> tuple[End, ...]:
    if text.startswith("group:"):
        members = policy.groups.get(text, ())
        return tuple(End(text, _imagined_member(directory, member)) for member in members)
    host = policy.hosts.get(text)
    words = text if host is None else str(host.network_address)
    try:
        return directory.ends(words)
    except NotFoundError:
        return (End(text, _imagined_address(words)),) if "@" not in text else (End(text, _imagined_member(directory, text)),)


def _imagined_member(directory: Directory, member: str) -> PolicyNode:
    try:
        return directory.ends(member)[0].node
    except NotFoundError:
        return PolicyNode(_NOBODY, UserId(-1), False, (), user_names=(member,), role="user")


def _imagined_address(text: str) -> PolicyNode:
    try:
        return PolicyNode(_NOBODY, UserId(-1), False, (ipaddress.ip_address(text.partition("/")[0]),))
    except ValueError:
        return _imagined()


def decide(policy: Policy | None, source: End, destination: End, protocol: int, port: int | None) -> Verdict:
    """The verdict on one pair."""
    if source.node.id == destination.node.id and destination.address is None and source.node.id != _NOBODY:
        return Verdict(True, "a node reaches itself", source, destination)
    if policy is None:
        return _decide_builtin(source, destination)
    near: Permit | None = None
    for permit in policy.permits:
        if not is_source(permit, source):
            continue
        for target in permit.targets:
            if is_target(target, source, destination):
                if any(service.accepts(protocol, port) for service in target.services):
                    return Verdict(True, f"by the rule in line {permit.line}: {permit.text}", source, destination, permit)
                near = near or permit
    if near is not None:
        return Verdict(
            False, f"no rule allows {_asked(protocol, port)}; the one in line {near.line} allows {_offered(near, source, destination)}", source, destination
        )
    return Verdict(False, "no rule allows it", source, destination)


def _decide_builtin(source: End, destination: End) -> Verdict:
    there = destination.node
    if destination.address is not None:
        return Verdict(True, "built-in policy: approved routes are reachable by all nodes", source, destination)
    if there.tagged:
        return Verdict(True, "built-in policy: tagged nodes are reachable by all nodes", source, destination)
    if source.node.user is not None and source.node.user == there.user:
        return Verdict(True, "built-in policy: nodes of one user reach each other", source, destination)
    return Verdict(False, "built-in policy: nodes of different users do not reach each other", source, destination)


def is_source(permit: Permit, source: End) -> bool:
    if source.address is not None:
        return any(selector.holds(source.address) for selector in permit.sources)
    return any(selector.selects(source.node) for selector in permit.sources)


def is_target(target: Target, source: End, destination: End) -> bool:
    there = destination.node
    if destination.address is not None:
        return target.selector.holds(destination.address)
    if target.selector.kind == "self":
        return source.address is None and not source.node.tagged and not there.tagged and source.node.user is not None and source.node.user == there.user
    return target.selector.selects(there)


def _offered(permit: Permit, source: End, destination: End) -> str:
    services = [service for target in permit.targets if is_target(target, source, destination) for service in target.services]
    return ", ".join(dict.fromkeys(service_text(service) for service in services))


def _asked(protocol: int, port: int | None) -> str:
    name = PROTOCOL_NAMES.get(protocol, str(protocol))
    return name if port is None else f"{name}/{port}"


def service_text(service: Service) -> str:
    """`tcp/80,443`, `icmp`, `any`."""
    names = "+".join(PROTOCOL_NAMES.get(protocol, str(protocol)) for protocol in service.protocols) or "any"
    ports = ",".join(str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}" for ports in service.ports)
    return f"{names}/{ports}" if ports else names
