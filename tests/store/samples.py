"""Records to store."""

from __future__ import annotations

from dataclasses import replace

from calnet.model import ControlKey, DiscoveryKey, NodeId, NodeKey, UserId
from calnet.store.interface import (
    AuthKeyRecord,
    IdempotencyRecord,
    NodeRecord,
    RetiredRecord,
    SessionRecord,
    SettingRecord,
    TokenRecord,
    UserRecord,
)


def key(number: int, letter: str) -> bytes:
    """32 bytes that differ by number and letter."""
    return letter.encode() * 24 + number.to_bytes(8, "big")


def user(number: int = 1, name: str = "") -> UserRecord:
    return UserRecord(UserId(number), name or f"user-{number}", "user", 1000.0)


def node(number: int = 1, **changes: object) -> NodeRecord:
    record = NodeRecord(
        id=NodeId(number),
        control_key=ControlKey(key(number, "c")),
        node_key=NodeKey(key(number, "n")),
        discovery_key=DiscoveryKey(key(number, "d")),
        hostname=f"host-{number}",
        created_at=1000.5,
        name=f"node-{number}",
        user=UserId(1),
        addresses=(f"100.70.{number // 256}.{number % 256}", f"fd00::{number:x}"),
        advertised_routes=("192.168.1.0/24",),
        key_expires=2000.25,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


AUTH_KEY = AuthKeyRecord("00112233445566ff", b"h" * 32, UserId(1), 1.0, 2.0, ("tag:a",), reusable=True, ephemeral=True, used_at=1.5)
RETIRED = RetiredRecord("100.70.0.9", 5.0)
SETTING = SettingRecord("server.name", b"\0\xff")
TOKEN = TokenRecord("8899aabbccddeeff", b"t" * 32, UserId(1), "ci", ("nodes:read",), 1.0, 2.0)
SESSION = SessionRecord("aa" * 32, UserId(1), 1.0, 2.0)
ANSWER = IdempotencyRecord("bb" * 32, b"r" * 32, 201, b"sealed", 1.0)
