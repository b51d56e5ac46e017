"""What must outlive the server's process: the records, and the one interface that every backend of the store has.

A store is loaded whole at start and then only written: the server keeps what it holds in memory. Addresses, prefixes and keys are stored in their
text or raw form; the registry parses them. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from calnet.model import ControlKey, DiscoveryKey, NodeId, NodeKey, UserId


@dataclass(frozen=True, slots=True)
class UserRecord:
    """`role` is `owner` or `user`."""

    id: UserId
    name: str
    role: str
    created_at: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A machine: registered, or waiting (then it has a `pending_code`, and no name, address or owner of its own yet)."""

    id: NodeId
    control_key: ControlKey
    node_key: NodeKey
    discovery_key: DiscoveryKey
    hostname: str
    created_at: float
    name: str = ""
    """Unique among nodes; empty while pending for the first time."""
    named: bool = False
    """An admin chose the name: the hostname no longer moves it."""
    os: str = ""
    version: str = ""
    user: UserId | None = None
    """Owner; None for a tagged node and a pending one."""
    tags: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    """Overlay addresses, IPv4 first."""
    advertised_routes: tuple[str, ...] = ()
    approved_routes: tuple[str, ...] = ()
    previous_node_key: NodeKey | None = None
    """The key before the last renewal, until `previous_until`."""
    previous_until: float | None = None
    key_expires: float | None = None
    disabled: bool = False
    ephemeral: bool = False
    pending_code: str = ""
    auth_key: str = ""
    """Id of the pre-auth key last used."""
    last_seen_at: float | None = None


@dataclass(frozen=True, slots=True)
class AuthKeyRecord:
    """A pre-auth key, without its secret. `id` is the hex of its 8 bytes; `secret_hash` BLAKE2s of its 20 secret bytes."""

    id: str
    secret_hash: bytes = field(repr=False)
    user: UserId | None
    """Whose nodes it makes; None where it has tags."""
    created_at: float
    expires: float
    tags: tuple[str, ...] = ()
    reusable: bool = False
    ephemeral: bool = False
    used_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class RetiredRecord:
    """An overlay address of a deleted node, given out again only when all others are taken, the longest retired first."""

    id: str
    retired_at: float


@dataclass(frozen=True, slots=True)
class SettingRecord:
    """A value of the server itself by name, such as its control key (hence no repr), its prefixes and its counters."""

    id: str
    value: bytes = field(repr=False)


Record = UserRecord | NodeRecord | AuthKeyRecord | RetiredRecord | SettingRecord
RecordType = type[UserRecord] | type[NodeRecord] | type[AuthKeyRecord] | type[RetiredRecord] | type[SettingRecord]


class Key(NamedTuple):
    """Names one record."""

    kind: RecordType
    id: int | str


class Put(NamedTuple):
    """Write this record, new or in place of the one with its id."""

    record: Record


class Delete(NamedTuple):
    """Remove this record; nothing happens where it is missing."""

    key: Key


class Expect(NamedTuple):
    """The commit holds only if the store has exactly this record under the key (None: nothing)."""

    key: Key
    record: Record | None


Change = Put | Delete


class Store(Protocol):
    """A durable store. Methods may be called on any thread; commits happen one after the other.

    Errors: ConflictError changes nothing and leaves the store usable. StateError (damaged, full, unreadable) changes nothing that was not
    acknowledged, and loses nothing that was; the next call may succeed, once there is room again say.
    """

    def load(self) -> Iterable[Record]:
        """Every record."""

    def commit(self, changes: Sequence[Change], expect: Sequence[Expect] = ()) -> None:
        """All of it or nothing, durable on return. ConflictError where an expectation fails, or where a unique value is another record's: a user's
        name; a node's name, control key, node key (now or previous), approval code, each overlay address. A value given up in a commit is free in it."""

    def close(self) -> None:
        """Give the store up; a second call does nothing, any other call after it raises StateError."""


def key_of(record: Record) -> Key:
    """The key under which a record stands."""
    return Key(type(record), record.id)


def unique_values(record: Record) -> tuple[tuple[str, bytes], ...]:
    """What no other record may have: (what it is, value)."""
    match record:
        case UserRecord():
            return (("user name", record.name.encode()),)
        case NodeRecord():
            values = [("node key", bytes(record.node_key)), ("control key", bytes(record.control_key))]
            if record.previous_node_key is not None:
                values.append(("node key", bytes(record.previous_node_key)))
            if record.name:
                values.append(("node name", record.name.encode()))
            if record.pending_code:
                values.append(("approval code", record.pending_code.encode()))
            values.extend(("address", address.encode()) for address in record.addresses)
            return tuple(dict.fromkeys(values))
        case _:
            return ()
