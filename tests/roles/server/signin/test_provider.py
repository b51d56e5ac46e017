"""What providers say of themselves: taken only where it can be meant, and every failure is one of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from calnet.errors import CalnetError, UnauthorizedError, UnreachableError
from calnet.roles.server.signin.provider import MAX_DOCUMENT, Provider
from calnet.roles.server.signin.settings import OidcSettings
from tests.idp.plain import PlainProvider, plain_provider

DISCOVERY = "/.well-known/openid-configuration"
Json = dict[str, Any]


def ask(idp: PlainProvider, question: Callable[[Provider], Awaitable[Any]], issuer: str = "") -> Any:
    async def asked() -> Any:
        provider = Provider(OidcSettings(issuer or idp.issuer, "calnet"), time.monotonic)
        try:
            return await question(provider)
        finally:
            await provider.close()

    return asyncio.run(asked())


def says(idp: PlainProvider, **changes: object) -> None:
    """The provider's description, changed."""
    _, document = idp.answers[DISCOVERY]({})
    idp.answers[DISCOVERY] = lambda _: (200, document | changes)


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint", "device_authorization_endpoint"])
def test_attack_32_every_endpoint_is_looked_at(name: str) -> None:
    with plain_provider([]) as idp:
        says(idp, **{name: "http://id.example/"})
        with pytest.raises(UnauthorizedError, match=f"{name} is no https URL"):
            ask(idp, lambda provider: provider.endpoints())


@pytest.mark.parametrize(
    "url",
    [
        7,
        ["https://id.example"],
        "",
        "/keys",
        "//id.example/keys",
        "https:///keys",
        "http://id.example/keys",
        "file:///etc/passwd",
        "https://[",
        "https://[::1/",
        "https://id.example:port/",
        "https://id.example:99999/",
        "https://id.example:0/",
        "https://id..example/",
        "https://.../",
        f"https://{'a' * 64}/",
        "https://b\u00fccher.example/",
        "https://id.example/\u2603",
        "https://id.example/a b",
        "https://id.example/\r\nHost: x",
        "https://id.example/\n",
        "https://id.example/\ud800",
    ],
    ids=ascii,
)
def test_attack_32_endpoint_that_is_no_url_to_ask_is_named(url: object) -> None:
    with plain_provider([]) as idp:
        says(idp, jwks_uri=url)
        with pytest.raises(UnauthorizedError, match="jwks_uri is no https URL"):
            ask(idp, lambda provider: provider.usable_keys())
        assert idp.asked == [DISCOVERY]


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
def test_endpoint_that_is_missing_is_named_where_it_is_needed(name: str) -> None:
    with plain_provider([]) as idp:
        says(idp, **{name: None})
        with pytest.raises(UnauthorizedError, match=name):
            ask(idp, lambda provider: provider.endpoints())


@pytest.mark.parametrize("issuer", ["https://evil.example", None, 7, "", "\ud800"], ids=ascii)
def test_attack_32_issuer_that_is_another_is_refused_before_anything_else_is_asked(issuer: object) -> None:
    with plain_provider([]) as idp:
        says(idp, issuer=issuer)
        with pytest.raises(UnauthorizedError, match="have to be the same"):
            ask(idp, lambda provider: provider.usable_keys())
        assert idp.asked == [DISCOVERY]


@pytest.mark.parametrize("status", [204, 301, 302, 307, 401, 500])
def test_attack_32_answer_that_is_no_document_is_a_provider_out_of_reach(status: int) -> None:
    with plain_provider([]) as idp:
        idp.answers["/keys"] = lambda _: (status, {})
        with pytest.raises(UnreachableError, match=f"answered {status}"):
            ask(idp, lambda provider: provider.usable_keys())


def test_attack_36_answer_without_end_is_read_no_further_than_the_bound() -> None:
    with plain_provider([]) as idp:
        idp.answers["/keys"] = lambda _: (200, {"keys": ["x" * MAX_DOCUMENT]})
        with pytest.raises(UnreachableError, match="too long"):
            ask(idp, lambda provider: provider.usable_keys())


@pytest.mark.parametrize(
    "keys", [None, 7, "keys", {}, [7], [None], [[]], [{}], [{"kid": "a"}], [{"kid": [], "kty": {}}], [{"kty": "RSA", "kid": "a", "n": "\ud800"}]]
)
def test_keys_that_are_none_are_no_keys(keys: object) -> None:
    with plain_provider([]) as idp:
        idp.answers["/keys"] = lambda _: (200, {"keys": keys})
        assert ask(idp, lambda provider: provider.usable_keys()) == 0


def test_provider_that_is_away_is_out_of_reach() -> None:
    with plain_provider([]) as idp:
        pass
    with pytest.raises(CalnetError) as raised:
        ask(idp, lambda provider: provider.endpoints())
    assert isinstance(raised.value, UnreachableError)
    assert "can't be reached" in str(raised.value)
