"""The [oidc] table: what it may say, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from calnet.errors import ConfigError, ForbiddenError
from calnet.roles.server.signin.provider import check_address
from calnet.roles.server.signin.settings import parse_oidc

TABLE: dict[str, object] = {"issuer": "https://id.example/realms/a", "client_id": "calnet"}


def test_least_table_has_the_defaults() -> None:
    settings = parse_oidc(TABLE)
    assert (settings.issuer, settings.client_id, settings.client_secret, settings.groups_claim) == ("https://id.example/realms/a", "calnet", "", "groups")
    assert settings.scopes == ("openid", "profile", "email", "groups", "offline_access")
    assert (settings.extra_params, settings.offline, settings.prompt) == ((), True, "consent")


def test_google_is_asked_for_refresh_tokens_in_its_own_way_unless_the_table_says_otherwise() -> None:
    google = {"issuer": "https://accounts.google.com", "client_id": "calnet", "scopes": ["openid", "email"]}
    settings = parse_oidc(google)
    assert (settings.extra_params, settings.offline, settings.prompt) == ((("access_type", "offline"),), True, "consent")
    settings = parse_oidc(google | {"extra_params": {"hd": "example.org"}})
    assert (settings.extra_params, settings.offline, settings.prompt) == ((("hd", "example.org"),), False, "")
    settings = parse_oidc(google | {"extra_params": {"access_type": "offline", "prompt": "select_account"}})
    assert (settings.offline, settings.prompt) == (True, "select_account")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"issuer": None}, "issuer is missing"),
        ({"client_id": None}, "client_id is missing"),
        ({"issuer": "http://id.example"}, "https"),
        ({"issuer": "https://id.example?x=1"}, "without query"),
        ({"issuer": "https://user:pass@id.example"}, "https"),
        ({"issuer": "ftp://id.example"}, "https"),
        ({"issuer": "https://["}, "https"),
        ({"issuer": "https://id.example:0"}, "https"),
        ({"issuer": "https://id.example:port"}, "https"),
        ({"issuer": "https://id..example"}, "https"),
        ({"issuer": f"https://{'a' * 64}.example"}, "https"),
        ({"issuer": "https://b\u00fccher.example"}, "https"),
        ({"issuer": "https://id.example/a realm"}, "https"),
        ({"isuer": "https://id.example"}, "there is no setting 'isuer'"),
        ({"admins": "alice"}, "list of texts"),
        ({"recheck_s": 1}, "5 at least"),
        ({"session_s": True}, "number of seconds"),
        ({"scopes": ["email"]}, "openid"),
        ({"client_secret": "a", "client_secret_file": "/nonexistent"}, "not both"),
        ({"client_secret_file": "/nonexistent/secret"}, "can't be read"),
        ({"redirect_url": "http://calnet.example/x"}, "redirect_url"),
        ({"extra_params": ["access_type"]}, "table of texts"),
        ({"extra_params": {"max_age": 5}}, "table of texts"),
        ({"extra_params": {"hd": "a", "state": "mine", "redirect_uri": "https://evil.example"}}, "can't set redirect_uri, state"),
    ],
)
def test_mistake_is_named_with_what_to_write(change: dict[str, object], word: str) -> None:
    table = {name: value for name, value in (TABLE | change).items() if value is not None}
    with pytest.raises(ConfigError) as raised:
        parse_oidc(table)
    assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_secret_comes_from_a_file_that_others_can_not_read(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hidden\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        parse_oidc(TABLE | {"client_secret_file": str(file)})
    file.chmod(0o600)
    assert parse_oidc(TABLE | {"client_secret_file": str(file)}).client_secret == "hidden"


LINK_LOCAL = ("169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254")
OTHERS = ("224.0.0.1", "0.0.0.0", "::", "127.0.0.1", "::1", "fd00:ec2::254", "100.100.100.200")


@pytest.mark.parametrize("address", LINK_LOCAL + OTHERS)
def test_attack_32_provider_is_never_at_an_address_that_no_provider_has(address: str) -> None:
    with pytest.raises(ForbiddenError):
        check_address(address, loopback=False)


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "2001:db8::1"])
def test_provider_may_be_anywhere_else(address: str) -> None:
    check_address(address, loopback=False)


def test_provider_on_loopback_is_reached_where_the_issuer_is_there() -> None:
    check_address("127.0.0.1", loopback=True)
