"""`calnet server check`, against a real provider and against configurations that are wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calnet.roles.server.checking import check, run_check
from calnet.roles.server.settings import HostPort, PublicUrl, ServerSettings
from calnet.roles.server.signin.check import check_sign_in
from calnet.roles.server.signin.settings import OidcSettings
from tests.idp.plain import plain_provider
from tests.idp.provider import AUDIENCE, CLIENT_ID, CLIENT_SECRET, IdentityProvider, provider
from tests.roles.server.signin.test_devices import ENTRA, KEYCLOAK

Json = dict[str, Any]
REDIRECT = "http://127.0.0.1:1/auth/callback"
ANY = HostPort("127.0.0.1", 0)


@pytest.fixture(scope="module")
def idp() -> Iterator[IdentityProvider]:
    with provider(REDIRECT) as found:
        yield found


def findings(settings: OidcSettings, *, ahead_s: float = 0.0, redirect: str = REDIRECT) -> dict[str, tuple[bool | None, str]]:
    found = asyncio.run(check_sign_in(settings, redirect, lambda: time.time() + ahead_s))
    return {finding.what: (finding.ok, finding.text) for finding in found}


def test_right_configuration_has_nothing_wrong(idp: IdentityProvider) -> None:
    found = findings(OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET, admins=("admins",)))
    assert {what: ok for what, (ok, _) in found.items() if ok is not True} == {"sign-in: audience": None}, found
    assert "not tested" in found["sign-in: audience"][1]
    assert REDIRECT in found["sign-in: redirect URL"][1]


@pytest.mark.parametrize(
    ("changes", "what", "word"),
    [
        ({"client_secret": "wrong"}, "sign-in: client", "client_secret"),
        ({"client_id": "nobody"}, "sign-in: client", "client_id"),
        ({"scopes": ("openid", "color")}, "sign-in: scopes", "color"),
        ({"admins": ("x",), "groups_claim": "roles"}, "sign-in: groups claim", "roles"),
    ],
)
def test_each_mistake_is_named(idp: IdentityProvider, changes: dict[str, object], what: str, word: str) -> None:
    found = findings(replace(OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET), **changes))  # type: ignore[arg-type]
    assert [name for name, (ok, _) in found.items() if ok is False] == [what]
    assert word in found[what][1]


def test_issuer_that_is_not_the_providers_own_name_is_named(idp: IdentityProvider) -> None:
    for issuer in (f"{idp.issuer}/", "http://127.0.0.1:1"):
        ((what, (ok, text)),) = findings(OidcSettings(issuer, CLIENT_ID, CLIENT_SECRET)).items()
        assert (what, ok) == ("sign-in: issuer", False)
        assert "issuer" in text


def test_clock_that_is_off_is_named(idp: IdentityProvider) -> None:
    ok, text = findings(OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET), ahead_s=300.0)["sign-in: clock"]
    assert not ok
    assert "ahead of" in text


def test_server_without_sign_in_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ServerSettings(state_dir=tmp_path / "state", listen=ANY, stun_listen=ANY)
    assert run_check(settings, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state" / "store.mdb").touch()
    wrong = {finding.what for finding in check(replace(settings, store="sqlite", tls_cert=tmp_path / "no", tls_key=tmp_path / "no")) if finding.ok is False}
    assert wrong == {"TLS", "state directory", "store"}
    assert run_check(replace(settings, store="postgresql://nobody@127.0.0.1:1/x"), as_json=False) == 1
    assert "is PostgreSQL running there" in capsys.readouterr().out


@pytest.mark.parametrize("redirect", [f"{REDIRECT}/", "http://127.0.0.1:2/auth/callback", "https://calnet.example/auth/callback"])
def test_redirect_url_that_the_provider_does_not_know_is_named(idp: IdentityProvider, redirect: str) -> None:
    found = findings(OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET), redirect=redirect)
    assert [name for name, (ok, _) in found.items() if ok is False] == ["sign-in: redirect URL"]
    assert f"register {redirect} at the provider" in found["sign-in: redirect URL"][1]


def test_redirect_url_of_a_client_that_the_provider_does_not_know_is_not_tested(idp: IdentityProvider) -> None:
    ok, text = findings(OidcSettings(idp.issuer, "nobody", CLIENT_SECRET))["sign-in: redirect URL"]
    assert ok is None
    assert text.startswith("not tested: the client has to be right first")


def test_redirect_url_that_nobody_configured_is_not_tested(idp: IdentityProvider) -> None:
    ok, text = findings(OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET), redirect="")["sign-in: redirect URL"]
    assert ok is None
    assert text.startswith("not tested: write the url")


def test_audience_is_that_of_the_clients_own_token_where_it_gets_one() -> None:
    with provider(REDIRECT, CLIENT_CREDENTIALS="1") as idp:
        right = OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET, audience=AUDIENCE)
        assert findings(right)["sign-in: audience"] == (True, f"REST takes access tokens for {AUDIENCE}")
        assert findings(right, ahead_s=300.0)["sign-in: audience"][0] is True, "a clock that is off is named once"
        ok, text = findings(replace(right, audience="https://other.example/api"))["sign-in: audience"]
        assert ok is False
        assert f"own token is for {AUDIENCE}, and REST takes those for https://other.example/api alone" in text
        ok, text = findings(replace(right, audience=""))["sign-in: audience"]
        assert ok is None
        assert text.startswith("not tested: the client's own token is opaque")


PAGES: list[tuple[int, str, Json, bool | None]] = [
    # (status, where it is sent on to, the page, what is found)
    (302, f"{REDIRECT}?error=login_required&state=calnet-check", {}, True),
    (302, f"{REDIRECT}?error=invalid_scope", {}, False),
    (302, "https://accounts.example/signin/oauth/error?authError=Cg", {}, False),
    (302, f"https://evil.example/?next={REDIRECT}&error=login_required", {}, False),
    (302, "https://id.example/login?flow=1", {}, None),
    (400, "", {"page": "Invalid parameter: redirect_uri"}, False),
    (200, "", {"page": "AADSTS50011: The redirect URI does not match the redirect URIs configured for the application"}, False),
    (200, "", {"page": "Sign in; <a href='/login?redirect_uri=x'>"}, None),
    (500, "", {}, False),
]


@pytest.mark.parametrize(("status", "location", "page", "ok"), PAGES)
def test_redirect_url_is_judged_by_what_a_browser_would_see(status: int, location: str, page: Json, ok: bool | None) -> None:
    with plain_provider([]) as plain:
        plain.answers["/authorize"] = lambda _: (status, page)
        plain.answers["/token"] = lambda _: (400, {"error": "invalid_grant"})
        plain.locations["/authorize"] = location
        found = findings(OidcSettings(plain.issuer, CLIENT_ID, CLIENT_SECRET))
        assert found["sign-in: redirect URL"][0] is ok, found
        assert (found["sign-in: redirect URL"][1].startswith("not tested: ")) is (ok is None)


@pytest.mark.parametrize(
    ("status", "flow", "ok", "word"),
    [
        (200, KEYCLOAK, True, "device page"),
        (200, ENTRA, True, "with a code to enter"),
        (401, {"error": "invalid_client"}, True, "own page"),
        (200, {"device_code": "d"}, False, "says not where"),
    ],
)
def test_device_flow_is_begun_to_see_what_machines_would_be_told(status: int, flow: Json, ok: bool, word: str) -> None:
    with plain_provider([], device_flow=True) as plain:
        plain.answers["/device"] = lambda _: (status, flow)
        found = findings(OidcSettings(plain.issuer, CLIENT_ID, CLIENT_SECRET))["sign-in: device flow"]
        assert (found[0], word in found[1]) == (ok, True)


def test_what_was_not_tested_is_neither_ok_nor_wrong(idp: IdentityProvider, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = PublicUrl("http", "127.0.0.1:1")
    oidc = OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET)
    settings = ServerSettings(state_dir=tmp_path / "state", listen=ANY, stun_listen=ANY, url=url, oidc=oidc)
    assert run_check(settings, as_json=False) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "sign-in: audience" in line]
    assert line.startswith("-    ")
    assert "not tested: " in line
