"""The audit log: what a change looks like before and after in public values, the rows that people read, and the configuration as it was at a time.

Public values are what an admin may see: no secret, no hash of one, no private key. Presence (last seen, online) is no configuration and is not audited.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calnet.crypto.keys import encode_key
from calnet.roles.server.actors import Actor
from calnet.roles.server.founding import POLICY, PREFIX_V4, PREFIX_V6, SETTINGS
from calnet.roles.server.snapshot import Snapshot
from calnet.roles.server.times import exact_time_text, time_text
from calnet.store.interface import (
    AuditChange,
    AuditRecord,
    AuthKeyRecord,
    Change,
    Key,
    NodeRecord,
    Put,
    Record,
    SessionRecord,
    SettingRecord,
    TokenRecord,
    UserRecord,
    key_of,
)

Json = dict[str, Any]

_NAMES: Final = {UserRecord: "user", NodeRecord: "node", AuthKeyRecord: "key", TokenRecord: "token", SessionRecord: "session", SettingRecord: "setting"}
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Deed:
    """Who does what: `action` is noun and verb, such as `nodes.rename`."""

    actor: Actor
    action: str


def audit_of(state: Snapshot, changes: Sequence[Change], deed: Deed, now: float) -> AuditRecord | None:
    """The audit record of these changes, about to be made to `state`; None where nothing public changes."""
    found = public_changes(state, changes)
    if not found:
        return None
    actor = deed.actor
    return AuditRecord(now, actor.kind, actor.id, actor.name, actor.source, deed.action, found)


def public_changes(state: Snapshot, changes: Sequence[Change]) -> tuple[AuditChange, ...]:
    """What of these changes, about to be made to `state`, is public: before and after."""
    after = {key_of(change.record) if isinstance(change, Put) else change.key: change.record if isinstance(change, Put) else None for change in changes}
    found = []
    for key, record in after.items():
        old = state.record(key)
        values = tuple(None if one is None else public(one) for one in (old, record))
        if values[0] != values[1]:
            found.append(AuditChange(_NAMES[key.kind], str(key.id), *values))
    return tuple(found)


def public(record: Record) -> Json | None:
    """The public values of a record; None for one that has none."""
    match record:
        case UserRecord():
            return {
                "name": record.name,
                "role": record.role,
                "suspended": record.suspended,
                "access": record.access,
                "issuer": record.issuer,
                "subject": record.subject,
                "email": record.email,
                "display_name": record.display_name,
                "groups": list(record.groups),
                "role_by_hand": record.role_by_hand,
            }
        case NodeRecord():
            return _public_node(record)
        case AuthKeyRecord():
            return {
                "user": record.user,
                "tags": list(record.tags),
                "reusable": record.reusable,
                "ephemeral": record.ephemeral,
                "expires": time_text(record.expires),
                "used": time_text(record.used_at),
                "revoked": time_text(record.revoked_at),
            }
        case TokenRecord():
            return {
                "user": record.user,
                "name": record.name,
                "scopes": list(record.scopes),
                "expires": time_text(record.expires),
                "revoked": time_text(record.revoked_at),
            }
        case SessionRecord():
            return {"user": record.user, "created": time_text(record.created_at), "expires": time_text(record.expires)}
        case SettingRecord():
            return _public_setting(record)
        case _:
            return None


def _public_node(node: NodeRecord) -> Json:
    return {
        "name": node.name,
        "hostname": node.hostname,
        "user": node.user,
        "tags": list(node.tags),
        "addresses": list(node.addresses),
        "os": node.os,
        "version": node.version,
        "disabled": node.disabled,
        "owner_suspended": node.owner_suspended,
        "pending": bool(node.pending_code),
        "ephemeral": node.ephemeral,
        "key_expires": time_text(node.key_expires),
        "advertised_routes": list(node.advertised_routes),
        "approved_routes": list(node.approved_routes),
        "node_key": encode_key(node.node_key),
        "control_key": encode_key(node.control_key),
    }


def _public_setting(setting: SettingRecord) -> Json | None:
    if setting.id == SETTINGS:
        values: Json = json.loads(setting.value)
        return values
    return {"text": setting.value.decode()} if setting.id in (POLICY, PREFIX_V4, PREFIX_V6) else None


def audit_row(record: AuditRecord) -> Json:
    """A record as admins see it."""
    return {
        "seq": record.seq,
        "at": exact_time_text(record.at),
        "actor": {"kind": record.actor_kind, "id": record.actor_id, "name": record.actor_name, "source": record.source},
        "action": record.action,
        "changes": [{"kind": change.kind, "id": change.id, "before": change.before, "after": change.after} for change in record.changes],
    }


Configuration = dict[str, dict[str, Json]]
"""kind → id → public values."""


def configuration(state: Snapshot) -> Configuration:
    """The public values of everything that is there now."""
    found: Configuration = {name: {} for name in _NAMES.values()}
    for record in state.records():
        values = public(record)
        if values is not None:
            found[_NAMES[type(record)]][str(record.id)] = values
    return found


def undone(present: Configuration, records: Iterable[AuditRecord]) -> Configuration:
    """The configuration before `records`, newest first, were made to `present`, which is changed."""
    for record in records:
        for change in reversed(record.changes):
            rows = present.setdefault(change.kind, {})
            if change.before is None:
                rows.pop(change.id, None)
            else:
                rows[change.id] = change.before
    return present


def pages(read: Callable[..., Sequence[AuditRecord]], *, until: Callable[[AuditRecord], bool], before: int | None = None) -> Iterable[AuditRecord]:
    """The log's records, newest first, as long as `until` does not hold."""
    while page := read(before=before, limit=_PAGE, newest_first=True):
        for record in page:
            if until(record):
                return
            yield record
        before = page[-1].seq


def key_name(key: Key) -> str:
    """What the log calls records of this kind."""
    return _NAMES.get(key.kind, "")
