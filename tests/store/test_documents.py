"""Schema and migrations, and records that do not parse: the part of the store that all backends share."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from calnet.errors import StateError
from calnet.model import UserId
from calnet.store.documents import CURRENT, Documents, Engine, Schema, Table
from calnet.store.interface import Put, UserRecord, key_of
from calnet.store.kv import KvEngine
from calnet.store.opening import FILE_NAMES, open_store
from calnet.store.sql import SqlEngine
from tests.store.samples import node, user


def engine_of(embedded: str, directory: Path) -> Engine:
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / FILE_NAMES[embedded]
    return KvEngine(path) if embedded == "kv" else SqlEngine(path)


def write_raw(embedded: str, directory: Path, rows: dict[tuple[Table, bytes], bytes]) -> None:
    """Put bytes past the store."""
    engine = engine_of(embedded, directory)
    engine.write(lambda transaction: [transaction.put(table, key, value) for (table, key), value in rows.items()])
    engine.close()


@pytest.fixture
def old(embedded: str, tmp_path: Path) -> Path:
    """A directory with a store of schema 0: its users have a `login` for a name, and no role."""
    users = {number: {"id": number, "login": f"user-{number}", "created_at": 1.0} for number in (1, 2)}
    rows = {(Table.RECORDS, f"user\0{number}".encode()): msgspec.msgpack.encode(row) for number, row in users.items()}
    write_raw(embedded, tmp_path, {**rows, (Table.TAKEN, b"login\0user-1"): b"user\0001", (Table.META, b"schema"): b"0"})
    return tmp_path


def name_users(documents: Documents) -> Documents:
    for row in documents["user"].values():
        row["name"] = row.pop("login")
        row["role"] = "user"
    return documents


def test_migration_brings_old_documents_to_the_new_schema_and_keeps_a_copy(embedded: str, old: Path) -> None:
    schema = Schema(1, {0: name_users})
    store = open_store(embedded, old, schema=schema)
    assert sorted(store.load()[1], key=lambda record: record.id) == [UserRecord(UserId(1), "user-1", "user", 1.0), UserRecord(UserId(2), "user-2", "user", 1.0)]
    store.commit([Put(user(3))])
    store.close()
    copy = old / f"{FILE_NAMES[embedded]}.before-migration"
    assert copy.stat().st_mode & 0o777 == 0o600
    again = open_store(embedded, old, schema=schema)
    assert sum(1 for _ in again.load()[1]) == 3
    again.close()
    (old / FILE_NAMES[embedded]).unlink()
    copy.rename(old / FILE_NAMES[embedded])
    for left in old.glob("*-wal"):
        left.unlink()
    from_copy = open_store(embedded, old, schema=schema)
    assert sum(1 for _ in from_copy.load()[1]) == 2
    from_copy.close()


def test_migration_over_several_steps_runs_each_once_in_order(embedded: str, old: Path) -> None:
    def add_suffix(documents: Documents) -> Documents:
        for row in documents["user"].values():
            row["name"] += "-x"
        return documents

    store = open_store(embedded, old, schema=Schema(2, {0: name_users, 1: add_suffix}))
    assert {record.name for record in store.load()[1] if isinstance(record, UserRecord)} == {"user-1-x", "user-2-x"}
    store.close()


def one_name(documents: Documents) -> Documents:
    for row in name_users(documents)["user"].values():
        row["name"] = "same"
    return documents


@pytest.mark.parametrize("bad", [lambda documents: documents["node"], lambda documents: documents, one_name])
def test_migration_that_fails_leaves_the_store_as_it_was(embedded: str, old: Path, bad: object) -> None:
    for _ in range(2):
        with pytest.raises(StateError, match="could not be brought from schema 0 to 1 and stands as it was") as raised:
            open_store(embedded, old, schema=Schema(1, {0: bad}))  # type: ignore[dict-item]
        assert "\n" not in str(raised.value)
    store = open_store(embedded, old, schema=Schema(1, {0: name_users}))
    assert sum(1 for _ in store.load()[1]) == 2
    store.close()


def test_unknown_step_leaves_the_store_as_it_was(embedded: str, old: Path) -> None:
    with pytest.raises(StateError, match="the step from schema 0 failed"):
        open_store(embedded, old)


def test_newer_schema_is_refused_with_what_to_do(embedded: str, tmp_path: Path) -> None:
    open_store(embedded, tmp_path, schema=Schema(CURRENT.version + 1)).close()
    with pytest.raises(StateError, match=rf"newer Calnet \(schema {CURRENT.version + 1}, this one knows {CURRENT.version}\): use that version"):
        open_store(embedded, tmp_path)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({(Table.RECORDS, b"user\0001"): b"\xc1"}, "does not parse"),
        ({(Table.RECORDS, b"user\0001"): msgspec.msgpack.encode({"id": "one"})}, "does not parse"),
        ({(Table.RECORDS, b"user\0002"): msgspec.msgpack.encode(user(1))}, "carries another id"),
        ({(Table.RECORDS, b"color\0001"): b""}, "does not parse"),
        ({(Table.RECORDS, b"\xff\xff"): b""}, "does not parse"),
    ],
)
def test_record_that_does_not_parse_is_one_clear_line(embedded: str, tmp_path: Path, row: dict[tuple[Table, bytes], bytes], text: str) -> None:
    open_store(embedded, tmp_path).close()
    write_raw(embedded, tmp_path, row)
    store = open_store(embedded, tmp_path)
    with pytest.raises(StateError, match=text) as raised:
        store.load()[1]
    store.close()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("schema", [b"one", None])
def test_schema_number_lost_is_damage(embedded: str, tmp_path: Path, schema: bytes | None) -> None:
    rows = {(Table.RECORDS, b"user\0001"): msgspec.msgpack.encode(user())}
    write_raw(embedded, tmp_path, rows if schema is None else {**rows, (Table.META, b"schema"): schema})
    with pytest.raises(StateError, match="its schema number"):
        open_store(embedded, tmp_path)


def test_unknown_field_of_a_later_version_of_the_schema_is_ignored(embedded: str, tmp_path: Path) -> None:
    open_store(embedded, tmp_path).close()
    row = msgspec.msgpack.encode(msgspec.msgpack.decode(msgspec.msgpack.encode(node())) | {"color": "red"})
    write_raw(embedded, tmp_path, {(Table.RECORDS, b"node\0001"): row})
    store = open_store(embedded, tmp_path)
    assert {key_of(record): record for record in store.load()[1]} == {key_of(node()): node()}
    store.close()


def test_kv_map_grows_when_it_is_full(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    engine = KvEngine(tmp_path / "store.mdb", map_size=65_536)
    for number in range(20):
        engine.write(lambda transaction, number=number: transaction.put(Table.RECORDS, b"%d" % number, bytes(20_000)))  # type: ignore[misc]
    assert engine.read(lambda transaction: sum(1 for _ in transaction.scan(Table.RECORDS))) == 20
    engine.close()
