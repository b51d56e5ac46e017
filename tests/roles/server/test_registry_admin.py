"""What admins do: users, pre-auth keys, nodes, routes, and what they are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from calnet.errors import ConflictError, InvalidError, NotFoundError, StateError
from calnet.roles.server.actors import LOCAL
from calnet.store.archive import read_archive
from tests.roles.server.registries import Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def test_users_are_created_renamed_and_deleted(office: Office) -> None:
    assert done(office.registry.create_user("Bob"))["name"] == "bob"
    assert done(office.registry.rename_user("bob", "robert")) == done(office.registry.rename_user("2", "Robert"))
    for future in (office.registry.create_user("robert"), office.registry.rename_user("robert", "admin")):
        with pytest.raises(ConflictError, match="there is a user"):
            done(future)
    done(office.registry.delete_user("robert"))
    with pytest.raises(NotFoundError, match="no user 'robert'"):
        done(office.registry.delete_user("robert"))
    assert done(office.registry.create_user("carol"))["id"] == 3
    office.reopen()
    assert [user["name"] for user in office.registry.users()] == ["admin", "carol"]


@pytest.mark.parametrize("name", ["", "-", "a b", "a.b", "ä", "1", "x" * 64, "a\n", "../x"])
def test_bad_names_are_refused_for_users_and_nodes(office: Office, name: str) -> None:
    office.join()
    for future in (office.registry.create_user(name), office.registry.rename_node("1", name)):
        with pytest.raises(InvalidError, match="is no name") as raised:
            done(future)
        assert "\n" not in str(raised.value)


def test_user_with_nodes_and_the_last_owner_stay(office: Office) -> None:
    done(office.registry.create_user("bob"))
    office.join(user="bob")
    with pytest.raises(ConflictError, match="bob has 1 node:"):
        done(office.registry.delete_user("bob"))
    office.join(user="bob")
    with pytest.raises(ConflictError, match="bob has 2 nodes:"):
        done(office.registry.delete_user("bob"))
    with pytest.raises(ConflictError, match="last owner"):
        done(office.registry.delete_user("admin"))


def test_keys_of_a_deleted_user_go_too(office: Office) -> None:
    done(office.registry.create_user("bob"))
    key = office.auth_key(user="bob")
    done(office.registry.delete_user("bob"))
    assert office.registry.keys() == []
    with pytest.raises(Exception, match="not valid"):
        office.register(office.machine(), key)


def test_renamed_user_is_renamed_in_netmaps(office: Office) -> None:
    node, other = office.join(), office.join()
    office.last()
    done(office.registry.rename_user("admin", "root"))
    assert office.last().netmaps == {node, other}
    assert office.netmap(node).self.user == "root"
    assert office.netmap(node).peers[0].user == "root"


def test_key_rows_say_what_a_key_is(office: Office) -> None:
    made = done(office.registry.create_key(reusable=True, ephemeral=True, expires_s=3600.0, tags=("tag:b", "tag:a", "tag:b")))
    office.register(office.machine(), made["key"])
    (row,) = office.registry.keys()
    assert len(row.pop("etag")) == 24
    assert row == {
        "id": made["id"],
        "user": None,
        "tags": ["tag:a", "tag:b"],
        "reusable": True,
        "ephemeral": True,
        "created": "2027-01-15T08:00:00Z",
        "expires": "2027-01-15T09:00:00Z",
        "used": "2027-01-15T08:00:00Z",
        "revoked": None,
        "valid": True,
    }
    done(office.registry.revoke_key(made["id"]))
    done(office.registry.revoke_key(made["id"]))
    assert office.registry.keys()[0]["valid"] is False


def test_bad_key_wishes_are_refused(office: Office) -> None:
    for wishes in ({"expires_s": 0.0}, {"expires_s": 1e12}, {"expires_s": float("nan")}, {"tags": ("web",)}, {"tags": tuple(f"tag:x{n}" for n in range(33))}):
        with pytest.raises(InvalidError):
            office.auth_key(**wishes)
    with pytest.raises(NotFoundError):
        office.auth_key(user="nobody")
    with pytest.raises(NotFoundError, match="no key"):
        done(office.registry.revoke_key("00"))


def test_nodes_are_found_by_id_name_and_address(office: Office) -> None:
    node = office.join("db")
    six = office.registry.node("1")["addresses"][1]
    for reference in ("1", "db", "DB", "100.70.0.1", six, six.upper()):
        assert office.registry.node(reference)["id"] == node
    for reference in ("2", "web", "100.70.0.2", "", "9" * 40, "²", "db\n"):
        with pytest.raises(NotFoundError) as raised:
            office.registry.node(reference)
        assert "\n" not in str(raised.value)


def test_node_is_renamed_to_a_free_name_only(office: Office) -> None:
    office.join("a")
    office.join("b")
    with pytest.raises(ConflictError, match="there is a node b"):
        done(office.registry.rename_node("a", "b"))
    assert done(office.registry.rename_node("a", "A"))["name"] == "a"
    assert done(office.registry.rename_node("a", "c"))["name"] == "c"


def test_tagged_node_has_no_owner_and_no_expiry_but_stays_expired(office: Office) -> None:
    node = office.join()
    row = done(office.registry.tag_node("1", ("tag:web",)))
    assert (row["user"], row["tags"], row["key_expires"]) == (None, ["tag:web"], None)
    for tags in ((), ("web",), ("tag:Ä",)):
        with pytest.raises(InvalidError):
            done(office.registry.tag_node("1", tags))
    done(office.registry.expire_node("1"))
    assert done(office.registry.tag_node("1", ("tag:db",)))["state"] == "expired"
    row = done(office.registry.approve_node("1"))
    assert (row["tags"], row["key_expires"], row["state"]) == (["tag:db"], None, "active")
    row = done(office.registry.approve_node(str(node), "admin"))
    assert (row["tags"], row["user"]) == ([], "admin")


def test_routes_are_in_force_when_advertised_and_approved(office: Office) -> None:
    node, other = office.join(routes=("192.168.1.0/24", "fd12::/48")), office.join()
    assert office.netmap(other).peers[0].routes == ()
    office.last()
    done(office.registry.approve_routes("1", ("192.168.1.0/24", "10.5.0.0/16")))
    assert office.last().netmaps == {node, other}
    assert [str(route) for route in office.netmap(other).peers[0].routes] == ["192.168.1.0/24"]
    assert [str(route) for route in office.netmap(node).self.advertised_routes] == ["192.168.1.0/24", "fd12::/48"]
    assert [(row["route"], row["advertised"], row["approved"]) for row in office.registry.routes()] == [
        ("10.5.0.0/16", False, True),
        ("192.168.1.0/24", True, True),
        ("fd12::/48", True, False),
    ]
    assert office.registry.routes("1") == office.registry.routes()
    done(office.registry.revoke_routes("1", ("192.168.1.0/24", "172.16.0.0/12")))
    assert office.last().urgent
    assert office.netmap(other).peers[0].routes == ()


def test_one_prefix_of_two_routers_is_routed_by_one_and_kept_by_the_other(office: Office) -> None:
    first, second = (office.join(routes=("192.168.1.0/24",)) for _ in range(2))
    watcher = office.join()
    for node in (first, second):
        office.registry.connected(node)
        done(office.registry.approve_routes(str(node), ("192.168.1.0/24",)))
    assert [(row["node"], row["primary"], row["online"], row["overlaps"]) for row in office.registry.routes()] == [
        (first, True, True, []),
        (second, False, True, []),
    ]
    office.last()
    office.registry.disconnected(first)
    assert [(row["node"], row["primary"], row["online"]) for row in office.registry.routes()] == [(first, False, False), (second, True, True)]
    assert watcher in office.last().netmaps
    peers = {peer.id: peer for peer in office.netmap(watcher).peers}
    assert [list(map(str, peers[node].routes)) for node in (first, second)] == [[], ["192.168.1.0/24"]]
    assert [list(map(str, peers[node].backup_routes)) for node in (first, second)] == [["192.168.1.0/24"], []]


def test_overlapping_prefixes_of_different_nodes_are_reported_with_both(office: Office) -> None:
    wide, narrow = office.join("wide", routes=("10.0.0.0/8", "10.2.0.0/16")), office.join("narrow", routes=("10.1.0.0/16",))
    done(office.registry.approve_routes(str(wide), ("10.0.0.0/8", "10.2.0.0/16")))
    done(office.registry.approve_routes(str(narrow), ("10.1.0.0/16",)))
    overlaps = {row["route"]: row["overlaps"] for row in office.registry.routes()}
    assert overlaps == {
        "10.0.0.0/8": [{"node": narrow, "name": "narrow", "route": "10.1.0.0/16"}],
        "10.1.0.0/16": [{"node": wide, "name": "wide", "route": "10.0.0.0/8"}],
        "10.2.0.0/16": [],
    }


def test_router_is_reachable_by_all_for_its_routes_alone(office: Office) -> None:
    done(office.registry.create_user("bob"))
    router, stranger = office.join(routes=("192.168.1.0/24",)), office.join(user="bob")
    assert office.peers(stranger) == []
    done(office.registry.approve_routes(str(router), ("192.168.1.0/24",)))
    assert office.peers(stranger) == [router]
    assert [str(rule.destinations[0]) for rule in office.netmap(router).filter] == ["192.168.1.0/24"]


def test_no_listing_holds_a_secret(office: Office) -> None:
    made = done(office.registry.create_key())
    office.register(office.machine(), made["key"])
    office.register(office.machine())
    shown = json.dumps([office.registry.users(), office.registry.keys(), office.registry.nodes(), office.registry.routes(), office.registry.policy()])
    assert made["key"] not in shown
    assert made["key"][7:40] not in shown
    assert office.registry.control_key.secret_bytes().hex() not in shown
    assert "secret" not in shown
    assert "hash" not in shown


def test_closed_registry_refuses_changes(office: Office) -> None:
    office.registry.close()
    with pytest.raises(StateError, match="the server stops"):
        done(office.registry.create_user("late"))
    office.open()


def test_policy_is_the_built_in_one(office: Office) -> None:
    assert office.registry.policy()["source"] == "built-in"
    assert "Tagged nodes are reachable by all nodes" in office.registry.policy()["text"]


def test_default_owner_is_the_first_user_whatever_its_name(office: Office) -> None:
    done(office.registry.rename_user("admin", "root"))
    done(office.registry.create_user("admin"))
    assert office.registry.node(str(office.join("one")))["user"] == "root"
    waiting = office.register(office.machine("two"))
    assert done(office.registry.approve_node(waiting.code))["user"] == "root"


def test_restore_gives_no_id_twice_and_forgets_no_audit(office: Office) -> None:
    office.join("old")
    archive = read_archive(office.registry.backup())
    later = office.join("later")
    user = done(office.registry.create_user("later"))["id"]
    actions = [record.action for record in office.registry.audit_records(after=0, limit=100)]
    assert done(office.registry.restore(archive, "server.restore", LOCAL)) is False
    assert [row["id"] for row in office.registry.nodes()] == [1]
    assert office.join("new") > later
    assert done(office.registry.create_user("new"))["id"] > user
    after = office.registry.audit_records(after=0, limit=100)
    assert [record.action for record in after][: len(actions) + 1] == [*actions, "server.restore"]
    assert [record.seq for record in after] == list(range(1, len(after) + 1))


def test_restore_of_another_server_takes_its_ids_and_log(office: Office, tmp_path: Path) -> None:
    other = Office(tmp_path / "other", seed=2)
    done(other.registry.create_user("there"))
    archive = read_archive(other.registry.backup())
    other.registry.close()
    office.join("here")
    assert done(office.registry.restore(archive, "server.restore", LOCAL)) is True
    assert [record.action for record in office.registry.audit_records(after=0, limit=100)] == ["server.start", "users.create", "server.restore"]
    assert office.registry.nodes() == []
    assert done(office.registry.restore(archive, "server.restore", LOCAL)) is True  # the store has that key by now, the server not yet
