"""The HTTP face: health, the server's key, and the WebSockets of control and relay. Errors are RFC 9457 problem documents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from calnet.crypto.keys import encode_key
from calnet.errors import CalnetError
from calnet.model import Prefix
from calnet.policy.document import PolicyError
from calnet.roles.server.admission import Gate
from calnet.roles.server.connection import CLOSE_TRY_LATER, Connection, in_prefixes
from calnet.roles.server.proxy import ForwardedHeaders
from calnet.wire.channel import VERSION

log = logging.getLogger(__name__)

Serve = Callable[[Connection], Awaitable[None]]


def build_app(
    *,
    control_key: bytes,
    serve_control: Serve,
    serve_relay: Serve,
    ready: Callable[[], bool],
    gate: Gate,
    trusted: tuple[Prefix, ...],
    more: Sequence[BaseRoute] = (),
    serve_mesh: Serve | None = None,
) -> ASGIApp:
    """The ASGI application. `serve_…` run an accepted WebSocket to its end; `ready` says whether the server takes sessions; `more` are REST's routes."""

    async def readyz(_: Request) -> Response:
        return PlainTextResponse("ready\n") if ready() else problem(503, "the server is starting or stopping")

    async def key(_: Request) -> Response:
        return JSONResponse({"control_key": encode_key(control_key), "protocol": VERSION}, headers={"cache-control": "no-store"})

    sockets = {"/control/ws": _Socket(serve_control, gate, trusted), "/relay": _Socket(serve_relay, gate, trusted)}
    if serve_mesh is not None:
        sockets["/relay/mesh"] = _Socket(serve_mesh, gate, trusted)
    routes: list[BaseRoute] = [
        Route("/healthz", _healthz),
        Route("/readyz", readyz),
        Route("/control/key", key),
        Route("/control/ws", _websocket_needed),
        Route("/relay", _websocket_needed),
        *more,
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, CalnetError: _calnet_error, Exception: _internal_error}
    app: ASGIApp = _WithSockets(sockets, Starlette(routes=routes, exception_handlers=handlers))
    return ForwardedHeaders(app, trusted) if trusted else app


def problem(status: int, detail: str, **more: object) -> JSONResponse:
    """An RFC 9457 problem document."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(document, status, media_type="application/problem+json")


class _WithSockets:
    """The WebSockets by their paths, past Starlette: its layers would stand on the stack of each of thousands of idle sessions, and wrap each message."""

    def __init__(self, sockets: dict[str, _Socket], app: ASGIApp) -> None:
        self._sockets, self._app = sockets, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = self._sockets.get(scope["path"]) if scope["type"] == "websocket" else None
        await (socket or self._app)(scope, receive, send)


class _Socket:
    """An ASGI endpoint that accepts a WebSocket through the gate and runs it."""

    def __init__(self, serve: Serve, gate: Gate, trusted: tuple[Prefix, ...]) -> None:
        self._serve, self._gate, self._trusted = serve, gate, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send)
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
        try:
            async with limit:
                try:
                    if await connection.accept(self._gate, lambda: limit.reschedule(loop.time()), trusted=in_prefixes(connection.host, self._trusted)):
                        await self._serve(connection)
                finally:
                    connection.authenticated()
        except TimeoutError:
            if not limit.expired():
                raise
            await connection.close(CLOSE_TRY_LATER, "too many connections wait to prove a key; connect again later")


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _websocket_needed(_: Request) -> Response:
    return problem(426, "this is a WebSocket of Calnet's protocol: connect to it with `calnet up`")


async def _http_error(_: Request, error: HTTPException) -> Response:
    answer = problem(error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _calnet_error(_: Request, error: CalnetError) -> Response:
    answer = problem(error.http_status, str(error), code=error.code)
    if error.http_status == 401:
        answer.headers["www-authenticate"] = "Bearer"
    if isinstance(error, PolicyError):
        answer = problem(error.http_status, str(error), code=error.code, problems=[asdict(one) for one in error.problems])
    return answer


async def _internal_error(request: Request, error: Exception) -> Response:
    log.error("http_request_failed path=%r", request.url.path[:200], exc_info=error)
    return problem(500, "an internal error; the server's log has the details")
