"""The server's registry: users, pre-auth keys, nodes, their routes, names and addresses, and each node's netmap.

Every change is a plan computed on the newest snapshot by one writer thread, committed with the plans that came meanwhile in one durable transaction, and
then published: readers see exactly what the store holds. A method that changes something returns a `concurrent.futures.Future` that is done once the
change is durable (`await asyncio.wrap_future(…)`); it raises a RefusedError where the change can't be granted, StateError where the disk refuses (then
nothing was changed). Reading methods answer at once from the snapshot, on any thread. Presence (online, last seen, endpoints) is kept in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from ipaddress import IPv4Network
from typing import TypeVar

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import NotFoundError
from calnet.model import ControlKey, Endpoint, Netmap, NodeId, NodeKey, Prefix, Relay
from calnet.policy import builtin
from calnet.roles.server import authkeys, founding, nodes, registration, users
from calnet.roles.server.listing import Json, key_row, node_row, route_rows, user_row
from calnet.roles.server.netmaps import Netmaps, Presence
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import Changed, NodeState, RegisterRequest, Standing
from calnet.roles.server.writer import Plan, Writer
from calnet.store.interface import Change, NodeRecord, Put, Store, UserRecord, key_of

Result = TypeVar("Result")
Clock = Callable[[], float]
Listener = Callable[[Changed], None]


class Registry:
    """See the module. `clock` gives Unix seconds, `random` secure bytes."""

    control_key: PrivateKey
    """The server's control key, made at the first start."""
    prefixes: tuple[Prefix, ...]
    """The overlay: IPv4, then the ULA /64."""

    def __init__(self, store: Store, *, clock: Clock, random: RandomBytes, prefix: IPv4Network | None = None) -> None:
        """Load the store; at the first start create control key, ULA prefix and the user `admin` in one commit. `prefix` None keeps the stored one
        (100.70.0.0/24 at first); a larger one around it grows the overlay; ConfigError for any other. The registry closes the store, also on failure."""
        self._store = store
        self._clock = clock
        self._random = random
        try:
            state = _founded(store, prefix, clock(), random)
            self.control_key = founding.control_key_of(state)
            self.prefixes = founding.prefixes_of(state)
        except BaseException:
            store.close()
            raise
        self._state = state
        self._started = clock()
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._presence: dict[NodeId, Presence] = {}
        self._netmaps = Netmaps(self.prefixes, first_version=int(self._started * 1000))
        self._netmaps.refresh(state.nodes, state, self._presence, self._started)
        self._writer = Writer(store, state, self._published)

    def close(self) -> None:
        """Finish what was asked, then stop the writer and close the store."""
        self._writer.close()
        self._store.close()

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after each durable batch and each change of presence, on whichever thread made it (`loop.call_soon_threadsafe` in it)."""
        self._listeners.append(listener)

    # --- machines

    def standing(self, control_key: ControlKey) -> Standing:
        """Where the machine of this control key stands now."""
        state = self._state
        return state.standing(state.by_control_key.get(control_key), self._clock())

    def standing_of(self, node: NodeId) -> Standing:
        """Where this node stands now; UNREGISTERED once deleted."""
        return self._state.standing(node, self._clock())

    def is_node(self, control_key: ControlKey) -> bool:
        """Whether the machine of this control key was admitted once, wherever it stands now."""
        state = self._state
        node = state.by_control_key.get(control_key)
        return node is not None and bool(state.nodes[node].name)

    def register(self, request: RegisterRequest) -> Future[Standing]:
        """Register, log in again or renew the node key. The standing is ACTIVE or PENDING (with the code to approve).

        ForbiddenError: the auth key is unknown, expired, revoked or used up, or the node is disabled. ConflictError: another machine holds the node key.
        InvalidError: a small-order key or a route that is no prefix. ExhaustedError: no address is left.
        """
        return self._writer.submit(lambda state: registration.plan_register(state, request, self._context()))

    def update(
        self, node: NodeId, *, hostname: str | None = None, routes: tuple[str, ...] | None = None, os: str | None = None, version: str | None = None
    ) -> Future[None]:
        """Change what a node says of itself; None leaves a value. InvalidError for a route that is no prefix."""
        return self._writer.submit(lambda state: registration.plan_update(state, node, hostname, routes, os, version))

    def logout(self, node: NodeId) -> Future[None]:
        """The node's key expires now; an ephemeral node, and one never admitted, is deleted."""
        return self._writer.submit(lambda state: registration.plan_logout(state, node, self._clock()))

    def connected(self, node: NodeId, source: bytes = b"") -> None:
        """The node has a control session now, from this source (endpoints.source_network)."""
        now = self._clock()
        self._present(node, lambda presence: replace(presence, online=True, since=now, source=source))

    def disconnected(self, node: NodeId) -> None:
        """The node's (last) control session ended."""
        now = self._clock()
        self._present(node, lambda presence: replace(presence, online=False, since=now))
        self._writer.submit(lambda state: nodes.plan_seen(state, node, now))

    def publish(self, node: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """The node's candidates now."""
        self._present(node, lambda presence: replace(presence, endpoints=endpoints))

    def netmap(self, node: NodeId, relays: tuple[Relay, ...] = (), stun: tuple[str, ...] = ()) -> Netmap:
        """The node's netmap now. Its version grows with each change of content, also across restarts; the same content gives the same version.
        NotFoundError for a node that is not active."""
        with self._lock:
            if node not in self._netmaps or not self._is_active(node):
                raise NotFoundError(f"node {node} is not active")
            return self._netmaps.netmap(node, relays, stun)

    def sees(self, node: NodeId, other: NodeId) -> bool:
        """Whether each is in the other's netmap (so that candidates may be passed on and relay frames exchanged)."""
        with self._lock:
            return self._netmaps.policy.sees(node, other) and self._is_active(node) and self._is_active(other)

    def node_of_key(self, node_key: NodeKey) -> NodeId | None:
        """The active node that holds this node key, now or until its peers know the new one: who may use the relay with it."""
        node = self._state.by_node_key.get(node_key)
        return node if node is not None and self._is_active(node) else None

    def next_deadline(self) -> float | None:
        """Unix time of the next thing `housekeeping` will find: call it then."""
        return nodes.next_deadline(self._state, self._clock(), self._gone_since)

    def housekeeping(self) -> Future[None]:
        """Do what time brings: expire keys, forget renewed ones, delete ephemeral nodes gone for 5 minutes and pending ones gone for a day."""
        now = self._clock()
        with self._lock:
            # Also the other way: a clock that was ahead for a while, and was set right, expired nobody.
            moved = frozenset(node for node, record in self._state.nodes.items() if record.name and (node in self._netmaps) != self._is_active(node))
            touched, _ = self._netmaps.refresh(moved, self._state, self._presence, now)
        self._tell(Changed(frozenset(touched), moved, urgent=True))
        return self._writer.submit(lambda state: nodes.plan_housekeeping(state, now, self._gone_since))

    # --- users: rows {id, name, role, created}

    def create_user(self, name: str) -> Future[Json]:
        """InvalidError for a name that is not DNS-safe, ConflictError for a taken one."""
        return self._user(lambda state: users.plan_create_user(state, name, self._clock()))

    def users(self) -> list[Json]:
        """Every user's row, by id."""
        return [user_row(user) for _, user in sorted(self._state.users.items())]

    def rename_user(self, user: str, name: str) -> Future[Json]:
        """As create_user; NotFoundError for an unknown user."""
        return self._user(lambda state: users.plan_rename_user(state, user, name))

    def delete_user(self, user: str) -> Future[None]:
        """ConflictError while the user has nodes, or is the last owner; its keys go with it."""
        return self._writer.submit(lambda state: users.plan_delete_user(state, user))

    # --- pre-auth keys: rows {id, user, tags, reusable, ephemeral, created, expires, used, revoked, valid}

    def create_key(
        self, *, user: str | None = None, reusable: bool = False, ephemeral: bool = False, expires_s: float = 86400.0, tags: tuple[str, ...] = ()
    ) -> Future[Json]:
        """{"key": the printable key, shown this once, "id": …}. `user` None is `admin`; a key with tags has no user."""
        wish = authkeys.KeyWish(user, reusable, ephemeral, expires_s, tags)

        def plan(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, (key, key_id) = authkeys.plan_create_key(state, wish, ControlKey(self.control_key.public), self._clock(), self._random)
            return changes, {"key": key, "id": key_id}

        return self._writer.submit(plan)

    def keys(self) -> list[Json]:
        """Every key's row, the oldest first."""
        state, now = self._state, self._clock()
        return [key_row(state, key, now) for key in sorted(state.keys.values(), key=lambda key: (key.created_at, key.id))]

    def revoke_key(self, key_id: str) -> Future[None]:
        """The key admits nobody from now on; nodes that used it stay."""
        return self._writer.submit(lambda state: authkeys.plan_revoke_key(state, key_id, self._clock()))

    # --- nodes, named by id, name or address: rows {id, name, hostname, user, tags, addresses, os, version, online, last_seen, key_expires, disabled,
    #     pending, state, code, ephemeral, routes: {advertised, approved}, created, node_key, control_key}

    def nodes(self) -> list[Json]:
        """Every node's row, by id."""
        state = self._state
        return [self._row(state, node) for _, node in sorted(state.nodes.items())]

    def node(self, node: str) -> Json:
        """The node's row; NotFoundError."""
        state = self._state
        return self._row(state, state.node(node))

    def rename_node(self, node: str, name: str) -> Future[Json]:
        """From now on its hostname does not move its name. InvalidError, ConflictError as for users."""
        return self._node(lambda state: nodes.plan_rename_node(state, node, name))

    def tag_node(self, node: str, tags: tuple[str, ...]) -> Future[Json]:
        """Replace its tags: a tagged node has no owner and its key does not expire. InvalidError for an empty list (`approve --user` gives it an owner)."""
        return self._node(lambda state: nodes.plan_tag_node(state, node, tags, self._clock()))

    def approve_node(self, code_or_node: str, user: str | None = None) -> Future[Json]:
        """Admit a pending node, or renew the key expiry of an active or expired one. `user` None: its owner so far, else the first user."""
        return self._node(lambda state: registration.plan_approve(state, code_or_node, user, self._clock()))

    def disable_node(self, node: str) -> Future[Json]:
        """Nobody sees it and it may do nothing until it is enabled."""
        return self._node(lambda state: nodes.plan_disable_node(state, node, True))

    def enable_node(self, node: str) -> Future[Json]:
        """Undo disable_node."""
        return self._node(lambda state: nodes.plan_disable_node(state, node, False))

    def expire_node(self, node: str) -> Future[Json]:
        """Its key expires now: it has to log in again."""
        return self._node(lambda state: nodes.plan_expire_node(state, node, self._clock()))

    def delete_node(self, node: str) -> Future[None]:
        """Forget the machine; its name is free, its address is given out again last."""
        return self._writer.submit(lambda state: nodes.plan_delete_node(state, node, self._clock()))

    def routes(self, node: str | None = None) -> list[Json]:
        """Rows {node, name, route, advertised, approved}, of one node or all."""
        state = self._state
        found = sorted(state.nodes.values(), key=lambda record: record.id) if node is None else [state.node(node)]
        return [row for record in found for row in route_rows(record)]

    def approve_routes(self, node: str, routes: tuple[str, ...]) -> Future[Json]:
        """InvalidError for a route that overlaps the overlay, a default route, or no unicast prefix; ConflictError where another node has it."""
        return self._node(lambda state: nodes.plan_approve_routes(state, node, routes))

    def revoke_routes(self, node: str, routes: tuple[str, ...]) -> Future[Json]:
        """Routes not approved are passed over."""
        return self._node(lambda state: nodes.plan_revoke_routes(state, node, routes))

    def policy(self) -> Json:
        """The policy in force, for `policy show`: {"source", "text"}."""
        return {"source": "built-in", "text": builtin.TEXT}

    # --- inside

    def _context(self) -> registration.Context:
        return registration.Context(ControlKey(self.control_key.public), self._clock(), self._random, lambda node: self._presence.get(node, Presence()))

    def _is_active(self, node: NodeId) -> bool:
        record = self._state.nodes.get(node)
        return record is not None and state_of(record, self._clock()) is NodeState.ACTIVE

    def _gone_since(self, record: NodeRecord) -> float | None:
        """Since when the node is offline, at the earliest since the server started; None for one that is here."""
        presence = self._presence.get(record.id, Presence())
        if presence.online:
            return None
        return max(self._started, record.created_at, presence.since or record.last_seen_at or 0.0)

    def _row(self, state: Snapshot, node: NodeRecord) -> Json:
        return node_row(state, node, self._presence.get(node.id, Presence()), self._clock())

    def _node(self, plan: Plan[NodeRecord]) -> Future[Json]:
        def with_row(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, record = plan(state)
            return changes, self._row(state, record)

        return self._writer.submit(with_row)

    def _user(self, plan: Plan[UserRecord]) -> Future[Json]:
        def with_row(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, record = plan(state)
            return changes, user_row(record)

        return self._writer.submit(with_row)

    def _present(self, node: NodeId, change: Callable[[Presence], Presence]) -> None:
        now = self._clock()
        with self._lock:
            if node not in self._state.nodes:
                return
            self._presence[node] = change(self._presence.get(node, Presence()))
            touched, _ = self._netmaps.refresh((node,), self._state, self._presence, now)
        self._tell(Changed(frozenset(touched), frozenset()))

    def _published(self, before: Snapshot, after: Snapshot, changes: Sequence[Change]) -> None:
        """A batch is durable: readers see it from here on."""
        now = self._clock()
        changed = set(_nodes_of(after, changes))
        with self._lock:
            self._state = after
            touched, lost = self._netmaps.refresh(changed, after, self._presence, now)
            for node in changed - after.nodes.keys():
                self._presence.pop(node, None)
        moved = frozenset(node for node in changed if _standing_moved(before, after, node, now))
        self._tell(Changed(frozenset(touched), moved, urgent=lost or any(node not in self._netmaps for node in moved)))

    def _tell(self, changed: Changed) -> None:
        if changed.netmaps or changed.standings:
            for listener in self._listeners:
                listener(changed)


def _founded(store: Store, prefix: IPv4Network | None, now: float, random: RandomBytes) -> Snapshot:
    state = Snapshot()
    state.load(store.load()[1])
    changes, _ = founding.plan_found(state, prefix, now, random)
    if changes:
        store.commit(changes)
        state.apply(changes)
    return state


def _nodes_of(state: Snapshot, changes: Iterable[Change]) -> Iterable[NodeId]:
    """The nodes whose entries the changes touch: those changed, and those of changed users."""
    for change in changes:
        key = key_of(change.record) if isinstance(change, Put) else change.key
        if key.kind is NodeRecord:
            yield NodeId(int(key.id))
        elif key.kind is UserRecord:
            yield from (node.id for node in state.nodes.values() if node.user == key.id)


def _standing_moved(before: Snapshot, after: Snapshot, node: NodeId, now: float) -> bool:
    old, new = before.nodes.get(node), after.nodes.get(node)
    return before.standing(node, now) != after.standing(node, now) or (old is not None and new is not None and old.node_key != new.node_key)
