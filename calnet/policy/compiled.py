"""A policy over the nodes there are: who sees whom, and each node's packet filter. Pure, and changed node by node.

Each rule knows the nodes that it has as sources and as targets, so that a change of one node costs as much as there are rules, and an answer about one node as
much as it is long. A prefix that nodes route for others is a target of its router: that one filters for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from calnet.model import Address, FilterRule, NodeId, Prefix, UserId
from calnet.policy.bits import Masks
from calnet.policy.document import Permit, Policy
from calnet.policy.engine import PolicyNode
from calnet.policy.prefixes import HOLE_COST, collapsed, host_prefix, without
from calnet.policy.selectors import Selector, Service

ALL: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


class _Selected:
    """What one selector means of the nodes there are. Rules that name the same share it."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.nodes: set[NodeId] = set()
        self.routers: dict[NodeId, tuple[Prefix, ...]] = {}
        """What each router has of it."""

    def put(self, node: PolicyNode) -> None:
        if self.selector.selects(node):
            self.nodes.add(node.id)
        parts = [self.selector.part_of(route) for route in node.routes]
        if any(parts):
            self.routers[node.id] = tuple(part for part in parts if part is not None)

    def remove(self, node: NodeId) -> None:
        self.nodes.discard(node)
        self.routers.pop(node, None)

    def destinations(self, node: PolicyNode) -> list[Prefix]:
        """What of the node, and of what it routes, is meant."""
        found: list[Prefix] = []
        if node.id in self.nodes or (self.selector.kind == "self" and not node.tagged):
            whole = self.selector.kind != "prefix"
            found += [host_prefix(address) for address in node.addresses if whole or self.selector.holds(address)]
        return [*found, *self.routers.get(node.id, ())]


class _Sources:
    """The sources of a rule on the nodes there are. Rules with the same sources share them."""

    def __init__(self, selectors: tuple[Selector, ...]) -> None:
        self._selectors = selectors
        self.nodes: set[NodeId] = set()
        self.whole: set[NodeId] = set()
        """Those of `nodes` that are sources with all of their addresses, not only with those in a source prefix."""
        self.routers: set[NodeId] = set()
        """They route addresses that are sources."""
        everybody = any(selector.kind == "any" for selector in selectors)
        self.prefixes = ALL if everybody else tuple(dict.fromkeys(selector.prefix for selector in selectors if selector.prefix is not None))
        self._addresses: tuple[Prefix, ...] | None = None

    def put(self, node: PolicyNode) -> None:
        kinds = {selector.kind for selector in self._selectors if selector.selects(node)}
        if kinds:
            self.nodes.add(node.id)
        if kinds - {"prefix"}:
            self.whole.add(node.id)
            self._addresses = None
        if any(selector.part_of(route) for selector in self._selectors for route in node.routes):
            self.routers.add(node.id)

    def remove(self, node: NodeId) -> None:
        if node in self.whole:
            self._addresses = None
        for nodes in (self.nodes, self.whole, self.routers):
            nodes.discard(node)

    def addresses(self, nodes: dict[NodeId, PolicyNode]) -> tuple[Prefix, ...]:
        """Prefixes of the addresses of the nodes that are sources whole."""
        if self._addresses is None:
            self._addresses = collapsed(address for node in self.whole for address in nodes[node].addresses)
        return self._addresses


@dataclass(frozen=True, slots=True)
class _Rule:
    sources: _Sources
    targets: tuple[tuple[_Selected, tuple[Service, ...]], ...]


class CompiledPolicy:
    """Engine of a parsed policy. `overlay` are the prefixes that every node's addresses are in. `hole_cost` as in BuiltinPolicy."""

    def __init__(self, policy: Policy, overlay: Iterable[Prefix], nodes: Iterable[PolicyNode] = (), *, hole_cost: int = HOLE_COST) -> None:
        self.reject = policy.reject
        self._overlay = tuple(overlay)
        self._hole_cost = hole_cost
        self._selected: dict[Selector, _Selected] = {}
        self._sources: dict[tuple[Selector, ...], _Sources] = {}
        self._rules = [self._rule(part) for permit in policy.permits for part in _by_family(permit)]
        self._nodes: dict[NodeId, PolicyNode] = {}
        self._of_user: dict[UserId, set[NodeId]] = {}
        self._masks = Masks()
        self._among: dict[tuple[_Sources, UserId | None], Set[NodeId]] = {}
        for node in nodes:
            self.put(node)

    def _rule(self, permit: Permit) -> _Rule:
        sources = self._sources.setdefault(permit.sources, _Sources(permit.sources))
        return _Rule(sources, tuple((self._selected.setdefault(target.selector, _Selected(target.selector)), target.services) for target in permit.targets))

    def put(self, node: PolicyNode) -> None:
        """See Engine."""
        if self._nodes.get(node.id) == node:
            return  # what a node's coming and going makes anew is kept
        self.remove(node.id)
        self._nodes[node.id] = node
        if node.user is not None and not node.tagged:
            self._of_user.setdefault(node.user, set()).add(node.id)
        for part in self._parts():
            part.put(node)

    def remove(self, node_id: NodeId) -> None:
        """See Engine."""
        self._masks.clear()
        self._among.clear()
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        if node.user in self._of_user:
            self._of_user[node.user].discard(node_id)
        for part in self._parts():
            part.remove(node_id)

    def _parts(self) -> Iterator[_Sources | _Selected]:
        yield from self._sources.values()
        yield from self._selected.values()

    def visible(self, node_id: NodeId, among: Set[NodeId] | None = None) -> set[NodeId]:
        """See Engine."""
        node = self._nodes.get(node_id)
        seen: set[NodeId] = set()
        if node is None:
            return seen
        for nodes in self._in_sight(node):
            seen.update(nodes if among is None else [one for one in among if one in nodes])
        seen.discard(node_id)
        return seen

    def sight(self, node_id: NodeId) -> int:
        """See Engine."""
        node = self._nodes.get(node_id)
        return 0 if node is None else self._masks.union(self._in_sight(node)) & ~(1 << node_id)

    def _in_sight(self, node: PolicyNode) -> Iterator[Collection[NodeId]]:
        """Sets that hold, all together, the nodes in its sight."""
        mates = self._mates(node)
        for rule in self._rules:
            sources = rule.sources
            is_source = node.id in sources.nodes or node.id in sources.routers
            for target, _ in rule.targets:
                mine = target.selector.kind == "self"
                if is_source:
                    yield mates if mine else target.nodes
                    yield target.routers
                if mine and node.id in mates:
                    yield self._mates_among(sources, node)
                elif node.id in target.nodes or node.id in target.routers:
                    yield sources.nodes
                    yield sources.routers

    def sees(self, node_id: NodeId, other: NodeId) -> bool:
        """See Engine."""
        node, there = self._nodes.get(node_id), self._nodes.get(other)
        return node is not None and there is not None and node_id != other and (self._reaches(node, there) or self._reaches(there, node))

    def rules(self, node_id: NodeId) -> tuple[FilterRule, ...]:
        """See Engine."""
        node = self._nodes.get(node_id)
        if node is None:
            return ()
        sources: dict[tuple[_Sources, bool], tuple[Prefix, ...]] = {}
        found: dict[tuple[_Sources, bool, tuple[Prefix, ...], Service], None] = {}
        for rule in self._rules:
            for target, services in rule.targets:
                destinations = tuple(dict.fromkeys(target.destinations(node)))
                mine = target.selector.kind == "self"
                if not destinations:
                    continue
                if (rule.sources, mine) not in sources:
                    sources[rule.sources, mine] = self._sources_at(node, rule.sources, mine=mine)
                found.update(((rule.sources, mine, destinations, service), None) for service in services if sources[rule.sources, mine])
        return tuple(FilterRule(sources[by, mine], destinations, service.protocols, service.ports) for by, mine, destinations, service in found)

    def _reaches(self, source: PolicyNode, there: PolicyNode) -> bool:
        for rule in self._rules:
            if source.id in rule.sources.nodes or source.id in rule.sources.routers:
                for target, _ in rule.targets:
                    if there.id in target.nodes or there.id in target.routers:
                        return True
                    if target.selector.kind == "self" and source.id in rule.sources.nodes and there.id in self._mates(source):
                        return True
        return False

    def _mates(self, node: PolicyNode) -> set[NodeId]:
        return set() if node.user is None or node.tagged else self._of_user.get(node.user, set())

    def _mates_among(self, sources: _Sources, node: PolicyNode) -> Set[NodeId]:
        """Those of its user's nodes that are sources; one set for all nodes of the user."""
        key = sources, node.user
        found = self._among.get(key)
        if found is None:
            found = self._among[key] = sources.nodes & self._mates(node)
        return found

    def _sources_at(self, node: PolicyNode, sources: _Sources, *, mine: bool) -> tuple[Prefix, ...]:
        """The source prefixes at this node. It has to tell apart only the nodes that it sees, as cryptokey routing lets nobody else speak."""
        if mine:
            mates = self._mates_among(sources, node) - {node.id}
            return self._overlay_but(self.visible(node.id) - mates, len(mates)) or collapsed(self._addresses(mates))
        if sources.prefixes == ALL:
            return ALL
        most = self._overlay_but(self.visible(node.id) - sources.whole, len(sources.whole)) or sources.addresses(self._nodes)
        return tuple(dict.fromkeys((*most, *sources.prefixes)))

    def _overlay_but(self, others: set[NodeId], sources: int) -> tuple[Prefix, ...]:
        """The overlay without the others, which are in sight and no sources; empty where there are too many of them for that to be shorter, or no sources."""
        if not sources or len(others) * self._hole_cost >= sources:
            return ()
        return without(self._overlay, self._addresses(others)) if others else self._overlay

    def _addresses(self, nodes: Iterable[NodeId]) -> list[Address]:
        return [address for node in nodes for address in self._nodes[node].addresses]


def _by_family(permit: Permit) -> Iterator[Permit]:
    """The rule, in parts where it has sources of one family of addresses and targets of the other, which can't reach each other."""
    sources = {family: tuple(one for one in permit.sources if _family(one) == family) for family in (0, 4, 6)}
    targets = {_family(target.selector) for target in permit.targets}
    if not (sources[4] and 6 in targets) and not (sources[6] and 4 in targets):
        yield permit
        return
    for family, some in sources.items():
        reached = tuple(target for target in permit.targets if not family or _family(target.selector) in (0, family))
        if some and reached:
            yield replace(permit, sources=some, targets=reached)


def _family(selector: Selector) -> int:
    """0 for both."""
    return 0 if selector.prefix is None else selector.prefix.version
