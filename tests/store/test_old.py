"""Stores and archives that older versions wrote: opened or taken in, brought to the present schema, a store with a copy of what was there."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import pytest

from calnet.roles.server import offline
from calnet.roles.server.registry import Registry
from calnet.store.interface import AuthKeyRecord, NodeRecord, UserRecord
from calnet.store.migrations import CURRENT
from calnet.store.opening import FILE_NAMES, open_store

OLD = sorted((Path(__file__).parent / "old").glob("schema-*.gz"))
ARCHIVES = sorted((Path(__file__).parent / "old").glob("schema-*.archive"))


def unpacked(packed: Path, directory: Path) -> tuple[str, Path]:
    """(kind, file) of an old store laid into `directory`."""
    kind = packed.name.split(".")[1]
    path = directory / FILE_NAMES[kind]
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    path.chmod(0o600)
    directory.chmod(0o700)
    return kind, path


def test_there_is_a_store_of_every_older_schema_and_embedded_kind() -> None:
    assert {path.name for path in OLD} == {f"schema-{number}.{kind}.gz" for number in range(1, CURRENT.version) for kind in FILE_NAMES}


def test_there_is_an_archive_of_every_schema() -> None:
    assert {path.name for path in ARCHIVES} == {f"schema-{number}.archive" for number in range(1, CURRENT.version + 1)}


def check_network(kind: str, directory: Path) -> None:
    """The network that all of them hold is there, and goes on."""
    store = open_store(kind, directory)
    _, records = store.load()
    users = {record.name: record for record in records if isinstance(record, UserRecord)}
    assert {name: user.role for name, user in users.items()} == {"admin": "owner", "alice": "user"}
    assert all(user.role_by_hand and not user.suspended and not user.subject for user in users.values())
    assert {record.name for record in records if isinstance(record, NodeRecord)} == {"h", "node-4"}
    assert sum(isinstance(record, AuthKeyRecord) for record in records) == 2
    store.close()
    registry = Registry(open_store(kind, directory), clock=lambda: 1_700_000_001.0, random=Random(1).randbytes)
    assert registry.node("h")["addresses"][0] == "100.70.0.3"
    assert registry.create_user("bob").result()["id"] == 3
    registry.close()


@pytest.mark.parametrize("packed", OLD, ids=lambda path: str(path.name))
def test_old_store_is_brought_to_the_present_schema_and_kept_beside(packed: Path, tmp_path: Path) -> None:
    kind, path = unpacked(packed, tmp_path)
    check_network(kind, tmp_path)
    number = packed.name.partition(".")[0]
    assert (tmp_path / f"{path.name}.{number}").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("deed", ["restore", "import"])
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: str(path.name))
def test_old_archive_is_taken_in_as_one_of_the_present_schema(archive: Path, deed: str, tmp_path: Path) -> None:
    offline.answer(f"/local/{deed}", archive.read_bytes(), directory=tmp_path / "state", store="kv")
    check_network("kv", tmp_path / "state")
