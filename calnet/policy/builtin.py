"""The policy that holds until one is set: nodes of one user reach each other; tagged nodes and approved routes are reachable by all nodes. Pure.

Who reaches whom here is enough for both: each node's packet filter, and who learns of whom (a node sees those it may reach and those that may reach it).
A filter has to tell apart only the nodes that its node sees, since cryptokey routing lets nobody else speak: where all of them may reach it, its rule
names the whole overlay, or all but a few addresses of it, and does not change with every node that comes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from typing import Final

from calnet.model import Address, FilterRule, NodeId, Prefix, UserId
from calnet.policy.bits import Masks
from calnet.policy.engine import PolicyNode
from calnet.policy.prefixes import HOLE_COST, collapsed, host_prefix, without

TEXT: Final = """\
# The built-in policy: it holds until another is set.
# Nodes of one user reach each other.
# Tagged nodes are reachable by all nodes.
# Approved routes are reachable by all nodes.
"""


class BuiltinPolicy:
    """The policy over a set of nodes that changes node by node. Asking about one node costs as much as it has peers, whatever the number of nodes."""

    reject = False

    def __init__(self, overlay: Iterable[Prefix], nodes: Iterable[PolicyNode] = (), *, hole_cost: int = HOLE_COST) -> None:
        """`overlay` are the prefixes that every node's addresses are in. Above `hole_cost` sources for each node in sight that is none, a filter names the
        overlay without those."""
        self._overlay = tuple(overlay)
        self._hole_cost = hole_cost
        self._nodes: dict[NodeId, PolicyNode] = {}
        self._of_user: dict[UserId, set[NodeId]] = {}
        self._public: set[NodeId] = set()
        self._sources: dict[UserId, tuple[Prefix, ...]] = {}
        self._masks = Masks()
        for node in nodes:
            self.put(node)

    def put(self, node: PolicyNode) -> None:
        """Add a node, or replace the one with its id."""
        if self._nodes.get(node.id) == node:
            return
        self.remove(node.id)
        self._nodes[node.id] = node
        if node.user is not None and not node.tagged:
            self._sources.pop(node.user, None)
            self._of_user.setdefault(node.user, set()).add(node.id)
        if node.tagged or node.routes:
            self._public.add(node.id)
            self._sources.clear()

    def remove(self, node_id: NodeId) -> None:
        """Forget a node; nothing happens where it is unknown."""
        self._masks.clear()
        node = self._nodes.pop(node_id, None)
        if node_id in self._public:
            self._public.remove(node_id)
            self._sources.clear()
        if node is not None and node.user is not None and not node.tagged:
            self._sources.pop(node.user, None)
            self._of_user[node.user].discard(node_id)
            if not self._of_user[node.user]:
                del self._of_user[node.user]

    def visible(self, node_id: NodeId, among: Set[NodeId] | None = None) -> set[NodeId]:
        """See Engine."""
        node = self._nodes.get(node_id)
        if node is None:
            return set()
        if node_id in self._public:
            seen = set(self._nodes) if among is None else self._nodes.keys() & among
        elif among is None:
            seen = self._public | self._mates(node)
        else:
            seen = set(self._public & among) | (self._mates(node) & among)
        seen.discard(node_id)
        return seen

    def sight(self, node_id: NodeId) -> int:
        """See Engine."""
        node = self._nodes.get(node_id)
        if node is None:
            return 0
        sets: tuple[Collection[NodeId], ...] = (self._nodes,) if node_id in self._public else (self._public, self._mates(node))
        return self._masks.union(sets) & ~(1 << node_id)

    def sees(self, node_id: NodeId, other: NodeId) -> bool:
        """Whether two nodes are visible to each other."""
        node, there = self._nodes.get(node_id), self._nodes.get(other)
        if node is None or there is None or node_id == other:
            return False
        return node_id in self._public or other in self._public or other in self._mates(node)

    def rules(self, node_id: NodeId) -> tuple[FilterRule, ...]:
        """What this node's packet filter accepts. Empty for an unknown node."""
        node = self._nodes.get(node_id)
        if node is None:
            return ()
        rules = []
        sources = self._overlay if node.tagged else self._sources_of(node)
        if sources:
            rules.append(FilterRule(sources, _hosts_of(node)))
        if node.routes:
            rules.append(FilterRule(self._overlay, node.routes))
        return tuple(rules)

    def _mates(self, node: PolicyNode) -> set[NodeId]:
        return set() if node.user is None or node.tagged else self._of_user[node.user]

    def _sources_of(self, node: PolicyNode) -> tuple[Prefix, ...]:
        """Prefixes that hold the addresses of the user's nodes and of no other node in sight; empty where the node has the user for itself."""
        mates = self._mates(node)
        if node.user is None or len(mates) <= 1:
            return ()
        if self._public <= mates and (node.id not in self._public or len(mates) == len(self._nodes)):
            return self._overlay
        if node.id in self._public:
            return collapsed(self._addresses(mates))
        if node.user not in self._sources:
            others = self._public - mates
            few = len(others) * self._hole_cost < len(mates)  # then the filter does not change with every node that comes
            self._sources[node.user] = without(self._overlay, self._addresses(others)) if few else collapsed(self._addresses(mates))
        return self._sources[node.user]

    def _addresses(self, nodes: Iterable[NodeId]) -> list[Address]:
        return [address for node in nodes for address in self._nodes[node].addresses]


def _hosts_of(node: PolicyNode) -> tuple[Prefix, ...]:
    return tuple(map(host_prefix, node.addresses))
