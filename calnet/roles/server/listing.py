"""Users, keys and nodes as admins see them in JSON: public values alone, never a secret, a hash or a private key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from calnet.crypto.keys import encode_key
from calnet.roles.server.authkeys import is_usable
from calnet.roles.server.netmaps import Presence, last_seen
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState
from calnet.store.interface import AuthKeyRecord, NodeRecord, UserRecord

Json = dict[str, Any]


def time_text(at: float | None) -> str | None:
    """RFC 3339 in UTC with whole seconds."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def user_row(user: UserRecord) -> Json:
    return {"id": user.id, "name": user.name, "role": user.role, "created": time_text(user.created_at)}


def key_row(state: Snapshot, key: AuthKeyRecord, now: float) -> Json:
    return {
        "id": key.id,
        "user": state.user_name(key.user) or None,
        "tags": list(key.tags),
        "reusable": key.reusable,
        "ephemeral": key.ephemeral,
        "created": time_text(key.created_at),
        "expires": time_text(key.expires),
        "used": time_text(key.used_at),
        "revoked": time_text(key.revoked_at),
        "valid": is_usable(key, now),
    }


def node_row(state: Snapshot, node: NodeRecord, presence: Presence, now: float) -> Json:
    standing = state_of(node, now)
    return {
        "id": node.id,
        "name": node.name,
        "hostname": node.hostname,
        "user": state.user_name(node.user) or None,
        "tags": list(node.tags),
        "addresses": list(node.addresses),
        "os": node.os,
        "version": node.version,
        "state": standing.value,
        "online": presence.online,
        "last_seen": time_text(last_seen(node, presence)),
        "key_expires": time_text(node.key_expires),
        "disabled": node.disabled,
        "pending": standing is NodeState.PENDING,
        "code": node.pending_code or None,
        "ephemeral": node.ephemeral,
        "routes": {"advertised": list(node.advertised_routes), "approved": list(node.approved_routes)},
        "created": time_text(node.created_at),
        "node_key": encode_key(node.node_key),
        "control_key": encode_key(node.control_key),
    }


def route_rows(node: NodeRecord) -> list[Json]:
    return [
        {"node": node.id, "name": node.name, "route": route, "advertised": route in node.advertised_routes, "approved": route in node.approved_routes}
        for route in sorted({*node.advertised_routes, *node.approved_routes})
    ]
