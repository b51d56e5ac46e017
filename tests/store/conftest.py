"""Every backend of the store, each opened on an empty directory or database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from calnet.store.documents import DocumentStore
from calnet.store.opening import open_store
from tests.postgres import Cluster, cluster
from tests.small_disk import mounted_small_disk

EMBEDDED = ("kv", "sqlite")
_numbers = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server."""
    with cluster() as server:
        yield server


@pytest.fixture(params=[*EMBEDDED, "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """What `--store` says: a kind, or the URL of a database that is new."""
    name: str = request.param
    if name != "postgresql":
        return name
    server: Cluster = request.getfixturevalue("postgres")
    return server.create(f"calnet{next(_numbers)}")


@pytest.fixture(params=EMBEDDED)
def embedded(request: pytest.FixtureRequest) -> str:
    """A kind that lives in the state directory."""
    name: str = request.param
    return name


@pytest.fixture
def reopen(kind: str, tmp_path: Path) -> Iterator[Callable[[], DocumentStore]]:
    """Closes the store opened last, if any, and opens it again."""
    opened: list[DocumentStore] = []

    def open_again() -> DocumentStore:
        for store in opened:
            store.close()
        opened.append(open_store(kind, tmp_path / "state"))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Callable[[], DocumentStore]) -> DocumentStore:
    """An empty store."""
    return reopen()


@pytest.fixture
def beside(store: DocumentStore, kind: str, tmp_path: Path) -> Iterator[DocumentStore]:
    """The same store as another server has it open; where one process alone may, as another of its threads has."""
    other = open_store(kind, tmp_path / "beside") if store.shared else store
    yield other
    other.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MiB."""
    with mounted_small_disk(tmp_path) as path:
        yield path
