"""The server's registry: machines and their life, presence, and each node's netmap. What people do with it stands in management.py.

Every change is a plan computed on the newest snapshot by one writer thread, committed with the plans that came meanwhile in one durable transaction, and
then published: readers see exactly what the store holds. A method that changes something returns a `concurrent.futures.Future` that is done once the
change is durable (`await asyncio.wrap_future(…)`); it raises a RefusedError where the change can't be granted, StateError where the disk refuses (then
nothing was changed). Reading methods answer at once from the snapshot, on any thread. Presence (online, last seen, endpoints) is kept in memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Final, TypeVar

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import ConflictError, NotFoundError, StaleError
from calnet.model import ControlKey, Endpoint, NodeId, NodeKey, Prefix, Relay, UserId
from calnet.roles.server import founding, nodes, once, registration, tokens
from calnet.roles.server.actors import BY_SYSTEM, SYSTEM, Actor, Terms
from calnet.roles.server.audit import Deed, audit_of, public_changes
from calnet.roles.server.handover import Handover
from calnet.roles.server.management import Management
from calnet.roles.server.netmaps import Netmaps, Presence, View
from calnet.roles.server.policies import engine_of, stored_engine_of
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import Changed, NodeState, RegisterRequest, Standing
from calnet.roles.server.writer import Plan, Writer, difference
from calnet.store.archive import Archive, write_archive
from calnet.store.interface import AuditRecord, Change, Commit, NodeRecord, Put, Store, UserRecord, key_of
from calnet.wire.control import NetmapDelta, NetmapFull

Result = TypeVar("Result")
Clock = Callable[[], float]
Listener = Callable[[Changed], None]
PresenceWitness = Callable[[NodeId, Presence], None]
AuditListener = Callable[[Sequence[AuditRecord]], None]
PresenceListener = Callable[[NodeId, bool], None]
_ALL: Final = 1 << 60
AWAITED_S: Final = 60.0
"""How long nodes that were here before a restart may take to come back, before their peers hear that they left."""
RESTORE_ATTEMPTS: Final = 8
"""How often a restore reads anew what it replaces, where others commit meanwhile."""


class Registry(Management):
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
            state, commit = _founded(store, prefix, clock(), random)
            self.control_key = founding.control_key_of(state)
            self.prefixes = founding.prefixes_of(state)
            policy = stored_engine_of(state)
        except BaseException:
            store.close()
            raise
        self._state = state
        self._started = clock()
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._deadline_known = False
        self._listeners: list[Listener] = []
        self._audit_listeners: list[AuditListener] = []
        self._presence_listeners: list[PresenceListener] = []
        self._witness: PresenceWitness | None = None
        self._message: Callable[[bytes], None] | None = None
        self._audited_to = commit.audit
        self._presence: dict[NodeId, Presence] = {}
        self._awaited_until: float | None = None
        self._netmaps = Netmaps(self.prefixes, first_version=int(self._started * 1000))
        self._netmaps.refresh(state.nodes, state, self._presence, self._started)
        self._netmaps.set_policy(policy)
        self._writer = Writer(store, state, commit, self._published, self._audited, clock)
        store.watch(self._writer.catch_up, self._heard)

    def close(self) -> None:
        """Finish what was asked, then stop the writer and close the store."""
        self._writer.close()
        self._store.close()

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after each durable batch and each change of presence, on whichever thread made it (`loop.call_soon_threadsafe` in it)."""
        self._listeners.append(listener)

    def subscribe_audit(self, listener: AuditListener) -> Callable[[], None]:
        """Call `listener` with each durable commit's audit records, other servers' too, on the writer's thread. The call that ends it."""
        self._audit_listeners.append(listener)
        return lambda: self._audit_listeners.remove(listener)

    def subscribe_presence(self, listener: PresenceListener) -> None:
        """Call `listener` with each node that comes (True) or goes, on whichever thread said so."""
        self._presence_listeners.append(listener)

    def audit_records(self, *, after: int, limit: int) -> Sequence[AuditRecord]:
        """The audit records behind `after`, the oldest first."""
        return self._store.audit(after=after, limit=limit)

    def newest_audit(self) -> int:
        """The number of the newest audit record that the store holds."""
        return max((record.seq for record in self._store.audit(limit=1, newest_first=True)), default=0)

    def name_and_owner(self, node: NodeId) -> tuple[str, UserId | None]:
        """A node's name and owner; empty for one that is gone."""
        record = self._state.nodes.get(node)
        return ("", None) if record is None else (record.name, record.user)

    def backup(self) -> bytes:
        """An archive of all that the store holds, as of one moment. It holds the server's private key."""
        return write_archive(self._store, self._clock())

    def restore(self, archive: Archive, action: str, by: Actor) -> Future[bool]:
        """Hold what the archive holds instead of what is held. Whether the server has to be started again, as it runs with another key or overlay.

        With the action `server.import` ConflictError where there is something to lose: nodes, keys, or users beside the first. StaleError where others'
        commits overtake it again and again: nothing was changed then. Where the log goes on, what changes is in its record of this, so that the time before
        can be told; else the archive's log says what was.
        """
        wanted = Snapshot()
        wanted.load(archive.records)
        same = (founding.control_key_of(wanted).secret_bytes(), founding.prefixes_of(wanted)) == (self.control_key.secret_bytes(), self.prefixes)
        for _ in range(RESTORE_ATTEMPTS):
            with contextlib.suppress(StaleError):
                self._replace(archive, wanted, action, by)
                self._writer.catch_up()
                return self._writer.submit(lambda _: ([], not same))
        raise StaleError(
            "nothing was changed: others changed the store each time it had been read for this; try again, or stop the servers on it (this works without one)"
        )

    def _replace(self, archive: Archive, wanted: Snapshot, action: str, by: Actor) -> None:
        """One attempt of `restore`. StaleError where anything was committed since it read what it replaces; the store sees to it."""
        commit, held = self._store.load()
        state = Snapshot()
        state.load(held)
        if action == "server.import" and (state.nodes or state.keys or len(state.users) > 1):
            raise ConflictError("an import goes into a server without nodes, keys and users: `restore` replaces what is there")
        ours = state.settings.get(founding.CONTROL_KEY) == wanted.settings.get(founding.CONTROL_KEY)
        records = founding.with_later_ids(archive.records, state) if ours else archive.records
        log = self._log_that_goes_on(archive) if ours else None
        audit, changes = (archive.audit, ()) if log is None else (log, public_changes(state, difference(state, records)))
        last = max((record.seq for record in audit), default=0)
        deed = AuditRecord(round(self._clock(), 3), by.kind, by.id, by.name, by.source, action, changes, last + 1)
        self._store.replace(records, (*audit, deed), version=commit.version)

    def _log_that_goes_on(self, archive: Archive) -> Sequence[AuditRecord] | None:
        """The log that is held, where the archive's is its beginning; None for that of another server."""
        held = self._store.audit(after=0, limit=_ALL)
        return held if tuple(held[: len(archive.audit)]) == tuple(archive.audit) else None

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

    def register(self, request: RegisterRequest, source: str = "") -> Future[Standing]:
        """Register, log in again or renew the node key. The standing is ACTIVE or PENDING (with the code to approve). `source` is the address it comes from.

        ForbiddenError: the auth key is unknown, expired, revoked or used up, or the node is disabled. ConflictError: another machine holds the node key.
        InvalidError: a small-order key or a route that is no prefix. ExhaustedError: no address is left.
        """
        known = self._state.by_control_key.get(request.control_key)
        actor = Actor("node", "" if known is None else str(known), request.hostname, source)
        return self._writer.submit(lambda state: registration.plan_register(state, request, self._context()), Deed(actor, "nodes.register"))

    def update(
        self,
        node: NodeId,
        *,
        hostname: str | None = None,
        routes: tuple[str, ...] | None = None,
        os: str | None = None,
        version: str | None = None,
        capabilities: tuple[str, ...] | None = None,
        source: str = "",
    ) -> Future[None]:
        """Change what a node says of itself; None leaves a value. InvalidError for a route that is no prefix."""
        deed = self._deed_of(node, "nodes.update", source)
        return self._writer.submit(lambda state: registration.plan_update(state, node, hostname, routes, os, version, capabilities), deed)

    def note_software(self, node: NodeId, version: str | None, capabilities: tuple[str, ...] | None, source: str = "") -> None:
        """What an active node's program is now; nothing is written where that is known."""
        record = self._state.nodes.get(node)
        if record is None or not self._is_active(node):
            return
        known = registration.with_software(record, version, capabilities)
        if known != record:
            self.update(node, version=version, capabilities=capabilities, source=source)

    def logout(self, node: NodeId, source: str = "") -> Future[None]:
        """The node's key expires now; an ephemeral node, and one never admitted, is deleted."""
        return self._writer.submit(lambda state: registration.plan_logout(state, node, self._clock()), self._deed_of(node, "nodes.logout", source))

    def connected(self, node: NodeId, source: bytes = b"") -> None:
        """The node has a control session now, from this source (endpoints.source_network)."""
        now = self._clock()

        def come(presence: Presence) -> Presence:
            since = presence.since if presence.awaited else now
            return replace(presence, online=True, awaited=False, since=since, source=source, home="")

        self._present(node, come)

    def disconnected(self, node: NodeId) -> None:
        """The node's (last) control session ended."""
        now = self._clock()
        self._present(node, lambda presence: presence if presence.home else replace(presence, online=False, awaited=False, since=now))
        self._writer.submit(lambda state: nodes.plan_seen(state, node, now))

    def publish(self, node: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """The node's candidates now."""
        self._present(node, lambda presence: replace(presence, endpoints=endpoints))

    def present_elsewhere(self, node: NodeId, presence: Presence) -> bool:
        """Another server on the store says where the node is (`presence.home` names that server). A node connected here stays so; one that was never there, or
        moved on to yet another, does not leave by it. False for a node that is not known here yet: its registration is on its way through the store."""

        def change(before: Presence) -> Presence:
            here = before.online and not before.home and not before.awaited
            stale = not presence.online and before.home != presence.home
            return before if here or stale else presence

        self._present(node, change, tell_others=False)
        return node in self._state.nodes

    def presences(self) -> dict[NodeId, Presence]:
        """Of each node that was seen since the server started."""
        with self._lock:
            return dict(self._presence)

    def join_servers(self, witness: PresenceWitness, message: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Several servers share the store: `witness` hears what becomes of nodes here, `message` what others send, on any thread. The call to send."""
        self._witness, self._message = witness, message
        return self._store.send

    def set_health(self, node: NodeId, lines: tuple[dict[str, str], ...]) -> None:
        """What the node says of its own health now."""
        self._present(node, lambda presence: replace(presence, health=lines))

    def news(self, node: NodeId, held: View | None, relays: tuple[Relay, ...] = (), stun: tuple[str, ...] = ()) -> tuple[View, NetmapFull | NetmapDelta | None]:
        """What the node has to be told of its netmap where it holds `held` (None: nothing), and what it holds then; None where that is nothing new.
        NotFoundError for a node that is not active."""
        with self._lock:
            if node not in self._netmaps or not self._is_active(node):
                raise NotFoundError(f"node {node} is not active")
            return self._netmaps.news(node, held, relays, stun)

    def hand_over(self, views: Mapping[NodeId, tuple[View, ...]]) -> Handover:
        """What the next process of this server needs to go on: who is here, and what each node was told (`views`)."""
        with self._lock:
            here = {node: presence for node, presence in self._presence.items() if presence.online and not presence.home}
            return Handover(self._netmaps.keep(), here, views)

    def resume(self, handover: Handover) -> None:
        """Go on where an earlier process of this server stopped. Nodes that were there then count as online until they had the time to come back. To be
        called before the first session."""
        now = self._clock()
        with self._lock:
            self._presence |= {node: presence for node, presence in handover.present.items() if node in self._state.nodes}
            self._netmaps.refresh(self._presence, self._state, self._presence, now)
            self._netmaps.resume(handover.kept)
            self._awaited_until = now + AWAITED_S
            self._deadline_known = False

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
        with self._lock:
            if not self._deadline_known:
                self._deadline = nodes.next_deadline(self._state.nodes.values(), self._clock(), self._gone_since)
                self._deadline_known = True
            return min((at for at in (self._deadline, self._awaited_until) if at is not None), default=None)

    def housekeeping(self) -> Future[None]:
        """Do what time brings: expire keys, forget renewed ones, delete ephemeral nodes gone for 5 minutes and pending ones gone for a day."""
        now = self._clock()
        with self._lock:
            # Also the other way: a clock that was ahead for a while, and was set right, expired nobody.
            moved = frozenset(node for node, record in self._state.nodes.items() if record.name and (node in self._netmaps) != self._is_active(node))
            touched, _ = self._netmaps.refresh(moved, self._state, self._presence, now)
        self._tell(Changed(frozenset(touched), moved, urgent=True))
        if self._awaited_until is not None and self._awaited_until <= now:
            self._awaited_until = None
            for node in [node for node, presence in self.presences().items() if presence.awaited]:
                self.disconnected(node)

        def plan(state: Snapshot) -> tuple[Sequence[Change], None]:
            changes, _ = nodes.plan_housekeeping(state, now, self._gone_since)
            return [*changes, *tokens.stale_things(state, now), *once.stale_answers(state, now)], None

        done = self._writer.submit(plan, Deed(SYSTEM, "server.housekeeping"))
        done.add_done_callback(self._forget_deadline)
        return done

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

    def _forget_deadline(self, _: Future[None]) -> None:
        with self._lock:
            self._deadline_known = False

    def _draw_nearer(self, changed: Iterable[NodeId]) -> None:
        """Take in the deadlines of changed nodes; one that is past or put off stays known until housekeeping found nothing to do. The lock is held."""
        if self._deadline_known:
            records = [self._state.nodes[node] for node in changed if node in self._state.nodes]
            due = nodes.next_deadline(records, self._clock(), self._gone_since)
            self._deadline = min((at for at in (due, self._deadline) if at is not None), default=None)

    def _deed_of(self, node: NodeId, action: str, source: str) -> Deed:
        record = self._state.nodes.get(node)
        return Deed(Actor("node", str(node), "" if record is None else record.name, source), action)

    def _change(self, action: str, plan: Plan[Result], terms: Terms = BY_SYSTEM, etag: Callable[[Snapshot], str] | None = None) -> Future[Result]:
        """Submit a person's change: `etag` says what `terms.expect` has to be."""

        def guarded(state: Snapshot) -> tuple[Sequence[Change], Result]:
            if terms.expect is not None and etag is not None and etag(state) != terms.expect:
                raise StaleError("it was changed meanwhile: look at it again, then decide anew")
            return plan(state) if terms.once is None else once.carried_out(state, plan, terms.once, self._clock())

        return self._writer.submit(guarded, Deed(terms.by, action))

    def _present(self, node: NodeId, change: Callable[[Presence], Presence], *, tell_others: bool = True) -> None:
        now = self._clock()
        with self._lock:
            if node not in self._state.nodes:
                return
            before = self._presence.get(node, Presence())
            after = self._presence[node] = change(before)
            touched, _ = self._netmaps.refresh((node,), self._state, self._presence, now)
            self._draw_nearer((node,))
        self._tell(Changed(frozenset(touched), frozenset()))
        if tell_others and self._witness is not None and after != before:
            self._witness(node, after)
        if before.online != after.online:
            for listener in self._presence_listeners:
                listener(node, after.online)

    def _published(self, before: Snapshot, after: Snapshot, changes: Sequence[Change]) -> None:
        """A batch is durable: readers see it from here on."""
        now = self._clock()
        changed = set(_nodes_of(after, changes))
        with self._lock:
            self._state = after
            touched, lost = self._netmaps.refresh(changed, after, self._presence, now)
            if before.settings.get(founding.POLICY) != after.settings.get(founding.POLICY):
                more, lost_more = self._netmaps.set_policy(engine_of(after))
                touched, lost = touched | more, lost or lost_more
            for node in changed - after.nodes.keys():
                self._presence.pop(node, None)
            self._draw_nearer(changed)
        moved = frozenset(node for node in changed if _standing_moved(before, after, node, now))
        self._tell(Changed(frozenset(touched), moved, urgent=lost or any(node not in self._netmaps for node in moved)))

    def _audited(self, commit: Commit) -> None:
        if not self._audit_listeners:
            self._audited_to = commit.audit
            return
        records = self._store.audit(after=self._audited_to, limit=max(0, commit.audit - self._audited_to))
        self._audited_to = commit.audit
        for listener in list(self._audit_listeners):
            listener(records)

    def _heard(self, message: bytes) -> None:
        if self._message is not None:
            self._message(message)

    def _tell(self, changed: Changed) -> None:
        if changed.netmaps or changed.standings:
            for listener in self._listeners:
                listener(changed)


def _founded(store: Store, prefix: IPv4Network | None, now: float, random: RandomBytes) -> tuple[Snapshot, Commit]:
    """What the store holds, after what the first start puts there. Where several servers start at once on one store, one of them does."""
    while True:
        commit, records = store.load()
        state = Snapshot()
        state.load(records)
        changes, _ = founding.plan_found(state, prefix, now, random)
        if not changes:
            return state, commit
        record = audit_of(state, changes, Deed(SYSTEM, "server.start"), now)
        with contextlib.suppress(StaleError):
            commit = store.commit(changes, audit=[] if record is None else [record], version=commit.version)
            state.apply(changes)
            return state, commit


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
