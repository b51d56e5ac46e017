"""Archives: whole from any kind of store into any other, and refused whole where they are not sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from calnet.errors import InvalidError
from calnet.store.archive import MAGIC, read_archive, write_archive
from calnet.store.documents import DocumentStore
from calnet.store.interface import AuditChange, AuditRecord, Put, Record, UserRecord, key_of
from calnet.store.migrations import CURRENT, Documents, Schema
from calnet.store.opening import open_store
from tests.store.conftest import EMBEDDED
from tests.store.samples import ANSWER, AUTH_KEY, RETIRED, SESSION, SETTING, TOKEN, key, node, user

RECORDS: list[Record] = [user(), node(), node(2, previous_node_key=key(9, "n")), AUTH_KEY, RETIRED, SETTING, TOKEN, SESSION, ANSWER]
ENTRY = AuditRecord(5.0, "local", "0", "root", "", "users.create", (AuditChange("user", "1", None, {"name": "user-1"}),))


def filled(store: DocumentStore) -> bytes:
    store.commit([Put(record) for record in RECORDS], audit=[ENTRY])
    store.commit([], audit=[ENTRY, ENTRY])
    return write_archive(store, 7.0)


@pytest.mark.parametrize("other", EMBEDDED)
def test_archive_carries_everything_from_any_store_to_any_other(store: DocumentStore, other: str, tmp_path: Path) -> None:
    archive = read_archive(filled(store))
    assert archive.created == 7.0
    assert sorted(map(repr, archive.records)) == sorted(map(repr, RECORDS))
    assert [record.seq for record in archive.audit] == [1, 2, 3]
    there = open_store(other, tmp_path / "other")
    held = there.commit([Put(user(7, "gone"))])
    there.replace(archive.records, archive.audit, version=held.version)
    assert {key_of(record): record for record in there.load()[1]} == {key_of(record): record for record in RECORDS}
    assert list(there.audit()) == list(archive.audit)
    there.close()


def test_archive_is_taken_in_by_postgresql_too(postgres: object, tmp_path: Path, reopen: Callable[[], DocumentStore]) -> None:
    data = filled(open_store("kv", tmp_path / "source"))
    store = reopen()
    archive = read_archive(data)
    store.replace(archive.records, archive.audit, version=0)
    assert len(store.load()[1]) == len(RECORDS)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "bomb"])
def test_archive_that_is_not_sound_is_refused_with_one_line(tmp_path: Path, damage: str) -> None:
    store = open_store("kv", tmp_path / "source")
    data = bytearray(filled(store))
    store.close()
    if damage == "cut":
        del data[-20:]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        del data[len(MAGIC) :]
    elif damage == "other":
        data[:7] = b"not one"
    else:
        data[-4:] = b"\xff" * 4
    with pytest.raises(InvalidError) as raised:
        read_archive(bytes(data))
    assert "\n" not in str(raised.value)


def renamed(documents: Documents) -> Documents:
    for row in documents["user"].values():
        row["name"] = f"{row['name']}-x"
    return documents


def test_archive_of_an_older_schema_is_brought_through_every_step(tmp_path: Path) -> None:
    store = open_store("kv", tmp_path / "source")
    data = filled(store)
    store.close()
    archive = read_archive(data, Schema(CURRENT.version + 2, {CURRENT.version: renamed, CURRENT.version + 1: renamed}))
    assert [record.name for record in archive.records if isinstance(record, UserRecord)] == ["user-1-x-x"]
    assert {key_of(record) for record in archive.records} == {key_of(record) for record in RECORDS}


def test_archive_of_a_newer_schema_or_without_a_way_is_refused_with_one_line(tmp_path: Path) -> None:
    store = open_store("kv", tmp_path / "source")
    data = filled(store)
    store.close()
    with pytest.raises(InvalidError, match=rf"written by a newer Calnet \(schema {CURRENT.version}, this one knows 1\): use that version"):
        read_archive(data, Schema(1))
    with pytest.raises(InvalidError, match=rf"could not be brought from schema {CURRENT.version} to {CURRENT.version + 1}: the step") as raised:
        read_archive(data, Schema(CURRENT.version + 1))
    assert "\n" not in str(raised.value)
