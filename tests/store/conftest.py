"""Both backends of the store, each opened on an empty directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calnet.store.interface import Store
from calnet.store.opening import open_store
from tests.small_disk import mounted_small_disk


@pytest.fixture(params=["kv", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the store under test."""
    name: str = request.param
    return name


@pytest.fixture
def reopen(kind: str, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Closes the store opened last, if any, and opens it again."""
    opened: list[Store] = []

    def open_again() -> Store:
        for store in opened:
            store.close()
        opened.append(open_store(kind, tmp_path / "state"))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Callable[[], Store]) -> Store:
    """An empty store."""
    return reopen()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MiB."""
    with mounted_small_disk(tmp_path) as path:
        yield path
