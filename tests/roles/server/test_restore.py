"""A restore or import beside others who commit meanwhile, on every store: what it replaces is what its audit record says was there, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from calnet.errors import ConflictError, StaleError
from calnet.roles.server.actors import LOCAL
from calnet.roles.server.registry import RESTORE_ATTEMPTS, Registry
from calnet.store.archive import Archive, read_archive
from calnet.store.opening import open_store
from tests.postgres import Cluster, cluster
from tests.roles.server.registries import START, Machine, done
from tests.roles.server.shared_store import SharedStore

_numbers = count()


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


class Pair:
    """Two servers on one store. `intrude` is done by the other one each time that `one` is about to replace what it read."""

    def __init__(self, one: SharedStore, other: SharedStore) -> None:
        self.now = START
        self.random = Random(1)
        self._side = one
        self.one, self.other = (Registry(side, clock=lambda: self.now, random=self.random.randbytes) for side in (one, other))

    def intrude(self, deed: Callable[[], object], times: int = 1) -> None:
        left = iter(range(times))

        def intrusion() -> None:
            if next(left, None) is not None:
                deed()
                self.now += 1

        self._side.intrusion = intrusion

    def archive(self) -> Archive:
        """What is held now, as archived a second ago."""
        archive = read_archive(self.one.backup())
        self.now += 1
        return archive

    def create(self, name: str) -> None:
        done(self.other.create_user(name))

    def names(self, at: float | None = None) -> list[str]:
        """The users now, as both servers have it; else as the log has it."""
        found = [self._names(registry, at) for registry in (self.one, self.other)]
        assert found[0] == found[1]
        return found[0]

    def _names(self, registry: Registry, at: float | None) -> list[str]:
        done(registry.housekeeping())  # it has taken in what it heard of
        rows = registry.users() if at is None else registry.audit_at(at)["configuration"]["user"].values()
        return sorted(row["name"] for row in rows)


@pytest.fixture(params=["kv", "sqlite", "postgresql"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    kind = request.param
    with ExitStack() as stack:
        if kind == "postgresql":
            server: Cluster = request.getfixturevalue("database")
            url = server.create(f"restore{next(_numbers)}")
            stores = [open_store(url, tmp_path / name) for name in ("one", "other")]
        else:
            stores = [open_store(kind, tmp_path / "state")] * 2
        for store in stores:
            stack.callback(store.close)
        sides: list[SharedStore] = []
        lock = threading.RLock()
        made = Pair(*(SharedStore(store, sides, lock) for store in stores))
        for registry in (made.one, made.other):
            stack.callback(registry.close)
        yield made


def _last(pair: Pair) -> dict[str, Any]:
    (row,) = pair.one.audit(limit=1)
    return row


def test_restore_that_another_commit_overtakes_names_that_commit_in_its_record(pair: Pair) -> None:
    pair.create("anna")
    archive = pair.archive()
    pair.intrude(lambda: pair.create("meanwhile"))
    assert done(pair.one.restore(archive, "server.restore", LOCAL)) is False
    restored = pair.now
    assert pair.names() == ["admin", "anna"]
    assert [row["action"] for row in pair.one.audit(newest_first=False)] == ["server.start", "users.create", "users.create", "server.restore"]
    assert [row["seq"] for row in pair.one.audit(newest_first=False)] == [1, 2, 3, 4]
    (change,) = _last(pair)["changes"]
    assert (change["kind"], change["id"], change["before"]["name"], change["after"]) == ("user", "3", "meanwhile", None)
    pair.now += 1
    done(pair.other.create_user("late"))
    assert [row["id"] for row in pair.other.users() if row["name"] == "late"] == [4]  # 3 has been somebody's
    assert pair.names(restored) == ["admin", "anna"]
    assert pair.names(restored - 1) == ["admin", "anna", "meanwhile"]
    assert pair.names(restored - 2) == ["admin", "anna"]


def test_restore_that_a_change_of_what_it_brings_back_overtakes_tells_both_names(pair: Pair) -> None:
    pair.create("anna")
    archive = pair.archive()
    pair.intrude(lambda: done(pair.one.rename_user("anna", "berta")))  # by another admin of the same server
    done(pair.one.restore(archive, "server.restore", LOCAL))
    (change,) = _last(pair)["changes"]
    assert (change["before"]["name"], change["after"]["name"]) == ("berta", "anna")
    assert pair.names(pair.now - 1) == ["admin", "berta"]


def test_restore_that_a_change_nobody_audits_overtakes_goes_on(pair: Pair) -> None:
    node = done(pair.one.register(Machine(pair.random, "host").request(done(pair.one.create_key())["key"]))).node
    assert node is not None
    archive = pair.archive()
    pair.intrude(lambda: (pair.other.connected(node), pair.other.disconnected(node), pair.names()))
    done(pair.one.restore(archive, "server.restore", LOCAL))
    assert (_last(pair)["action"], _last(pair)["changes"]) == ("server.restore", [])


def test_restore_that_is_overtaken_each_time_is_refused_and_changes_nothing(pair: Pair) -> None:
    archive = pair.archive()
    numbers = count()
    pair.intrude(lambda: pair.create(f"u{next(numbers)}"), RESTORE_ATTEMPTS)
    with pytest.raises(StaleError, match="stop the servers"):
        pair.one.restore(archive, "server.restore", LOCAL)
    everybody = sorted(["admin", *(f"u{number}" for number in range(RESTORE_ATTEMPTS))])
    assert pair.names() == everybody
    assert _last(pair)["action"] == "users.create"
    done(pair.one.restore(archive, "server.restore", LOCAL))
    assert pair.names() == ["admin"]
    assert pair.names(pair.now - 1) == everybody


def test_import_that_a_registration_overtakes_finds_something_to_lose(pair: Pair) -> None:
    archive = pair.archive()
    pair.intrude(lambda: pair.create("meanwhile"))
    with pytest.raises(ConflictError, match="`restore` replaces"):
        pair.one.restore(archive, "server.import", LOCAL)
    assert pair.names() == ["admin", "meanwhile"]


def test_restore_that_another_restore_overtakes_tells_what_that_one_brought(pair: Pair) -> None:
    empty = pair.archive()
    pair.create("anna")
    with_anna = pair.archive()
    pair.create("berta")
    pair.intrude(lambda: done(pair.other.restore(with_anna, "server.restore", LOCAL)))
    done(pair.one.restore(empty, "server.restore", LOCAL))
    (change,) = _last(pair)["changes"]
    assert (change["before"]["name"], change["after"]) == ("anna", None)
    assert pair.names() == ["admin"]
    assert pair.names(pair.now - 1) == ["admin", "anna"]
