"""Records as documents in tables, and what every backend shares: all-or-nothing commits, uniqueness, the audit log, the schema and its migrations.

A backend is an `Engine`: five tables of bytes by bytes, changed in transactions. Everything that makes a `Store` of it stands here, once:

    RECORDS   kind NUL id (text)          → MessagePack map of the record's fields
    TAKEN     what NUL value (raw)        → the record's key in RECORDS
    AUDIT     sequence number (8 bytes)   → MessagePack map of the audit record
    LOG       version (8 bytes)           → MessagePack list of the keys in RECORDS that this commit changed; the last LOG_KEPT alone
    META      "schema" "version" "audit"  → the schema's number, the number of commits, the last sequence number, as text
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import msgspec

from calnet.errors import CalnetError, ConflictError, StaleError, StateError
from calnet.store.interface import (
    AuditRecord,
    AuthKeyRecord,
    Change,
    Commit,
    Delete,
    IdempotencyRecord,
    Key,
    NodeRecord,
    Put,
    Record,
    RecordType,
    RetiredRecord,
    SessionRecord,
    SettingRecord,
    TokenRecord,
    UserRecord,
    key_of,
    unique_values,
)
from calnet.store.migrations import CURRENT, Documents, Schema, migrated

log = logging.getLogger(__name__)

Result = TypeVar("Result")

KINDS: Final[Mapping[str, RecordType]] = {
    "user": UserRecord,
    "node": NodeRecord,
    "authkey": AuthKeyRecord,
    "retired": RetiredRecord,
    "setting": SettingRecord,
    "token": TokenRecord,
    "session": SessionRecord,
    "idempotency": IdempotencyRecord,
}
LOG_KEPT: Final = 10_000
"""Commits that `changes_since` reaches back."""
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_SCHEMA_KEY: Final = b"schema"
_VERSION_KEY: Final = b"version"
_AUDIT_KEY: Final = b"audit"


class Table(enum.Enum):
    """The tables of an engine."""

    RECORDS = "records"
    TAKEN = "taken"
    META = "meta"
    AUDIT = "audit"
    LOG = "log"


class Transaction(Protocol):
    """One transaction of an engine."""

    def get(self, table: Table, key: bytes) -> bytes | None: ...
    def put(self, table: Table, key: bytes, value: bytes) -> None: ...
    def delete(self, table: Table, key: bytes) -> None: ...
    def scan(self, table: Table, first: bytes = b"", *, before: bytes | None = None, newest_first: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Entries with first ≤ key < before, by key, or from the last."""


class Engine(Protocol):
    """A backend. `write` makes the action's changes durable on return, or none of them if it (or the disk) fails, and may call the action again after
    undoing it. `rewrite` is `write` with a whole copy kept of what was there before, named by `label`, if it succeeds; nobody else writes between the two. It
    says where the copy is. `watch` and `send` are those of Store. Engine failures are StateErrors."""

    shared: bool

    def read(self, action: Callable[[Transaction], Result]) -> Result: ...
    def write(self, action: Callable[[Transaction], Result]) -> Result: ...
    def rewrite(self, action: Callable[[Transaction], None], label: str) -> str: ...
    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None: ...
    def send(self, message: bytes) -> None: ...
    def close(self) -> None: ...


class DocumentStore:
    """`Store` on an engine. The constructor brings the documents to `schema`, and keeps a copy of the older ones. Where another server does so later, with a
    schema that is newer still, every call is a StateError from then on: what this one would write is no longer what is read there."""

    def __init__(self, engine: Engine, *, place: str, schema: Schema = CURRENT, release: Callable[[], None] = lambda: None) -> None:
        """`place` names the store in errors; `release` is called once on close, after the engine's. StateError for a newer or damaged store."""
        self._engine = engine
        self._place = place
        self._release = release
        self._closed = False
        self._schema = schema
        self._settle()

    @property
    def shared(self) -> bool:
        """See Store."""
        return self._engine.shared

    def load(self) -> tuple[Commit, Sequence[Record]]:
        """Every record, and its version; see Store."""
        self._check_open()
        return self._engine.read(
            lambda transaction: (self._last(transaction), [_decode(key, value, self._place) for key, value in transaction.scan(Table.RECORDS)])
        )

    def commit(self, changes: Sequence[Change], *, audit: Sequence[AuditRecord] = (), version: int | None = None) -> Commit:
        """All or nothing; see Store."""
        self._check_open()
        return self._engine.write(lambda transaction: self._perform(transaction, changes, audit, version))

    def changes_since(self, version: int) -> tuple[Commit, Sequence[Change]]:
        """What later commits did; see Store."""
        self._check_open()
        return self._engine.read(lambda transaction: self._changes(transaction, version))

    def audit(self, *, after: int = 0, before: int | None = None, limit: int = 100, newest_first: bool = False) -> Sequence[AuditRecord]:
        """A page of the audit log; see Store."""
        self._check_open()
        first, end = _number_key(max(0, after) + 1), None if before is None else _number_key(max(0, before))
        return self._engine.read(
            lambda transaction: [
                self._audited(value)
                for _, (_, value) in zip(range(limit), transaction.scan(Table.AUDIT, first, before=end, newest_first=newest_first), strict=False)
            ]
        )

    def replace(self, records: Sequence[Record], audit: Sequence[AuditRecord], *, version: int) -> Commit:
        """Hold these instead of all that is held; see Store."""
        self._check_open()
        return self._engine.write(lambda transaction: self._replace(transaction, records, audit, version))

    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        """See Store."""
        self._check_open()
        self._engine.watch(committed, message)

    def send(self, message: bytes) -> None:
        """See Store."""
        self._check_open()
        self._engine.send(message)

    def close(self) -> None:
        """Give the store up; see Store."""
        if not self._closed:
            self._closed = True
            try:
                self._engine.close()
            finally:
                self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"{self._place} is closed")

    def _perform(self, transaction: Transaction, changes: Sequence[Change], audit: Sequence[AuditRecord], version: int | None) -> Commit:
        last = self._last_at(transaction, version)
        if not changes and not audit:
            return last
        after = {_raw(key_of(change.record) if isinstance(change, Put) else change.key): change for change in changes}
        for key in after:
            old = transaction.get(Table.RECORDS, key)
            if old is not None:
                for taken in _taken_keys(_decode(key, old, self._place)):
                    transaction.delete(Table.TAKEN, taken)
        for key, change in after.items():
            if isinstance(change, Put):
                _claim(transaction, key, change.record)
                transaction.put(Table.RECORDS, key, _encode(change.record))
            else:
                transaction.delete(Table.RECORDS, key)
        for number, record in enumerate(audit, last.audit + 1):
            transaction.put(Table.AUDIT, _number_key(number), msgspec.msgpack.encode(replace(record, seq=number)))
        now = Commit(last.version + 1, last.audit + len(audit))
        transaction.put(Table.LOG, _number_key(now.version), msgspec.msgpack.encode(list(after)))
        transaction.delete(Table.LOG, _number_key(max(0, now.version - LOG_KEPT)))
        _write_last(transaction, now)
        return now

    def _replace(self, transaction: Transaction, records: Sequence[Record], audit: Sequence[AuditRecord], version: int) -> Commit:
        last = self._last_at(transaction, version)
        for table in (Table.RECORDS, Table.TAKEN, Table.AUDIT, Table.LOG):
            for key, _ in list(transaction.scan(table)):
                transaction.delete(table, key)
        for record in records:
            key = _raw(key_of(record))
            _claim(transaction, key, record)
            transaction.put(Table.RECORDS, key, _encode(record))
        for entry in audit:
            transaction.put(Table.AUDIT, _number_key(entry.seq), msgspec.msgpack.encode(entry))
        now = Commit(last.version + 1, max((entry.seq for entry in audit), default=0))
        _write_last(transaction, now)
        return now

    def _changes(self, transaction: Transaction, version: int) -> tuple[Commit, Sequence[Change]]:
        last = self._last(transaction)
        if version > last.version:
            raise StateError(f"{self._place} went back from commit {version} to {last.version}: it was restored from a backup; restart this server")
        keys: dict[bytes, None] = {}
        found = 0
        for _, value in transaction.scan(Table.LOG, _number_key(version + 1)):
            keys.update(dict.fromkeys(msgspec.msgpack.decode(value, type=list[bytes])))
            found += 1
        if found != last.version - version:
            raise StateError(f"{self._place} no longer knows what changed since commit {version}: restart this server, which loads it whole")
        return last, [self._present(transaction, key) for key in keys]

    def _present(self, transaction: Transaction, key: bytes) -> Change:
        value = transaction.get(Table.RECORDS, key)
        if value is not None:
            return Put(_decode(key, value, self._place))
        name, _, number_or_name = key.decode().partition("\0")
        kind = KINDS[name]
        return Delete(Key(kind, int(number_or_name) if kind in (UserRecord, NodeRecord) else number_or_name))

    def _audited(self, value: bytes) -> AuditRecord:
        try:
            return msgspec.msgpack.decode(value, type=AuditRecord)
        except msgspec.DecodeError as error:
            raise _damaged(self._place, "an audit record does not parse") from error

    def _last(self, transaction: Transaction) -> Commit:
        meta = dict(transaction.scan(Table.META))
        if meta.get(_SCHEMA_KEY) != str(self._schema.version).encode():
            raise self._other_schema(self._schema_of(transaction))
        numbers = [meta.get(key, b"0") for key in (_VERSION_KEY, _AUDIT_KEY)]
        if not all(number.isdigit() for number in numbers):
            raise _damaged(self._place, "its counters do not parse")
        return Commit(*map(int, numbers))

    def _last_at(self, transaction: Transaction, version: int | None) -> Commit:
        last = self._last(transaction)
        if version is not None and version != last.version:
            raise StaleError("the store was changed by another server meanwhile")
        return last

    def _schema_of(self, transaction: Transaction) -> int | None:
        value = transaction.get(Table.META, _SCHEMA_KEY)
        if value is None:
            if next(transaction.scan(Table.RECORDS), None) is not None:
                raise _damaged(self._place, "its schema number is missing")
            return None
        if not value.isdigit():
            raise _damaged(self._place, "its schema number does not parse")
        return int(value)

    def _other_schema(self, found: int | None) -> StateError:
        if found is None:
            return _damaged(self._place, "its schema number is missing")
        mine = self._schema.version
        return StateError(f"{self._place} was brought from schema {mine} to {found} by another Calnet meanwhile: start that version in place of this server")

    def _settle(self) -> None:
        """Bring what is there to the schema. What was found is looked at again under the lock of the write: servers that share a store may start together."""
        found = self._engine.read(self._schema_of)
        mine = self._schema.version
        if found == mine:
            return
        if found is not None and found > mine:
            raise StateError(f"{self._place} was written by a newer Calnet (schema {found}, this one knows {mine}): use that version, or restore a backup")
        try:
            if found is None:
                self._engine.write(self._begin)
            else:
                self._migrate(found)
        except StaleError:  # another server was first
            self._settle()

    def _begin(self, transaction: Transaction) -> None:
        self._expect(transaction, None)
        _write_schema(transaction, self._schema.version)

    def _migrate(self, found: int) -> None:
        wanted = self._schema.version
        try:
            copy = self._engine.rewrite(lambda transaction: self._rewrite(transaction, found), f"schema-{found}")
        except StaleError:
            raise
        except CalnetError as error:
            raise StateError(f"{self._place} could not be brought from schema {found} to {wanted} and stands as it was: {error}") from error
        log.warning("store_migrated place=%s from=%d to=%d copy=%s", self._place, found, wanted, copy)

    def _rewrite(self, transaction: Transaction, found: int) -> None:
        self._expect(transaction, found)
        documents = migrated(_documents(transaction), found, self._schema)
        for table in (Table.RECORDS, Table.TAKEN):
            for key, _ in list(transaction.scan(table)):
                transaction.delete(table, key)
        for kind, rows in documents.items():
            for number_or_name, row in rows.items():
                key = f"{kind}\0{number_or_name}".encode()
                value = msgspec.msgpack.encode(row)
                _claim(transaction, key, _decode(key, value, self._place))
                transaction.put(Table.RECORDS, key, value)
        _write_schema(transaction, self._schema.version)

    def _expect(self, transaction: Transaction, found: int | None) -> None:
        if self._schema_of(transaction) != found:
            raise StaleError("the store was brought to another schema by another server meanwhile")


def _number_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _write_last(transaction: Transaction, commit: Commit) -> None:
    transaction.put(Table.META, _VERSION_KEY, str(commit.version).encode())
    transaction.put(Table.META, _AUDIT_KEY, str(commit.audit).encode())


def _write_schema(transaction: Transaction, version: int) -> None:
    transaction.put(Table.META, _SCHEMA_KEY, str(version).encode())


def _documents(transaction: Transaction) -> Documents:
    documents: Documents = {}
    for key, value in transaction.scan(Table.RECORDS):
        kind, _, number_or_name = key.decode().partition("\0")
        documents.setdefault(kind, {})[number_or_name] = msgspec.msgpack.decode(value)
    return documents


def _claim(transaction: Transaction, key: bytes, record: Record) -> None:
    for (what, _), taken in zip(unique_values(record), _taken_keys(record), strict=True):
        holder = transaction.get(Table.TAKEN, taken)
        if holder is not None and holder != key:
            raise ConflictError(f"that {what} is taken")
        transaction.put(Table.TAKEN, taken, key)


def _taken_keys(record: Record) -> list[bytes]:
    return [what.encode() + b"\0" + value for what, value in unique_values(record)]


def _raw(key: Key) -> bytes:
    return f"{_NAMES[key.kind]}\0{key.id}".encode()


def _encode(record: Record) -> bytes:
    return msgspec.msgpack.encode(record)


def _decode(key: bytes, value: bytes, place: str) -> Record:
    try:
        kind = KINDS[key.partition(b"\0")[0].decode()]
        record: Record = msgspec.msgpack.decode(value, type=kind)
    except (KeyError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise _damaged(place, f"record {key!r} does not parse") from error
    if _raw(key_of(record)) != key:
        raise _damaged(place, f"record {key!r} carries another id")
    return record


def _damaged(place: str, what: str) -> StateError:
    return StateError(f"{place} is damaged ({what}): restore it from a backup")
