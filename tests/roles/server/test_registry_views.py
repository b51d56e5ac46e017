"""Netmaps, who is told of what, presence, durability, and random lives held against a fresh start."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from calnet.errors import NotFoundError, RefusedError, StateError
from calnet.model import Endpoint, NodeId, Relay
from calnet.roles.server.netmaps import Netmaps
from calnet.store.interface import AuditRecord, Change, Commit, Store
from calnet.wire.control import NetmapDelta
from tests.roles.server.registries import START, Machine, Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def test_nodes_of_two_users_do_not_see_each_other_and_all_see_tagged_ones(office: Office) -> None:
    done(office.registry.create_user("bob"))
    one, two, tagged = office.join(), office.join(user="bob"), office.join(tags=("tag:a",))
    assert office.peers(one) == [tagged]
    assert office.peers(two) == [tagged]
    assert office.peers(tagged) == [one, two]
    assert not office.registry.sees(one, two)
    assert office.registry.sees(one, tagged)
    assert office.registry.sees(tagged, one)
    assert not office.registry.sees(one, one)
    assert not office.registry.sees(one, NodeId(99))


def test_new_node_is_told_to_those_who_see_it_alone(office: Office) -> None:
    done(office.registry.create_user("bob"))
    one, two = office.join(), office.join(user="bob")
    office.last()
    three = office.join()
    told = office.last()
    assert told.netmaps == {one, three}
    assert told.standings == {three}
    assert not told.urgent
    assert two not in told.netmaps


def test_presence_is_seen_by_peers(office: Office) -> None:
    node, other = office.join(), office.join()
    assert (office.netmap(other).peers[0].online, office.netmap(other).peers[0].last_seen_at) == (False, None)
    office.last()
    office.registry.connected(node)
    assert office.last().netmaps == {node, other}
    office.registry.publish(node, (Endpoint("192.0.2.1", 41641),))
    peer = office.netmap(other).peers[0]
    assert (peer.online, peer.endpoints) == (True, (Endpoint("192.0.2.1", 41641),))
    office.now += 60
    office.registry.disconnected(node)
    peer = office.netmap(other).peers[0]
    assert (peer.online, peer.last_seen_at) == (False, START + 60)
    office.reopen()
    assert office.netmap(other).peers[0].last_seen_at == START + 60
    assert office.registry.node(str(node))["last_seen"] == "2027-01-15T08:01:00Z"


def test_presence_of_an_unknown_node_is_nothing(office: Office) -> None:
    office.registry.connected(NodeId(9))
    office.registry.publish(NodeId(9), ())
    office.registry.disconnected(NodeId(9))
    assert office.last().netmaps == frozenset()
    assert office.registry.standing_of(NodeId(9)).node is None


def test_netmap_version_grows_with_content_only_and_across_restarts(office: Office) -> None:
    node, other = office.join(), office.join()
    first, _ = office.registry.news(node, None)
    same, nothing = office.registry.news(node, first)
    assert (same.version, nothing) == (first.version, None)
    done(office.registry.update(other, os="plan9"))
    second, _ = office.registry.news(node, same)
    assert second.version > first.version
    third, delta = office.registry.news(node, second, (Relay("ws://relay"),), ("stun:3478",))
    assert isinstance(delta, NetmapDelta)
    assert (delta.since, delta.version, delta.put, delta.relays, delta.stun) == (second.version, third.version, (), ("ws://relay",), ("stun:3478",))
    assert third.version > second.version
    office.now += 1
    office.reopen()
    assert office.netmap(node).version > third.version


def test_netmap_version_of_a_node_that_was_away_differs_from_the_one_it_had(office: Office) -> None:
    node, other = office.join(), office.join()
    had = office.netmap(node)
    done(office.registry.disable_node(str(node)))
    done(office.registry.delete_node(str(other)))
    done(office.registry.enable_node(str(node)))
    now = office.netmap(node)
    assert now.peers == ()
    assert now.version > had.version


def test_netmap_of_a_deleted_node_is_not_found(office: Office) -> None:
    node = office.join()
    office.netmap(node)
    done(office.registry.delete_node(str(node)))
    with pytest.raises(NotFoundError):
        office.netmap(node)


def test_filter_accepts_peers_of_one_user(office: Office) -> None:
    node, _ = office.join(), office.join()
    (rule,) = office.netmap(node).filter
    assert str(rule.destinations[0]) == "100.70.0.1/32"


class Brittle:
    """A store whose disk can be full, and that can be held up."""

    shared = False

    def __init__(self, store: Store) -> None:
        self.store = store
        self.full = False
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.commits = 0

    def load(self) -> object:
        return self.store.load()

    def watch(self, *listeners: object) -> None:
        pass

    def commit(self, changes: Sequence[Change], *, audit: Sequence[AuditRecord] = (), version: int | None = None) -> Commit:
        self.open_gate.wait(30)
        if self.full:
            raise StateError("no space left on that disk")
        self.commits += 1
        return self.store.commit(changes, audit=audit, version=version)

    def close(self) -> None:
        self.store.close()


def brittle_office(directory: Path) -> tuple[Office, Brittle]:
    kept: list[Brittle] = []

    def wrap(store: Store) -> Store:
        kept.append(Brittle(store))
        return kept[-1]  # type: ignore[return-value]

    office = Office(directory, wrap=wrap)
    return office, kept[-1]


def test_full_disk_refuses_the_change_and_nothing_of_it_is_seen(tmp_path: Path) -> None:
    office, store = brittle_office(tmp_path / "state")
    node = office.join()
    key, before = office.auth_key(), office.netmap(node)
    store.full = True
    machine = office.machine()
    office.last()
    with pytest.raises(StateError, match="no space left"):
        office.register(machine, key)
    assert office.last().netmaps == frozenset()
    assert replace(office.netmap(node), version=before.version) == before
    assert office.registry.standing(machine.control_key).node is None
    store.full = False
    office.register(machine, key)
    assert len(office.peers(node)) == 1
    office.registry.close()


def test_nothing_is_seen_or_answered_before_it_is_durable_and_waiting_changes_share_a_commit(tmp_path: Path) -> None:
    office, store = brittle_office(tmp_path / "state")
    store.open_gate.clear()
    first = office.registry.create_user("first")
    others = [office.registry.create_user(f"user-{number}") for number in range(100)]
    again = [office.registry.create_user("user-7"), office.registry.create_user("user-8")]
    cancelled = office.registry.create_user("cancelled")
    assert cancelled.cancel()
    assert not first.done()
    assert [user["name"] for user in office.registry.users()] == ["admin"]
    before = store.commits
    store.open_gate.set()
    for future in (first, *others):
        done(future)
    for future in again:
        assert isinstance(future.exception(30), RefusedError)
    assert store.commits - before <= 3
    assert len(office.registry.users()) == 102
    office.registry.close()


def test_defect_in_one_plan_does_not_stop_the_writer(office: Office) -> None:
    broken = office.registry.create_key(tags=None)  # type: ignore[arg-type]
    assert isinstance(broken.exception(30), TypeError)
    done(office.registry.create_user("bob"))


def test_first_start_on_a_full_disk_closes_the_store(tmp_path: Path) -> None:
    def full(store: Store) -> Store:
        brittle = Brittle(store)
        brittle.full = True
        return brittle  # type: ignore[return-value]

    with pytest.raises(StateError):
        Office(tmp_path / "state", wrap=full)
    Office(tmp_path / "state").registry.close()


@pytest.mark.parametrize("damage", [{"control-key": b"x"}, {"prefix-v4": b"x"}, {"prefix-v6": b"10.0.0.0/8"}])
def test_damaged_settings_are_one_clear_line(office: Office, damage: dict[str, bytes]) -> None:
    from calnet.store.interface import Put, SettingRecord
    from calnet.store.opening import open_store

    office.registry.close()
    store = open_store("kv", office.directory)
    store.commit([Put(SettingRecord(name, value)) for name, value in damage.items()])
    store.close()
    with pytest.raises(StateError, match="the store is damaged") as raised:
        office.open()
    assert "\n" not in str(raised.value)


# --- random lives


def live(office: Office, random: Random, machines: list[Machine], keys: list[str]) -> None:
    """One random thing happens; a refusal is fine."""
    registry = office.registry
    node = str(random.randint(1, 12))
    number = NodeId(int(node))
    machine = random.choice(machines)
    office.now += random.choice([0.0, 1.0, 200.0, 86_400.0])
    route = random.choice(["192.168.1.0/24", "10.0.0.0/8", "100.70.0.0/28", "0.0.0.0/0"])
    if random.random() < 0.1:
        machine.renew()
    action = random.randrange(18)
    try:
        if action < 5:
            done(registry.register(machine.request(random.choice([*keys, ""]), random.choice([(), (route,)]))))
        elif action == 5:
            keys.append(office.auth_key(user=random.choice([None, "bob"]), reusable=random.random() < 0.5, ephemeral=random.random() < 0.3))
        elif action == 6:
            keys.append(office.auth_key(tags=("tag:a",), expires_s=random.choice([10.0, 1e6])))
        elif action == 7:
            registry.connected(number)
        elif action == 8:
            registry.disconnected(number)
        elif action == 9:
            done(random.choice([registry.disable_node, registry.enable_node])(node))
        elif action == 10:
            done(registry.expire_node(node) if random.random() < 0.5 else registry.approve_node(node))
        elif action == 11:
            done(random.choice([registry.delete_node(node), registry.logout(number)]))
        elif action == 12:
            done(registry.tag_node(node, ("tag:b",)))
        elif action == 13:
            done(registry.approve_routes(node, (route,)))
        elif action == 14:
            done(registry.revoke_routes(node, (route,)))
        elif action == 15:
            done(registry.update(number, hostname=random.choice(["a", "b", "c"]), routes=random.choice([None, (route,)])))
        elif action == 16:
            done(registry.create_user(random.choice(["bob", "carol"])))
        else:
            done(registry.housekeeping())
    except RefusedError:
        pass


def picture(office: Office, *, memory: bool) -> dict[int, object]:
    """Every active node's netmap, without versions, and without what only memory knows unless asked for."""
    shown: dict[int, object] = {}
    for row in office.registry.nodes():
        if row["state"] == "active":
            netmap = replace(office.netmap(NodeId(row["id"])), version=0)
            peers = netmap.peers if memory else tuple(replace(peer, online=False, last_seen_at=None) for peer in netmap.peers)
            shown[row["id"]] = replace(netmap, peers=peers)
    return shown


@pytest.mark.parametrize("seed", range(6))
def test_random_life_is_told_to_all_it_concerns_and_is_what_a_fresh_start_finds(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    office = Office(tmp_path / "state", prefix="100.70.0.0/28", seed=seed)
    machines = [office.machine(random.choice(["a", "b", "web"])) for _ in range(8)]
    keys: list[str] = [office.auth_key(reusable=True, expires_s=1e7)]
    for _ in range(120):
        done(office.registry.housekeeping())
        office.last()
        before = picture(office, memory=True)
        live(office, random, machines, keys)
        done(office.registry.housekeeping())
        after, told = picture(office, memory=True), office.last()
        assert {node for node in before.keys() | after.keys() if before.get(node) != after.get(node)} <= told.netmaps
        assert before.keys() ^ after.keys() <= told.standings
        addresses = [address for row in office.registry.nodes() for address in row["addresses"]]
        names = [row["name"] for row in office.registry.nodes() if row["name"]]
        assert len(set(addresses)) == len(addresses)
        assert len(set(names)) == len(names)
    remembered, rows = picture(office, memory=False), office.registry.nodes()
    office.reopen()
    assert picture(office, memory=False) == remembered
    assert [{**row, "online": False, "last_seen": None} for row in office.registry.nodes()] == [{**row, "online": False, "last_seen": None} for row in rows]
    office.registry.close()


def test_refresh_of_a_node_that_never_was_is_nothing() -> None:
    from calnet.roles.server.snapshot import Snapshot

    assert Netmaps((), 1).refresh([NodeId(1)], Snapshot(), {}, 0.0) == (set(), False)
