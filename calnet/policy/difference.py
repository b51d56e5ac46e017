"""Who would gain and who would lose what, were another policy to hold. Pure.

Nodes that both policies treat alike are one class: the comparison costs as much as there are classes, and says each thing once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from calnet.policy.document import Permit, Policy, parse_policy
from calnet.policy.engine import PolicyNode
from calnet.policy.explain import End, is_source, is_target
from calnet.policy.selectors import PROTOCOL_NAMES, WITH_PORTS, Service

Thing = TypeVar("Thing")

Access = dict[int, list[tuple[int, int]]]
"""Protocol → ranges of ports (0 to 65535 for a protocol without); OTHER stands for all protocols without a name."""

OTHER: Final = -1
_NAMED: Final = tuple(PROTOCOL_NAMES)
_ALL_PORTS: Final = [(0, 65_535)]

BUILTIN_EQUIVALENT: Final = """{"grants": [
    {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]},
    {"src": ["*"], "dst": ["autogroup:tagged"], "ip": ["*"]},
    {"src": ["*"], "dst": ["0.0.0.0/0", "::/0"], "ip": ["*"]},
]}"""
"""The built-in policy in the language's words, but for its last rule, which here means routes alone."""


@dataclass(frozen=True, slots=True)
class Shift:
    """These sources gain (or lose) these services at each of these destinations; a destination is a node's name, or `PREFIX via NAME`."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """All that a change of policy changes on the nodes there are."""

    gained: tuple[Shift, ...]
    lost: tuple[Shift, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """A node, or a prefix behind it, as a destination."""

    label: str
    end: End


def difference(old: Policy | None, new: Policy | None, nodes: Iterable[PolicyNode]) -> Difference:
    """From `old` to `new` (None: the built-in policy)."""
    nodes = sorted(nodes, key=lambda node: node.id)
    policies = (_Rules(old), _Rules(new))
    sources = _classes((node, _source_key(policies, node)) for node in nodes)
    places = [place for node in nodes for place in _places(node)]
    destinations = _classes((place, _place_key(policies, place)) for place in places)
    gained: list[Shift] = []
    lost: list[Shift] = []
    for sending in sources:
        for receiving in destinations:
            before, after = (rules.access(End("", sending[0]), receiving[0].end) for rules in policies)
            names = tuple(node.name for node in sending), tuple(place.label for place in receiving)
            if len(sending) == len(receiving) == 1 and sending[0].id == receiving[0].end.node.id and receiving[0].end.address is None:
                continue  # itself
            gained += _shift(names, minus(after, before))
            lost += _shift(names, minus(before, after))
    return Difference(_joined(gained), _joined(lost))


class _Rules:
    """A policy's permits, or the built-in policy's equivalent."""

    def __init__(self, policy: Policy | None) -> None:
        self._builtin = policy is None
        self.permits: Sequence[Permit] = (parse_policy(BUILTIN_EQUIVALENT) if policy is None else policy).permits

    def access(self, source: End, destination: End) -> Access:
        """What the source may reach of the destination."""
        found: Access = defaultdict(list)
        for permit in self.permits:
            if is_source(permit, source):
                for target in permit.targets:
                    if self._means(target_is_prefix=target.selector.kind == "prefix", destination=destination) and is_target(target, source, destination):
                        for service in target.services:
                            _add(found, service)
        return found

    def _means(self, *, target_is_prefix: bool, destination: End) -> bool:
        """The built-in policy's prefixes are routes, not the nodes that have addresses in them."""
        return not (self._builtin and target_is_prefix and destination.address is None)


def _source_key(policies: Iterable[_Rules], node: PolicyNode) -> tuple[object, ...]:
    return tuple(is_source(permit, End("", node)) for rules in policies for permit in rules.permits), node.user, node.tagged


def _place_key(policies: Iterable[_Rules], place: _Place) -> tuple[object, ...]:
    node, address = place.end.node, place.end.address
    means = tuple(
        target.selector.holds(address) if address is not None else target.selector.selects(node)
        for rules in policies
        for permit in rules.permits
        for target in permit.targets
    )
    return means, node.user, node.tagged, address is None


def _places(node: PolicyNode) -> list[_Place]:
    routed = [_Place(f"{route} via {node.name}", End("", node, route.network_address, route)) for route in node.routes]
    return [_Place(node.name, End("", node)), *routed]


def _classes(pairs: Iterable[tuple[Thing, object]]) -> list[list[Thing]]:
    found: dict[object, list[Thing]] = {}
    for thing, key in pairs:
        found.setdefault(key, []).append(thing)
    return list(found.values())


def _add(access: Access, service: Service) -> None:
    ranges = [(ports.first, ports.last) for ports in service.ports] or _ALL_PORTS
    for protocol in service.protocols or (*_NAMED, OTHER):
        if not service.ports or protocol in WITH_PORTS:
            access[protocol] = _merged([*access[protocol], *ranges])


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def minus(left: Access, right: Access) -> Access:
    """What of `left` is not in `right`."""
    found: Access = {}
    for protocol, ranges in left.items():
        rest = ranges
        for first, last in right.get(protocol, []):
            rest = [piece for begin, end in rest for piece in ((begin, min(end, first - 1)), (max(begin, last + 1), end)) if piece[0] <= piece[1]]
        if rest:
            found[protocol] = rest
    return found


def access_texts(access: Access) -> tuple[str, ...]:
    """`everything`, or `tcp/80,443`, `icmp` and the like."""
    if all(access.get(protocol) == _ALL_PORTS for protocol in (*_NAMED, OTHER)):
        return ("everything",)
    texts = []
    for protocol, ranges in sorted(access.items(), key=lambda item: (item[0] == OTHER, item[0])):
        name = "other protocols" if protocol == OTHER else PROTOCOL_NAMES[protocol] if protocol in PROTOCOL_NAMES else str(protocol)
        ports = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
        texts.append(name if ranges == _ALL_PORTS else f"{name}/{ports}")
    return tuple(texts)


def _shift(names: tuple[tuple[str, ...], tuple[str, ...]], access: Access) -> list[Shift]:
    return [Shift(*names, access_texts(access))] if access else []


def _joined(shifts: list[Shift]) -> tuple[Shift, ...]:
    """Those that differ in their destinations alone, as one."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for shift in shifts:
        found.setdefault((shift.sources, shift.services), []).extend(shift.destinations)
    return tuple(Shift(sources, tuple(destinations), services) for (sources, services), destinations in found.items())
