"""API tokens and browser sessions: made, hashed at rest, what they open, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from calnet.errors import ForbiddenError, InvalidError, NotFoundError, UnauthorizedError
from calnet.model import UserId
from calnet.roles.server import tokens
from calnet.roles.server.actors import SCOPES, Actor, Principal, Role, Terms
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import UserWish
from tests.roles.server.registries import Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _token(office: Office, user: str = "admin", *scopes: str, **wishes: float) -> tuple[str, str]:
    made = done(office.registry.create_token(TokenWish(user, "ci", scopes, **wishes)))
    return made["token"], made["id"]


def _user(office: Office, name: str, role: str = "user") -> Terms:
    row = done(office.registry.create_user(name, role=role))
    return Terms(Actor("user", str(row["id"]), name, user=UserId(row["id"])))


def test_token_speaks_for_its_user_with_its_scopes(office: Office) -> None:
    text, token_id = _token(office, "admin", "nodes:read", "keys:write", "nodes:read")
    principal = office.registry.principal_of_token(text, "192.0.2.7")
    actor = Actor("token", token_id, "admin/ci", "192.0.2.7", UserId(1))
    assert principal == Principal(actor, Role.OWNER, UserId(1), frozenset({"nodes:read", "keys:write"}))
    (row,) = office.registry.tokens()
    assert (row["user"], row["name"], row["scopes"], row["valid"]) == ("admin", "ci", ["keys:write", "nodes:read"], True)
    assert office.registry.token(token_id) == row


def test_token_without_scopes_may_all_that_its_users_role_may_now(office: Office) -> None:
    _user(office, "bob", "admin")
    text, _ = _token(office, "bob")
    assert office.registry.principal_of_token(text, "").role is Role.ADMIN
    assert office.registry.principal_of_token(text, "").scopes is None
    done(office.registry.update_user("bob", UserWish(role="auditor")))
    assert office.registry.principal_of_token(text, "").role is Role.AUDITOR


@pytest.mark.parametrize(
    ("scopes", "noun", "verb", "allowed"),
    [
        (None, "users", "write", True),
        ({"read"}, "nodes", "read", True),
        ({"read"}, "nodes", "write", False),
        ({"write"}, "nodes", "read", True),
        ({"write"}, "nodes", "write", True),
        ({"nodes:read"}, "nodes", "read", True),
        ({"nodes:read"}, "nodes", "write", False),
        ({"nodes:write"}, "nodes", "read", True),
        ({"nodes:write"}, "users", "read", False),
        (set(), "nodes", "read", False),
    ],
)
def test_scopes_limit_what_a_token_may(scopes: set[str] | None, noun: str, verb: str, allowed: bool) -> None:
    principal = Principal(Actor("token"), Role.OWNER, UserId(1), None if scopes is None else frozenset(scopes))
    assert principal.may(noun, verb) is allowed


def test_token_opens_nothing_once_expired_revoked_or_its_user_shut_out_or_gone(office: Office) -> None:
    _user(office, "bob")
    texts = {"expired": _token(office, expires_s=60.0)[0], "revoked": _token(office), "shut out": _token(office, "bob")[0]}
    revoked, revoked_id = texts["revoked"]
    done(office.registry.revoke_token(revoked_id))
    done(office.registry.revoke_token(revoked_id.upper()))
    done(office.registry.update_user("bob", UserWish(suspended=True)))
    office.now += 60.0
    for _ in range(2):
        for text in (texts["expired"], revoked, texts["shut out"]):
            with pytest.raises(UnauthorizedError, match="not valid"):
                office.registry.principal_of_token(str(text), "")
        office.reopen()
    assert [row["valid"] for row in office.registry.tokens()] == [False, False, False]
    done(office.registry.delete_user("bob"))
    assert len(office.registry.tokens()) == 2


def test_no_text_but_the_token_itself_opens_anything(office: Office) -> None:
    text, token_id = _token(office)
    wrong = [text[:-1], text + "a", text.upper(), text[:-1] + ("a" if text[-1] != "a" else "b"), text[:20] + "a" * (len(text) - 20)]
    wrong += ["", "calnet-token-", tokens.PREFIX + token_id, "x" * len(text), tokens.PREFIX + "ä" * 45, tokens.PREFIX + "1" * 45, "\0" * len(text)]
    for other in wrong:
        with pytest.raises(UnauthorizedError) as raised:
            office.registry.principal_of_token(other, "")
        assert "that token is not valid" in str(raised.value)
    assert office.registry.principal_of_token(text, "").user == 1


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (TokenWish("admin", "x", expires_s=0.0), InvalidError),
        (TokenWish("admin", "x", expires_s=1e12), InvalidError),
        (TokenWish("admin", "x", expires_s=float("nan")), InvalidError),
        (TokenWish("admin", "x", ("everything",)), InvalidError),
        (TokenWish("admin", "x", ("nodes:delete",)), InvalidError),
        (TokenWish("admin", "\x1b\n"), InvalidError),
        (TokenWish("nobody", "x"), NotFoundError),
    ],
)
def test_bad_token_wish_is_refused(office: Office, wish: TokenWish, error: type[Exception]) -> None:
    with pytest.raises(error):
        done(office.registry.create_token(wish))
    assert office.registry.tokens() == []


def test_tokens_of_one_user_are_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    _user(office, "bob")
    _token(office)
    _token(office)
    with pytest.raises(InvalidError, match="admin has 2 tokens"):
        _token(office)
    _token(office, "bob")


@pytest.mark.parametrize(
    ("role", "target", "allowed"),
    [
        ("user", "user", False),
        ("auditor", "user", False),
        ("admin", "user", True),
        ("admin", "admin", True),
        ("admin", "owner", False),
        ("owner", "owner", True),
    ],
)
def test_token_or_key_in_anothers_name_takes_who_may_manage_it(office: Office, role: str, target: str, allowed: bool) -> None:
    doer = _user(office, "doer", role)
    _user(office, "other", target)
    own = [office.registry.create_token(TokenWish("doer", "x"), terms=doer), office.registry.create_key(user="doer", terms=doer)]
    assert all("id" in done(future) for future in own)
    for future in (office.registry.create_token(TokenWish("other", "x"), terms=doer), office.registry.create_key(user="other", terms=doer)):
        if allowed:
            done(future)
        else:
            with pytest.raises(ForbiddenError, match="in the name of other"):
                done(future)


@pytest.mark.parametrize(
    ("own", "wished", "allowed"),
    [
        ((), (), True),
        ((), ("write",), True),
        (("tokens:write",), (), False),
        (("tokens:write",), ("write",), False),
        (("tokens:write",), ("tokens:write",), True),
        (("tokens:write",), ("tokens:read",), True),
        (("tokens:write", "read"), ("nodes:read", "read"), True),
        (("tokens:write", "read"), ("nodes:write",), False),
        (("tokens:write", "nodes:write"), ("read",), False),
        (("write",), ("read", "users:write", "write"), True),
        (("write",), (), False),
    ],
)
def test_token_makes_no_token_that_may_more(office: Office, own: tuple[str, ...], wished: tuple[str, ...], allowed: bool) -> None:
    text, _ = _token(office, "admin", *own)
    by = Terms(office.registry.principal_of_token(text, "").actor)
    future = office.registry.create_token(TokenWish("admin", "child", wished), terms=by)
    if allowed:
        done(future)
    else:
        with pytest.raises(ForbiddenError, match="more scopes"):
            done(future)


def test_token_revoked_a_moment_ago_makes_no_other(office: Office) -> None:
    text, token_id = _token(office)
    by = Terms(office.registry.principal_of_token(text, "").actor)
    done(office.registry.revoke_token(token_id))
    with pytest.raises(ForbiddenError, match="revoked"):
        done(office.registry.create_token(TokenWish("admin", "child"), terms=by))


def test_every_noun_has_scopes_for_reading_and_writing() -> None:
    assert {"read", "write", "nodes:read", "nodes:write", "audit:read", "metrics:read"} <= SCOPES


# --- sessions


def test_session_is_found_by_its_secret_until_it_ends(office: Office) -> None:
    secret, session = done(office.registry.create_session(UserId(1), expires_s=3600.0))
    found = office.registry.session_of(secret)
    assert found is not None
    assert (found[0], found[1].name) == (session, "admin")
    office.reopen()
    assert office.registry.session_of(secret) == found
    for wrong in ("", secret[:-1], session.id, secret + "\0", "\ud800"):
        assert office.registry.session_of(wrong) is None
    (row,) = office.registry.sessions()
    done(office.registry.end_session(row["id"]))
    assert office.registry.session_of(secret) is None
    with pytest.raises(NotFoundError):
        done(office.registry.end_session(row["id"]))


def test_session_expires_and_is_forgotten_by_housekeeping(office: Office) -> None:
    secret, _ = done(office.registry.create_session(UserId(1), expires_s=60.0))
    office.now += 60.0
    assert office.registry.session_of(secret) is None
    assert len(office.registry.sessions()) == 1
    done(office.registry.housekeeping())
    assert office.registry.sessions() == []


def test_oldest_session_of_a_user_gives_way(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_SESSIONS", 2)
    other = _user(office, "bob").by.user
    assert other is not None
    kept, _ = done(office.registry.create_session(other, expires_s=3600.0))
    secrets = []
    for _ in range(3):
        office.now += 1.0
        secrets.append(done(office.registry.create_session(UserId(1), expires_s=3600.0))[0])
    assert [office.registry.session_of(secret) is not None for secret in (kept, *secrets)] == [True, False, True, True]


def test_no_session_for_a_user_that_is_shut_out_or_gone(office: Office) -> None:
    bob = _user(office, "bob").by.user
    assert bob is not None
    done(office.registry.update_user("bob", UserWish(suspended=True)))
    for user in (bob, UserId(99)):
        with pytest.raises(ForbiddenError):
            done(office.registry.create_session(user, expires_s=60.0))


def test_dead_tokens_are_listed_for_a_month_and_then_forgotten(office: Office) -> None:
    _, revoked = _token(office)
    _token(office, expires_s=60.0)
    _, alive = _token(office, expires_s=300 * 86_400.0)
    done(office.registry.revoke_token(revoked))
    office.now += tokens.KEPT_S
    done(office.registry.housekeeping())
    assert len(office.registry.tokens()) == 2
    office.now += 60.0
    done(office.registry.housekeeping())
    assert [row["id"] for row in office.registry.tokens()] == [alive]


def test_no_row_or_record_shows_a_secret_or_its_hash(office: Office) -> None:
    text, _ = _token(office)
    secret, session = done(office.registry.create_session(UserId(1), expires_s=60.0))
    shown = json.dumps([office.registry.tokens(), office.registry.sessions(), office.registry.audit(), office.registry.audit_at(office.now)]) + repr(session)
    for hidden in (text, text[len(tokens.PREFIX) + 13 :], secret, "hash"):
        assert hidden not in shown
