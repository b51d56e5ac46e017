"""Who sees whom now, and what of them: each active node's entry as its peers see it, and which netmaps a change touches."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from calnet.model import Endpoint, Netmap, NodeId, Peer, Prefix, Relay, SelfNode
from calnet.policy.builtin import BuiltinPolicy
from calnet.policy.engine import Engine, PolicyNode
from calnet.roles.server.failover import Routers
from calnet.roles.server.routes import parse_route
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState
from calnet.store.interface import NodeRecord


@dataclass(frozen=True, slots=True)
class Presence:
    """What only memory knows of a node. `since` is when it came (or left); None where it was not here since the server started."""

    online: bool = False
    since: float | None = None
    endpoints: tuple[Endpoint, ...] = ()
    source: bytes = b""
    """Where its (last) session comes from (endpoints.source_network)."""
    health: tuple[dict[str, str], ...] = ()
    """What it said of its own health: rows of code, severity and text."""
    home: str = ""
    """The server, by its id, that the node is connected to, where that is another one on the same store."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An active node, in each of its three forms."""

    itself: SelfNode
    peer: Peer
    policy: PolicyNode


EngineFactory = Callable[[tuple[Prefix, ...], Iterable[PolicyNode]], Engine]
"""A policy over the overlay's prefixes and these nodes."""


def entry_of(state: Snapshot, record: NodeRecord, presence: Presence, routed: Collection[Prefix]) -> Entry:
    """The entry of an active node that is the router of the `routed` prefixes now."""
    addresses = tuple(ipaddress.ip_address(address) for address in record.addresses)
    routes = effective_routes(record)
    user = state.user_name(record.user)
    itself = SelfNode(
        id=record.id,
        name=record.name,
        addresses=addresses,
        user=user,
        tags=record.tags,
        routes=routes,
        advertised_routes=tuple(parse_route(route) for route in record.advertised_routes),
        key_expires=record.key_expires,
    )
    peer = Peer(
        id=record.id,
        name=record.name,
        node_key=record.node_key,
        addresses=addresses,
        previous_node_key=record.previous_node_key,
        discovery_key=record.discovery_key,
        user=user,
        tags=record.tags,
        os=record.os,
        routes=tuple(route for route in routes if route in routed),
        backup_routes=tuple(route for route in routes if route not in routed),
        endpoints=presence.endpoints,
        online=presence.online,
        last_seen_at=last_seen(record, presence),
        key_expires=record.key_expires,
    )
    return Entry(itself, peer, policy_node(state, record))


def policy_node(state: Snapshot, record: NodeRecord) -> PolicyNode:
    """A node as policy sees it."""
    owner = None if record.user is None else state.users.get(record.user)
    names = () if owner is None else (f"{owner.name}@", *([owner.email] if owner.email else []))
    return PolicyNode(
        id=record.id,
        user=record.user,
        tagged=bool(record.tags),
        addresses=tuple(ipaddress.ip_address(address) for address in record.addresses),
        routes=effective_routes(record),
        name=record.name,
        user_names=names,
        role="" if owner is None else owner.role,
        tags=record.tags,
    )


def effective_routes(record: NodeRecord) -> tuple[Prefix, ...]:
    """The routes in force: advertised and approved."""
    return tuple(parse_route(route) for route in record.advertised_routes if route in record.approved_routes)


def last_seen(record: NodeRecord, presence: Presence) -> float | None:
    """When the node was here last; None for never (of a node that is here, when it came)."""
    return record.last_seen_at if presence.since is None else presence.since


class Netmaps:
    """The entries of all active nodes under the policy in force, and the netmaps made of them. Not thread-safe: the registry locks."""

    def __init__(self, prefixes: tuple[Prefix, ...], first_version: int) -> None:
        """`first_version` is above every version given out before."""
        self._prefixes = prefixes
        self._first_version = first_version
        self._policy: Engine = BuiltinPolicy(prefixes)
        self._routers = Routers()
        self._entries: dict[NodeId, Entry] = {}
        self._given: dict[NodeId, Netmap] = {}
        self._sorted: tuple[dict[NodeId, int], tuple[Peer, ...]] | None = None
        """All peers in order of id, and where each stands: most netmaps are this but for the node itself."""

    def __contains__(self, node: NodeId) -> bool:
        return node in self._entries

    @property
    def policy(self) -> Engine:
        """The policy over the active nodes."""
        return self._policy

    @property
    def routers(self) -> Routers:
        """Who routes what."""
        return self._routers

    def set_policy(self, make: EngineFactory) -> tuple[set[NodeId], bool]:
        """Another policy holds: as `refresh`. Each netmap may have changed, and is compared when it is made: to do so here for thousands of nodes would keep
        everybody waiting for a second, and needs a hundred megabytes."""
        self._policy = make(self._prefixes, [entry.policy for entry in self._entries.values()])
        return set(self._entries), bool(self._entries)

    def refresh(self, nodes: Iterable[NodeId], state: Snapshot, presence: dict[NodeId, Presence], now: float) -> tuple[set[NodeId], bool]:
        """Take in what became of these nodes: (nodes whose netmap may have changed, whether somebody lost a peer)."""
        touched: set[NodeId] = set()
        lost = False
        nodes = dict.fromkeys(nodes)
        for node in list(nodes):
            record = _active(state, node, now)
            routes = () if record is None else effective_routes(record)
            nodes.update(dict.fromkeys(self._routers.put(node, routes, online=presence.get(node, Presence()).online)))
        for node in nodes:
            before = self._entries.get(node)
            record = _active(state, node, now)
            after = None if record is None else entry_of(state, record, presence.get(node, Presence()), self._routers.routed_by(node))
            if before == after:
                continue
            seen_before = self._policy.visible(node)
            self._replace(node, after)
            if node not in state.nodes:
                self._given.pop(node, None)  # ids are never used again
            seen_after = self._policy.visible(node)
            touched |= {node} | seen_before | seen_after
            lost = lost or not seen_before <= seen_after or _takes_away(before, after)
        return touched, lost

    def netmap(self, node: NodeId, relays: tuple[Relay, ...], stun: tuple[str, ...]) -> Netmap:
        """The netmap of an active node; KeyError for another."""
        given = self._given.get(node)
        fresh = Netmap(
            version=self._first_version if given is None else given.version,
            self=self._entries[node].itself,
            prefixes=self._prefixes,
            peers=self._peers(node),
            filter=self._policy.rules(node),
            reject=self._policy.reject,
            relays=relays,
            stun=stun,
        )
        if given is not None and fresh != given:
            fresh = replace(fresh, version=given.version + 1)
        self._given[node] = fresh
        return fresh

    def _peers(self, node: NodeId) -> tuple[Peer, ...]:
        """Whom the node sees, in order of id."""
        seen = self._policy.visible(node)
        if len(seen) != len(self._entries) - 1:
            return tuple(self._entries[peer].peer for peer in sorted(seen))
        if self._sorted is None:
            order = sorted(self._entries)
            self._sorted = {number: place for place, number in enumerate(order)}, tuple(self._entries[number].peer for number in order)
        places, peers = self._sorted
        return peers[: places[node]] + peers[places[node] + 1 :]

    def _replace(self, node: NodeId, entry: Entry | None) -> None:
        self._sorted = None
        if entry is None:
            self._entries.pop(node, None)
            self._policy.remove(node)
            given = self._given.get(node)
            if given is not None:  # should it come back, its versions go on; its peers need not be kept meanwhile
                self._given[node] = replace(given, version=given.version + 1, peers=(), filter=())
        else:
            self._entries[node] = entry
            self._policy.put(entry.policy)


def _active(state: Snapshot, node: NodeId, now: float) -> NodeRecord | None:
    record = state.nodes.get(node)
    return record if record is not None and record.name and state_of(record, now) is NodeState.ACTIVE else None


def _takes_away(before: Entry | None, after: Entry | None) -> bool:
    """Whether peers have to hear of it at once: a key that no longer holds, a route or address gone."""
    if before is None or after is None:
        return before is not None
    lost_keys = {before.peer.node_key, before.peer.previous_node_key} - {after.peer.node_key, after.peer.previous_node_key, None}
    lost_routes = {*before.policy.routes, *before.peer.routes} - {*after.policy.routes} or set(before.peer.routes) - set(after.peer.routes)
    return bool(lost_keys or lost_routes) or before.policy.addresses != after.policy.addresses
