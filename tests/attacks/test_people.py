"""Attacks on users, roles, tokens and sessions, where the registry decides: 20, 22, 29, 30, 34, 35."""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from calnet.crypto import hash as hashing
from calnet.errors import CalnetError, ForbiddenError, UnauthorizedError
from calnet.model import UserId
from calnet.roles.server import tokens
from calnet.roles.server.actors import Actor, Role, Terms
from calnet.roles.server.registry import Registry
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import Identity, UserWish
from calnet.store.opening import open_store
from tests.roles.server.registries import Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _user(office: Office, name: str, role: str = "user") -> Terms:
    row = done(office.registry.create_user(name, role=role))
    return Terms(Actor("user", str(row["id"]), name, user=UserId(row["id"])))


# --- 20, 22: tokens and cookies


def test_attack_20_token_secret_is_compared_in_constant_time_also_for_an_unknown_id() -> None:
    source = inspect.getsource(tokens.principal_of_token)
    assert "equal(blake2s(raw[_ID_SIZE:]), _NO_HASH if record is None" in source
    assert "compare_digest" in inspect.getsource(hashing.equal)


def test_attack_20_unknown_token_wrong_secret_and_dead_token_are_told_apart_by_nothing(office: Office) -> None:
    text = done(office.registry.create_token(TokenWish("admin", "x")))["token"]
    other = done(office.registry.create_token(TokenWish("admin", "y")))
    done(office.registry.revoke_token(other["id"]))
    told = set()
    for wrong in (text[:13] + "a" * 45, text[:30] + other["token"][30:], other["token"], "x", ""):
        with pytest.raises(UnauthorizedError) as raised:
            office.registry.principal_of_token(wrong, "")
        told.add(str(raised.value))
    assert len(told) == 1


@pytest.mark.parametrize("kind", ["kv", "sqlite"])
def test_attack_22_tokens_and_cookies_are_hashed_at_rest_and_shown_once(tmp_path: Path, kind: str) -> None:
    registry = Registry(open_store(kind, tmp_path), clock=lambda: 1.8e9, random=os.urandom)
    text = done(registry.create_token(TokenWish("admin", "x")))["token"]
    secret, _ = done(registry.create_session(UserId(1), expires_s=60.0))
    shown = json.dumps([registry.tokens(), registry.sessions(), registry.audit(), registry.audit_at(1.8e9)])
    registry.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    raw = base64.b32decode(text[len(tokens.PREFIX) :].upper() + "===")[8:]
    for hidden in (text.encode(), text[26:].encode(), raw, raw.hex().encode(), secret.encode()):
        assert hidden not in kept
        assert hidden not in shown.encode()


# --- 29, 30: identity is (issuer, subject), rights are what the provider says now


@pytest.mark.parametrize(
    "thief",
    [
        Identity("https://id.example", "mallory", email="boss@example.com", preferred_name="boss", display_name="Boss"),
        Identity("https://evil.example", "boss-subject", email="boss@example.com", preferred_name="boss"),
        Identity("https://id.example/", "boss-subject", preferred_name="boss"),
        Identity("https://id.example", "Boss-Subject", preferred_name="boss"),
        Identity("https://id.example\0boss", "-subject", preferred_name="boss"),
    ],
    ids=["same address and name", "other issuer", "issuer with a slash", "subject in other case", "moved boundary"],
)
def test_attack_29_somebody_elses_name_address_or_subject_elsewhere_gives_nothing(office: Office, thief: Identity) -> None:
    boss = done(office.registry.sign_in(Identity("https://id.example", "boss-subject", "boss@example.com", preferred_name="boss", role=Role.OWNER)))
    office.join("laptop", user="boss")
    taken = done(office.registry.sign_in(thief))
    assert taken.id != boss.id
    assert (taken.role, taken.name) == ("user", "boss-1")
    assert office.registry.node("laptop")["user"] == "boss"
    assert office.registry.user("boss")["role"] == "owner"


def test_attack_29_user_made_by_hand_is_nobodys_identity(office: Office) -> None:
    done(office.registry.create_user("carol", role="admin"))
    office.join("laptop", user="carol")
    taken = done(office.registry.sign_in(Identity("https://id.example", "c", "carol@example.com", preferred_name="carol")))
    assert (taken.name, taken.role) == ("carol-1", "user")
    assert done(office.registry.sign_in(Identity("https://id.example", "a", preferred_name="admin"))).name == "admin-1"


def test_attack_29_unverified_address_reaches_nothing_that_policy_gives_the_address(office: Office) -> None:
    done(office.registry.sign_in(Identity("i", "mallory", email="", preferred_name="boss@example.com")))
    (name,) = [row["name"] for row in office.registry.users() if row["subject"] == "mallory"]
    web, laptop = office.join("web", tags=("tag:web",)), office.join("laptop", user=name)
    done(office.registry.set_policy('{"acls": [{"action": "accept", "src": ["boss@example.com"], "dst": ["tag:web:*"]}], "tagOwners": {"tag:web": []}}'))
    assert office.peers(laptop) == office.peers(web) == []


def test_attack_30_groups_that_are_gone_take_their_rights_at_the_next_refresh(office: Office) -> None:
    ada = Identity("i", "ada", preferred_name="ada", groups=("admins",), role=Role.ADMIN)
    user = done(office.registry.sign_in(ada))
    terms = Terms(Actor("user", str(user.id), "ada", user=user.id))
    token = done(office.registry.create_token(TokenWish("ada", "x"), terms=terms))["token"]
    assert office.registry.principal_of_token(token, "").role is Role.ADMIN
    done(office.registry.sign_in(Identity("i", "ada", preferred_name="ada")))
    assert office.registry.user("ada")["groups"] == []
    assert office.registry.principal_of_token(token, "").role is Role.USER
    with pytest.raises(ForbiddenError):
        done(office.registry.create_user("friend", terms=terms))


# --- 34: nobody makes himself more than he is


@pytest.mark.parametrize("role", ["user", "auditor", "admin"])
@pytest.mark.parametrize("wish", [UserWish(role="owner"), UserWish(role="owner", name="x"), UserWish(role="admin", suspended=False)])
def test_attack_34_self_update_sets_no_higher_role(office: Office, role: str, wish: UserWish) -> None:
    terms = _user(office, "mallory", role)
    with contextlib.suppress(ForbiddenError):
        done(office.registry.update_user("mallory", wish, terms=terms))
    assert office.registry.users()[1]["role"] == role


def test_attack_34_token_of_a_user_sets_no_role_either(office: Office) -> None:
    _user(office, "mallory")
    token = done(office.registry.create_token(TokenWish("mallory", "x", ("users:write",))))["token"]
    terms = Terms(office.registry.principal_of_token(token, "").actor)
    for future in (office.registry.update_user("mallory", UserWish(role="admin"), terms=terms), office.registry.create_user("x", role="admin", terms=terms)):
        with pytest.raises(ForbiddenError):
            done(future)


def test_attack_34_admin_that_is_demoted_in_the_same_batch_promotes_nobody(office: Office) -> None:
    mallory = _user(office, "mallory", "admin")
    _user(office, "friend")
    futures = [office.registry.update_user("mallory", UserWish(role="user"))]
    futures += [office.registry.update_user("friend", UserWish(role="admin"), terms=mallory) for _ in range(20)]
    futures += [office.registry.create_user(f"extra{number}", role="admin", terms=mallory) for number in range(5)]
    done(futures[0])
    for future in futures[1:]:
        with pytest.raises(ForbiddenError):
            done(future)
    assert {row["name"]: row["role"] for row in office.registry.users()} == {"admin": "owner", "mallory": "user", "friend": "user"}


@pytest.mark.parametrize("seed", range(5))
def test_attack_34_parallel_role_changes_end_in_no_role_that_nobody_could_give(tmp_path: Path, seed: int) -> None:
    """Two admins, two users and an auditor change each other and themselves, all at once: nobody becomes an owner, and at least one owner stays."""
    office = Office(tmp_path / "state")
    people = {name: _user(office, name, role) for name, role in [("a1", "admin"), ("a2", "admin"), ("u1", "user"), ("u2", "user"), ("au", "auditor")]}
    random = Random(seed)
    wishes = [(random.choice(sorted(people)), random.choice(["admin", *sorted(people)]), random.choice([role.value for role in Role])) for _ in range(300)]

    def change(wish: tuple[str, str, str]) -> None:
        doer, target, role = wish
        try:
            done(office.registry.update_user(target, UserWish(role=role), terms=people[doer]))
        except CalnetError:
            return

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(change, wishes))
    assert [row["name"] for row in office.registry.users() if row["role"] == "owner"] == ["admin"]
    roles = {"a1": "admin", "a2": "admin", "u1": "user", "u2": "user", "au": "auditor", "admin": "owner"}
    by_id = {row["id"]: row["name"] for row in office.registry.users()}
    for row in office.registry.audit(limit=10_000, newest_first=False):
        if row["action"] == "users.update":
            assert roles[row["actor"]["name"]] == "admin"
            (change_made,) = row["changes"]
            roles[by_id[int(change_made["id"])]] = change_made["after"]["role"]
    office.registry.close()


def test_attack_34_last_two_owners_demoting_each_other_leave_one(office: Office) -> None:
    first, second = Terms(Actor("user", "1", "admin", user=UserId(1))), _user(office, "second", "owner")
    futures = [
        office.registry.update_user("second", UserWish(role="user"), terms=first),
        office.registry.update_user("admin", UserWish(role="user"), terms=second),
    ]
    results = [future.exception(timeout=30) for future in futures]
    assert sum(result is None for result in results) == 1
    assert sum(row["role"] == "owner" for row in office.registry.users()) == 1


def test_attack_34_shut_out_admin_does_nothing_with_what_it_still_holds(office: Office) -> None:
    mallory = _user(office, "mallory", "admin")
    done(office.registry.update_user("mallory", UserWish(suspended=True)))
    for future in (
        office.registry.update_user("mallory", UserWish(suspended=False), terms=mallory),
        office.registry.create_user("x", terms=mallory),
        office.registry.create_token(TokenWish("mallory", "x"), terms=mallory),
        office.registry.create_key(user="mallory", terms=mallory),
        office.registry.create_key(tags=("tag:a",), terms=mallory),
    ):
        with pytest.raises(ForbiddenError):
            done(future)


# --- 35


def test_attack_35_nothing_that_is_shown_holds_a_private_key_or_a_whole_auth_key(office: Office) -> None:
    key = office.auth_key(reusable=True)
    office.register(office.machine(), key)
    done(office.registry.set_policy("{}"))
    done(office.registry.update_settings({"require_approval": True}))
    registry = office.registry
    things = [registry.users(), registry.keys(), registry.nodes(), registry.routes(), registry.policy(), registry.settings(), registry.tokens()]
    shown = json.dumps([*things, registry.sessions(), registry.audit(limit=1000), registry.audit_at(office.now)])
    secret = registry.control_key.secret_bytes()
    for hidden in (key, key[20:60], secret.hex(), repr(secret)[2:-1]):
        assert hidden not in shown
