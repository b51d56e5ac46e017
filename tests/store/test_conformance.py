"""What every backend of the store must do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calnet.errors import ConflictError, StaleError, StateError
from calnet.store import documents
from calnet.store.documents import DocumentStore
from calnet.store.interface import AuditChange, AuditRecord, Commit, Delete, Key, NodeRecord, Put, Record, SettingRecord, UserRecord, key_of
from calnet.store.opening import open_store
from tests.store.samples import ANSWER, AUTH_KEY, RETIRED, SESSION, SETTING, TOKEN, key, node, user

Reopen = Callable[[], DocumentStore]


def held(store: DocumentStore) -> dict[Key, Record]:
    return {key_of(record): record for record in store.load()[1]}


def test_store_new_is_empty(store: DocumentStore) -> None:
    assert list(store.load()[1]) == []


def test_commit_of_every_kind_is_loaded_again_equal(store: DocumentStore, reopen: Reopen) -> None:
    records: list[Record] = [
        user(),
        node(),
        node(2, previous_node_key=key(9, "n"), previous_until=7.0, pending_code="ABCD-EFGH"),
        AUTH_KEY,
        RETIRED,
        SETTING,
        TOKEN,
        SESSION,
        ANSWER,
    ]
    store.commit([Put(record) for record in records])
    assert sorted(map(repr, store.load()[1])) == sorted(map(repr, records))
    assert sorted(map(repr, reopen().load()[1])) == sorted(map(repr, records))


def test_put_of_a_known_id_replaces_and_delete_removes(store: DocumentStore, reopen: Reopen) -> None:
    store.commit([Put(user()), Put(node())])
    store.commit([Put(node(hostname="other")), Delete(key_of(user()))])
    store.commit([Delete(key_of(user()))])
    assert list(reopen().load()[1]) == [node(hostname="other")]


def test_commit_of_nothing_changes_nothing(store: DocumentStore) -> None:
    store.commit([])
    assert list(store.load()[1]) == []


def test_last_change_of_one_record_in_a_commit_counts(store: DocumentStore) -> None:
    store.commit([Put(user(1, "first")), Delete(key_of(user())), Put(user(1, "last"))])
    assert list(store.load()[1]) == [user(1, "last")]
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
        (node(2, discovery_key=key(1, "d")), "discovery key"),
        (replace(user(2), issuer="https://id.example", subject="1"), "identity"),
        (node(2, addresses=("100.70.0.1",)), "address"),
        (node(2, addresses=("100.70.0.2", "fd00::1")), "address"),
        (node(2, pending_code="AAAA-BBBB"), "approval code"),
    ],
)
def test_unique_value_of_another_is_a_conflict_and_nothing_is_changed(store: DocumentStore, second: Record, what: str) -> None:
    store.commit([Put(replace(user(), issuer="https://id.example", subject="1")), Put(node(previous_node_key=key(7, "n"), pending_code="AAAA-BBBB"))])
    before = held(store)
    with pytest.raises(ConflictError, match=what):
        store.commit([Put(SETTING), Put(second)])
    assert held(store) == before
    store.commit([Put(SETTING)])


def test_two_records_of_one_commit_with_one_name_conflict(store: DocumentStore) -> None:
    with pytest.raises(ConflictError, match="user name"):
        store.commit([Put(user(1, "same")), Put(user(2, "same"))])
    assert list(store.load()[1]) == []


def test_unique_value_given_up_is_free_at_once_and_within_the_commit(store: DocumentStore) -> None:
    store.commit([Put(user(1, "a")), Put(user(2, "b"))])
    store.commit([Put(user(1, "b")), Put(user(2, "a"))])
    store.commit([Put(user(3, "b")), Delete(key_of(user(1)))])
    assert held(store).keys() == {Key(UserRecord, 2), Key(UserRecord, 3)}


def test_nameless_nodes_do_not_conflict(store: DocumentStore) -> None:
    store.commit([Put(node(1, name="", addresses=())), Put(node(2, name="", addresses=()))])
    assert len(held(store)) == 2


def entry(at: float, action: str = "users.create") -> AuditRecord:
    change = AuditChange("user", "1", None, {"name": "user-1", "groups": ["a"], "created": 1000.0})
    return AuditRecord(at, "user", "1", "admin", "192.0.2.1", action, (change,))


def test_commit_counts_versions_and_numbers_audit_records(store: DocumentStore, reopen: Reopen) -> None:
    assert store.load()[0] == Commit(0, 0)
    assert store.commit([Put(user())]) == Commit(1, 0)
    assert store.commit([], audit=[entry(1.0), entry(2.0)]) == Commit(2, 2)
    assert store.commit([Delete(key_of(user()))], audit=[entry(3.0)]) == Commit(3, 3)
    assert store.commit([]) == Commit(3, 3)
    assert reopen().load()[0] == Commit(3, 3)


def test_commit_on_another_version_is_stale_and_changes_nothing(store: DocumentStore) -> None:
    store.commit([Put(user())], version=0)
    with pytest.raises(StaleError):
        store.commit([Put(user(2))], audit=[entry(1.0)], version=0)
    assert list(store.load()[1]) == [user()]
    assert store.commit([Put(user(2))], version=1) == Commit(2, 0)


def test_conflict_leaves_version_and_audit_log(store: DocumentStore) -> None:
    store.commit([Put(user(1, "same"))])
    with pytest.raises(ConflictError):
        store.commit([Put(user(2, "same"))], audit=[entry(1.0)])
    assert store.load()[0] == Commit(1, 0)
    assert store.audit() == []


def test_audit_is_read_in_pages_from_either_end(store: DocumentStore) -> None:
    for number in range(1, 8):
        store.commit([], audit=[entry(float(number))])
    records = store.audit()
    assert [record.seq for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert records[2] == replace(entry(3.0), seq=3)
    assert [record.seq for record in store.audit(after=2, before=6)] == [3, 4, 5]
    assert [record.seq for record in store.audit(limit=2, newest_first=True)] == [7, 6]
    assert [record.seq for record in store.audit(before=6, limit=2, newest_first=True)] == [5, 4]
    assert [record.seq for record in store.audit(after=5, newest_first=True)] == [7, 6]
    assert store.audit(after=7) == []
    assert store.audit(before=1, newest_first=True) == []


def test_changes_since_names_each_changed_record_once_as_it_is_now(store: DocumentStore) -> None:
    store.commit([Put(user(1)), Put(node(1))])
    store.commit([Put(user(1, "b")), Put(SETTING)])
    store.commit([Put(user(1, "c")), Delete(key_of(node(1)))])
    commit, changes = store.changes_since(1)
    assert commit == Commit(3, 0)
    assert sorted(changes, key=repr) == sorted([Put(user(1, "c")), Put(SETTING), Delete(key_of(node(1)))], key=repr)
    assert store.changes_since(3) == (Commit(3, 0), [])


def test_changes_since_reaches_back_as_far_as_the_log_alone(store: DocumentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LOG_KEPT", 3)
    for number in range(6):
        store.commit([Put(user(1, f"user-{number}"))])
    assert store.changes_since(3)[1] == [Put(user(1, "user-5"))]
    with pytest.raises(StateError, match="no longer knows"):
        store.changes_since(2)
    with pytest.raises(StateError, match="went back"):
        store.changes_since(7)


def test_replace_holds_the_new_records_alone(store: DocumentStore, reopen: Reopen) -> None:
    store.commit([Put(user(1, "old")), Put(node())], audit=[entry(1.0)])
    assert store.replace([user(2, "old"), SETTING], [replace(entry(5.0), seq=4)], version=1) == Commit(2, 4)
    store = reopen()
    assert held(store) == {key_of(record): record for record in (user(2, "old"), SETTING)}
    assert store.audit() == [replace(entry(5.0), seq=4)]
    assert store.commit([Put(node())], audit=[entry(6.0)]) == Commit(3, 5)


def test_replace_of_another_state_than_the_present_one_is_stale_and_changes_nothing(store: DocumentStore, reopen: Reopen) -> None:
    read = store.commit([Put(user(1))], audit=[entry(1.0)])
    store.commit([Put(user(2))], audit=[entry(2.0)])
    with pytest.raises(StaleError):
        store.replace([SETTING], [replace(entry(5.0), seq=2)], version=read.version)
    assert store.changes_since(read.version) == (Commit(2, 2), [Put(user(2))])
    store = reopen()
    assert held(store) == {key_of(record): record for record in (user(1), user(2))}
    assert [record.at for record in store.audit()] == [1.0, 2.0]
    assert store.replace([SETTING], [replace(entry(5.0), seq=3)], version=2) == Commit(3, 3)


def test_replace_while_others_commit_loses_nothing_that_was_acknowledged(store: DocumentStore, beside: DocumentStore) -> None:
    finished = threading.Event()

    def work() -> None:
        for number in range(40):
            beside.commit([Put(SettingRecord(f"other.{number}", b""))], audit=[entry(float(number))])
        finished.set()

    other = threading.Thread(target=work)
    other.start()
    replaced = 0
    while not finished.is_set() or not replaced:
        last, records = store.load()
        log = store.audit(limit=1000)
        with contextlib.suppress(StaleError):
            store.replace([*records, SettingRecord(f"own.{replaced}", b"")], log, version=last.version)
            replaced += 1
    other.join()
    wanted = {f"other.{number}" for number in range(40)} | {f"own.{number}" for number in range(replaced)}
    assert {key.id for key in held(store)} == wanted
    assert [record.at for record in store.audit(limit=1000)] == [float(number) for number in range(40)]


def test_many_records_grow_the_file(store: DocumentStore, reopen: Reopen) -> None:
    big = [SettingRecord(f"big.{number}", bytes(400_000)) for number in range(60)]
    store.commit([Put(record) for record in big])
    assert sum(1 for _ in reopen().load()[1]) == 60


def test_threads_committing_at_once_lose_nothing_and_share_no_name(store: DocumentStore, reopen: Reopen) -> None:
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


def test_closed_store_says_so_and_closes_twice(store: DocumentStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StateError, match="is closed"):
        store.load()
    with pytest.raises(StateError, match="is closed"):
        store.commit([Put(user())])


def fill(store: DocumentStore) -> tuple[int, StateError]:
    """Commit until the disk refuses: (count acknowledged last, the error)."""
    acknowledged = -1
    for number in range(100):
        try:
            store.commit([Put(SettingRecord(f"big.{number}", bytes(100_000))), Put(SettingRecord("count", str(number).encode()))])
        except StateError as error:
            return acknowledged, error
        acknowledged = number
    pytest.fail("the small disk took 10 MB")


def test_full_disk_is_one_clear_error_and_nothing_acknowledged_is_lost(embedded: str, small_disk: Path) -> None:
    store = open_store(embedded, small_disk / "state")
    store.commit([Put(user())])
    count, error = fill(store)
    assert "no space left on that disk" in str(error)
    assert "\n" not in str(error)
    assert held(store)[Key(SettingRecord, "count")] == SettingRecord("count", str(count).encode())
    store.close()
    store = open_store(embedded, small_disk / "state")
    records = held(store)
    assert records[key_of(user())] == user()
    assert records[Key(SettingRecord, "count")] == SettingRecord("count", str(count).encode())
    assert Key(SettingRecord, f"big.{count + 1}") not in records
    store.close()


def test_store_goes_on_once_there_is_room_again(embedded: str, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1024 * 1024))
    store = open_store(embedded, small_disk / "state")
    count, _ = fill(store)
    (small_disk / "ballast").unlink()
    store.commit([Put(user())])
    assert held(store)[Key(SettingRecord, "count")] == SettingRecord("count", str(count).encode())
    assert held(store)[key_of(user())] == user()
    store.close()
