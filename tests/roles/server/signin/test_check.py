"""`calnet server check`, against a real provider and against configurations that are wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calnet.roles.server.checking import check, run_check
from calnet.roles.server.settings import HostPort, ServerSettings
from calnet.roles.server.signin.check import check_sign_in
from calnet.roles.server.signin.settings import OidcSettings
from tests.idp.provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider, provider

REDIRECT = "http://127.0.0.1:1/auth/callback"
ANY = HostPort("127.0.0.1", 0)


@pytest.fixture(scope="module")
def idp() -> Iterator[IdentityProvider]:
    with provider(REDIRECT) as found:
        yield found


def findings(settings: OidcSettings, *, ahead_s: float = 0.0) -> dict[str, tuple[bool, str]]:
    found = asyncio.run(check_sign_in(settings, REDIRECT, lambda: time.time() + ahead_s))
    return {finding.what: (finding.ok, finding.text) for finding in found}


def test_right_configuration_has_nothing_wrong(idp: IdentityProvider) -> None:
    found = findings(OidcSettings(idp.issuer, CLIENT_ID, CLIENT_SECRET, admins=("admins",)))
    assert all(ok for ok, _ in found.values()), found
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
    assert [name for name, (ok, _) in found.items() if not ok] == [what]
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
    wrong = {finding.what for finding in check(replace(settings, store="sqlite", tls_cert=tmp_path / "no", tls_key=tmp_path / "no")) if not finding.ok}
    assert wrong == {"TLS", "state directory", "store"}
    assert run_check(replace(settings, store="postgresql://nobody@127.0.0.1:1/x"), as_json=False) == 1
    assert "is PostgreSQL running there" in capsys.readouterr().out
