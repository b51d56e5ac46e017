"""Who asks: the local administrator on the socket, API tokens, and whatever sign-in adds (JWT bearers, session cookies)."""

from __future__ import annotations

import pwd
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.requests import Request

from calnet.errors import ForbiddenError, UnauthorizedError
from calnet.limits import RateLimiter
from calnet.roles.server.actors import Actor, Principal, Role
from calnet.roles.server.registry import Registry
from calnet.roles.server.tokens import PREFIX
from calnet.wire.endpoints import source_network

Authenticator = Callable[[Request], Awaitable[Principal | None]]
"""Who a request's credentials speak for; None where it has none of the authenticator's kind; UnauthorizedError where they do not hold."""

LOCAL_UID: Final = "calnet_local_uid"
"""Key of a connection's state: the uid of who opened the admin socket. Our listener alone sets it."""
OWN_HEADER: Final = "x-calnet-request"
"""Requests that change something with a cookie carry it: another site's page can't set it without asking, and is not let."""
FAILURES_PER_S: Final = 1.0
FAILURES_BURST: Final = 20.0
MAX_AUTHORIZATION: Final = 16_384


class TooManyFailuresError(ForbiddenError):
    """Too many credentials from one place did not hold."""

    http_status = 429
    code = "too-many-failures"


class Authentication:
    """Asks each authenticator in turn. Sources whose credentials fail too often wait."""

    def __init__(self, registry: Registry, clock: Callable[[], float], others: Sequence[Authenticator] = ()) -> None:
        """`clock` is monotonic."""
        self._registry = registry
        self._clock = clock
        self._failures = RateLimiter(FAILURES_PER_S, FAILURES_BURST)
        self._authenticators: tuple[Authenticator, ...] = (self._local, self._token, *others)

    async def principal(self, request: Request) -> Principal:
        """Who asks; UnauthorizedError for nobody, TooManyFailuresError where this source has to wait."""
        if len(request.headers.get("authorization", "")) > MAX_AUTHORIZATION:
            raise UnauthorizedError("the Authorization header is too long for a token")
        try:
            for authenticator in self._authenticators:
                principal = await authenticator(request)
                if principal is not None:
                    _check_origin(request, principal)
                    return principal
        except UnauthorizedError:
            if not self._failures.allow(source_network(source_of(request)), self._clock()):
                raise TooManyFailuresError("too many tokens from this address did not hold: wait a little") from None
            raise
        raise UnauthorizedError("sign in, or give an API token: Authorization: Bearer calnet-token-…")

    async def _local(self, request: Request) -> Principal | None:
        uid = request.scope.get("state", {}).get(LOCAL_UID)
        return None if uid is None else Principal(Actor("local", str(uid), _user_name(uid)), Role.OWNER)

    async def _token(self, request: Request) -> Principal | None:
        token = bearer(request)
        return None if token is None or not token.startswith(PREFIX) else self._registry.principal_of_token(token, source_of(request))


def bearer(request: Request) -> str | None:
    """The bearer token of the request (RFC 6750 section 2.1), if it has one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def source_of(request: Request) -> str:
    """The client's address; empty on the socket."""
    return request.client.host if request.client is not None else ""


def _check_origin(request: Request, principal: Principal) -> None:
    """Browsers send cookies by themselves: a change asked for with one has to come from a page of ours (attack 39)."""
    if principal.cookie and request.method not in ("GET", "HEAD") and OWN_HEADER not in request.headers:
        raise ForbiddenError(f"with a session cookie, requests that change something need the header {OWN_HEADER}: 1")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
