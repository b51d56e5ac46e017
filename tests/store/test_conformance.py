"""What every backend of the store must do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from calnet.errors import ConflictError, StateError
from calnet.store.interface import Delete, Expect, Key, NodeRecord, Put, Record, SettingRecord, Store, UserRecord, key_of
from calnet.store.opening import open_store
from tests.store.samples import AUTH_KEY, RETIRED, SETTING, key, node, user

Reopen = Callable[[], Store]


def held(store: Store) -> dict[Key, Record]:
    return {key_of(record): record for record in store.load()}


def test_store_new_is_empty(store: Store) -> None:
    assert list(store.load()) == []


def test_commit_of_every_kind_is_loaded_again_equal(store: Store, reopen: Reopen) -> None:
    records: list[Record] = [user(), node(), node(2, previous_node_key=key(9, "n"), previous_until=7.0, pending_code="ABCD-EFGH"), AUTH_KEY, RETIRED, SETTING]
    store.commit([Put(record) for record in records])
    assert sorted(map(repr, store.load())) == sorted(map(repr, records))
    assert sorted(map(repr, reopen().load())) == sorted(map(repr, records))


def test_put_of_a_known_id_replaces_and_delete_removes(store: Store, reopen: Reopen) -> None:
    store.commit([Put(user()), Put(node())])
    store.commit([Put(node(hostname="other")), Delete(key_of(user()))])
    store.commit([Delete(key_of(user()))])
    assert list(reopen().load()) == [node(hostname="other")]


def test_commit_of_nothing_changes_nothing(store: Store) -> None:
    store.commit([])
    assert list(store.load()) == []


def test_last_change_of_one_record_in_a_commit_counts(store: Store) -> None:
    store.commit([Put(user(1, "first")), Delete(key_of(user())), Put(user(1, "last"))])
    assert list(store.load()) == [user(1, "last")]
    store.commit([Put(user(2, "first"))])


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (user(2, "user-1"), "user name"),
        (node(2, name="node-1"), "node name"),
        (node(2, node_key=key(1, "n")), "node key"),
        (node(2, previous_node_key=key(1, "n")), "node key"),
        (node(2, node_key=key(7, "n")), "node key"),
        (node(2, control_key=key(1, "c")), "control key"),
        (node(2, addresses=("100.70.0.1",)), "address"),
        (node(2, addresses=("100.70.0.2", "fd00::1")), "address"),
        (node(2, pending_code="AAAA-BBBB"), "approval code"),
    ],
)
def test_unique_value_of_another_is_a_conflict_and_nothing_is_changed(store: Store, second: Record, what: str) -> None:
    store.commit([Put(user()), Put(node(previous_node_key=key(7, "n"), pending_code="AAAA-BBBB"))])
    before = held(store)
    with pytest.raises(ConflictError, match=what):
        store.commit([Put(SETTING), Put(second)])
    assert held(store) == before
    store.commit([Put(SETTING)])


def test_two_records_of_one_commit_with_one_name_conflict(store: Store) -> None:
    with pytest.raises(ConflictError, match="user name"):
        store.commit([Put(user(1, "same")), Put(user(2, "same"))])
    assert list(store.load()) == []


def test_unique_value_given_up_is_free_at_once_and_within_the_commit(store: Store) -> None:
    store.commit([Put(user(1, "a")), Put(user(2, "b"))])
    store.commit([Put(user(1, "b")), Put(user(2, "a"))])
    store.commit([Put(user(3, "b")), Delete(key_of(user(1)))])
    assert held(store).keys() == {Key(UserRecord, 2), Key(UserRecord, 3)}


def test_nameless_nodes_do_not_conflict(store: Store) -> None:
    store.commit([Put(node(1, name="", addresses=())), Put(node(2, name="", addresses=()))])
    assert len(held(store)) == 2


def test_expectation_holds_only_for_exactly_that_record(store: Store) -> None:
    store.commit([Put(user())], [Expect(key_of(user()), None)])
    with pytest.raises(ConflictError, match="changed meanwhile"):
        store.commit([Put(SETTING)], [Expect(key_of(user()), None)])
    with pytest.raises(ConflictError, match="changed meanwhile"):
        store.commit([Put(SETTING)], [Expect(key_of(user()), user(1, "other"))])
    store.commit([Put(user(1, "new"))], [Expect(key_of(user()), user())])
    assert list(store.load()) == [user(1, "new")]


def test_many_records_grow_the_file(store: Store, reopen: Reopen) -> None:
    big = [SettingRecord(f"big.{number}", bytes(400_000)) for number in range(60)]
    store.commit([Put(record) for record in big])
    assert sum(1 for _ in reopen().load()) == 60


def test_threads_committing_at_once_lose_nothing_and_share_no_name(store: Store, reopen: Reopen) -> None:
    admitted: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 25):
            store.commit([Put(node(number))])
            try:
                store.commit([Put(user(number, f"shared-{number % 25}"))])
                admitted.append(number % 25)
            except ConflictError:
                pass

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 100, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(admitted) == list(range(25))
    records = held(reopen())
    assert sum(kind is NodeRecord for kind, _ in records) == 100
    assert sum(kind is UserRecord for kind, _ in records) == 25


def test_closed_store_says_so_and_closes_twice(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StateError, match="is closed"):
        store.load()
    with pytest.raises(StateError, match="is closed"):
        store.commit([Put(user())])


def fill(store: Store) -> tuple[int, StateError]:
    """Commit until the disk refuses: (count acknowledged last, the error)."""
    acknowledged = -1
    for number in range(100):
        try:
            store.commit([Put(SettingRecord(f"big.{number}", bytes(100_000))), Put(SettingRecord("count", str(number).encode()))])
        except StateError as error:
            return acknowledged, error
        acknowledged = number
    pytest.fail("the small disk took 10 MB")


def test_full_disk_is_one_clear_error_and_nothing_acknowledged_is_lost(kind: str, small_disk: Path) -> None:
    store = open_store(kind, small_disk / "state")
    store.commit([Put(user())])
    count, error = fill(store)
    assert "no space left on that disk" in str(error)
    assert "\n" not in str(error)
    assert held(store)[Key(SettingRecord, "count")] == SettingRecord("count", str(count).encode())
    store.close()
    store = open_store(kind, small_disk / "state")
    records = held(store)
    assert records[key_of(user())] == user()
    assert records[Key(SettingRecord, "count")] == SettingRecord("count", str(count).encode())
    assert Key(SettingRecord, f"big.{count + 1}") not in records
    store.close()


def test_store_goes_on_once_there_is_room_again(kind: str, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1024 * 1024))
    store = open_store(kind, small_disk / "state")
    count, _ = fill(store)
    (small_disk / "ballast").unlink()
    store.commit([Put(user())])
    assert held(store)[Key(SettingRecord, "count")] == SettingRecord("count", str(count).encode())
    assert held(store)[key_of(user())] == user()
    store.close()
