"""Plans of a machine's life: registration, login, renewal of its node key, approval, what it says of itself, logout.

Who a machine is, its control key says; who may be in the network, a pre-auth key or an admin says. A known machine whose key has not expired may renew
its node key by itself, but not its expiry: that takes a login (a pre-auth key it has not used before, or approval).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from calnet.crypto.keys import RandomBytes, is_small_order
from calnet.errors import ConflictError, ExhaustedError, ForbiddenError, InvalidError, NotFoundError
from calnet.model import ControlKey, NodeId, UserId
from calnet.roles.server.actors import Access
from calnet.roles.server.admission import site_of
from calnet.roles.server.allocation import free_v4, v6_of
from calnet.roles.server.authkeys import check_auth_key, check_usable
from calnet.roles.server.configuration import configuration_of
from calnet.roles.server.founding import FIRST_USER_ID, NEXT_NODE, next_id, prefixes_of
from calnet.roles.server.names import free_name, name_from_hostname, printable
from calnet.roles.server.netmaps import Presence
from calnet.roles.server.policies import auto_approved
from calnet.roles.server.powers import is_shut_out
from calnet.roles.server.routes import canonical_routes
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState, RegisterRequest, Standing
from calnet.store.interface import AuthKeyRecord, Change, Delete, Key, NodeRecord, Put, RetiredRecord, key_of

PREVIOUS_KEPT_S: Final = 86_400.0
"""How long a renewed node key still answers: peers that were away for a day learn the new one before they speak again."""
MAX_PENDING: Final = 256
"""Machines that may wait for approval: anybody can ask, so it is bounded."""
SIGNED_IN: Final = (
    "somebody else has signed in for that machine, and it waits for an admin's approval: "
    "if it should be yours, run `calnet.pyz logout` and `calnet.pyz up` on it, which give it a new code"
)
DISABLED: Final = "this node is disabled: ask an admin to enable it"
OWNER_SUSPENDED: Final = "this node's owner is suspended: ask an admin"
_CODE_LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


@dataclass(frozen=True, slots=True)
class Context:
    """What plans need beside the state."""

    server_key: ControlKey
    now: float
    random: RandomBytes
    presence: Callable[[NodeId], Presence]


def plan_register(state: Snapshot, request: RegisterRequest, context: Context) -> tuple[Sequence[Change], Standing]:
    """See Registry.register."""
    _check_keys(state, request)
    known = state.by_control_key.get(request.control_key)
    changes: list[Change] = []
    if known is None:
        record, changes = _new_machine(state, request, context)
    else:
        before = state.nodes[known]
        record = _following_hostname(state, before, _known_machine(before, request, context))
    return _admit(state, record, request, context, changes)


def _admit(state: Snapshot, record: NodeRecord, request: RegisterRequest, context: Context, changes: list[Change]) -> tuple[Sequence[Change], Standing]:
    active = bool(record.name) and state_of(record, context.now) is NodeState.ACTIVE
    key = _login_key(state, record, request.auth_key, active, context) if request.auth_key else None
    if key is not None:
        record, more = _log_in(state, record, key, context)
        changes += more
    elif not active and not record.pending_code:
        changes += _room_for_pending(state, context)
        record = replace(record, pending_code=_free_code(state, context.random))
    record = auto_approved(state, record)
    if record != state.nodes.get(record.id):
        changes.append(Put(record))
    return changes, Standing(state_of(record, context.now), record.id, record.pending_code, record.key_expires)


def _check_keys(state: Snapshot, request: RegisterRequest) -> None:
    for key in (request.control_key, request.node_key, request.discovery_key):
        if is_small_order(key):
            raise InvalidError("a key of small order is no key: make new ones")
    holder = state.by_node_key.get(request.node_key)
    if holder is not None and state.nodes[holder].control_key != request.control_key:
        raise ConflictError("another machine holds that node key: make a new one (was this machine's state copied?)")
    holder = state.by_discovery_key.get(request.discovery_key)
    if holder is not None and state.nodes[holder].control_key != request.control_key:  # peers tell whose a probe is by it
        raise ConflictError("another machine holds that discovery key: make a new one (was this machine's state copied?)")


def _new_machine(state: Snapshot, request: RegisterRequest, context: Context) -> tuple[NodeRecord, list[Change]]:
    number, counter = next_id(state, NEXT_NODE)
    record = NodeRecord(
        id=NodeId(number),
        control_key=request.control_key,
        node_key=request.node_key,
        discovery_key=request.discovery_key,
        hostname="",
        created_at=context.now,
    )
    return _with_facts(record, request), [counter]


def _known_machine(record: NodeRecord, request: RegisterRequest, context: Context) -> NodeRecord:
    state = state_of(record, context.now)
    if state is NodeState.DISABLED:
        raise ForbiddenError(DISABLED if record.disabled else OWNER_SUSPENDED)
    if record.node_key != request.node_key:
        record = _with_new_key(record, request, context.now, keep=state is NodeState.ACTIVE)
    return _with_facts(replace(record, discovery_key=request.discovery_key), request)


def _with_new_key(record: NodeRecord, request: RegisterRequest, now: float, *, keep: bool) -> NodeRecord:
    """The renewed key; the old one is kept for those who don't know yet, unless it had expired."""
    previous, until = (record.node_key, now + PREVIOUS_KEPT_S) if keep else (None, None)
    return replace(record, node_key=request.node_key, previous_node_key=previous, previous_until=until)


def with_software(record: NodeRecord, version: str | None, capabilities: tuple[str, ...] | None) -> NodeRecord:
    """The record with what the node says of its program; None leaves a value."""
    if version is not None:
        record = replace(record, version=printable(version, 64))
    if capabilities is not None:
        record = replace(record, capabilities=tuple(dict.fromkeys(printable(name, 40) for name in capabilities)))
    return record


def _with_facts(record: NodeRecord, request: RegisterRequest) -> NodeRecord:
    return replace(
        with_software(record, request.version, request.capabilities),
        hostname=printable(request.hostname) or "node",
        os=printable(request.os, 64),
        advertised_routes=canonical_routes(request.routes),
    )


def _login_key(state: Snapshot, record: NodeRecord, text: str, active: bool, context: Context) -> AuthKeyRecord | None:
    """The usable pre-auth key to log in with; None where an active node repeats the one it used, whose answer may have been lost."""
    key = check_auth_key(state, text, context.server_key)
    if active and record.auth_key == key.id:
        return None
    check_usable(state, key, context.now)
    return key


def _log_in(state: Snapshot, record: NodeRecord, key: AuthKeyRecord, context: Context) -> tuple[NodeRecord, list[Change]]:
    owned = replace(record, user=key.user, owner_suspended=False, tags=key.tags, ephemeral=key.ephemeral, auth_key=key.id)
    changes: list[Change] = [] if key.used_at is not None else [Put(replace(key, used_at=context.now))]
    admitted, more = _settled(state, owned, context.now)
    return admitted, [*changes, *more]


def _settled(state: Snapshot, record: NodeRecord, now: float) -> tuple[NodeRecord, list[Change]]:
    """The record as an active node's, with a new expiry, and a name and addresses if it has none yet."""
    changes: list[Change] = []
    if not record.addresses:
        v4_prefix, v6_prefix = prefixes_of(state)
        v4 = free_v4(v4_prefix, state.by_address, state.retired, state.highest_v4)
        if v4 in state.retired:
            changes.append(Delete(Key(RetiredRecord, v4)))
        record = replace(record, addresses=(v4, v6_of(v6_prefix, record.id)))
    name = record.name or free_name(name_from_hostname(record.hostname), state.by_name)
    expires = None if record.tags else now + configuration_of(state).node_key_lifetime_s
    return replace(record, name=name, pending_code="", signed_in=False, key_expires=expires), changes


def plan_approve(state: Snapshot, code_or_node: str, user: str | None, now: float) -> tuple[Sequence[Change], NodeRecord]:
    """See Registry.approve_node."""
    waiting = state.by_code.get(code_or_node.strip().upper())
    record = state.node(code_or_node) if waiting is None else state.nodes[waiting]
    if record.disabled:
        raise ConflictError(f"{record.name or record.id} is disabled: enable it first")
    if record.owner_suspended and user is None:
        raise ConflictError(f"the owner of {record.name or record.id} is suspended: resume the user first, or name another with --user")
    if user is not None:
        owner = state.user(user)
        if owner.suspended:
            raise ConflictError(f"{owner.name} is suspended: resume the user first, or name another")
        record = replace(record, user=owner.id, owner_suspended=False, tags=())
    elif record.user is None and not record.tags:
        record = replace(record, user=state.user(str(FIRST_USER_ID)).id)
    if record.user is not None and state.users[record.user].access == Access.LOST:
        raise ConflictError(f"the sign-in provider vouches for {state.user_name(record.user)} no more: the user has to sign in, or name another with --user")
    record, changes = _settled(state, record, now)
    record = auto_approved(state, record)
    return [*changes, Put(record)], record


def waiting_for(state: Snapshot, code: str, user: UserId) -> NodeRecord:
    """See Management.waiting_node."""
    waiting, owner = state.by_code.get(code.strip().upper()), state.users.get(user)
    if waiting is None:
        raise NotFoundError("no machine waits with that code: run `calnet.pyz up` on it again")
    if owner is None or is_shut_out(owner):
        raise ForbiddenError("that user is suspended, gone, or has to sign in again: ask an admin")
    record = state.nodes[waiting]
    if record.disabled:
        raise ForbiddenError(DISABLED)
    if record.signed_in and record.user != user:
        raise ConflictError(SIGNED_IN)
    return record


def plan_admit(state: Snapshot, code: str, user: UserId, now: float) -> tuple[Sequence[Change], NodeRecord]:
    """See Management.admit_node. A login by the owner so far never waits again; who became that by signing in with this very code does wait."""
    before = waiting_for(state, code, user)
    again = bool(before.name) and before.user == user and not before.signed_in
    record = replace(before, user=user, owner_suspended=False, tags=(), signed_in=True)
    changes: list[Change] = []
    if again or not configuration_of(state).require_approval:
        record, changes = _settled(state, record, now)
        record = auto_approved(state, record)
    return [*changes, Put(record)], record


def plan_update(
    state: Snapshot,
    node: NodeId,
    hostname: str | None,
    routes: tuple[str, ...] | None,
    os: str | None,
    version: str | None,
    capabilities: tuple[str, ...] | None,
) -> tuple[Sequence[Change], None]:
    """See Registry.update. A new hostname moves the name, unless an admin chose that."""
    before = state.node_of(node)
    if state_of(before, 0.0) is NodeState.DISABLED:
        raise ForbiddenError(DISABLED if before.disabled else OWNER_SUSPENDED)
    record = before
    if hostname is not None:
        record = _following_hostname(state, before, replace(record, hostname=printable(hostname) or "node"))
    if routes is not None:
        record = replace(record, advertised_routes=canonical_routes(routes))
    if os is not None:
        record = replace(record, os=printable(os, 64))
    record = with_software(record, version, capabilities)
    record = auto_approved(state, record)
    return ([] if record == before else [Put(record)]), None


def _following_hostname(state: Snapshot, before: NodeRecord, record: NodeRecord) -> NodeRecord:
    """The record with the name that its new hostname gives, unless that gives the same one, an admin chose the name, or it has none yet."""
    base = name_from_hostname(record.hostname)
    if not record.name or record.named or name_from_hostname(before.hostname) == base:
        return record
    return replace(record, name=free_name(base, state.by_name.keys() - {record.name}))


def plan_logout(state: Snapshot, node: NodeId, now: float) -> tuple[Sequence[Change], None]:
    """See Registry.logout: a machine that never was admitted is forgotten, like an ephemeral node; not a disabled one, which would come back as new."""
    record = state.node_of(node)
    if not record.disabled and (record.ephemeral or not record.name):
        return deletion(record, now), None
    return [Put(expired(record, now))], None


def expired(record: NodeRecord, now: float) -> NodeRecord:
    """The node, with its key of no use from now on."""
    expires = now if record.key_expires is None else min(now, record.key_expires)
    return replace(record, key_expires=expires, previous_node_key=None, previous_until=None, pending_code="", signed_in=False)


def deletion(record: NodeRecord, now: float) -> list[Change]:
    """The changes that delete a node: its IPv4 address is given out again last."""
    return [Delete(key_of(record)), *(Put(RetiredRecord(address, now)) for address in record.addresses if ":" not in address)]


def _room_for_pending(state: Snapshot, context: Context) -> list[Change]:
    """Nothing, or the deletion of a machine that was never admitted: of those that are gone the one that waits longest, else that of the place where most
    come from, so that nobody takes all the room by staying. ExhaustedError where all were admitted once."""
    if len(state.by_code) < MAX_PENDING:
        return []
    strangers = [record for record in map(state.nodes.__getitem__, state.by_code.values()) if not (record.name or record.disabled)]
    if not strangers:
        raise ExhaustedError("too many machines wait for approval: use a pre-auth key, or ask an admin to approve or delete some")
    presence = {record.id: context.presence(record.id) for record in strangers}
    crowd = Counter(site_of(here.source) for here in presence.values())

    def worth(record: NodeRecord) -> tuple[bool, int, float, int]:
        here = presence[record.id]
        return here.online, -crowd[site_of(here.source)] if here.online else 0, record.created_at, record.id

    return [Delete(key_of(min(strangers, key=worth)))]


def _free_code(state: Snapshot, random: RandomBytes) -> str:
    while True:
        letters = "".join(_CODE_LETTERS[byte & 31] for byte in random(8))
        code = f"{letters[:4]}-{letters[4:]}"
        if code not in state.by_code:
            return code
