"""Attacks on registration, on the life of nodes and keys, and on what the server keeps: 3, 20, 21, 22, 23, 24, 25, 26, 35, 41, 42."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path

import pytest

from calnet.errors import CalnetError, ConflictError, ExhaustedError, ForbiddenError, InvalidError
from calnet.model import ControlKey, DiscoveryKey, NodeId, NodeKey
from calnet.policy.builtin import BuiltinPolicy
from calnet.roles.server.registry import Registry
from calnet.roles.server.standing import NodeState
from calnet.store.opening import open_store
from tests.roles.server.registries import Office, done

SMALL_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


@pytest.mark.parametrize("bad", SMALL_ORDER, ids=lambda key: key.hex()[:8])
@pytest.mark.parametrize("which", ["node_key", "discovery_key", "control_key"])
def test_attack_03_small_order_key_is_refused_at_registration(office: Office, which: str, bad: bytes) -> None:
    key, machine = office.auth_key(), office.machine()
    setattr(machine, which, {"node_key": NodeKey, "discovery_key": DiscoveryKey, "control_key": ControlKey}[which](bad))
    with pytest.raises(InvalidError, match="small order"):
        office.register(machine, key)
    assert office.registry.nodes() == []
    office.register(office.machine(), key)


@pytest.mark.parametrize("kind", ["kv", "sqlite"])
def test_attack_21_single_use_key_admits_exactly_one_of_fifty_at_once(tmp_path: Path, kind: str) -> None:
    registry = Registry(open_store(kind, tmp_path), clock=lambda: 1.8e9, random=os.urandom)
    key = done(registry.create_key())["key"]
    knocking = Office.machine
    office = Office(tmp_path / "other")
    requests = [knocking(office, f"host-{number}").request(key) for number in range(50)]

    def knock(number: int) -> bool:
        try:
            return done(registry.register(requests[number])).state is NodeState.ACTIVE
        except ForbiddenError:
            return False

    with ThreadPoolExecutor(50) as pool:
        admitted = list(pool.map(knock, range(50)))
    assert sum(admitted) == 1
    assert len(registry.nodes()) == 1
    registry.close()
    registry = Registry(open_store(kind, tmp_path), clock=lambda: 1.8e9, random=os.urandom)
    assert len(registry.nodes()) == 1
    registry.close()
    office.registry.close()


def test_attack_22_expired_revoked_and_used_keys_are_refused_also_after_a_restart(office: Office) -> None:
    used, short = office.auth_key(), office.auth_key(expires_s=10.0)
    revoked = done(office.registry.create_key(reusable=True))
    office.register(office.machine(), used)
    done(office.registry.revoke_key(revoked["id"]))
    office.now += 10
    for _ in range(2):
        for key in (used, short, revoked["key"]):
            with pytest.raises(ForbiddenError):
                office.register(office.machine(), key)
        office.reopen()
    assert len(office.registry.nodes()) == 1


@pytest.mark.parametrize("kind", ["kv", "sqlite"])
def test_attack_22_keys_are_hashed_at_rest_and_shown_once(tmp_path: Path, kind: str) -> None:
    from calnet.wire.authkey import parse_auth_key

    registry = Registry(open_store(kind, tmp_path), clock=lambda: 1.8e9, random=os.urandom)
    text = done(registry.create_key())["key"]
    secret = parse_auth_key(text).secret
    assert text not in repr(registry.keys())
    registry.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret not in kept
    assert secret.hex().encode() not in kept
    assert text[7:40].encode() not in kept


def test_attack_22_unknown_key_and_wrong_secret_are_told_apart_by_nothing(office: Office) -> None:
    from calnet.wire.authkey import format_auth_key, parse_auth_key

    key = parse_auth_key(office.auth_key())
    texts = set()
    for forged in (key._replace(id=bytes(8)), key._replace(secret=bytes(20))):
        with pytest.raises(ForbiddenError) as raised:
            office.register(office.machine(), format_auth_key(forged))
        texts.add(str(raised.value))
    assert len(texts) == 1


def test_attack_20_auth_key_secret_is_compared_in_constant_time() -> None:
    import inspect

    from calnet.crypto import hash as hashing
    from calnet.roles.server import authkeys

    source = inspect.getsource(authkeys.check_auth_key)
    assert "equal(blake2s(key.secret)" in source
    assert "compare_digest" in inspect.getsource(hashing.equal)


@pytest.mark.parametrize("how", ["disable_node", "expire_node", "delete_node"])
def test_attack_23_taking_access_away_is_told_to_every_peer_at_once(office: Office, how: str) -> None:
    machine = office.machine()
    node = office.join_as(machine)
    others = [office.join() for _ in range(5)]
    office.last()
    done(getattr(office.registry, how)(str(node)))
    told = office.last()
    assert told.urgent
    assert told.standings == {node}
    assert set(others) <= told.netmaps
    assert all(node not in office.peers(other) for other in others)
    assert office.registry.node_of_key(machine.node_key) is None
    assert not office.registry.sees(node, others[0])


def test_attack_23_expiry_survives_reconnect_and_restart(office: Office) -> None:
    machine = office.machine()
    node = office.join_as(machine)
    done(office.registry.expire_node(str(node)))
    for _ in range(2):
        office.registry.connected(node)
        office.registry.disconnected(node)
        done(office.registry.update(node, os="linux", hostname="x"))
        assert office.registry.standing(machine.control_key).state is NodeState.EXPIRED
        office.reopen()
    machine.renew()
    assert office.register(machine).state is NodeState.PENDING


def test_attack_23_peers_are_given_the_expiry_to_honour_alone(office: Office) -> None:
    node, other = office.join(), office.join()
    assert office.netmap(other).peers[0].key_expires == office.registry.standing_of(node).key_expires


def test_attack_24_node_key_that_another_holds_is_refused(office: Office) -> None:
    done(office.registry.create_user("mallory"))
    victim, thief = office.machine("victim"), office.machine("thief")
    node = office.join_as(victim)
    thief.node_key = victim.node_key
    for key in ("", office.auth_key(user="mallory"), office.auth_key(tags=("tag:a",))):
        with pytest.raises(ConflictError):
            office.register(thief, key)
    assert office.registry.node_of_key(victim.node_key) == node
    own = office.machine("own")
    office.join_as(own)
    own.node_key = victim.node_key
    with pytest.raises(ConflictError):
        office.register(own)


def test_attack_25_parallel_registrations_get_no_duplicate_address_and_the_rest_a_clean_409(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", prefix="10.9.0.0/27")
    key = office.auth_key(reusable=True)
    requests = [office.machine("same").request(key) for _ in range(50)]

    def knock(number: int) -> int:
        try:
            done(office.registry.register(requests[number]))
        except ExhaustedError as error:
            return error.http_status
        return 200

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(knock, range(50)))
    assert sorted(answers) == [200] * 30 + [409] * 20
    rows = office.registry.nodes()
    addresses = [address for row in rows for address in row["addresses"]]
    assert len(set(addresses)) == len(addresses) == 60
    assert len({row["name"] for row in rows}) == 30
    office.registry.close()


@pytest.mark.parametrize("route", ["0.0.0.0/0", "::/0", "100.70.0.0/24", "100.70.0.2/32", "100.64.0.0/10", "192.168.7.0/24"])
def test_attack_26_advertised_route_is_given_to_nobody_without_approval(office: Office, route: str) -> None:
    office.join(routes=(route,))
    other = office.join()
    netmap = office.netmap(other)
    assert netmap.peers[0].routes == ()
    assert office.netmap(NodeId(1)).self.routes == ()
    assert all(ip_network(route) not in rule.destinations for rule in office.netmap(NodeId(1)).filter)


@pytest.mark.parametrize("route", ["0.0.0.0/0", "::/0", "100.70.0.0/24", "100.70.0.2/32", "100.64.0.0/10", "0.0.0.0/1"])
def test_attack_26_route_over_the_overlay_is_never_approved(office: Office, route: str) -> None:
    office.join(routes=(route,))
    other = office.join()
    with pytest.raises(InvalidError, match="can't be approved"):
        done(office.registry.approve_routes("1", (route,)))
    assert office.netmap(other).peers[0].routes == ()


@pytest.mark.parametrize("route", ["192.168.1.7/24", "10.0.0.1/8", "fd00::1/64", "x", "0.0.0.0/0/0"])
def test_attack_26_unmasked_prefix_is_refused_wherever_it_is_said(office: Office, route: str) -> None:
    node = office.join()
    with pytest.raises(InvalidError):
        office.join(routes=(route,))
    with pytest.raises(InvalidError):
        done(office.registry.update(node, routes=(route,)))
    with pytest.raises(InvalidError):
        done(office.registry.approve_routes("1", (route,)))


def test_attack_26_approved_route_opens_nothing_of_the_router_itself(office: Office) -> None:
    done(office.registry.create_user("mallory"))
    router = office.join(routes=("192.168.1.0/24",))
    office.join(user="mallory")
    done(office.registry.approve_routes(str(router), ("192.168.1.0/24",)))
    rules = office.netmap(router).filter
    itself = office.netmap(router).self.addresses
    assert not any(address in prefix for rule in rules for prefix in rule.destinations for address in itself)
    assert BuiltinPolicy(()).rules(router) == ()


@pytest.mark.parametrize("kind", ["kv", "sqlite"])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_attack_41_stores_are_0600_in_a_0700_directory_whatever_the_umask(tmp_path: Path, kind: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        registry = Registry(open_store(kind, tmp_path / "state"), clock=lambda: 1.8e9, random=os.urandom)
        done(registry.create_user("bob"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
        registry.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert len(modes) >= 2
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("name", ["store.mdb", "store.mdb-lock", "store.sqlite", "store.sqlite-wal", "store.sqlite-shm", "store.lock"])
def test_attack_41_no_symlink_in_the_state_directory_is_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "state").mkdir(0o700)
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    (tmp_path / "state" / name).symlink_to(target)
    with pytest.raises(CalnetError, match="symbolic link"):
        open_store("sqlite" if "sqlite" in name else "kv", tmp_path / "state")
    assert target.read_bytes() == b"theirs"


def test_attack_42_records_and_machines_print_no_secret(office: Office) -> None:
    office.auth_key()
    office.registry.close()
    store = open_store("kv", office.directory)
    shown = repr(list(store.load()[1]))
    store.close()
    office.open()
    secret = office.registry.control_key.secret_bytes()
    assert repr(secret)[2:-1] not in shown
    assert "secret_hash" not in shown
    assert repr(secret)[2:-1] not in repr(office.registry.control_key)
