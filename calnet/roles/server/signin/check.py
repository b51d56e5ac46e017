"""What is wrong with a sign-in configuration, found out by asking the provider: for `calnet server check`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from calnet.errors import CalnetError
from calnet.roles.server.checking import Finding
from calnet.roles.server.signin.provider import Endpoints, GrantEndedError, Provider, ProviderError
from calnet.roles.server.signin.settings import OidcSettings

CLOCK_LIMIT_S: Final = 30.0


async def check_sign_in(settings: OidcSettings, redirect_url: str, clock: Callable[[], float]) -> list[Finding]:
    """All findings, good and bad; those behind a provider that does not answer are left out."""
    provider = Provider(settings, asyncio.get_running_loop().time)
    try:
        endpoints = await provider.endpoints()
    except CalnetError as error:
        await provider.close()
        return [Finding("sign-in: issuer", False, f"{error}; check issuer = {settings.issuer!r}, to the last slash")]
    try:
        found = [Finding("sign-in: issuer", True, f"{settings.issuer} answers and calls itself that")]
        return found + [finding async for finding in _of_provider(provider, endpoints, redirect_url, clock)]
    finally:
        await provider.close()


async def _of_provider(provider: Provider, endpoints: Endpoints, redirect_url: str, clock: Callable[[], float]) -> AsyncIterator[Finding]:
    yield await _client(provider, redirect_url)
    yield await _keys(provider)
    for finding in _described(provider.settings, endpoints):
        yield finding
    skew = None if provider.date is None else provider.date - clock()
    if skew is not None:
        right = abs(skew) <= CLOCK_LIMIT_S
        way = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the provider's: set it right (NTP), or its tokens do not hold"
        text = "within seconds of the provider's" if right else way
        yield Finding("sign-in: clock", right, f"this machine's clock is {text}")
    yield Finding("sign-in: redirect URL", True, f"register {redirect_url} at the provider, to the letter")


async def _client(provider: Provider, redirect_url: str) -> Finding:
    """A code that never was tells whether the provider knows the client: it refuses the code, not the client."""
    name = "sign-in: client"
    try:
        await provider.exchange("calnet-check", "c" * 64, redirect_url)
    except GrantEndedError:
        return Finding(name, True, "the provider knows the client and takes its secret")
    except ProviderError as error:
        if error.error == "invalid_client":
            return Finding(
                name,
                False,
                "the provider does not take client_id and client_secret: compare both with what it shows (a public client has no secret)",
            )
        return Finding(name, False, f"{error}; does the client allow the authorization code grant, and this redirect URL?")
    except CalnetError as error:
        return Finding(name, False, str(error))
    return Finding(name, False, "the provider took a code that never was: it is not to be trusted")


async def _keys(provider: Provider) -> Finding:
    try:
        usable = await provider.usable_keys()
    except CalnetError as error:
        return Finding("sign-in: keys", False, str(error))
    text = f"{usable} keys to verify tokens with" if usable else "the provider publishes no RSA or EC key with a kid: let it sign with RS256 or ES256"
    return Finding("sign-in: keys", usable > 0, text)


def _described(settings: OidcSettings, endpoints: Endpoints) -> list[Finding]:
    """What the provider says of itself against what is asked of it. What it does not say is not held against it."""
    found = []
    scopes = endpoints.document.get("scopes_supported")
    if isinstance(scopes, list):
        missing = [scope for scope in settings.scopes if scope not in scopes]
        text = f"the provider does not offer {', '.join(missing)}: leave them out of scopes, or add them there" if missing else "all are offered"
        found.append(Finding("sign-in: scopes", not missing, text))
    claims = endpoints.document.get("claims_supported")
    wanted = bool(settings.allowed_groups or settings.owners or settings.admins or settings.auditors)
    if isinstance(claims, list) and wanted:
        there = settings.groups_claim.split(".")[0] in claims
        text = "is offered" if there else f"the provider does not name {settings.groups_claim!r} among its claims: add that claim there, or set groups_claim"
        found.append(Finding("sign-in: groups claim", there, text))
    device = "machines sign in by the provider's device page" if endpoints.device else "no device flow there: machines are let in on this server's own page"
    found.append(Finding("sign-in: device flow", True, device))
    audience = settings.audience or settings.client_id
    found.append(Finding("sign-in: audience", True, f"REST takes access tokens for {audience}"))
    return found
