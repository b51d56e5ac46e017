"""The OpenID provider over HTTP: discovery, keys, codes, device flows, refresh. Bounded in size and time, without redirects, and never to an address that
no provider has (link-local and the like), whatever a name resolves to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpcore

from calnet.errors import CalnetError, ForbiddenError, UnauthorizedError, UnreachableError
from calnet.roles.server.signin import jwt
from calnet.roles.server.signin.settings import OidcSettings, askable, is_loopback

TIMEOUT_S: Final = 10.0
MAX_DOCUMENT: Final = 1 << 20
REFETCH_S: Final = 30.0
"""An unknown key id fetches the keys anew at most this often."""
KEYS_KEPT_S: Final = 3600.0
FAILURE_KEPT_S: Final = 5.0
"""For so long the provider is not asked again for its description or keys where that failed: forged tokens would cost an attempt each."""
DISCOVERY_KEPT_S: Final = 3600.0
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
Found = TypeVar("Found")
Headers = Sequence[tuple[bytes, bytes]]


class ProviderError(CalnetError):
    """The provider refused; `error` is its word (RFC 6749 section 5.2)."""

    http_status = 502
    code = "provider"

    def __init__(self, error: str, description: str = "") -> None:
        super().__init__(f"the sign-in provider refused: {error}{f' ({description})' if description else ''}")
        self.error = error


class GrantEndedError(ProviderError):
    """A code, device code or refresh token that is of no use any more."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What discovery says (OpenID Connect Discovery section 3)."""

    authorization: str
    token: str
    keys: str
    userinfo: str
    device: str
    end_session: str
    names_issuer: bool
    """Its answers to the browser carry `iss` (RFC 9207)."""
    document: Mapping[str, Any]


class Provider:
    """One provider. One event loop owns it. `clock` is monotonic."""

    def __init__(self, settings: OidcSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self._clock = clock
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(), max_connections=16, network_backend=_GuardedBackend(loopback=is_loopback(_host(settings.issuer)))
        )
        self._endpoints: tuple[float, Endpoints] | None = None
        self._keys: tuple[float, list[dict[str, Any]]] | None = None
        self._refetched_at = -REFETCH_S
        self._failed: dict[str, tuple[float, CalnetError]] = {}
        """By what was asked for: when it failed last, and how."""
        self._lock = asyncio.Lock()
        self.date: float | None = None
        """The provider's clock, as its last answer had it; Unix seconds."""

    async def close(self) -> None:
        """Close its connections."""
        await self._pool.aclose()

    async def endpoints(self) -> Endpoints:
        """The provider's own description; its issuer must be the one configured, to the letter (attack 32). UnreachableError, UnauthorizedError."""
        if self._endpoints is not None and self._clock() - self._endpoints[0] < DISCOVERY_KEPT_S:
            return self._endpoints[1]
        found = await self._or_failed("description", self._describe)
        self._endpoints = (self._clock(), found)
        return found

    async def _describe(self) -> Endpoints:
        document = await self._get(self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self.settings.issuer:
            raise UnauthorizedError(
                f"the provider calls itself {document.get('issuer')!r}, the configuration {self.settings.issuer!r}: they have to be the same"
            )
        return Endpoints(
            authorization=self._endpoint(document, "authorization_endpoint"),
            token=self._endpoint(document, "token_endpoint"),
            keys=self._endpoint(document, "jwks_uri"),
            userinfo=self._endpoint(document, "userinfo_endpoint", needed=False),
            device=self._endpoint(document, "device_authorization_endpoint", needed=False),
            end_session=self._endpoint(document, "end_session_endpoint", needed=False),
            names_issuer=document.get("authorization_response_iss_parameter_supported") is True,
            document=document,
        )

    async def claims(self, token: str, *, audience: str, now: float, nonce: str | None = None) -> dict[str, Any]:
        """The claims of a token of this provider. UnauthorizedError for one that does not hold."""
        algorithm, key_id = jwt.header_of(token)
        key = jwt.key_for(algorithm, key_id, await self._known_keys())
        if key is None and (fresh := await self._fresh_keys()) is not None:
            key = jwt.key_for(algorithm, key_id, fresh)
        if key is None:
            raise jwt.TokenError("the token is signed by no key of the provider")
        settings = self.settings
        return jwt.verify(token, key, issuer=settings.issuer, audience=audience, client_id=settings.client_id, now=now, nonce=nonce)

    async def authorization_url(self, redirect_url: str, *, state: str, nonce: str, verifier: str, prompt: str = "") -> str:
        """Where a browser goes to sign in (OpenID Connect Core section 3.1.2.1, RFC 7636). `prompt` in place of the settings'."""
        place = (await self.endpoints()).authorization
        query = dict(self.settings.extra_params) | {
            "client_id": self.settings.client_id,
            "response_type": "code",
            "redirect_uri": redirect_url,
            "scope": " ".join(self.settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        prompt = prompt or self.settings.prompt
        return f"{place}{'&' if '?' in place else '?'}{urlencode(query | ({'prompt': prompt} if prompt else {}))}"

    async def visit(self, url: str) -> tuple[int, str, str]:
        """What a browser without cookies is shown there: (status, where it is sent on to, the page)."""
        status, headers, body = await self._fetch("GET", url, {"accept": "text/html, application/json;q=0.5"})
        locations = [value.decode("latin-1") for name, value in headers if name.lower() == b"location"]
        return status, locations[0] if locations else "", body.decode(errors="replace")

    async def own_token(self, audience: str) -> str:
        """An access token for the client itself (RFC 6749 section 4.4), for this audience if the provider knows such wishes (RFC 8707). ProviderError where it
        gives none; empty where it gives something else."""
        resource = {"resource": audience} if "://" in audience else {}
        token = (await self._token({"grant_type": "client_credentials", **resource})).get("access_token")
        return token if isinstance(token, str) else ""

    async def exchange(self, code: str, verifier: str, redirect_url: str) -> dict[str, Any]:
        """The tokens for an authorization code (RFC 6749 section 4.1.3, RFC 7636)."""
        return await self._token({"grant_type": "authorization_code", "code": code, "code_verifier": verifier, "redirect_uri": redirect_url})

    async def refresh(self, token: str) -> dict[str, Any]:
        """New tokens; GrantEndedError where the provider no longer vouches for the user."""
        return await self._token({"grant_type": "refresh_token", "refresh_token": token})

    async def begin_device_flow(self) -> dict[str, Any]:
        """RFC 8628 section 3.1: device_code, user_code, verification_uri(_complete), expires_in, interval."""
        endpoints = await self.endpoints()
        return await self._post(endpoints.device, {"scope": " ".join(self.settings.scopes)})

    async def poll_device_flow(self, device_code: str) -> dict[str, Any]:
        """The tokens; ProviderError `authorization_pending` or `slow_down` while nobody has signed in."""
        return await self._token({"grant_type": DEVICE_GRANT, "device_code": device_code})

    async def userinfo(self, access_token: str) -> dict[str, Any]:
        """The user's claims (OpenID Connect Core section 5.3); empty where the provider has no such endpoint."""
        endpoints = await self.endpoints()
        return await self._get(endpoints.userinfo, {"authorization": f"Bearer {access_token}"}) if endpoints.userinfo else {}

    async def usable_keys(self) -> int:
        """How many of its keys can verify a token here."""
        keys = await self._known_keys()
        named = [(algorithm, str(key.get("kid", ""))) for key in keys for algorithm in jwt.ALGORITHMS]
        return sum(jwt.key_for(algorithm, key_id, keys) is not None for algorithm, key_id in dict.fromkeys(named))

    # --- inside

    async def _known_keys(self) -> list[dict[str, Any]]:
        if self._keys is None or self._clock() - self._keys[0] > KEYS_KEPT_S:
            async with self._lock:
                if self._keys is None or self._clock() - self._keys[0] > KEYS_KEPT_S:
                    self._keys = (self._clock(), await self._or_failed("keys", self._fetch_keys))
        return self._keys[1]

    async def _fresh_keys(self) -> list[dict[str, Any]] | None:
        """The keys fetched anew for a key id that is unknown; None where that was done a moment ago: a flood of them costs one fetch each interval."""
        async with self._lock:
            if self._clock() - self._refetched_at < REFETCH_S:
                return None if self._keys is None else self._keys[1]
            self._refetched_at = self._clock()
            self._keys = (self._clock(), await self._or_failed("keys", self._fetch_keys))
            return self._keys[1]

    async def _or_failed(self, what: str, ask: Callable[[], Awaitable[Found]]) -> Found:
        """The answer, or the failure of a moment ago."""
        failed = self._failed.get(what)
        if failed is not None and self._clock() - failed[0] < FAILURE_KEPT_S:
            raise type(failed[1])(str(failed[1]))
        try:
            found = await ask()
        except (UnreachableError, UnauthorizedError) as error:
            self._failed[what] = (self._clock(), error)
            raise
        self._failed.pop(what, None)
        return found

    async def _fetch_keys(self) -> list[dict[str, Any]]:
        keys = (await self._get((await self.endpoints()).keys)).get("keys")
        return [key for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []

    def _endpoint(self, document: Mapping[str, Any], name: str, *, needed: bool = True) -> str:
        url = document.get(name)
        if url is None and not needed:
            return ""
        if not isinstance(url, str) or askable(url, loopback=is_loopback(_host(self.settings.issuer))) is None:
            raise UnauthorizedError(f"the provider's {name} is no https URL")
        return url

    async def _token(self, form: dict[str, str]) -> dict[str, Any]:
        return await self._post((await self.endpoints()).token, form)

    async def _post(self, url: str, form: dict[str, str]) -> dict[str, Any]:
        settings = self.settings
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        if settings.client_secret:
            pair = f"{quote(settings.client_id, safe='')}:{quote(settings.client_secret, safe='')}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form = {**form, "client_id": settings.client_id}
        status, document = await self._request("POST", url, headers, urlencode(form).encode())
        if status != 200:
            error, text = str(document.get("error", status)), str(document.get("error_description", ""))
            raise (GrantEndedError if error in ("invalid_grant", "expired_token", "access_denied") else ProviderError)(error, text[:200])
        return document

    async def _get(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        status, document = await self._request("GET", url, {"accept": "application/json", **(headers or {})})
        if status != 200:
            raise UnreachableError(f"the sign-in provider answered {status} at {url}")
        return document

    async def _request(self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None) -> tuple[int, dict[str, Any]]:
        status, _, body = await self._fetch(method, url, headers, content)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        return status, document if isinstance(document, dict) else {}

    async def _fetch(self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None) -> tuple[int, Headers, bytes]:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._pool.stream(method, url, headers=list(headers.items()), content=content) as answer:
                body = b""
                async for part in answer.aiter_stream():
                    body += part
                    if len(body) > MAX_DOCUMENT:
                        raise UnreachableError(f"the sign-in provider's answer at {url} is too long")
        except (TimeoutError, OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise UnreachableError(f"the sign-in provider at {url} can't be reached: {error or type(error).__name__}") from error
        self.date = _date(answer.headers)
        return answer.status, answer.headers, body


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Looks at the address it connects to, after the name was resolved."""

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Of a name's addresses the first that answers; ForbiddenError for one that is none of a provider's."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            check_address(address, loopback=self._loopback)
        failure: Exception = OSError("no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise ForbiddenError("a provider is not on a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def check_address(text: str, *, loopback: bool) -> None:
    """ForbiddenError for an address that no provider has: link-local (where clouds keep their metadata), multicast, unspecified, and loopback unless the
    configured issuer is there."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    metadata = str(address) in ("fd00:ec2::254", "100.100.100.200")
    if address.is_link_local or address.is_multicast or address.is_unspecified or metadata or (address.is_loopback and not loopback):
        raise ForbiddenError(f"the sign-in provider may not be at {address}")


def _date(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name.lower() == b"date":
            try:
                return parsedate_to_datetime(value.decode("latin-1")).timestamp()
            except ValueError:
                return None
    return None


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""
