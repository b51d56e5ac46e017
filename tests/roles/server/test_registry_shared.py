"""Several servers on one store: each follows the others' commits, plans anew what was decided on an older state, and shows exactly what the store holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from calnet.errors import ConflictError, ForbiddenError, StaleError
from calnet.model import NodeId, UserId
from calnet.roles.server.actors import Actor, Terms
from calnet.roles.server.registry import Registry
from calnet.roles.server.standing import Changed, NodeState, RegisterRequest
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import UserWish
from calnet.store.interface import AuditRecord, Store
from calnet.store.opening import open_store
from tests.postgres import cluster
from tests.roles.server.registries import START, Machine, done, netmap_of
from tests.roles.server.shared_store import SharedStore


class Servers:
    """Registries on one store, with one clock."""

    def __init__(self, store: Store, count: int, of: Callable[[int], Store] | None = None) -> None:
        """`of` gives each server a store of its own, where several processes may have one; else they share `store`."""
        self.now = START
        self.random = Random(1)
        self.store = store
        self.sides: list[SharedStore] = []
        self.told: list[list[Changed]] = [[] for _ in range(count)]
        lock = threading.RLock()
        of = of or (lambda _: SharedStore(store, self.sides, lock))
        self.all = [Registry(of(number), clock=lambda: self.now, random=self.random.randbytes) for number in range(count)]
        for registry, told in zip(self.all, self.told, strict=True):
            registry.subscribe(told.append)

    def settle(self) -> None:
        """Wait until each has taken in what it heard of."""
        for registry in self.all:
            done(registry.housekeeping())

    def view(self, number: int) -> list[object]:
        registry = self.all[number]
        rows: list[Callable[[], object]] = [
            registry.users,
            registry.keys,
            registry.nodes,
            registry.tokens,
            registry.sessions,
            registry.policy,
            registry.settings,
        ]
        return [read() for read in rows]

    def machine(self, name: str = "host") -> Machine:
        return Machine(self.random, name)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    store = open_store("kv", tmp_path / "state")
    made = Servers(store, 2)
    yield made
    for registry in made.all:
        registry.close()
    store.close()


def test_second_server_finds_what_the_first_made_and_makes_nothing_of_its_own(servers: Servers) -> None:
    first, second = servers.all
    assert first.control_key.secret_bytes() == second.control_key.secret_bytes()
    assert first.prefixes == second.prefixes
    assert len(first.audit()) == 1


def test_change_on_one_server_is_published_on_the_other_with_all_that_follows(servers: Servers) -> None:
    first, second = servers.all
    heard: list[AuditRecord] = []
    second.subscribe_audit(heard.extend)
    key = done(first.create_key(reusable=True))["key"]
    nodes = [done(first.register(servers.machine().request(key))).node for _ in range(2)]
    servers.settle()
    assert servers.view(0) == servers.view(1)
    node, other = (node for node in nodes if node is not None)
    assert [peer.id for peer in netmap_of(second, node).peers] == [other]
    servers.told[1].clear()
    done(first.disable_node(str(node)))
    servers.settle()
    assert second.standing_of(node).state is NodeState.DISABLED
    assert [changed for changed in servers.told[1] if changed.urgent and node in changed.standings and other in changed.netmaps]
    done(first.set_policy("{}"))
    servers.settle()
    assert second.policy() == first.policy()
    assert netmap_of(second, other).peers == ()
    assert [record.action for record in heard] == ["keys.create", "nodes.register", "nodes.register", "nodes.disable", "policy.set"]


def test_plan_decided_on_an_older_state_is_decided_anew(servers: Servers) -> None:
    first, second = servers.all
    key = done(first.create_key())["key"]
    servers.settle()
    servers.sides[1].deaf = True
    done(first.create_user("bob"))
    done(first.register(servers.machine().request(key)))
    with pytest.raises(ConflictError, match="there is a user bob"):
        done(second.create_user("bob"))  # refused on the state it knows, or on the newest: never made twice
    with pytest.raises(ForbiddenError, match="has been used"):
        done(second.register(servers.machine().request(key)))
    made = done(second.create_user("carol"))
    servers.settle()
    assert (made["id"], len(first.users()), len(first.nodes())) == (3, 3, 1)


def test_etag_seen_on_one_server_holds_on_the_other_until_the_change(servers: Servers) -> None:
    first, second = servers.all
    etag = first.user("admin")["etag"]
    done(second.rename_user("admin", "root", terms=Terms(expect=etag)))
    servers.settle()
    with pytest.raises(StaleError):
        done(first.rename_user("1", "boss", terms=Terms(expect=etag)))


def test_role_taken_on_one_server_is_gone_on_the_other_that_did_not_hear_of_it(servers: Servers) -> None:
    first, second = servers.all
    row = done(first.create_user("mallory", role="admin"))
    token = done(first.create_token(TokenWish("mallory", "x")))["token"]
    servers.settle()
    servers.sides[1].deaf = True
    mallory = Terms(Actor("user", user=UserId(row["id"])))
    done(first.update_user("mallory", UserWish(role="user")))
    with pytest.raises(ForbiddenError):
        done(second.create_user("friend", role="admin", terms=mallory))
    assert second.principal_of_token(token, "").role == "user"
    assert len(first.users()) == 2


def test_server_that_was_away_longer_than_the_log_reaches_compares_everything(servers: Servers) -> None:
    first, second = servers.all
    done(first.create_user("gone"))
    servers.settle()
    servers.sides[1].deaf = servers.sides[1].forgetful = True
    key = done(first.create_key(reusable=True))["key"]
    for _ in range(3):
        done(first.register(servers.machine().request(key)))
    done(first.delete_node("2"))
    done(first.delete_user("gone"))
    done(second.create_user("late"))
    servers.settle()
    assert servers.view(0) == servers.view(1)
    assert {row["name"] for row in second.users()} == {"admin", "late"}


def test_restored_store_is_what_every_server_shows(servers: Servers) -> None:
    first, second = servers.all
    done(first.create_user("bob"))
    servers.settle()
    before, log = servers.view(0), first.audit()
    records, audit = servers.store.load()[1], servers.store.audit(limit=1000)
    done(first.register(servers.machine().request(done(first.create_key())["key"])))
    done(second.create_user("carol"))
    servers.settle()
    servers.sides[0].replace(records, audit, version=servers.store.load()[0].version)
    servers.settle()
    done(second.create_user("dave"))
    servers.settle()
    assert servers.view(0) == servers.view(1)
    assert {row["name"] for row in first.users()} == {"admin", "bob", "dave"}
    assert first.audit()[1:] == second.audit()[1:] == log
    assert servers.view(0)[1:] == before[1:]


def _under_load(servers: Servers, seed: int) -> None:
    """60 machines with a reusable key and 4 single-use keys that 9 each want, on all servers at once; each admitted once, and no address twice."""
    count = len(servers.all)
    key = done(servers.all[0].create_key(reusable=True))["key"]
    single = [done(servers.all[0].create_key())["key"] for _ in range(4)]
    jobs = [(servers.machine(f"m{number % 7}").request(key), number % count) for number in range(60)]
    jobs += [(servers.machine("x").request(one), number % count) for one in single for number in range(9)]
    Random(seed).shuffle(jobs)

    def register(job: tuple[RegisterRequest, int]) -> bool:
        try:
            return done(servers.all[job[1]].register(job[0])).state is NodeState.ACTIVE
        except ForbiddenError:
            return False

    with ThreadPoolExecutor(24) as pool:
        admitted = list(pool.map(register, jobs))
    assert sum(admitted) == 64


def _check_agreement(servers: Servers) -> None:
    views = [servers.view(number) for number in range(len(servers.all))]
    assert all(view == views[0] for view in views)
    rows = servers.all[0].nodes()
    addresses = [address for row in rows for address in row["addresses"]]
    assert len(rows) == len({row["name"] for row in rows}) == 64
    assert len(set(addresses)) == 128
    seqs = [row["seq"] for row in servers.all[0].audit(limit=1000, newest_first=False)]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("seed", range(3))
def test_servers_under_parallel_load_agree_with_each_other_and_with_the_store(tmp_path: Path, seed: int) -> None:
    store = open_store("kv", tmp_path / "state")
    servers = Servers(store, 3)
    _under_load(servers, seed)
    servers.settle()
    _check_agreement(servers)
    assert sum(side.stale for side in servers.sides) > 0
    before = servers.view(0)
    for registry in servers.all:
        registry.close()
    servers.all[0] = Registry(store, clock=lambda: servers.now, random=servers.random.randbytes)
    assert servers.view(0) == before
    servers.all[0].close()
    store.close()


class Heard:
    """Up to which audit record each server has heard of what was committed."""

    def __init__(self, registries: list[Registry]) -> None:
        self._change = threading.Condition()
        self._seqs = [0] * len(registries)
        for number, registry in enumerate(registries):
            registry.subscribe_audit(lambda records, number=number: self._hear(number, records))  # type: ignore[misc]

    def _hear(self, number: int, records: Sequence[AuditRecord]) -> None:
        with self._change:
            self._seqs[number] = max([self._seqs[number], *(record.seq for record in records)])
            self._change.notify_all()

    def wait(self, seq: int) -> None:
        """Until all have heard of it."""
        with self._change:
            assert self._change.wait_for(lambda: min(self._seqs) >= seq, timeout=30), self._seqs


def test_servers_on_postgresql_agree_under_parallel_load(tmp_path: Path) -> None:
    with cluster() as database:
        stores = [open_store(database.url(), tmp_path / name) for name in ("one", "two", "three")]
        servers = Servers(stores[0], 3, lambda number: stores[number])
        heard = Heard(servers.all)
        _under_load(servers, 1)
        heard.wait(stores[0].load()[0].audit)
        _check_agreement(servers)
        done(servers.all[2].disable_node("1"))
        heard.wait(stores[0].load()[0].audit)
        assert [registry.standing_of(NodeId(1)).state for registry in servers.all] == [NodeState.DISABLED] * 3
        for registry in servers.all:
            registry.close()
