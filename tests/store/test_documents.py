"""Schema and migrations, and records that do not parse: the part of the store that all backends share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psycopg
import pytest

from calnet.errors import StateError
from calnet.model import UserId
from calnet.store.documents import DocumentStore, Engine, Table, Transaction
from calnet.store.interface import Put, UserRecord, key_of
from calnet.store.kv import KvEngine
from calnet.store.migrations import CURRENT, Documents, Schema
from calnet.store.opening import FILE_NAMES, open_store
from calnet.store.postgres import PostgresEngine
from calnet.store.sql import SqlEngine
from tests.postgres import Cluster
from tests.store.samples import node, user

Result = TypeVar("Result")


def engine_of(kind: str, directory: Path) -> Engine:
    if kind not in FILE_NAMES:
        return PostgresEngine(kind)
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / FILE_NAMES[kind]
    return KvEngine(path) if kind == "kv" else SqlEngine(path)


def write_raw(kind: str, directory: Path, rows: dict[tuple[Table, bytes], bytes]) -> None:
    """Put bytes past the store."""
    engine = engine_of(kind, directory)
    engine.write(lambda transaction: [transaction.put(table, key, value) for (table, key), value in rows.items()])
    engine.close()


def put_old_users(kind: str, directory: Path) -> None:
    """Make it a store of schema 0: its users have a `login` for a name, and no role."""
    users = {number: {"id": number, "login": f"user-{number}", "created_at": 1.0} for number in (1, 2)}
    rows = {(Table.RECORDS, f"user\0{number}".encode()): msgspec.msgpack.encode(row) for number, row in users.items()}
    write_raw(kind, directory, {**rows, (Table.TAKEN, b"login\0user-1"): b"user\0001", (Table.META, b"schema"): b"0"})


@pytest.fixture
def old(kind: str, tmp_path: Path) -> Path:
    """The directory of such a store."""
    put_old_users(kind, tmp_path)
    return tmp_path


def name_users(documents: Documents) -> Documents:
    for row in documents["user"].values():
        row["name"] = row.pop("login")
        row["role"] = "user"
    return documents


def add_suffix(documents: Documents) -> Documents:
    for row in documents.get("user", {}).values():
        row["name"] += "-x"
    return documents


NAMED = Schema(1, {0: name_users})


def copies(kind: str, directory: Path) -> set[str]:
    """The names of the copies that migrations kept, and of what they left half done."""
    if kind in FILE_NAMES:
        beside = {f"{FILE_NAMES[kind]}{end}" for end in ("-lock", "-wal", "-shm")}
        return {path.name for path in directory.glob(f"{FILE_NAMES[kind]}?*")} - beside
    with psycopg.connect(kind) as connection:
        return {name for (name,) in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'calnet_%'")}


def bring_back(kind: str, directory: Path) -> None:
    """Put the copy of schema 0 in the store's place, as a person would."""
    if kind in FILE_NAMES:
        path = directory / FILE_NAMES[kind]
        for left in directory.glob(f"{path.name}-*"):
            left.unlink()
        path.with_name(f"{path.name}.schema-0").rename(path)
    else:
        with psycopg.connect(kind) as connection:
            connection.execute("DROP SCHEMA calnet CASCADE")
            connection.execute("ALTER SCHEMA calnet_schema_0 RENAME TO calnet")


def names(store: DocumentStore) -> set[str]:
    return {record.name for record in store.load()[1] if isinstance(record, UserRecord)}


def test_migration_brings_old_documents_to_the_new_schema_and_keeps_a_copy(kind: str, old: Path) -> None:
    store = open_store(kind, old, schema=NAMED)
    assert sorted(store.load()[1], key=lambda record: record.id) == [UserRecord(UserId(1), "user-1", "user", 1.0), UserRecord(UserId(2), "user-2", "user", 1.0)]
    store.commit([Put(user(3))])
    store.close()
    assert len(copies(kind, old)) == 1
    if kind in FILE_NAMES:
        assert (old / f"{FILE_NAMES[kind]}.schema-0").stat().st_mode & 0o777 == 0o600
    again = open_store(kind, old, schema=NAMED)
    assert len(names(again)) == 3
    again.close()
    bring_back(kind, old)
    from_copy = open_store(kind, old, schema=NAMED)
    assert names(from_copy) == {"user-1", "user-2"}
    from_copy.commit([Put(user(1, "renamed"))])
    assert names(from_copy) == {"renamed", "user-2"}
    from_copy.close()


def test_migration_overwrites_no_earlier_copy(kind: str, old: Path) -> None:
    open_store(kind, old, schema=NAMED).close()
    write_raw(kind, old, {(Table.META, b"schema"): b"0"})
    open_store(kind, old, schema=Schema(1, {0: lambda documents: documents})).close()
    open_store(kind, old, schema=Schema(2, {1: add_suffix})).close()
    assert {name.rpartition("schema")[2][1:] for name in copies(kind, old)} == {"0", "0_2", "1"}
    bring_back(kind, old)
    store = open_store(kind, old, schema=NAMED)
    assert names(store) == {"user-1", "user-2"}
    store.close()


def test_migration_over_several_steps_runs_each_once_in_order(kind: str, old: Path) -> None:
    store = open_store(kind, old, schema=Schema(2, {0: name_users, 1: add_suffix}))
    assert names(store) == {"user-1-x", "user-2-x"}
    store.close()


def one_name(documents: Documents) -> Documents:
    for row in name_users(documents)["user"].values():
        row["name"] = "same"
    return documents


@pytest.mark.parametrize("bad", [lambda documents: documents["node"], lambda documents: documents, one_name])
def test_migration_that_fails_leaves_the_store_as_it_was(kind: str, old: Path, bad: object) -> None:
    for _ in range(2):
        with pytest.raises(StateError, match="could not be brought from schema 0 to 1 and stands as it was") as raised:
            open_store(kind, old, schema=Schema(1, {0: bad}))  # type: ignore[dict-item]
        assert "\n" not in str(raised.value)
        assert not copies(kind, old)
    store = open_store(kind, old, schema=NAMED)
    assert len(names(store)) == 2
    store.close()


def test_copy_that_a_killed_process_left_half_done_is_none(embedded: str, tmp_path: Path) -> None:
    put_old_users(embedded, tmp_path)
    (tmp_path / f"{FILE_NAMES[embedded]}.copying").write_bytes(b"half")
    open_store(embedded, tmp_path, schema=NAMED).close()
    assert copies(embedded, tmp_path) == {f"{FILE_NAMES[embedded]}.schema-0"}


class MeetingEngine(PostgresEngine):
    """Waits after its first look at the database until the other has looked too."""

    def __init__(self, url: str, meeting: threading.Barrier) -> None:
        super().__init__(url)
        self._meeting: threading.Barrier | None = meeting

    def read(self, action: Callable[[Transaction], Result]) -> Result:
        found = super().read(action)
        if self._meeting is not None:
            meeting, self._meeting = self._meeting, None
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(10)
        return found


def opened_together(url: str, schemas: tuple[Schema, Schema]) -> list[set[str] | str]:
    """Open the database as two servers that start at once: the names that each sees then, or why it sees none."""
    meeting = threading.Barrier(2)
    seen: list[set[str] | str] = []

    def open_and_look(schema: Schema) -> None:
        engine = MeetingEngine(url, meeting)
        try:
            seen.append(names(DocumentStore(engine, place=engine.place, schema=schema)))
        except StateError as error:
            seen.append(str(error))
        finally:
            engine.close()

    threads = [threading.Thread(target=open_and_look, args=(schema,)) for schema in schemas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def test_two_servers_that_start_together_migrate_once(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.create("together")
    put_old_users(url, tmp_path)
    schema = Schema(2, {0: name_users, 1: add_suffix})
    assert opened_together(url, (schema, schema)) == [{"user-1-x", "user-2-x"}] * 2
    assert copies(url, tmp_path) == {"calnet_schema_0"}
    bring_back(url, tmp_path)
    store = open_store(url, tmp_path, schema=NAMED)
    assert names(store) == {"user-1", "user-2"}
    store.close()


def test_two_servers_that_start_together_on_an_empty_database_leave_the_newer_ones_schema(postgres: Cluster, tmp_path: Path) -> None:
    for number, schemas in enumerate([(NAMED, Schema(2, {1: add_suffix})), (Schema(2, {1: add_suffix}), NAMED)]):
        url = postgres.create(f"empty{number}")
        opened_together(url, schemas)
        store = open_store(url, tmp_path, schema=Schema(2))
        assert not names(store)
        store.close()


def test_server_on_a_store_that_another_brought_to_a_newer_schema_writes_no_more(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.create("overtaken")
    put_old_users(url, tmp_path)
    running = open_store(url, tmp_path / "old", schema=NAMED)
    open_store(url, tmp_path / "new", schema=Schema(2, {1: add_suffix})).close()
    for call in (running.load, lambda: running.changes_since(0), lambda: running.commit([Put(user(1, "late"))]), lambda: running.replace([], [], version=0)):
        with pytest.raises(StateError, match="was brought from schema 1 to 2 by another Calnet meanwhile: start that version"):
            call()
    running.close()
    store = open_store(url, tmp_path, schema=Schema(2))
    assert names(store) == {"user-1-x", "user-2-x"}
    store.close()


def test_unknown_step_leaves_the_store_as_it_was(kind: str, old: Path) -> None:
    with pytest.raises(StateError, match="the step from schema 0 failed"):
        open_store(kind, old)


def test_newer_schema_is_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    open_store(kind, tmp_path, schema=Schema(CURRENT.version + 1)).close()
    with pytest.raises(StateError, match=rf"newer Calnet \(schema {CURRENT.version + 1}, this one knows {CURRENT.version}\): use that version"):
        open_store(kind, tmp_path)


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
