"""Users: their roles, who may give which, shut out and let in, known by whom they signed in as."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from calnet.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, StaleError
from calnet.model import UserId
from calnet.roles.server.actors import LOCAL, Actor, Role, Terms
from calnet.roles.server.powers import may_set_role
from calnet.roles.server.standing import NodeState
from calnet.roles.server.users import Identity, UserWish
from tests.roles.server.registries import Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _user(office: Office, name: str, role: str = "user") -> Terms:
    row = done(office.registry.create_user(name, role=role))
    return Terms(Actor("user", str(row["id"]), name, user=UserId(row["id"])))


def _record(office: Office, name: str) -> tuple[str, bool]:
    row = office.registry.user(name)
    return row["role"], row["suspended"]


@pytest.mark.parametrize("doer", [None, *Role])
@pytest.mark.parametrize("before", [None, *Role])
@pytest.mark.parametrize("after", list(Role))
def test_role_is_given_by_admins_and_ownership_by_owners_alone(office: Office, doer: Role | None, before: Role | None, after: Role) -> None:
    terms = Terms(LOCAL) if doer is None else _user(office, "doer", doer)
    allowed = doer in (None, Role.OWNER) or (doer is Role.ADMIN and Role.OWNER not in (before, after))
    if before is not None:
        _user(office, "other", before)
        future = office.registry.update_user("other", UserWish(role=after, name="renamed"), terms=terms)
    else:
        future = office.registry.create_user("other", role=after, terms=terms)
    if allowed:
        assert done(future)["role"] == after
    else:
        with pytest.raises(ForbiddenError):
            done(future)
        assert [row["name"] for row in office.registry.users()] == ["admin", *(["doer"] if doer else []), *(["other"] if before else [])]
        assert before is None or _record(office, "other") == (before, False)


def test_who_stands_above_users_may_set_every_role() -> None:
    assert all(may_set_role(None, before, after) for before in (None, *Role) for after in Role)


def test_last_owner_is_not_demoted_shut_out_or_deleted(office: Office) -> None:
    _user(office, "second", "owner")
    done(office.registry.update_user("admin", UserWish(suspended=True)))
    for wish in (UserWish(role="admin"), UserWish(suspended=True)):
        with pytest.raises(ConflictError, match="second is the last owner"):
            done(office.registry.update_user("second", wish))
    with pytest.raises(ConflictError, match="second is the last owner"):
        done(office.registry.delete_user("second"))
    done(office.registry.update_user("admin", UserWish(suspended=False)))
    done(office.registry.delete_user("second"))


def test_unknown_role_is_refused(office: Office) -> None:
    for future in (office.registry.create_user("x", role="root"), office.registry.update_user("admin", UserWish(role="Owner"))):
        with pytest.raises(InvalidError, match="is no role"):
            done(future)


def test_change_on_a_user_that_changed_meanwhile_is_stale(office: Office) -> None:
    etag = done(office.registry.create_user("bob"))["etag"]
    after = done(office.registry.update_user("bob", UserWish(role="auditor"), terms=Terms(expect=etag)))["etag"]
    assert after != etag
    terms = Terms(expect=etag)
    futures: list[Future[Any]] = [office.registry.rename_user("bob", "rob", terms=terms), office.registry.delete_user("bob", terms=terms)]
    for future in futures:
        with pytest.raises(StaleError):
            done(future)
    assert office.registry.user("bob")["etag"] == after
    done(office.registry.delete_user("bob", terms=Terms(expect=after)))


def test_suspended_user_has_no_active_node_token_or_session_until_resumed(office: Office) -> None:
    bob = _user(office, "bob").by.user
    assert bob is not None
    machine = office.machine()
    node, friend = office.join_as(machine, user="bob"), office.join(user="bob")
    tagged = office.join(tags=("tag:a",))
    secret, _ = done(office.registry.create_session(bob, expires_s=3600.0))
    office.last()
    done(office.registry.update_user("bob", UserWish(suspended=True)))
    told = office.last()
    assert told.urgent
    assert told.standings == {node, friend}
    assert office.registry.standing_of(node).state is NodeState.DISABLED
    assert office.registry.node_of_key(machine.node_key) is None
    assert office.peers(tagged) == []
    assert office.registry.session_of(secret) is None
    for key in ("", office.auth_key(), office.auth_key(user="bob")):
        with pytest.raises(ForbiddenError, match="suspended"):
            office.register(machine, key)
    with pytest.raises(ForbiddenError, match="suspended"):
        office.join(user="bob")
    done(office.registry.update_user("bob", UserWish(suspended=False)))
    assert office.registry.standing_of(node).state is NodeState.ACTIVE
    assert office.peers(tagged) == [node, friend]
    assert office.registry.session_of(secret) is None


def test_disabled_node_stays_disabled_when_its_owner_is_let_in_again(office: Office) -> None:
    _user(office, "bob")
    node = office.join(user="bob")
    done(office.registry.disable_node(str(node)))
    for suspended in (True, False):
        done(office.registry.update_user("bob", UserWish(suspended=suspended)))
        assert office.registry.standing_of(node).state is NodeState.DISABLED
    done(office.registry.enable_node(str(node)))
    assert office.registry.standing_of(node).state is NodeState.ACTIVE


def test_node_of_a_suspended_owner_gets_another_owner_by_approval_only(office: Office) -> None:
    _user(office, "bob")
    node = office.join(user="bob")
    done(office.registry.update_user("bob", UserWish(suspended=True)))
    for user in (None, "bob"):
        with pytest.raises(ConflictError, match="suspended"):
            done(office.registry.approve_node(str(node), user))
    assert done(office.registry.approve_node(str(node), "admin"))["state"] == "active"


# --- signing in

ALICE = Identity("https://id.example", "00u1", "alice@example.com", "Alice A", "alice", ("eng", "all"), Role.ADMIN)
BOB = Identity("https://id.example", "00u2", "bob@example.com", "Bob B", "bob")


def test_first_sign_in_makes_a_user_and_the_next_finds_it(office: Office) -> None:
    made = done(office.registry.sign_in(ALICE))
    office.now += 60
    again = done(office.registry.sign_in(ALICE))
    assert (made.id, made.name, made.role, made.role_by_hand) == (again.id, "alice", "admin", False)
    assert again.last_login_at == office.now
    row = office.registry.user("alice")
    assert (row["email"], row["display_name"], row["groups"], row["issuer"], row["subject"]) == (
        "alice@example.com",
        "Alice A",
        ["all", "eng"],
        "https://id.example",
        "00u1",
    )


def test_role_set_by_hand_is_not_moved_by_claims(office: Office) -> None:
    done(office.registry.sign_in(ALICE))
    done(office.registry.update_user("alice", UserWish(role="auditor")))
    assert done(office.registry.sign_in(ALICE)).role == "auditor"


def test_last_owner_stays_one_whatever_claims_say(office: Office) -> None:
    owner = Identity("https://id.example", "boss", role=Role.OWNER, preferred_name="boss")
    done(office.registry.sign_in(owner))
    done(office.registry.update_user("admin", UserWish(role="user")))
    demoted = Identity("https://id.example", "boss", role=Role.USER, preferred_name="boss")
    assert done(office.registry.sign_in(demoted)).role == "owner"
    done(office.registry.update_user("admin", UserWish(role="owner")))
    assert done(office.registry.sign_in(demoted)).role == "user"


def test_suspended_user_does_not_sign_in(office: Office) -> None:
    done(office.registry.sign_in(ALICE))
    done(office.registry.update_user("alice", UserWish(suspended=True)))
    with pytest.raises(ForbiddenError, match="alice is suspended"):
        done(office.registry.sign_in(ALICE))


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        (Identity("i", "s", preferred_name="Bob.Builder"), "bob-builder"),
        (Identity("i", "s", email="carol@example.com"), "carol"),
        (Identity("i", "s", preferred_name="dave@example.com"), "dave"),
        (Identity("i", "s", display_name="Erin Évans"), "erin-vans"),
        (Identity("i", "s"), "user"),
        (Identity("i", "s", preferred_name="\x1b[2J"), "2j"),
        (Identity("i", "s", preferred_name="admin"), "admin-1"),
    ],
)
def test_name_comes_from_what_the_provider_says_and_is_free(office: Office, identity: Identity, name: str) -> None:
    assert done(office.registry.sign_in(identity)).name == name


def test_machine_is_admitted_for_the_user_who_signed_in_with_its_code(office: Office) -> None:
    alice = done(office.registry.sign_in(ALICE)).id
    waiting = office.register(office.machine("laptop"))
    row = done(office.registry.admit_node(waiting.code.lower(), alice))
    assert (row["state"], row["user"], row["name"]) == ("active", "alice", "laptop")
    with pytest.raises(Exception, match="no machine waits"):
        done(office.registry.admit_node(waiting.code, alice))


@pytest.mark.parametrize("reference", ["1", "victim", "100.70.0.1", ""])
def test_signed_in_user_admits_nothing_but_by_code(office: Office, reference: str) -> None:
    alice = done(office.registry.sign_in(ALICE)).id
    office.join("victim")
    with pytest.raises(Exception, match="no machine waits"):
        done(office.registry.admit_node(reference, alice))
    assert office.registry.node("victim")["user"] == "admin"


def test_machine_waits_for_an_admin_too_where_the_settings_say_so_but_not_at_each_login(office: Office) -> None:
    done(office.registry.update_settings({"require_approval": True}))
    alice = done(office.registry.sign_in(ALICE)).id
    machine = office.machine("laptop")
    waiting = office.register(machine)
    row = done(office.registry.admit_node(waiting.code, alice))
    assert (row["state"], row["user"]) == ("pending", "alice")
    assert done(office.registry.approve_node(waiting.code))["user"] == "alice"
    done(office.registry.expire_node("laptop"))
    again = office.register(machine)
    assert again.state is NodeState.PENDING
    assert done(office.registry.admit_node(again.code, alice))["state"] == "active"


def test_first_sign_in_for_a_machine_that_waits_for_an_admin_is_final(office: Office) -> None:
    done(office.registry.update_settings({"require_approval": True}))
    alice, bob = done(office.registry.sign_in(ALICE)).id, done(office.registry.sign_in(BOB)).id
    waiting = office.register(office.machine("laptop"))
    assert office.registry.is_signed_in_for(waiting.code) is False
    for _ in range(2):
        assert done(office.registry.admit_node(waiting.code, alice))["state"] == "pending"
        assert office.registry.is_signed_in_for(waiting.code)
        with pytest.raises(ConflictError, match="somebody else has signed in"):
            done(office.registry.admit_node(waiting.code, bob))
        with pytest.raises(ConflictError, match="somebody else has signed in"):
            office.registry.waiting_node(waiting.code, bob)
    done(office.registry.update_settings({"require_approval": False}))
    with pytest.raises(ConflictError):
        done(office.registry.admit_node(waiting.code, bob))
    assert done(office.registry.approve_node(waiting.code))["user"] == "alice"


def test_another_users_sign_in_for_a_known_machine_waits_for_an_admin_however_often(office: Office) -> None:
    alice, bob = done(office.registry.sign_in(ALICE)).id, done(office.registry.sign_in(BOB)).id
    machine = office.machine("laptop")
    done(office.registry.admit_node(office.register(machine).code, alice))
    done(office.registry.update_settings({"require_approval": True}))
    done(office.registry.expire_node("laptop"))
    again = office.register(machine)
    for _ in range(3):
        row = done(office.registry.admit_node(again.code, bob))
        assert (row["state"], row["user"]) == ("pending", "bob")
    with pytest.raises(ConflictError):
        done(office.registry.admit_node(again.code, alice))
    assert done(office.registry.approve_node(again.code))["user"] == "bob"


@pytest.mark.parametrize("known", [False, True])
def test_logout_of_a_machine_that_somebody_signed_in_for_makes_it_anybodys_again(office: Office, known: bool) -> None:
    alice, bob = done(office.registry.sign_in(ALICE)).id, done(office.registry.sign_in(BOB)).id
    machine = office.machine("laptop")
    if known:
        done(office.registry.admit_node(office.register(machine).code, alice))
        done(office.registry.expire_node("laptop"))
    done(office.registry.update_settings({"require_approval": True}))
    waiting = office.register(machine)
    done(office.registry.admit_node(waiting.code, bob))
    assert waiting.node is not None
    done(office.registry.logout(waiting.node))
    anew = office.register(machine)
    assert anew.code != waiting.code
    assert done(office.registry.admit_node(anew.code, alice))["user"] == "alice"
    with pytest.raises(NotFoundError):
        done(office.registry.admit_node(waiting.code, bob))


def test_machine_of_a_shut_out_user_or_a_disabled_one_is_not_admitted(office: Office) -> None:
    alice = done(office.registry.sign_in(ALICE)).id
    waiting = office.register(office.machine("laptop"))
    done(office.registry.disable_node(str(waiting.node)))
    with pytest.raises(ForbiddenError, match="disabled"):
        done(office.registry.admit_node(waiting.code, alice))
    done(office.registry.enable_node(str(waiting.node)))
    done(office.registry.update_user("alice", UserWish(suspended=True)))
    with pytest.raises(ForbiddenError, match="suspended"):
        done(office.registry.admit_node(waiting.code, alice))
    with pytest.raises(ForbiddenError, match="gone"):
        done(office.registry.admit_node(waiting.code, UserId(99)))


def test_new_lifetime_holds_from_the_next_login_on(office: Office) -> None:
    before = office.join("before")
    done(office.registry.update_settings({"node_key_lifetime_s": 3600}))
    after = office.join("after")
    lifetimes = [(office.registry.standing_of(node).key_expires or 0.0) - office.now for node in (before, after)]
    assert lifetimes == [180 * 86_400.0, 3600.0]
    done(office.registry.approve_node("before"))
    assert office.registry.standing_of(before).key_expires == office.now + 3600.0


@pytest.mark.parametrize(
    "wish",
    [{"node_key_lifetime_s": 1}, {"node_key_lifetime_s": True}, {"node_key_lifetime_s": float("nan")}, {"require_approval": 1}, {"control-key": "x"}],
)
def test_bad_setting_is_refused_and_changes_nothing(office: Office, wish: dict[str, object]) -> None:
    before = office.registry.settings()
    with pytest.raises(InvalidError):
        done(office.registry.update_settings({"require_approval": True} | wish))
    assert office.registry.settings() == before


def test_settings_are_changed_on_the_etag_that_was_seen_and_outlive_a_restart(office: Office) -> None:
    seen = office.registry.settings()["etag"]
    after = done(office.registry.update_settings({"require_approval": True}, terms=Terms(expect=seen)))
    with pytest.raises(StaleError):
        done(office.registry.update_settings({"require_approval": False}, terms=Terms(expect=seen)))
    office.reopen()
    assert office.registry.settings() == after
