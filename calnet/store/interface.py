"""What must outlive the server's process: the records, and the one interface that every backend of the store has.

A store is loaded whole at start and then only written: the server keeps what it holds in memory. Addresses, prefixes and keys are stored in their
text or raw form; the registry parses them. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from calnet.model import ControlKey, DiscoveryKey, NodeId, NodeKey, UserId


@dataclass(frozen=True, slots=True)
class Watch:
    """How the OpenID provider is asked, without the user's browser, whether it still vouches for the user."""

    asked_at: float
    """When a server last took it on itself to ask."""
    checked_at: float
    """When the provider last vouched for the user."""
    refresh: bytes = field(default=b"", repr=False)
    """The provider's refresh token, sealed under a key of the server; empty where there is none to ask with."""
    until: float | None = None
    """Without a refresh token: until when the provider's last word holds."""
    signed_out_at: float | None = None
    """When the user was last sent on to the provider's own sign-out, which may end the refresh token; None once that token has outlived it."""


@dataclass(frozen=True, slots=True)
class UserRecord:
    """`role` is `owner`, `admin`, `auditor` or `user`. A user that signed in at an OpenID provider is known by (issuer, subject), never by its e-mail."""

    id: UserId
    name: str
    role: str
    created_at: float
    issuer: str = ""
    """Empty for a user made by hand that nobody signed in as yet."""
    subject: str = ""
    email: str = ""
    """Verified by the provider; empty otherwise."""
    display_name: str = ""
    groups: tuple[str, ...] = ()
    """As the provider said at the last sign-in or re-check."""
    role_by_hand: bool = True
    """The role was set by an admin: claims no longer move it."""
    suspended: bool = False
    """The provider or an admin shut the user out: no sign-in, no token, no active node."""
    last_login_at: float | None = None
    access: str = "granted"
    """What the provider's word gives: `granted`; `resting` where it can't be asked any more: tokens and keys wait for the next sign-in; `lost` where it vouches
    for the user no more, who has to sign in again. Always `granted` for a user made by hand."""
    watch: Watch | None = None


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
    capabilities: tuple[str, ...] = ()
    """Protocol extensions that it announces."""
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
    owner_suspended: bool = False
    """Its owner was shut out: it may do as little as a disabled one, until the owner is back."""
    ephemeral: bool = False
    pending_code: str = ""
    signed_in: bool = False
    """Pending, and `user` has signed in for it with this code: nobody else may any more, and an admin's approval is what it waits for."""
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


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """An API token, without its secret. It may never do more than its user may. `id` is the hex of its 8 bytes; `secret_hash` BLAKE2s of its secret."""

    id: str
    secret_hash: bytes = field(repr=False)
    user: UserId
    name: str
    scopes: tuple[str, ...]
    created_at: float
    expires: float
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A browser signed in. `id` is the hex of BLAKE2s of the cookie's secret."""

    id: str
    user: UserId
    created_at: float
    expires: float


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """The answer to a create, given again to whoever repeats it. `id` is the hex of a hash over principal, route and key."""

    id: str
    request_hash: bytes
    status: int
    body: bytes = field(repr=False)
    created_at: float


Record = UserRecord | NodeRecord | AuthKeyRecord | RetiredRecord | SettingRecord | TokenRecord | SessionRecord | IdempotencyRecord
RecordType = (
    type[UserRecord]
    | type[NodeRecord]
    | type[AuthKeyRecord]
    | type[RetiredRecord]
    | type[SettingRecord]
    | type[TokenRecord]
    | type[SessionRecord]
    | type[IdempotencyRecord]
)


@dataclass(frozen=True, slots=True)
class AuditChange:
    """One record before and after: its public fields as JSON values (no secrets, hashes or keys' secrets); None where it did not or does not exist."""

    kind: str
    """`user`, `node`, `authkey`, `token`, `setting`, …"""
    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who changed what. Append-only; `seq` is given by the store at the commit, from 1, without reuse."""

    at: float
    actor_kind: str
    """`local` (admin socket), `user`, `token`, `node`, `system`."""
    actor_id: str
    actor_name: str
    source: str
    """Where it came from: an address, or empty."""
    action: str
    """Such as `nodes.rename`."""
    changes: tuple[AuditChange, ...]
    seq: int = 0


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


Change = Put | Delete


class Commit(NamedTuple):
    """What a store has durably: `version` counts commits, `audit` is the sequence number of the last audit record."""

    version: int
    audit: int


class Store(Protocol):
    """A durable store. Methods may be called on any thread; commits happen one after the other.

    Errors: ConflictError changes nothing and leaves the store usable. StateError (damaged, full, unreadable) changes nothing that was not
    acknowledged, and loses nothing that was; the next call may succeed, once there is room again say.

    Several servers may share a store (PostgreSQL): each loads it, then follows the others' commits with `changes_since`, told when by `watch`.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes may commit too."""

    def load(self) -> tuple[Commit, Sequence[Record]]:
        """Every record, and the version they are of: one consistent view."""

    def commit(self, changes: Sequence[Change], *, audit: Sequence[AuditRecord] = (), version: int | None = None) -> Commit:
        """All of it or nothing, durable on return, audit records included (their `seq` is given here, in order). StaleError where `version` is given and
        is not the store's: another server committed meanwhile, so catch up and plan anew. ConflictError where a unique value is another record's: a user's
        name or identity; a node's name, control key, node key (now or previous), discovery key, approval code, each overlay address. A value given up in
        a commit is free in it."""

    def replace(self, records: Sequence[Record], audit: Sequence[AuditRecord], *, version: int) -> Commit:
        """Hold these instead of all that is held, audit log included, in one commit: to restore an archive. StaleError where what is held is not what it was
        at `version`. Who follows by `changes_since` has to load anew."""

    def changes_since(self, version: int) -> tuple[Commit, Sequence[Change]]:
        """What later commits (by anybody) put or deleted, each record once as it is now. StateError where the log no longer reaches back to `version`."""

    def audit(self, *, after: int = 0, before: int | None = None, limit: int = 100, newest_first: bool = False) -> Sequence[AuditRecord]:
        """Audit records with after < seq < before, in order or newest first, at most `limit`."""

    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        """From now on call `committed` after another process's commit (at least once for any number of them, also after a lost connection came back) and
        `message` with what another process sent, on a thread of the store. Called once. A store of one process never calls."""

    def send(self, message: bytes) -> None:
        """Give a message (≤ 4 KiB, not durable, lost where nobody listens) to the other servers on this store; a store of one process drops it."""

    def close(self) -> None:
        """Give the store up; a second call does nothing, any other call after it raises StateError."""


def key_of(record: Record) -> Key:
    """The key under which a record stands."""
    return Key(type(record), record.id)


def unique_values(record: Record) -> tuple[tuple[str, bytes], ...]:
    """What no other record may have: (what it is, value)."""
    match record:
        case UserRecord():
            identity = (("identity", f"{record.issuer}\0{record.subject}".encode()),) if record.subject else ()
            return (("user name", record.name.encode()), *identity)
        case NodeRecord():
            values = [("node key", bytes(record.node_key)), ("control key", bytes(record.control_key)), ("discovery key", bytes(record.discovery_key))]
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
