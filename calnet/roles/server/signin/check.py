"""What is wrong with a sign-in configuration, found out by asking the provider: for `calnet server check`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Final
from urllib.parse import parse_qsl

from calnet.errors import CalnetError
from calnet.roles.server.checking import Finding
from calnet.roles.server.signin import jwt
from calnet.roles.server.signin.devices import login_of
from calnet.roles.server.signin.provider import Endpoints, GrantEndedError, Provider, ProviderError
from calnet.roles.server.signin.settings import OidcSettings

CLOCK_LIMIT_S: Final = 30.0
_ASKS_A_PERSON: Final = ("login_required", "interaction_required", "consent_required", "account_selection_required")
_NAMES_REDIRECT: Final = re.compile(r"redirect[_ ]ur[il]|reply url", re.IGNORECASE)
"""On a page that refuses something."""
_REFUSES_REDIRECT: Final = re.compile(r"invalid_redirect_uri|redirect_uri_mismatch|AADSTS50011")
"""On any page."""


async def check_sign_in(settings: OidcSettings, redirect_url: str, clock: Callable[[], float]) -> list[Finding]:
    """All findings, good and bad; `redirect_url` is empty where nobody knows it. Those behind a provider that does not answer are left out."""
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
    client = await _client(provider, redirect_url)
    yield client
    yield await _redirect(provider, redirect_url, client_known=client.ok is True)
    yield await _keys(provider)
    for finding in _described(provider.settings, endpoints):
        yield finding
    yield await _device_flow(provider, endpoints)
    skew = None if provider.date is None else provider.date - clock()
    if skew is not None:
        right = abs(skew) <= CLOCK_LIMIT_S
        way = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the provider's: set it right (NTP), or its tokens do not hold"
        text = "within seconds of the provider's" if right else way
        yield Finding("sign-in: clock", right, f"this machine's clock is {text}")
    yield await _audience(provider, clock() if provider.date is None else provider.date)


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


async def _redirect(provider: Provider, redirect_url: str, *, client_known: bool) -> Finding:
    """A browser that is signed in nowhere, and may not be asked, is sent back at once with an error (OpenID Connect Core section 3.1.2.6): but only to a URL
    that the provider knows for this client."""
    name, register = "sign-in: redirect URL", f"register {redirect_url} at the provider, to the letter"
    if not redirect_url:
        return Finding(name, None, "not tested: write the url by which browsers reach this server into the configuration, or redirect_url")
    try:
        url = await provider.authorization_url(redirect_url, state="calnet-check", nonce="calnet-check", verifier="c" * 64, prompt="none")
        status, location, page = await provider.visit(url)
    except CalnetError as error:
        return Finding(name, None, f"not tested: {error}; {register}")
    place, _, query = location.partition("?")
    word = dict(parse_qsl(query)).get("error", "")[:100]
    if place == redirect_url and (not word or word in _ASKS_A_PERSON):
        return Finding(name, True, f"the provider sends browsers back to {redirect_url}")
    if place == redirect_url:
        return Finding(name, False, f"the provider knows {redirect_url}, but refuses to sign anybody in: {word}; compare scopes and the client's settings")
    if _NAMES_REDIRECT.search(page if status >= 400 else "") or _REFUSES_REDIRECT.search(page + location):
        return Finding(name, False, f"the provider does not know it for this client: {register}")
    if client_known and (status >= 400 or word or place.endswith("/error")):
        return Finding(name, False, f"the provider refuses a sign-in ({word or status}), perhaps because it does not know the URL: {register}")
    why = "the provider shows a page of its own" if client_known else "the client has to be right first"
    return Finding(name, None, f"not tested: {why}; {register}")


async def _device_flow(provider: Provider, endpoints: Endpoints) -> Finding:
    name, own = "sign-in: device flow", "machines are let in on this server's own page"
    if not endpoints.device:
        return Finding(name, True, f"no device flow there: {own}")
    try:
        login = login_of(await provider.begin_device_flow())
    except ProviderError as error:
        return Finding(name, True, f"not for this client ({error.error}): {own}")
    except CalnetError as error:
        return Finding(name, False, str(error))
    if login is None:
        return Finding(name, False, "the provider begins one and says not where people go, so that machines wait for an admin's approval")
    return Finding(name, True, f"machines sign in by the provider's device page{', with a code to enter' if login.user_code else ''}")


async def _audience(provider: Provider, now: float) -> Finding:
    """What the client's own token is for: other tokens of the provider are made alike, as a rule."""
    settings = provider.settings
    audience = settings.audience or settings.client_id
    name, says = "sign-in: audience", f"REST takes access tokens for {audience}"
    if not settings.client_secret:
        return Finding(name, None, f"not tested: a public client gets no token of its own; {says}")
    try:
        token = await provider.own_token(audience)
    except CalnetError as error:
        return Finding(name, None, f"not tested: the client gets no token of its own ({error}); {says}")
    if not jwt.may_be_one(token):
        return Finding(name, None, f"not tested: the client's own token is opaque; {says}, if they are signed ones (RFC 9068)")
    try:
        await provider.claims(token, audience=audience, now=now)
    except jwt.TokenError as error:
        advice = f"the client's own token is for {jwt.said_audience(token)}, and REST takes those for {audience} alone: set audience, or the provider's mapper"
        return Finding(name, False if settings.audience else None, f"REST would refuse it: {error}; {advice}")
    except CalnetError as error:
        return Finding(name, None, f"not tested: {error}; {says}")
    return Finding(name, True, says)


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
    return found
