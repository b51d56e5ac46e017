"""What a policy is to the rest of Calnet: over a set of nodes that changes node by node, who sees whom and what each node's packet filter accepts. Pure."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from calnet.model import Address, FilterRule, NodeId, Prefix, UserId


@dataclass(frozen=True, slots=True)
class PolicyNode:
    """What policy has to know of an active node. `user` is None for a tagged one; `routes` are the approved prefixes it may route."""

    id: NodeId
    user: UserId | None
    tagged: bool
    addresses: tuple[Address, ...]
    routes: tuple[Prefix, ...] = ()
    name: str = ""
    user_names: tuple[str, ...] = ()
    """By which a policy names its owner: `alice@`, and the verified e-mail address."""
    role: str = ""
    """The owner's."""
    tags: tuple[str, ...] = ()


class Engine(Protocol):
    """A policy over nodes. Asking about one node costs about as much as the answer is long."""

    @property
    def reject(self) -> bool:
        """Refused packets are answered, not dropped without a word."""

    def put(self, node: PolicyNode) -> None:
        """Add a node, or replace the one with its id."""

    def remove(self, node_id: NodeId) -> None:
        """Forget a node; nothing happens where it is unknown."""

    def visible(self, node_id: NodeId, among: Set[NodeId] | None = None) -> set[NodeId]:
        """The nodes (of `among`) that this one may reach or be reached by, which see it too. Empty for an unknown node. Costs as much as the smaller of
        both sets is large."""

    def sight(self, node_id: NodeId) -> int:
        """The same nodes, as the bits of their ids (bits.py)."""

    def sees(self, node_id: NodeId, other: NodeId) -> bool:
        """Whether two nodes are visible to each other."""

    def rules(self, node_id: NodeId) -> tuple[FilterRule, ...]:
        """What this node's packet filter accepts. Empty for an unknown node."""
