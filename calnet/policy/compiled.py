"""A policy over the nodes there are: who sees whom, and each node's packet filter. Pure, and changed node by node.

Each rule knows the nodes that it has as sources and as targets, so that a change of one node costs as much as there are rules, and an answer about one node as
much as it is long. A prefix that nodes route for others is a target of its router: that one filters for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from calnet.model import FilterRule, NodeId, Prefix, UserId
from calnet.policy.document import Permit, Policy
from calnet.policy.engine import PolicyNode
from calnet.policy.prefixes import collapsed
from calnet.policy.selectors import Selector, Target

ALL: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


class _Target:
    """One target of a rule, with the nodes that it means and the routers of what it means."""

    def __init__(self, target: Target) -> None:
        self.selector, self.services = target.selector, target.services
        self.mine = target.selector.kind == "self"
        self.nodes: set[NodeId] = set()
        self.routers: dict[NodeId, tuple[Prefix, ...]] = {}

    def put(self, node: PolicyNode) -> None:
        if self.selector.selects(node):
            self.nodes.add(node.id)
        parts = _parts(self.selector, node)
        if parts:
            self.routers[node.id] = parts

    def remove(self, node: NodeId) -> None:
        self.nodes.discard(node)
        self.routers.pop(node, None)

    def destinations(self, node: PolicyNode) -> list[Prefix]:
        """What of the node, and of what it routes, this target means."""
        found: list[Prefix] = []
        if node.id in self.nodes or (self.mine and not node.tagged):
            whole = self.selector.kind != "prefix"
            found += [ip_network(address) for address in node.addresses if whole or self.selector.holds(address)]
        return [*found, *self.routers.get(node.id, ())]


class _Rule:
    """One rule, with the nodes that are its sources."""

    def __init__(self, permit: Permit) -> None:
        self._selectors = permit.sources
        self.targets = [_Target(target) for target in permit.targets]
        self.nodes: set[NodeId] = set()
        self.routers: set[NodeId] = set()
        """They route addresses that are sources."""
        self.prefixes = _source_prefixes(permit.sources)
        self.whole: set[NodeId] = set()
        """Those of `nodes` that are sources with all of their addresses, not only with those in a source prefix."""
        self._addresses: tuple[Prefix, ...] | None = None

    def put(self, node: PolicyNode) -> None:
        selecting = [selector for selector in self._selectors if selector.selects(node)]
        if selecting:
            self.nodes.add(node.id)
            self._addresses = None
            if any(selector.kind != "prefix" for selector in selecting):
                self.whole.add(node.id)
        if any(_parts(selector, node) for selector in self._selectors):
            self.routers.add(node.id)
        for target in self.targets:
            target.put(node)

    def remove(self, node: NodeId) -> None:
        if node in self.nodes:
            self._addresses = None
        for nodes in (self.nodes, self.routers, self.whole):
            nodes.discard(node)
        for target in self.targets:
            target.remove(node)

    def addresses(self, nodes: dict[NodeId, PolicyNode]) -> tuple[Prefix, ...]:
        """Prefixes of the addresses of the nodes that are sources whole."""
        if self._addresses is None:
            self._addresses = collapsed(address for node in self.whole for address in nodes[node].addresses)
        return self._addresses


class CompiledPolicy:
    """Engine of a parsed policy. `overlay` are the prefixes that every node's addresses are in."""

    def __init__(self, policy: Policy, overlay: Iterable[Prefix], nodes: Iterable[PolicyNode] = ()) -> None:
        self.reject = policy.reject
        self._overlay = tuple(overlay)
        self._rules = [_Rule(part) for permit in policy.permits for part in _by_family(permit)]
        self._nodes: dict[NodeId, PolicyNode] = {}
        self._of_user: dict[UserId, set[NodeId]] = {}
        for node in nodes:
            self.put(node)

    def put(self, node: PolicyNode) -> None:
        """See Engine."""
        self.remove(node.id)
        self._nodes[node.id] = node
        if node.user is not None and not node.tagged:
            self._of_user.setdefault(node.user, set()).add(node.id)
        for rule in self._rules:
            rule.put(node)

    def remove(self, node_id: NodeId) -> None:
        """See Engine."""
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        if node.user in self._of_user:
            self._of_user[node.user].discard(node_id)
        for rule in self._rules:
            rule.remove(node_id)

    def visible(self, node_id: NodeId) -> set[NodeId]:
        """See Engine."""
        node = self._nodes.get(node_id)
        seen: set[NodeId] = set()
        if node is None:
            return seen
        mates = self._mates(node)
        for rule in self._rules:
            is_source = node_id in rule.nodes or node_id in rule.routers
            for target in rule.targets:
                if is_source:
                    seen |= mates if target.mine else target.nodes
                    seen |= target.routers.keys()
                if target.mine and node_id in mates:
                    seen |= rule.nodes & mates
                elif node_id in target.nodes or node_id in target.routers:
                    seen |= rule.nodes
                    seen |= rule.routers
        seen.discard(node_id)
        return seen

    def sees(self, node_id: NodeId, other: NodeId) -> bool:
        """See Engine."""
        node, there = self._nodes.get(node_id), self._nodes.get(other)
        return node is not None and there is not None and node_id != other and (self._reaches(node, there) or self._reaches(there, node))

    def rules(self, node_id: NodeId) -> tuple[FilterRule, ...]:
        """See Engine."""
        node = self._nodes.get(node_id)
        if node is None:
            return ()
        seen = self.visible(node_id)
        found: dict[FilterRule, None] = {}
        for rule in self._rules:
            for target in rule.targets:
                destinations = tuple(dict.fromkeys(target.destinations(node)))
                sources = self._sources(rule, target, node, seen) if destinations else ()
                if sources:
                    found.update((FilterRule(sources, destinations, service.protocols, service.ports), None) for service in target.services)
        return tuple(found)

    def _reaches(self, source: PolicyNode, there: PolicyNode) -> bool:
        for rule in self._rules:
            if source.id in rule.nodes or source.id in rule.routers:
                for target in rule.targets:
                    if there.id in target.nodes or there.id in target.routers:
                        return True
                    if target.mine and source.id in rule.nodes and there.id in self._mates(source):
                        return True
        return False

    def _mates(self, node: PolicyNode) -> set[NodeId]:
        return set() if node.user is None or node.tagged else self._of_user.get(node.user, set())

    def _sources(self, rule: _Rule, target: _Target, node: PolicyNode, seen: set[NodeId]) -> tuple[Prefix, ...]:
        """The source prefixes of the rule at this node. It has to tell apart only the nodes that it sees, as cryptokey routing lets nobody else speak."""
        if target.mine:
            mates = (rule.nodes & self._mates(node)) - {node.id}
            return self._overlay if seen and seen <= mates else collapsed(address for mate in mates for address in self._nodes[mate].addresses)
        if rule.prefixes[: len(ALL)] == ALL:
            return ALL
        if seen and seen <= rule.whole:
            return tuple(dict.fromkeys((*self._overlay, *rule.prefixes)))
        return tuple(dict.fromkeys((*rule.addresses(self._nodes), *rule.prefixes)))


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


def _source_prefixes(selectors: Iterable[Selector]) -> tuple[Prefix, ...]:
    selectors = tuple(selectors)
    if any(selector.kind == "any" for selector in selectors):
        return ALL
    return tuple(dict.fromkeys(selector.prefix for selector in selectors if selector.prefix is not None))


def _parts(selector: Selector, node: PolicyNode) -> tuple[Prefix, ...]:
    """What the selector means of the prefixes that the node routes."""
    parts = (selector.part_of(route) for route in node.routes)
    return tuple(part for part in parts if part is not None)
