"""A provider that is away: browsers get pages that say so, and forged tokens do not cost an attempt each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from calnet.errors import UnreachableError
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.signin.provider import FAILURE_KEPT_S, Provider
from calnet.roles.server.signin.settings import OidcSettings
from tests.idp.plain import plain_provider
from tests.idp.provider import CLIENT_ID, CLIENT_SECRET
from tests.idp.signing import TokenKey
from tests.roles.server.running import running
from tests.roles.server.signin.test_device_page import form_token
from tests.roles.server.signin.world import Login, PlainWorld, plain_world

DISCOVERY = "/.well-known/openid-configuration"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PlainWorld]:
    with plain_world(tmp_path / "state") as found:
        yield found


def goes_away(world: PlainWorld) -> None:
    for place in (DISCOVERY, "/keys", "/token"):
        world.idp.answers[place] = lambda _: (500, {})


@pytest.mark.parametrize("path", ["/auth/login", "/auth/done", "/auth/device/ABCD-EFGH"])
def test_browser_is_told_in_a_page_that_the_provider_is_away(world: PlainWorld, path: str) -> None:
    goes_away(world)
    answer = httpx.get(world.server.url + path, trust_env=False)
    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/html")
    assert "provider answered 500" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"


def test_sign_out_ends_here_though_the_provider_is_away(tmp_path: Path) -> None:
    key = TokenKey("RS256", "a-key")
    with plain_provider([key.public]) as idp:
        settings = OidcSettings(issuer=idp.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
        with running(tmp_path / "state", oidc=settings) as server:
            world = PlainWorld(server, idp, key)
            with Login(world, lambda world, nonce: {"id_token": world.id_token(nonce=nonce)}) as login:
                login.comes_back()
                page, cookies = login.browser.get(f"{server.url}/auth/done"), dict(login.browser.cookies)
        goes_away(world)
        with running(tmp_path / "state", oidc=settings) as server, httpx.Client(trust_env=False, cookies=cookies) as browser:
            forged = browser.post(f"{server.url}/auth/logout", data={"token": "x"})
            assert (forged.status_code, len(server.registry.sessions())) == (403, 1)
            assert forged.headers["content-type"].startswith("text/html")
            out = browser.post(f"{server.url}/auth/logout", data={"token": form_token(page)})
            assert out.status_code == 200
            assert "signed out here" in out.text
            assert "at the provider still" in out.text
            assert out.headers["set-cookie"].startswith('calnet_session=""')
            assert server.registry.sessions() == []


def test_cookie_of_a_server_with_tls_is_deleted_in_words_that_browsers_take(tmp_path: Path) -> None:
    """RFC 6265bis section 5.7: a Set-Cookie of a __Host- name without Secure is ignored, one that deletes too."""
    settings = OidcSettings(issuer="http://127.0.0.1:1", client_id=CLIENT_ID)
    with running(tmp_path / "state", oidc=settings, public_url=PublicUrl("https", "calnet.example.org")) as server:
        cookie = httpx.post(f"{server.url}/auth/logout", trust_env=False).headers["set-cookie"]
    assert cookie.startswith('__Host-calnet_session="";')
    assert "; Secure" in cookie
    assert "Max-Age=0" in cookie


def test_attack_36_forged_tokens_cost_one_attempt_at_a_provider_that_fails(world: PlainWorld) -> None:
    goes_away(world)
    for place in ("whoami", "users", "nodes"):
        for _ in range(4):
            answer = httpx.get(f"{world.server.url}/api/v1/{place}", headers={"Authorization": f"Bearer {world.id_token()}"}, trust_env=False)
            assert answer.status_code == 503
    assert len(world.idp.asked) == 1


def test_failure_is_forgotten_after_a_moment() -> None:
    now = [0.0]

    async def ask() -> None:
        provider = Provider(OidcSettings(idp.issuer, CLIENT_ID), lambda: now[0])
        try:
            for _ in range(3):
                with pytest.raises(UnreachableError, match="answered 500"):
                    await provider.endpoints()
            idp.answers[DISCOVERY] = right
            now[0] += FAILURE_KEPT_S
            assert (await provider.endpoints()).token
            assert idp.asked == [DISCOVERY] * 2
        finally:
            await provider.close()

    with plain_provider([]) as idp:
        right = idp.answers[DISCOVERY]
        idp.answers[DISCOVERY] = lambda _: (500, {})
        asyncio.run(ask())
