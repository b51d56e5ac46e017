"""The policy on the server: set whole or not at all, in force at once, and what it says of tags and routes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from calnet.errors import ForbiddenError, InvalidError, NotFoundError, StaleError, StateError
from calnet.model import UserId
from calnet.policy.document import PolicyError
from calnet.roles.server.actors import Actor, Terms
from calnet.roles.server.users import Identity, UserWish
from calnet.store.interface import Delete, Key, Put, SettingRecord
from calnet.store.opening import open_store
from tests.roles.server.registries import Office, done

WEB = """{
  // only the web
  "hosts": {"lan": "10.0.0.0/8"},
  "tagOwners": {"tag:web": ["bob@"], "tag:router": ["autogroup:admin"]},
  "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router", "carol@"]}},
  "acls": [
    {"action": "accept", "src": ["bob@"], "dst": ["tag:web:443"]},
    {"action": "accept", "src": ["tag:web"], "dst": ["lan:22"]},
  ],
  "tests": [{"src": "bob@", "accept": ["tag:web:443"], "deny": ["tag:web:22"]}],
}"""


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _user(office: Office, name: str, role: str = "user") -> Terms:
    row = done(office.registry.create_user(name, role=role))
    return Terms(Actor("user", str(row["id"]), name, user=UserId(row["id"])))


def test_policy_that_is_set_holds_at_once_and_after_a_restart_until_it_is_reset(office: Office) -> None:
    _user(office, "bob")
    web, bob, other = office.join("web", tags=("tag:web",)), office.join("laptop", user="bob"), office.join("other")
    assert office.peers(other) == [web]
    office.last()
    row = done(office.registry.set_policy(WEB))
    assert row == office.registry.policy()
    assert (row["source"], row["text"]) == ("set", WEB)
    told = office.last()
    assert told.urgent
    assert {web, other} <= told.netmaps
    for _ in range(2):
        assert (office.peers(web), office.peers(bob), office.peers(other)) == ([bob], [web], [])
        assert not office.registry.sees(web, other)
        assert [(rule.ports[0].first, rule.protocols) for rule in office.netmap(web).filter if rule.ports] == [(443, (6, 17))]
        office.reopen()
    office.last()
    done(office.registry.reset_policy())
    assert office.registry.policy()["source"] == "built-in"
    assert office.peers(other) == [web]
    done(office.registry.reset_policy())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"acls": [{"action": "accept", "src": ["group:none"], "dst": ["*:*"]}]}',
        '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], "tests": [{"src": "admin@", "deny": ["one:22"]}], "hosts": {"one": "10.1.1.1"}}',
        '{"unknown": 1}',
    ],
)
def test_policy_that_does_not_compile_or_fails_its_tests_is_refused_whole_and_the_old_one_stays(office: Office, text: str) -> None:
    done(office.registry.set_policy(WEB))
    before, seq = office.registry.policy(), office.registry.audit(limit=1)[0]["seq"]
    with pytest.raises(PolicyError) as raised:
        done(office.registry.set_policy(text))
    assert raised.value.problems
    assert office.registry.policy() == before
    assert office.registry.audit(limit=1)[0]["seq"] == seq
    checked = office.registry.check_policy(text)
    assert not checked["ok"]
    assert checked["problems"] or not all(row["passed"] for row in checked["tests"])


def test_two_admins_do_not_overwrite_each_others_policy(office: Office) -> None:
    seen = office.registry.policy()["etag"]
    after = done(office.registry.set_policy(WEB, terms=Terms(expect=seen)))["etag"]
    futures: list[Future[Any]] = [office.registry.set_policy("{}", terms=Terms(expect=seen)), office.registry.reset_policy(terms=Terms(expect=seen))]
    for future in futures:
        with pytest.raises(StaleError):
            done(future)
    done(office.registry.reset_policy(terms=Terms(expect=after)))


def test_questions_are_answered_before_and_after(office: Office) -> None:
    _user(office, "bob")
    office.join("web", tags=("tag:web",))
    office.join("laptop", user="bob")
    office.join("other")
    assert office.registry.can("other", "web", "tcp", 22)["allowed"] is True
    assert office.registry.check_policy(WEB)["ok"] is True
    difference = office.registry.diff_policy(WEB)
    assert difference["gained"] == []
    assert difference["lost"]
    assert office.registry.test_policy() == {"ok": True, "tests": []}
    assert [row["passed"] for row in office.registry.test_policy(WEB)["tests"]] == [True, True]
    done(office.registry.set_policy(WEB))
    verdict = office.registry.can("laptop", "web", "tcp", 443)
    assert (verdict["allowed"], verdict["rule"]["line"]) == (True, 7)
    assert office.registry.can("bob@", "tag:web", "udp", 443)["allowed"] is True
    denied = office.registry.can("laptop", "web", "tcp", 22)
    assert (denied["allowed"], denied["rule"]) == (False, None)
    assert office.registry.diff_policy(WEB) == {"gained": [], "lost": []}
    assert [row["passed"] for row in office.registry.test_policy()["tests"]] == [True, True]


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (("nobody", "web", "tcp", 1), NotFoundError),
        (("web", "nobody", "tcp", 1), NotFoundError),
        (("web", "web", "xyz", 1), InvalidError),
        (("web", "web", "*", 1), InvalidError),
        (("web", "web", "tcp", None), InvalidError),
    ],
)
def test_question_about_nothing_is_refused(office: Office, question: tuple[Any, ...], error: type[Exception]) -> None:
    office.join("web")
    with pytest.raises(error):
        office.registry.can(*question)


def test_change_of_a_user_moves_what_policy_gives_its_nodes(office: Office) -> None:
    _user(office, "bob")
    web, laptop = office.join("web", tags=("tag:web",)), office.join("laptop", user="bob")
    done(office.registry.set_policy('{"acls": [{"action": "accept", "src": ["autogroup:auditor"], "dst": ["tag:web:443"]}], "tagOwners": {"tag:web": []}}'))
    assert office.peers(laptop) == []
    office.last()
    done(office.registry.update_user("bob", UserWish(role="auditor")))
    assert office.peers(laptop) == [web]
    assert {web, laptop} <= office.last().netmaps
    done(office.registry.update_user("bob", UserWish(role="user")))
    assert office.peers(laptop) == []
    assert office.last().urgent


def test_verified_address_names_a_user_and_is_lost_with_it(office: Office) -> None:
    alice = Identity("i", "s", email="a@example.com", preferred_name="alice")
    done(office.registry.sign_in(alice))
    web, laptop = office.join("web", tags=("tag:web",)), office.join("laptop", user="alice")
    done(office.registry.set_policy('{"acls": [{"action": "accept", "src": ["a@example.com"], "dst": ["tag:web:443"]}], "tagOwners": {"tag:web": []}}'))
    assert office.peers(laptop) == [web]
    done(office.registry.sign_in(Identity("i", "s", email="", preferred_name="alice")))
    assert office.peers(laptop) == []


def test_stored_policy_that_this_version_can_not_read_stops_the_start_and_closes_the_store(office: Office) -> None:
    office.registry.close()
    store = open_store("kv", office.directory)
    store.commit([Put(SettingRecord("policy", b'{"fromTheFuture": 1}'))])
    store.close()
    for _ in range(2):
        with pytest.raises(StateError, match=r"does not compile with this version .*fromTheFuture"):
            office.open()
    store = open_store("kv", office.directory)
    store.commit([Delete(Key(SettingRecord, "policy"))])
    store.close()
    office.open()


# --- tags


@pytest.mark.parametrize(
    ("name", "role", "tag", "allowed"),
    [
        ("bob", "user", "tag:web", True),
        ("bob", "user", "tag:router", False),
        ("bob", "user", "tag:other", False),
        ("eve", "user", "tag:web", False),
        ("eve", "auditor", "tag:web", False),
        ("eve", "admin", "tag:other", True),
        ("eve", "owner", "tag:web", True),
    ],
)
def test_tag_is_given_by_its_owners_and_admins(office: Office, name: str, role: str, tag: str, allowed: bool) -> None:
    done(office.registry.set_policy(WEB))
    terms = _user(office, name, role)
    office.join("node", user=name)
    for future in (office.registry.create_key(user=name, tags=(tag,), terms=terms), office.registry.tag_node("node", (tag,), terms=terms)):
        if allowed:
            done(future)
        else:
            with pytest.raises(ForbiddenError, match=f"owner of {tag}"):
                done(future)
    assert office.registry.node("node")["tags"] == ([tag] if allowed else [])


def test_without_a_policy_admins_alone_give_tags(office: Office) -> None:
    with pytest.raises(ForbiddenError, match="only an admin"):
        done(office.registry.create_key(tags=("tag:web",), terms=_user(office, "bob")))
    done(office.registry.create_key(tags=("tag:web",), terms=_user(office, "ada", "admin")))


# --- routes that need no admin


def _approved(office: Office, node: str) -> list[str]:
    approved: list[str] = office.registry.node(node)["routes"]["approved"]
    return approved


def test_routes_are_approved_by_the_policy_when_advertised_tagged_or_the_policy_is_set(office: Office) -> None:
    _user(office, "carol")
    early = office.join("early", routes=("10.1.0.0/16", "192.168.0.0/24"), user="carol")
    plain = office.join("plain", routes=("10.3.0.0/16",))
    assert _approved(office, "early") == []
    done(office.registry.set_policy(WEB))
    assert (_approved(office, "early"), _approved(office, "plain")) == (["10.1.0.0/16"], [])
    office.join("late", routes=("10.2.0.0/16", "11.0.0.0/8"), tags=("tag:router",))
    assert _approved(office, "late") == ["10.2.0.0/16"]
    done(office.registry.update(early, routes=("10.9.0.0/16",)))
    assert _approved(office, "early") == ["10.1.0.0/16", "10.9.0.0/16"]
    done(office.registry.tag_node("plain", ("tag:router",)))
    assert _approved(office, "plain") == ["10.3.0.0/16"]
    done(office.registry.update(plain, routes=("10.4.0.0/16", "10.0.0.0/7")))
    assert _approved(office, "plain") == ["10.3.0.0/16", "10.4.0.0/16"]


def test_waiting_machine_has_nothing_approved_until_it_is_admitted(office: Office) -> None:
    done(office.registry.set_policy(WEB))
    _user(office, "carol")
    machine = office.machine("router")
    waiting = office.register(machine, routes=("10.1.0.0/16",))
    assert office.registry.node(waiting.code)["routes"]["approved"] == []
    assert done(office.registry.approve_node(waiting.code, "carol"))["routes"]["approved"] == ["10.1.0.0/16"]


def test_policy_approves_neither_the_overlay_nor_everything(office: Office) -> None:
    done(office.registry.set_policy('{"autoApprovers": {"routes": {"0.0.0.0/0": ["carol@"]}}}'))
    _user(office, "carol")
    office.join("router", routes=("0.0.0.0/0", "100.70.0.0/24", "100.70.0.1/32", "100.0.0.0/8", "127.0.0.0/8", "100.71.0.0/16"), user="carol")
    assert _approved(office, "router") == ["100.71.0.0/16"]
