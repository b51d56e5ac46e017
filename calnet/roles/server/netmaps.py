"""Who sees whom now, and what of them: each active node's entry as its peers see it, and which netmaps a change touches."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass
from typing import Final

from calnet.crypto.hash import blake2s
from calnet.model import Endpoint, Netmap, NodeId, Peer, Prefix, Relay, SelfNode
from calnet.policy.bits import ids_of, mask_of
from calnet.policy.builtin import BuiltinPolicy
from calnet.policy.engine import Engine, PolicyNode
from calnet.roles.server.changelog import ChangeLog
from calnet.roles.server.failover import Routers
from calnet.roles.server.routes import parse_route
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState
from calnet.store.interface import NodeRecord
from calnet.wire import control
from calnet.wire.control import NetmapDelta, NetmapFull, WirePeer
from calnet.wire.netmap import delta, encoded_peer, full, peer_bytes

DIGEST_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Presence:
    """What only memory knows of a node. `since` is when it came (or left); None where it was not here since the server started."""

    online: bool = False
    awaited: bool = False
    """It was here when the server stopped, and has a while to come back: meanwhile it counts as online."""
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
        capabilities=record.capabilities,
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


@dataclass(frozen=True, slots=True)
class View:
    """What a node was told: which netmap, and what in it can't be told from the records."""

    version: int
    checked: int
    """The change (ChangeLog) up to which nothing is missing in it."""
    seen: int
    """The peers in it: the bits of their ids."""
    rest: Netmap | bytes
    """All of it but the peers (and version); of a view that an earlier process gave out, `rest_digest` of that."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What another process of this server has to know to go on where this one stopped."""

    last: int
    """The number of the last change."""
    changed: dict[NodeId, tuple[int, bytes]]
    """Of each active node the number of its last change, and the digest of its entry."""


class Netmaps:
    """The entries of all active nodes under the policy in force, and what each node has to be told of them. Not thread-safe: the registry locks.

    Versions of netmaps are numbers of changes: what a node holds at a version is what was true of its peers when that change was the last.
    """

    def __init__(self, prefixes: tuple[Prefix, ...], first_version: int) -> None:
        """`first_version` is above every version given out before."""
        self._prefixes = prefixes
        self._policy: Engine = BuiltinPolicy(prefixes)
        self._routers = Routers()
        self._entries: dict[NodeId, Entry] = {}
        self._encoded: dict[NodeId, WirePeer] = {}
        """Each peer's wire form, made once for all who are told of it."""
        self._log = ChangeLog(first_version)
        self._moved: dict[NodeId, int] = {}
        """When each node last changed as policy sees it: from then on it may see others."""
        self._ruled = first_version
        """When last any node or rule changed as policy sees it: packet filters may have changed."""
        self._policy_set = first_version
        self._mask: tuple[frozenset[NodeId], int] | None = None
        """The mask of the nodes that changed, and below the delta that tells of nothing but peers: most who are told one after the other share both."""
        self._shared: tuple[tuple[int, int, Set[NodeId]], NetmapDelta] | None = None

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
        """Another policy holds: as `refresh`. Each netmap may have changed, and is compared when its node is told."""
        self._policy = make(self._prefixes, [entry.policy for entry in self._entries.values()])
        self._policy_set = self._ruled = self._log.tick()
        return set(self._entries), bool(self._entries)

    def refresh(self, nodes: Iterable[NodeId], state: Snapshot, presence: dict[NodeId, Presence], now: float) -> tuple[set[NodeId], bool]:
        """Take in what became of these nodes: (nodes whose netmap may have changed, whether somebody lost a peer)."""
        touched: set[NodeId] = set()
        lost = False
        nodes = dict.fromkeys(nodes)
        for node in list(nodes):
            record = _active(state, node, now)
            routes = () if record is None else effective_routes(record)
            here = presence.get(node, Presence())
            nodes.update(dict.fromkeys(self._routers.put(node, routes, online=here.online, since=here.since or 0.0)))
        for node in nodes:
            before = self._entries.get(node)
            record = _active(state, node, now)
            after = None if record is None else entry_of(state, record, presence.get(node, Presence()), self._routers.routed_by(node))
            if before == after:
                continue
            seen_before = self._policy.visible(node)
            self._replace(node, before, after)
            seen_after = self._policy.visible(node)
            touched |= {node} | seen_before | seen_after
            lost = lost or not seen_before <= seen_after or _takes_away(before, after)
        return touched, lost

    def news(self, node: NodeId, held: View | None, relays: tuple[Relay, ...], stun: tuple[str, ...]) -> tuple[View, NetmapFull | NetmapDelta | None]:
        """What an active node that holds `held` (None: nothing) has to be told, and what it holds then; None where that is nothing.

        Costs as much as there is to tell, and a walk over what it sees where policy or the node itself changed. KeyError for a node that is not active.
        """
        entry = self._entries[node]
        if held is None:
            seen = self._policy.sight(node)
            rest = self._rest(node, entry, relays, stun)
            version = self._log.tick()  # of its own: another of the same number may have named other relays
            return View(version, version, seen, rest), full(rest, version, self._wire(ids_of(seen)))
        rest = self._rest(node, entry, relays, stun, held)
        put, removed, seen_mask = self._changes(node, held)
        before = held.rest if isinstance(held.rest, Netmap) else rest if rest_digest(rest) == held.rest else None
        if rest is before and not put and not removed:
            return View(held.version, self._log.last, held.seen, rest), None
        version = self._log.last if self._log.last != held.version else self._log.tick()
        view = View(version, version, seen_mask, rest)
        if rest is not before or removed:
            return view, delta(before, rest, since=held.version, version=version, put=self._wire(put), removed=tuple(sorted(removed)))
        if self._shared is None or self._shared[0] != (held.version, version, put):
            self._shared = (held.version, version, put), delta(rest, rest, since=held.version, version=version, put=self._wire(put))
        return view, self._shared[1]

    def keep(self) -> Kept:
        """For the next process."""
        return Kept(self._log.last, {node: (self._log.changed(node), self._digest(node)) for node in self._entries})

    def resume(self, kept: Kept) -> None:
        """Go on where another process stopped: what is as it was then did not change since. To be called before anybody is told anything."""
        unchanged = {node: number for node, (number, digest) in kept.changed.items() if node in self._entries and self._digest(node) == digest}
        changed = (self._entries.keys() | kept.changed.keys()) - unchanged.keys()
        self._log = ChangeLog(max(kept.last, self._log.last), unchanged)
        for node in sorted(changed):
            self._log.add(node, gone=node not in self._entries)
        self._policy_set = self._ruled = self._log.tick()

    def _changes(self, node: NodeId, held: View) -> tuple[Set[NodeId], Collection[NodeId], int]:
        """(Peers to put, peers to remove, the mask of those it sees then.)"""
        changed = self._log.since(held.checked)
        if changed is None or held.checked < max(self._policy_set, self._moved.get(node, 0)):
            seen = self._policy.sight(node)
            if changed is None:
                changed = frozenset(peer for peer in self._entries if self._log.changed(peer) > held.checked)
            return self._policy.visible(node, changed).union(ids_of(seen & ~held.seen)), ids_of(held.seen & ~seen), seen
        put = self._policy.visible(node, changed)
        if len(put) == len(changed):
            if self._mask is None or self._mask[0] is not changed:
                self._mask = changed, mask_of(changed)
            return put, set(), held.seen | self._mask[1]
        removed = {peer for peer in changed - put if held.seen >> peer & 1}
        return put, removed, (held.seen | mask_of(put)) & ~mask_of(removed)

    def _rest(self, node: NodeId, entry: Entry, relays: tuple[Relay, ...], stun: tuple[str, ...], held: View | None = None) -> Netmap:
        """The netmap without version and peers; what is held where it can't have changed."""
        known = None if held is None or not isinstance(held.rest, Netmap) else held.rest
        rules = known.filter if held is not None and known is not None and held.checked >= self._ruled else self._policy.rules(node)
        fresh = entry.itself, rules, self._policy.reject, relays, stun
        if known is not None and fresh == (known.self, known.filter, known.reject, known.relays, known.stun):
            return known  # one value goes on being shared
        return Netmap(0, entry.itself, self._prefixes, (), rules, self._policy.reject, relays, stun)

    def _wire(self, nodes: Iterable[NodeId]) -> tuple[WirePeer, ...]:
        known = self._encoded
        return tuple([known.get(node) or self._encode(node) for node in sorted(nodes)])

    def _encode(self, node: NodeId) -> WirePeer:
        found = self._encoded[node] = encoded_peer(self._entries[node].peer)
        return found

    def _digest(self, node: NodeId) -> bytes:
        return blake2s(peer_bytes(self._entries[node].peer))[:DIGEST_SIZE]

    def _replace(self, node: NodeId, before: Entry | None, after: Entry | None) -> None:
        self._encoded.pop(node, None)
        self._log.add(node, gone=after is None)
        if before is None or after is None or before.policy != after.policy:
            self._moved[node] = self._ruled = self._log.last
        if after is None:
            self._entries.pop(node, None)
            self._moved.pop(node, None)
            self._policy.remove(node)
        else:
            self._entries[node] = after
            self._policy.put(after.policy)


def rest_digest(rest: Netmap) -> bytes:
    """By which a later process knows whether all of a netmap but its peers is what was told."""
    return blake2s(control.encode(full(rest, 0, ())))[:DIGEST_SIZE]


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
