"""The watch over those signed in goes on without their browsers: removed, signed out, out of the provider's reach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.tokens import TokenWish
from tests.idp.provider import CLIENT_ID, CLIENT_SECRET
from tests.roles.server.registries import done
from tests.roles.server.running import running
from tests.roles.server.signin.test_device_page import form_token
from tests.roles.server.signin.world import Login, PlainWorld, eventually, plain_world

Json = dict[str, Any]
DISCOVERY = "/.well-known/openid-configuration"
GONE: Callable[[dict[str, str]], tuple[int, Json]] = lambda _: (400, {"error": "invalid_grant"})  # noqa: E731


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PlainWorld]:
    with plain_world(tmp_path / "state", recheck_s=0.4, session_s=3.0, admins=("admins",)) as found:
        yield found


def signed_in(world: PlainWorld, *, refresh: bool = True) -> tuple[str, httpx.Response]:
    """Alice signs in, makes an API token, and signs out here: the token, and the answer to the sign-out."""

    def tokens(world: PlainWorld, nonce: str) -> Json:
        more = {"refresh_token": "r0", "access_token": "x"} if refresh else {}
        return {"id_token": world.id_token(nonce=nonce, groups=["admins"], preferred_username="alice")} | more

    with Login(world, tokens) as login:
        login.comes_back()
        vouches(world)
        page = login.browser.get(f"{world.server.url}/auth/done")
        token = str(done(world.server.registry.create_token(TokenWish("alice", "ci")))["token"])
        out = login.browser.post(f"{world.server.url}/auth/logout", data={"token": form_token(page)})
    assert world.server.registry.sessions() == []
    return token, out


def vouches(world: PlainWorld) -> list[str]:
    """The provider gives a new refresh token for the last one alone; the ones that it was asked with."""
    asked: list[str] = []

    def tokens(form: dict[str, str]) -> tuple[int, Json]:
        if form["refresh_token"] != f"r{len(asked)}":
            return 400, {"error": "invalid_grant"}
        asked.append(form["refresh_token"])
        return 200, {"id_token": world.id_token(groups=["admins"]), "refresh_token": f"r{len(asked)}", "access_token": "x"}

    world.idp.answers["/token"] = tokens
    return asked


def opens(world: PlainWorld, token: str) -> bool:
    answer = httpx.get(f"{world.server.url}/api/v1/whoami", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20)
    assert answer.status_code in (200, 401, 429)
    return answer.status_code == 200


def asks(world: PlainWorld, times: int) -> None:
    """The provider is asked so many times more for tokens."""
    before = world.idp.asked.count("/token")
    eventually(lambda: world.idp.asked.count("/token") >= before + times, "the provider is asked again")


def with_sign_out_there(world: PlainWorld) -> None:
    _, document = world.idp.answers[DISCOVERY]({})
    world.idp.answers[DISCOVERY] = lambda _: (200, document | {"end_session_endpoint": f"{world.idp.issuer}/out"})


def test_api_token_of_a_removed_user_ends_though_it_has_no_browser_here(world: PlainWorld) -> None:
    token, _ = signed_in(world)
    asks(world, 3)
    assert opens(world, token)
    world.idp.answers["/token"] = GONE
    eventually(lambda: not opens(world, token), "the token is refused")
    assert world.server.registry.user("alice")["access"] == "lost"
    asked = len(world.idp.asked)
    assert not opens(world, token)
    assert len(world.idp.asked) == asked


@pytest.mark.parametrize("scopes", [("openid",), ("openid", "offline_access")], ids=["online", "offline"])
def test_refresh_token_that_a_sign_out_there_ended_is_no_removal(tmp_path: Path, scopes: tuple[str, ...]) -> None:
    with plain_world(tmp_path / "state", recheck_s=0.4, session_s=3.0, admins=("admins",), scopes=scopes) as world:
        with_sign_out_there(world)
        token, out = signed_in(world)
        assert out.headers["location"].startswith(f"{world.idp.issuer}/out?")
        world.idp.answers["/token"] = GONE
        asks(world, 1)
        if "offline_access" not in scopes:
            assert opens(world, token)
            assert world.server.registry.user("alice")["access"] == "granted"
        eventually(lambda: not opens(world, token), "the last word holds no longer")
        assert world.server.registry.user("alice")["access"] == "resting"
        with Login(world, lambda world, nonce: {"id_token": world.id_token(nonce=nonce, groups=["admins"])}) as login:
            login.comes_back()
        assert opens(world, token)


def test_user_of_a_provider_that_gives_refresh_tokens_by_a_parameter_alone_loses_access_when_removed(tmp_path: Path) -> None:
    """Google's way: no scope offline_access; the token comes for `access_type=offline`, and at each sign-in for a new consent alone."""
    google, scopes = (("access_type", "offline"),), ("openid", "email")
    with plain_world(tmp_path / "state", recheck_s=0.4, admins=("admins",), scopes=scopes, extra_params=google) as world:

        def tokens(world: PlainWorld, nonce: str) -> Json:
            asked_so = (login.query.get("access_type"), login.query.get("prompt")) == ("offline", "consent")
            more = {"refresh_token": "r0", "access_token": "x"} if asked_so else {}
            return {"id_token": world.id_token(nonce=nonce, groups=["admins"], preferred_username="alice")} | more

        with Login(world, tokens) as login:
            login.comes_back()
        assert login.query["scope"] == "openid email"
        asked = vouches(world)
        token = str(done(world.server.registry.create_token(TokenWish("alice", "ci")))["token"])
        eventually(lambda: len(asked) >= 2, "the provider is asked whether it still vouches")
        assert opens(world, token)
        world.idp.answers["/token"] = GONE
        eventually(lambda: not opens(world, token), "the token ends")
        assert world.server.registry.user("alice")["access"] == "lost"


def test_user_without_refresh_token_rests_once_the_last_sign_in_is_old(world: PlainWorld) -> None:
    token, _ = signed_in(world, refresh=False)
    asked = world.idp.asked.count("/token")
    assert opens(world, token)
    eventually(lambda: not opens(world, token), "the last word holds no longer")
    assert world.idp.asked.count("/token") == asked


def test_provider_that_is_away_or_ill_changes_nothing(world: PlainWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    token, _ = signed_in(world)
    for status, error in ((503, "temporarily_unavailable"), (401, "invalid_client"), (400, "unauthorized_client")):
        world.idp.answers["/token"] = lambda _, status=status, error=error: (status, {"error": error})  # type: ignore[misc]
        asks(world, 2)
        assert opens(world, token)
    assert "recheck_failed user=alice" in caplog.text


def test_claims_that_fail_after_a_refresh_do_not_lose_the_new_refresh_token(world: PlainWorld) -> None:
    token, _ = signed_in(world)
    world.idp.answers["/keys"] = lambda _: (500, {})
    key_id = {"kid": "unknown"}
    asked: list[str] = []

    def tokens(form: dict[str, str]) -> tuple[int, Json]:
        asked.append(form["refresh_token"])
        return 200, {"id_token": world.key.sign({"iss": world.idp.issuer}, **key_id), "refresh_token": f"s{len(asked)}", "access_token": "x"}

    world.idp.answers["/token"] = tokens
    asks(world, 3)
    assert asked[1:3] == ["s1", "s2"]
    assert opens(world, token)


def test_refresh_that_speaks_of_somebody_else_takes_access_away(world: PlainWorld) -> None:
    token, _ = signed_in(world)
    world.idp.answers["/token"] = lambda _: (200, {"id_token": world.id_token(sub="mallory", groups=["admins"])})
    eventually(lambda: not opens(world, token), "the token is refused")


def test_refresh_without_any_claims_says_that_the_user_is_there(world: PlainWorld) -> None:
    token, _ = signed_in(world)
    world.idp.answers["/token"] = lambda _: (200, {"access_token": "opaque"})
    asks(world, 3)
    assert opens(world, token)
    assert world.server.registry.user("alice")["role"] == "admin"


def test_reload_takes_over_who_may_what_and_names_what_needs_a_restart(world: PlainWorld) -> None:
    token, _ = signed_in(world)
    before = OidcSettings(issuer=world.idp.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, recheck_s=0.4)
    assert world.server.registry.user("alice")["role"] == "admin"
    assert world.server.reload(oidc=replace(before, auditors=("admins",))) == ()
    eventually(lambda: world.server.registry.user("alice")["role"] == "auditor", "the next check gives the role of the new lists")
    assert world.server.reload(oidc=replace(before, issuer="https://other.example")) == ("oidc",)
    assert world.server.reload(oidc=None) == ("oidc",)
    assert world.server.reload(oidc=replace(before, allowed_groups=("nobody",))) == ()
    eventually(lambda: not opens(world, token), "who is allowed no more loses access")


def test_sign_in_that_is_configured_while_the_server_runs_needs_a_restart(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        assert server.reload() == ()
        assert server.reload(oidc=OidcSettings(issuer="https://id.example", client_id=CLIENT_ID)) == ("oidc",)
