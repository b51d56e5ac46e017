"""Records as documents in tables, and what every backend shares: all-or-nothing commits, uniqueness, expectations, the schema and its migrations.

A backend is an `Engine`: three tables of bytes by bytes, changed in transactions. Everything that makes a `Store` of it stands here, once:

    RECORDS   kind NUL id (text)          → MessagePack map of the record's fields
    TAKEN     what NUL value (raw)        → the record's key in RECORDS
    META      "schema"                    → the schema's number as text
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from calnet.errors import CalnetError, ConflictError, StateError
from calnet.store.interface import (
    AuthKeyRecord,
    Change,
    Expect,
    Key,
    NodeRecord,
    Put,
    Record,
    RecordType,
    RetiredRecord,
    SettingRecord,
    UserRecord,
    key_of,
    unique_values,
)

Result = TypeVar("Result")
Documents = dict[str, dict[str, dict[str, Any]]]
"""kind → id as text → field → value, as MessagePack has it."""

KINDS: Final[Mapping[str, RecordType]] = {
    "user": UserRecord,
    "node": NodeRecord,
    "authkey": AuthKeyRecord,
    "retired": RetiredRecord,
    "setting": SettingRecord,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_SCHEMA_KEY: Final = b"schema"


class Table(enum.Enum):
    """The tables of an engine."""

    RECORDS = "records"
    TAKEN = "taken"
    META = "meta"


class Transaction(Protocol):
    """One transaction of an engine."""

    def get(self, table: Table, key: bytes) -> bytes | None: ...
    def put(self, table: Table, key: bytes, value: bytes) -> None: ...
    def delete(self, table: Table, key: bytes) -> None: ...
    def scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]: ...


class Engine(Protocol):
    """A backend. `write` makes the action's changes durable on return, or none of them if it (or the disk) fails, and may call the action again after
    undoing it; `copy` writes a whole consistent copy to `path`. Engine failures are StateErrors."""

    def read(self, action: Callable[[Transaction], Result]) -> Result: ...
    def write(self, action: Callable[[Transaction], Result]) -> Result: ...
    def copy(self, path: Path) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Schema:
    """The shape of the documents: its number, and for each older number the function that brings documents of it to the next."""

    version: int
    migrations: Mapping[int, Callable[[Documents], Documents]] = field(default_factory=dict)


CURRENT: Final = Schema(1)


class DocumentStore:
    """`Store` on an engine. The constructor brings the documents to `schema`, after writing a copy of the older ones to `copy_path`."""

    def __init__(self, engine: Engine, *, place: str, copy_path: Path, schema: Schema = CURRENT, release: Callable[[], None] = lambda: None) -> None:
        """`place` names the store in errors; `release` is called once on close, after the engine's. StateError for a newer or damaged store."""
        self._engine = engine
        self._place = place
        self._release = release
        self._closed = False
        found = engine.read(lambda transaction: self._schema_of(transaction))
        if found is None:
            engine.write(lambda transaction: _write_schema(transaction, schema.version))
        elif found > schema.version:
            raise StateError(f"{place} was written by a newer Calnet (schema {found}, this one knows {schema.version}): use that version, or restore a backup")
        elif found < schema.version:
            self._migrate(found, schema, copy_path)

    def load(self) -> Iterable[Record]:
        """Every record; see Store."""
        self._check_open()
        return self._engine.read(lambda transaction: [_decode(key, value, self._place) for key, value in transaction.scan(Table.RECORDS)])

    def commit(self, changes: Sequence[Change], expect: Sequence[Expect] = ()) -> None:
        """All or nothing; see Store."""
        self._check_open()
        self._engine.write(lambda transaction: self._perform(transaction, changes, expect))

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

    def _perform(self, transaction: Transaction, changes: Sequence[Change], expect: Sequence[Expect]) -> None:
        for expected in expect:
            if transaction.get(Table.RECORDS, _raw(expected.key)) != (None if expected.record is None else _encode(expected.record)):
                raise ConflictError(f"the {_NAMES[expected.key.kind]} was changed meanwhile: try again")
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

    def _schema_of(self, transaction: Transaction) -> int | None:
        value = transaction.get(Table.META, _SCHEMA_KEY)
        if value is None:
            if next(transaction.scan(Table.RECORDS), None) is not None:
                raise _damaged(self._place, "its schema number is missing")
            return None
        if not value.isdigit():
            raise _damaged(self._place, "its schema number does not parse")
        return int(value)

    def _migrate(self, found: int, schema: Schema, copy_path: Path) -> None:
        self._engine.copy(copy_path)
        try:
            self._engine.write(lambda transaction: self._rewrite(transaction, found, schema))
        except CalnetError as error:
            raise StateError(f"{self._place} could not be brought from schema {found} to {schema.version} and stands as it was: {error}") from error

    def _rewrite(self, transaction: Transaction, found: int, schema: Schema) -> None:
        documents = _documents(transaction)
        for number in range(found, schema.version):
            try:
                documents = schema.migrations[number](documents)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise StateError(f"the step from schema {number} failed ({type(error).__name__}: {error})") from error
        for table in (Table.RECORDS, Table.TAKEN):
            for key, _ in list(transaction.scan(table)):
                transaction.delete(table, key)
        for kind, rows in documents.items():
            for number_or_name, row in rows.items():
                key = f"{kind}\0{number_or_name}".encode()
                value = msgspec.msgpack.encode(row)
                _claim(transaction, key, _decode(key, value, self._place))
                transaction.put(Table.RECORDS, key, value)
        _write_schema(transaction, schema.version)


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
