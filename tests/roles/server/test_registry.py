"""Machines: registration, login, renewal, approval, logout, expiry, housekeeping."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from calnet.errors import ConfigError, ConflictError, ExhaustedError, ForbiddenError, InvalidError, NotFoundError
from calnet.model import NodeId, NodeKey
from calnet.roles.server import nodes, registration
from calnet.roles.server.standing import NodeState
from tests.roles.server.registries import START, Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


# --- the first start and the next


def test_first_start_makes_key_prefixes_and_admin_and_the_next_keeps_them(office: Office) -> None:
    key, prefixes = office.registry.control_key.public, office.registry.prefixes
    assert prefixes[0] == ip_network("100.70.0.0/24")
    assert prefixes[1].subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]
    assert prefixes[1].prefixlen == 64
    (row,) = office.registry.users()
    assert (row["id"], row["name"], row["role"], row["created"]) == (1, "admin", "owner", "2027-01-15T08:00:00Z")
    office.reopen()
    assert (office.registry.control_key.public, office.registry.prefixes) == (key, prefixes)
    assert len(office.registry.users()) == 1


def test_prefix_may_grow_and_stays_grown(office: Office) -> None:
    office.join()
    office.reopen("100.70.0.0/16")
    office.reopen()
    assert office.registry.prefixes[0] == ip_network("100.70.0.0/16")
    assert office.netmap(NodeId(1)).prefixes[0] == ip_network("100.70.0.0/16")


@pytest.mark.parametrize("prefix", ["100.71.0.0/24", "100.70.0.0/25", "10.0.0.0/8", "0.0.0.0/0"])
def test_prefix_that_would_lose_addresses_is_refused(office: Office, prefix: str) -> None:
    with pytest.raises(ConfigError, match="--prefix"):
        office.reopen(prefix)
    office.open()


def test_prefix_that_grows_over_an_approved_route_is_refused(office: Office) -> None:
    office.join(routes=("100.70.1.0/24",))
    done(office.registry.approve_routes("1", ("100.70.1.0/24",)))
    with pytest.raises(ConfigError, match="overlaps the route"):
        office.reopen("100.70.0.0/16")
    office.open()


@pytest.mark.parametrize("prefix", ["127.0.0.0/24", "100.70.0.0/31", "224.0.0.0/8", "169.254.0.0/16", "0.0.0.0/0"])
def test_first_prefix_that_can_be_no_overlay_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="can't be the overlay"):
        Office(tmp_path / "state", prefix=prefix)
    Office(tmp_path / "state", prefix="10.1.0.0/30").registry.close()


# --- with a pre-auth key


def test_key_admits_a_machine_with_name_addresses_owner_and_expiry(office: Office) -> None:
    machine = office.machine("Alice's Laptop.lan")
    standing = office.register(machine, office.auth_key())
    assert standing.state is NodeState.ACTIVE
    assert standing.key_expires == START + 180 * 86400
    assert office.registry.standing(machine.control_key) == standing
    row = office.registry.node("1")
    assert (row["name"], row["user"], row["state"], row["os"], row["version"]) == ("alice-s-laptop", "admin", "active", "linux", "1.0")
    assert row["addresses"] == ["100.70.0.1", str(office.registry.prefixes[1].network_address + 1)]
    assert office.registry.node_of_key(machine.node_key) == standing.node


def test_tagged_key_makes_a_node_without_owner_or_expiry(office: Office) -> None:
    node = office.join(tags=("tag:web", "tag:db"))
    row = office.registry.node(str(node))
    assert (row["user"], row["tags"], row["key_expires"]) == (None, ["tag:db", "tag:web"], None)


def test_key_of_a_user_makes_that_users_nodes(office: Office) -> None:
    done(office.registry.create_user("Bob"))
    node = office.join(user="bob")
    assert office.registry.node(str(node))["user"] == "bob"


def test_single_use_key_admits_one_and_a_reusable_one_many(office: Office) -> None:
    single, reusable = office.auth_key(), office.auth_key(reusable=True)
    office.register(office.machine(), single)
    with pytest.raises(ForbiddenError, match="has been used"):
        office.register(office.machine(), single)
    for _ in range(3):
        office.register(office.machine(), reusable)
    assert len(office.registry.nodes()) == 4


def test_key_expired_revoked_or_wrong_is_refused_and_nothing_is_registered(office: Office) -> None:
    short, right = office.auth_key(expires_s=60.0), office.auth_key()
    made = done(office.registry.create_key())
    revoked = made["key"]
    done(office.registry.revoke_key(made["id"].upper()))
    office.now += 61
    forged = right[:30] + ("a" if right[30] != "a" else "b") + right[31:]
    other = right[:60] + ("a" if right[60] != "a" else "b") + right[61:]
    for key, why in ((short, "expired"), (revoked, "revoked"), (forged, "not valid"), (other, "another server's"), ("calnet-x", "not a pre-auth key")):
        with pytest.raises(ForbiddenError, match=why):
            office.register(office.machine(), key)
    assert office.registry.nodes() == []
    office.register(office.machine(), right)


def test_same_machine_repeating_its_registration_changes_nothing(office: Office) -> None:
    machine, key = office.machine(), office.auth_key()
    first = office.register(machine, key)
    office.now += 100
    assert office.register(machine, key) == first
    assert office.register(machine) == first
    assert len(office.registry.nodes()) == 1


def test_new_login_before_expiry_moves_it(office: Office) -> None:
    machine = office.machine()
    office.join_as(machine)
    office.now += 1000
    assert office.register(machine, office.auth_key()).key_expires == office.now + 180 * 86400
    with pytest.raises(ForbiddenError):
        office.register(machine, "calnet-nonsense")


# --- keys of nodes


def test_node_key_of_another_machine_is_refused_also_its_previous_one(office: Office) -> None:
    machine, thief = office.machine(), office.machine()
    office.join_as(machine)
    old = machine.node_key
    machine.renew()
    office.register(machine)
    for stolen in (old, machine.node_key):
        thief.node_key = stolen
        for key in ("", office.auth_key()):
            with pytest.raises(ConflictError, match="another machine holds that node key"):
                office.register(thief, key)
    assert office.registry.standing(thief.control_key).state is NodeState.UNREGISTERED


def test_renewed_node_key_is_known_beside_the_old_one_for_a_day(office: Office) -> None:
    machine = office.machine()
    node, watcher = office.join_as(machine), office.join()
    old = machine.node_key
    expires = office.registry.standing_of(node).key_expires
    machine.renew()
    office.last()
    assert office.register(machine).key_expires == expires
    assert office.last().standings == {node}
    (peer,) = office.netmap(watcher).peers
    assert (peer.node_key, peer.previous_node_key, peer.discovery_key) == (machine.node_key, old, machine.discovery_key)
    assert office.registry.node_of_key(old) == office.registry.node_of_key(machine.node_key) == node
    assert office.registry.next_deadline() == office.now + registration.PREVIOUS_KEPT_S
    office.now += registration.PREVIOUS_KEPT_S
    done(office.registry.housekeeping())
    assert office.netmap(watcher).peers[0].previous_node_key is None
    assert office.registry.node_of_key(old) is None


def test_key_renewed_after_expiry_does_not_keep_the_old_one(office: Office) -> None:
    machine = office.machine()
    node = office.join_as(machine)
    old = machine.node_key
    done(office.registry.expire_node(str(node)))
    machine.renew()
    assert office.register(machine, office.auth_key()).state is NodeState.ACTIVE
    assert office.registry.node_of_key(old) is None


# --- without a key


def test_machine_without_a_key_waits_and_holds_no_address_or_name(office: Office) -> None:
    machine = office.machine("db")
    standing = office.register(machine)
    assert standing.state is NodeState.PENDING
    assert len(standing.code) == 9
    assert office.register(machine).code == standing.code
    row = office.registry.node("1")
    assert (row["name"], row["hostname"], row["addresses"], row["pending"], row["code"]) == ("", "db", [], True, standing.code)
    with pytest.raises(NotFoundError, match="not active"):
        office.netmap(NodeId(1))
    assert office.registry.node_of_key(machine.node_key) is None


def test_approval_by_code_or_id_admits(office: Office) -> None:
    done(office.registry.create_user("bob"))
    code = office.register(office.machine("db")).code
    second = office.register(office.machine("db")).node
    assert done(office.registry.approve_node(code.lower()))["name"] == "db"
    row = done(office.registry.approve_node(str(second), "bob"))
    assert (row["name"], row["user"], row["state"]) == ("db-1", "bob", "active")
    assert office.registry.standing_of(NodeId(1)).code == ""
    with pytest.raises(NotFoundError):
        done(office.registry.approve_node(code))
    with pytest.raises(NotFoundError):
        done(office.registry.approve_node("1", "nobody"))


def test_waiting_machine_that_brings_a_key_is_admitted(office: Office) -> None:
    machine = office.machine()
    office.register(machine)
    machine.renew()
    assert office.register(machine, office.auth_key()).state is NodeState.ACTIVE
    assert len(office.registry.nodes()) == 1


def test_waiting_machine_is_not_renamed_tagged_or_routed(office: Office) -> None:
    office.register(office.machine())
    for future in (office.registry.rename_node("1", "x"), office.registry.tag_node("1", ("tag:a",)), office.registry.approve_routes("1", ("10.0.0.0/8",))):
        with pytest.raises(ConflictError, match="waits for approval"):
            done(future)


def test_too_many_waiting_push_out_the_longest_gone_else_the_oldest(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "MAX_PENDING", 3)
    for number in range(3):
        office.now += 1
        node = office.register(office.machine(f"host-{number}")).node
        assert node is not None
        if number != 1:
            office.registry.connected(node)
    office.register(office.machine("host-3"))
    assert [row["hostname"] for row in office.registry.nodes()] == ["host-0", "host-2", "host-3"]
    office.registry.connected(NodeId(4))
    office.register(office.machine("host-4"))
    assert [row["hostname"] for row in office.registry.nodes()] == ["host-2", "host-3", "host-4"]
    office.register(office.machine(), office.auth_key())


# --- the end of a key


def test_expiry_takes_the_node_out_of_all_netmaps_and_login_brings_it_back(office: Office) -> None:
    machine = office.machine()
    node, other = office.join_as(machine), office.join(tags=("tag:a",))
    assert office.registry.next_deadline() == START + 180 * 86400
    office.now = START + 180 * 86400
    assert office.registry.node_of_key(machine.node_key) is None
    assert not office.registry.sees(node, other)
    with pytest.raises(NotFoundError):
        office.netmap(node)
    office.last()
    done(office.registry.housekeeping())
    told = office.last()
    assert told.netmaps == {node, other}
    assert told.standings == {node}
    assert told.urgent
    assert office.peers(other) == []
    done(office.registry.housekeeping())
    assert office.last().netmaps == frozenset()
    waiting = office.register(machine)
    assert waiting.state is NodeState.PENDING
    row = done(office.registry.approve_node(waiting.code))
    assert (row["user"], row["id"]) == ("admin", node)
    assert office.peers(other) == [node]


def test_approving_an_active_node_renews_its_expiry(office: Office) -> None:
    node = office.join()
    office.now += 5000
    done(office.registry.approve_node(str(node)))
    assert office.registry.standing_of(node).key_expires == office.now + 180 * 86400


def test_logout_expires_at_once_and_needs_a_login_again(office: Office) -> None:
    machine = office.machine()
    key = office.auth_key()
    node = office.register(machine, key).node
    assert node is not None
    watcher = office.join()
    done(office.registry.logout(node))
    assert office.registry.standing_of(node).state is NodeState.EXPIRED
    assert office.peers(watcher) == []
    with pytest.raises(ForbiddenError, match="has been used"):
        office.register(machine, key)
    assert office.register(machine).state is NodeState.PENDING
    assert office.register(machine, office.auth_key()).state is NodeState.ACTIVE


def test_logout_of_ephemeral_or_waiting_node_forgets_it(office: Office) -> None:
    ephemeral = office.join(ephemeral=True)
    waiting = office.register(office.machine()).node
    for node in (ephemeral, waiting):
        assert node is not None
        done(office.registry.logout(node))
        assert office.registry.standing_of(node).state is NodeState.UNREGISTERED
    with pytest.raises(NotFoundError):
        done(office.registry.logout(ephemeral))


def test_disabled_node_is_gone_for_all_until_enabled(office: Office) -> None:
    machine = office.machine()
    node, other = office.join_as(machine), office.join()
    office.last()
    assert done(office.registry.disable_node(str(node)))["disabled"] is True
    told = office.last()
    assert (told.netmaps, told.standings, told.urgent) == (frozenset({node, other}), frozenset({node}), True)
    assert office.peers(other) == []
    assert office.registry.node_of_key(machine.node_key) is None
    with pytest.raises(ForbiddenError, match="disabled"):
        office.register(machine, office.auth_key())
    with pytest.raises(ConflictError, match="enable it first"):
        done(office.registry.approve_node(str(node)))
    done(office.registry.enable_node(str(node)))
    assert office.peers(other) == [node]


def test_deleted_node_is_gone_and_comes_back_as_a_new_one(office: Office) -> None:
    machine = office.machine("db")
    node, other = office.join_as(machine), office.join()
    office.last()
    done(office.registry.delete_node("db"))
    told = office.last()
    assert told.standings == {node}
    assert told.urgent
    assert office.peers(other) == []
    assert office.registry.standing(machine.control_key).state is NodeState.UNREGISTERED
    again = office.join_as(machine)
    assert again not in (node, other)
    assert office.registry.node(str(again))["name"] == "db"


# --- housekeeping


def test_ephemeral_node_is_deleted_after_five_minutes_away(office: Office) -> None:
    node = office.join(ephemeral=True)
    office.registry.connected(node)
    office.now += 10_000
    done(office.registry.housekeeping())
    office.registry.disconnected(node)
    assert office.registry.next_deadline() == office.now + nodes.EPHEMERAL_GONE_S
    office.now += nodes.EPHEMERAL_GONE_S - 1
    done(office.registry.housekeeping())
    assert len(office.registry.nodes()) == 1
    office.now += 1
    done(office.registry.housekeeping())
    assert office.registry.nodes() == []


def test_ephemeral_node_has_five_minutes_after_a_restart(office: Office) -> None:
    office.join(ephemeral=True)
    office.now += 10_000
    office.reopen()
    done(office.registry.housekeeping())
    assert len(office.registry.nodes()) == 1
    office.now += nodes.EPHEMERAL_GONE_S
    done(office.registry.housekeeping())
    assert office.registry.nodes() == []


def test_never_approved_machine_is_forgotten_after_a_day_away(office: Office) -> None:
    office.register(office.machine())
    office.now += nodes.PENDING_GONE_S
    done(office.registry.housekeeping())
    assert office.registry.nodes() == []
    assert office.registry.next_deadline() is None


# --- names, addresses, routes, facts


def test_names_are_unique_and_stay(office: Office) -> None:
    machines = [office.machine(name) for name in ("web", "Web.example.org", "web-1", "www", "", "42", "ö")]
    for machine in machines:
        office.join_as(machine)
    assert [row["name"] for row in office.registry.nodes()] == ["web", "web-1", "web-1-1", "www", "node", "node-42", "node-1"]
    done(office.registry.delete_node("web"))
    office.register(machines[1])
    assert office.registry.node("2")["name"] == "web-1"


def test_new_hostname_moves_the_name_unless_an_admin_chose_it(office: Office) -> None:
    machine = office.machine("old")
    node = office.join_as(machine)
    done(office.registry.update(node, hostname="New"))
    assert office.registry.node(str(node))["name"] == "new"
    machine.hostname = "newer"
    office.register(machine)
    assert office.registry.node(str(node))["name"] == "newer"
    done(office.registry.rename_node("newer", "chosen"))
    done(office.registry.update(node, hostname="other"))
    assert (office.registry.node("chosen")["hostname"], office.registry.node("chosen")["name"]) == ("other", "chosen")


def test_update_changes_what_is_given_and_tells_only_then(office: Office) -> None:
    node, other = office.join(), office.join()
    office.last()
    done(office.registry.update(node, os="plan9", version="2.0", routes=("10.1.0.0/16", "10.1.0.0/16")))
    row = office.registry.node(str(node))
    assert (row["os"], row["version"], row["routes"]["advertised"], row["hostname"]) == ("plan9", "2.0", ["10.1.0.0/16"], "host")
    assert office.last().netmaps == {node, other}
    done(office.registry.update(node, os="plan9", hostname="host"))
    assert office.last().netmaps == frozenset()
    with pytest.raises(NotFoundError):
        done(office.registry.update(NodeId(99), os="x"))


def test_what_a_node_says_of_itself_has_no_control_characters(office: Office) -> None:
    machine = office.machine("\x1b[31mred\r\nhost\u202e")
    node = office.join_as(machine)
    done(office.registry.update(node, os="\x1b]0;x\x07", version="1\n2"))
    row = office.registry.node(str(node))
    assert (row["hostname"], row["name"], row["os"], row["version"]) == ("[31mredhost", "31mredhost", "]0;x", "12")


def test_addresses_are_lowest_free_and_deleted_ones_come_last(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", prefix="10.9.0.0/29")
    for _ in range(4):
        office.join()
    done(office.registry.delete_node("2"))
    office.now += 1
    done(office.registry.delete_node("1"))
    given = [office.registry.node(str(office.join()))["addresses"][0] for _ in range(4)]
    assert given == ["10.9.0.5", "10.9.0.6", "10.9.0.2", "10.9.0.1"]
    with pytest.raises(ExhaustedError, match=r"no address is left in 10\.9\.0\.0/29") as raised:
        office.join()
    assert raised.value.http_status == 409
    office.reopen("10.9.0.0/28")
    assert office.registry.node(str(office.join()))["addresses"][0] == "10.9.0.7"
    six = [ip_address(row["addresses"][1]) for row in office.registry.nodes()]
    assert len(set(six)) == len(six)
    office.registry.close()


def test_refused_registration_uses_no_key_up(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", prefix="10.9.0.0/30")
    office.join()
    office.join()
    key = office.auth_key()
    with pytest.raises(ExhaustedError):
        office.register(office.machine(), key)
    with pytest.raises(InvalidError):
        office.register(office.machine(), key, ("10.0.0.1/8",))
    done(office.registry.delete_node("1"))
    assert office.register(office.machine(), key).state is NodeState.ACTIVE
    office.registry.close()


def test_key_of_wrong_size_is_refused(office: Office) -> None:
    machine = office.machine()
    machine.node_key = NodeKey(b"short")
    with pytest.raises(InvalidError):
        office.register(machine)
