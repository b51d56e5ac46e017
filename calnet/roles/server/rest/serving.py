"""REST over HTTP: an operation's request is authenticated, authorised, read within bounds, validated and carried out, and its answer sent as JSON.

Error contract: whatever a client sends gets a problem document (RFC 9457) with a 4xx status; what is wrong on our side is a 500 without details, or a 503.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from calnet.crypto.box import BOX_NONCE_SIZE, xopen, xseal
from calnet.crypto.hash import blake2s, hkdf
from calnet.crypto.keys import RandomBytes
from calnet.errors import AuthenticationError, ForbiddenError, InvalidError, RefusedError, StateError, WireError
from calnet.roles.server.actors import Once, Principal, Replay, Role, Terms
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest.authentication import Authentication
from calnet.roles.server.rest.operations import Access, Answer, Call, Operation
from calnet.store.interface import UserRecord

PREFIX: Final = "/api/v1"
MAX_BODY: Final = 1 << 20
MAX_BODIES: Final = 64
"""Bodies that are received at a time: with MAX_BODY the bound of what they fill."""
MAX_IDEMPOTENCY_KEY: Final = 255

SECURITY_HEADERS: Final = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class UnsupportedMediaError(RefusedError):
    """A body that is not JSON by its Content-Type."""

    http_status = 415
    code = "unsupported-media-type"


class TooLargeError(RefusedError):
    """A body beyond its bound."""

    http_status = 413
    code = "too-large"


class BusyError(StateError):
    """Too much is asked at once."""

    code = "busy"


class MalformedError(WireError):
    """A body that is no JSON."""


class Rest:
    """Serves operations. One event loop owns it."""

    def __init__(self, registry: Registry, authentication: Authentication, random: RandomBytes) -> None:
        self._registry = registry
        self._authentication = authentication
        self._random = random
        self._receiving = 0

    def routes(self, operations: Sequence[Operation]) -> list[Route]:
        """One route for each path, as Starlette then answers 405 with Allow by itself."""
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in operations:
            by_path.setdefault(operation.path, {})[operation.method] = operation
        return [Route(PREFIX + path, self._endpoint(methods), methods=list(methods)) for path, methods in by_path.items()]

    async def authorised(self, request: Request, noun: str, verb: str, admits: Callable[[Role], bool]) -> Principal:
        """Who asks, if role and token let it do `verb` on `noun` (empty: whatever the token's scopes). UnauthorizedError, ForbiddenError."""
        principal = await self._authentication.principal(request)
        if not admits(principal.role):
            raise ForbiddenError(f"a user with the role {principal.role} may not do that")
        if noun and not principal.may(noun, verb):
            raise ForbiddenError(f"that token lacks the scope {noun}:{verb}")
        return principal

    def _endpoint(self, methods: dict[str, Operation]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            operation = methods["GET" if request.method == "HEAD" else request.method]
            return await self._serve(operation, request)

        return endpoint

    async def _serve(self, operation: Operation, request: Request) -> Response:
        principal = await self.authorised(request, operation.noun, operation.verb, operation.admits)
        query = _query(operation, request)
        raw = b"" if operation.body is None else await self._body(request)
        body = None if operation.body is None else _decoded(operation.body, raw)
        once = self._once(operation, request, principal, raw)
        terms = Terms(principal.actor, _expected(request) if operation.guarded else None, once)
        call = Call(principal, dict(request.path_params), query, body, terms, self._owner(operation, principal))
        answer = await operation.handler(call)
        if isinstance(answer.value, Replay) and once is not None:
            return self._replayed(answer.value, request, principal)
        return _response(operation, answer, request)

    def _owner(self, operation: Operation, principal: Principal) -> UserRecord | None:
        if operation.access is not Access.OWN or principal.role is not Role.USER:
            return None
        user = None if principal.user is None else self._registry.user_record(principal.user)
        if user is None:
            raise ForbiddenError("that user is gone")
        return user

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise UnsupportedMediaError("send the body as Content-Type: application/json")
        if self._receiving >= MAX_BODIES:
            raise BusyError("too many requests are being received: try again in a moment")
        self._receiving += 1
        try:
            return await bounded_body(request, MAX_BODY)
        finally:
            self._receiving -= 1

    # --- creates that are carried out once

    def _once(self, operation: Operation, request: Request, principal: Principal, raw: bytes) -> Once | None:
        key = request.headers.get("idempotency-key")
        if key is None or not operation.create:
            return None
        if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY or not key.isprintable():
            raise InvalidError(f"Idempotency-Key is 1 to {MAX_IDEMPOTENCY_KEY} printable characters")
        name, secret = _once_keys(principal, request)

        def render(result: Any) -> tuple[int, bytes]:
            return operation.status, msgspec.json.encode(result)

        def seal(body: bytes) -> bytes:
            nonce = self._random(BOX_NONCE_SIZE)
            return nonce + xseal(secret, nonce, body, b"")

        return Once(name, blake2s(raw), render, seal)

    def _replayed(self, replay: Replay, request: Request, principal: Principal) -> Response:
        _, secret = _once_keys(principal, request)
        try:
            body = xopen(secret, replay.body[:BOX_NONCE_SIZE], replay.body[BOX_NONCE_SIZE:], b"")
        except AuthenticationError as error:
            raise StateError("the kept answer does not open") from error
        etag = msgspec.json.decode(body).get("etag")
        headers = SECURITY_HEADERS | {"idempotency-replayed": "true"} | ({} if etag is None else {"etag": f'"{etag}"'})
        return Response(body, replay.status, headers, media_type="application/json")


def _once_keys(principal: Principal, request: Request) -> tuple[str, bytes]:
    """(the kept answer's id, the key it is sealed under): both of the client's key, which is kept nowhere."""
    actor = principal.actor
    asked = "\0".join((actor.kind, actor.id, request.method, request.url.path, request.headers["idempotency-key"]))
    name, secret = hkdf(b"calnet idempotency v1", asked.encode(), 2)
    return name.hex(), secret


async def bounded_body(request: Request, limit: int) -> bytes:
    """The whole body; TooLargeError beyond `limit` bytes, before more is taken; MalformedError where the connection ends, or is ended for taking too long
    (web_protocol.BODY_TIMEOUT_S)."""
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise TooLargeError(f"a body has at most {limit} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise TooLargeError(f"a body has at most {limit} bytes")
            parts.append(part)
    except ClientDisconnect:
        raise MalformedError("the connection ended in the body") from None
    return b"".join(parts)


def _query(operation: Operation, request: Request) -> Any:
    items = request.query_params.multi_items()
    values = dict(items)
    if len(values) != len(items):
        raise InvalidError("a query parameter stands twice")
    try:
        return msgspec.convert(values, operation.query, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"query: {error}") from error


def _decoded(kind: type[msgspec.Struct], raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidError(f"body: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the body is no JSON: {error}") from error


def _expected(request: Request) -> str | None:
    """The etag of If-Match (RFC 9110 section 13.1.1); None where there is none, or any will do."""
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    text = text.strip()
    if len(text) < 2 or not text.startswith('"') or not text.endswith('"') or '"' in text[1:-1]:
        raise InvalidError("If-Match takes one etag in quotes, as the ETag header had it")
    return text[1:-1]


def _response(operation: Operation, answer: Answer, request: Request) -> Response:
    headers = dict(SECURITY_HEADERS)
    if answer.etag is not None:
        headers["etag"] = f'"{answer.etag}"'
        known = request.headers.get("if-none-match", "")
        if operation.method == "GET" and known and (known.strip() == "*" or headers["etag"] in (tag.strip().removeprefix("W/") for tag in known.split(","))):
            return Response(status_code=304, headers=headers)
    if operation.status == 204:
        return Response(status_code=204, headers=headers)
    return Response(msgspec.json.encode(answer.value), operation.status, headers, media_type="application/json")


def compact(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value, separators=(",", ":"))
