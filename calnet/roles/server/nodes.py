"""Plans by which an admin changes a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from calnet.errors import ConflictError, ForbiddenError, InvalidError
from calnet.model import NodeId
from calnet.roles.server.actors import Actor
from calnet.roles.server.founding import prefixes_of
from calnet.roles.server.names import check_name, check_tags
from calnet.roles.server.policies import auto_approved
from calnet.roles.server.powers import acting_user, is_manager
from calnet.roles.server.registration import deletion, expired
from calnet.roles.server.routes import canonical_routes, check_approvable, parse_route
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState
from calnet.store.interface import Change, Delete, NodeRecord, Put, key_of

Planned = tuple[Sequence[Change], NodeRecord]

EPHEMERAL_GONE_S: Final = 300.0
"""An ephemeral node is deleted after being offline for so long, unless it is disabled."""
PENDING_GONE_S: Final = 86_400.0
"""So is one that was never approved."""


def find(state: Snapshot, reference: str) -> NodeRecord:
    """The node of this approval code, id, name or address; NotFoundError."""
    waiting = state.by_code.get(reference.strip().upper())
    return state.node(reference) if waiting is None else state.nodes[waiting]


def plan_change_node(state: Snapshot, node: str, name: str | None, tags: tuple[str, ...] | None, now: float) -> Planned:
    """Another name, other tags, or both at once; None leaves what is there."""
    record = _admitted(state, node)
    if name is not None:
        record = _renamed(state, record, name)
    if tags is not None:
        record = _tagged(state, record, tags, now)
    return _put(state, record)


def _renamed(state: Snapshot, record: NodeRecord, name: str) -> NodeRecord:
    """From now on its hostname no longer moves its name."""
    name = check_name(name)
    if state.by_name.get(name, record.id) != record.id:
        raise ConflictError(f"there is a node {name} already")
    return replace(record, name=name, named=True)


def _tagged(state: Snapshot, record: NodeRecord, tags: tuple[str, ...], now: float) -> NodeRecord:
    """See Registry.tag_node. A key that has expired stays so."""
    if not tags:
        raise InvalidError("name at least one tag: to give a node an owner again, use `nodes approve NODE --user USER`")
    over = record.key_expires is not None and record.key_expires <= now
    tagged = replace(record, tags=check_tags(tags), user=None, owner_suspended=False, key_expires=record.key_expires if over else None)
    return auto_approved(state, tagged)


def plan_disable_node(state: Snapshot, node: str, disabled: bool) -> Planned:
    """Disable or enable; a disabled node's renewed key is forgotten."""
    record = state.node(node)
    if not disabled:
        return _put(state, replace(record, disabled=False))
    return _put(state, replace(record, disabled=True, previous_node_key=None, previous_until=None))


def plan_expire_node(state: Snapshot, node: str, now: float) -> Planned:
    """See Registry.expire_node."""
    return _put(state, expired(_admitted(state, node), now))


def plan_delete_node(state: Snapshot, node: str, now: float, actor: Actor | None = None) -> tuple[Sequence[Change], None]:
    """Also one that waits, by its id or code. ForbiddenError for a disabled one where the actor may not enable it: its machine would come back as new."""
    record = find(state, node)
    if record.disabled and not is_manager(acting_user(state, actor)):
        raise ForbiddenError(f"{record.name or record.id} is disabled: deleting it takes an admin, as enabling it does")
    return deletion(record, now), None


def plan_approve_routes(state: Snapshot, node: str, routes: tuple[str, ...]) -> Planned:
    """See Registry.approve_routes. What a node does not advertise yet may be approved: it works once it does."""
    record = _admitted(state, node)
    wanted = canonical_routes(routes)
    for route in wanted:
        check_approvable(parse_route(route), prefixes_of(state))
    return _put(state, replace(record, approved_routes=canonical_routes((*record.approved_routes, *wanted))))


def plan_revoke_routes(state: Snapshot, node: str, routes: tuple[str, ...]) -> Planned:
    """See Registry.revoke_routes."""
    record = _admitted(state, node)
    gone = canonical_routes(routes)
    return _put(state, replace(record, approved_routes=tuple(route for route in record.approved_routes if route not in gone)))


def plan_seen(state: Snapshot, node: NodeId, at: float) -> tuple[Sequence[Change], None]:
    """Remember when a node was here last."""
    record = state.nodes.get(node)
    return ([] if record is None else [Put(replace(record, last_seen_at=at))]), None


def plan_housekeeping(state: Snapshot, now: float, gone_since: Callable[[NodeRecord], float | None]) -> tuple[Sequence[Change], None]:
    """See Registry.housekeeping. `gone_since` is since when a node is offline, None for one that is here."""
    changes: list[Change] = []
    for record in state.nodes.values():
        deadline = deletion_deadline(record, gone_since(record))
        if deadline is not None and deadline <= now:
            changes += deletion(record, now) if record.name else [Delete(key_of(record))]
        elif record.previous_until is not None and record.previous_until <= now:
            changes.append(Put(replace(record, previous_node_key=None, previous_until=None)))
    return changes, None


def deletion_deadline(record: NodeRecord, gone_since: float | None) -> float | None:
    """When a node that is gone since then is to be deleted; None for never."""
    if gone_since is None or record.disabled:  # forgotten, its machine would come back as new
        return None
    if not record.name:
        return gone_since + PENDING_GONE_S
    return gone_since + EPHEMERAL_GONE_S if record.ephemeral else None


def next_deadline(records: Iterable[NodeRecord], now: float, gone_since: Callable[[NodeRecord], float | None]) -> float | None:
    """When `plan_housekeeping` has something to do for one of these nodes next, or a key of theirs expires."""
    times = []
    for record in records:
        deadline = deletion_deadline(record, gone_since(record))
        if deadline is not None:
            times.append(deadline)
        if record.previous_until is not None:
            times.append(record.previous_until)
        if record.key_expires is not None and record.key_expires > now and state_of(record, now) is NodeState.ACTIVE:
            times.append(record.key_expires)
    return min(times, default=None)


def _admitted(state: Snapshot, node: str) -> NodeRecord:
    record = state.node(node)
    if not record.name:
        raise ConflictError(f"node {record.id} waits for approval: `nodes approve {record.pending_code}` first, or delete it")
    return record


def _put(state: Snapshot, record: NodeRecord) -> Planned:
    return ([] if state.nodes.get(record.id) == record else [Put(record)]), record
