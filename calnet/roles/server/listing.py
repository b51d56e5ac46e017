"""Users, keys and nodes as admins see them in JSON: public values alone, never a secret, a hash or a private key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

import msgspec

from calnet.crypto.hash import blake2s
from calnet.crypto.keys import encode_key
from calnet.model import NodeId
from calnet.roles.server.authkeys import is_usable
from calnet.roles.server.netmaps import Presence, last_seen
from calnet.roles.server.routes import parse_route
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState
from calnet.roles.server.times import time_text
from calnet.roles.server.tokens import SHOWN_ID
from calnet.roles.server.tokens import is_usable as token_is_usable
from calnet.store.interface import AuthKeyRecord, NodeRecord, Record, SessionRecord, TokenRecord, UserRecord
from calnet.wire.endpoints import overlaps

Json = dict[str, Any]

_OF_NODE: Final = attrgetter(*(field.name for field in fields(NodeRecord) if field.name != "last_seen_at"))
"""What of a node its etag names."""
_OF_USER: Final = attrgetter(*(field.name for field in fields(UserRecord) if field.name != "watch"))


def etag_of(record: Record) -> str:
    """Names the record's content: another one after each change, but for when a node was here last, and a user was last asked about."""
    named = _OF_NODE(record) if isinstance(record, NodeRecord) else _OF_USER(record) if isinstance(record, UserRecord) else record
    return blake2s(msgspec.msgpack.encode(named)).hex()[:24]


def user_row(user: UserRecord) -> Json:
    return {
        "id": user.id,
        "name": user.name,
        "role": user.role,
        "display_name": user.display_name,
        "email": user.email,
        "groups": list(user.groups),
        "issuer": user.issuer or None,
        "subject": user.subject or None,
        "role_by_hand": user.role_by_hand,
        "suspended": user.suspended,
        "access": user.access,
        "created": time_text(user.created_at),
        "last_login": time_text(user.last_login_at),
        "etag": etag_of(user),
    }


def token_row(state: Snapshot, token: TokenRecord, now: float) -> Json:
    return {
        "id": token.id,
        "name": token.name,
        "user": state.user_name(token.user),
        "scopes": list(token.scopes),
        "created": time_text(token.created_at),
        "expires": time_text(token.expires),
        "revoked": time_text(token.revoked_at),
        "valid": token_is_usable(state, token, now),
        "etag": etag_of(token),
    }


def session_row(state: Snapshot, session: SessionRecord) -> Json:
    watch = state.users[session.user].watch
    return {
        "id": session.id[:SHOWN_ID],
        "user": state.user_name(session.user),
        "created": time_text(session.created_at),
        "expires": time_text(session.expires),
        "checked": time_text(session.created_at if watch is None else watch.checked_at),
    }


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
        "valid": is_usable(state, key, now),
        "etag": etag_of(key),
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
        "endpoints": [str(endpoint) for endpoint in presence.endpoints],
        "health": list(presence.health),
        "etag": etag_of(node),
    }


def route_rows(node: NodeRecord, primaries: Mapping[str, NodeId], online: Collection[NodeId], all_routes: Mapping[str, Collection[NodeRecord]]) -> list[Json]:
    """A row for each route of the node. `primaries` says which node routes a prefix now; `all_routes` who offers each prefix in force."""
    return [
        {
            "node": node.id,
            "name": node.name,
            "route": route,
            "advertised": route in node.advertised_routes,
            "approved": route in node.approved_routes,
            "primary": primaries.get(route) == node.id,
            "online": node.id in online,
            "overlaps": _overlapping(node, route, all_routes) if route in node.approved_routes else [],
        }
        for route in sorted({*node.advertised_routes, *node.approved_routes})
    ]


def _overlapping(node: NodeRecord, route: str, all_routes: Mapping[str, Collection[NodeRecord]]) -> list[Json]:
    """Other prefixes of other nodes that hold some of the same addresses: the longer one wins there."""
    prefix = parse_route(route)
    return [
        {"node": other.id, "name": other.name, "route": text}
        for text, others in all_routes.items()
        if text != route and overlaps(parse_route(text), prefix)
        for other in others
        if other.id != node.id
    ]
