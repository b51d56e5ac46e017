"""All of REST as routes: the operations, the document and page that describe them, live events, and the server's figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from calnet.crypto.keys import RandomBytes
from calnet.metrics import Metric, rendered
from calnet.roles.server.actors import Role
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest.authentication import Authentication, Authenticator
from calnet.roles.server.rest.docs_page import CONTENT_SECURITY_POLICY, page
from calnet.roles.server.rest.events import Events
from calnet.roles.server.rest.handlers import Handlers, Relays, operations
from calnet.roles.server.rest.local import LocalOperations
from calnet.roles.server.rest.openapi import document
from calnet.roles.server.rest.serving import PREFIX, SECURITY_HEADERS, Rest


class Api:
    """Made once a server; `routes` go into the application, `close` ends the streams."""

    def __init__(
        self,
        registry: Registry,
        *,
        clock: Callable[[], float],
        random: RandomBytes,
        relays: Relays,
        metrics: Callable[[], Iterable[Metric]],
        authenticators: Sequence[Authenticator] = (),
    ) -> None:
        """`clock` is monotonic; `authenticators` are those beside API tokens and the admin socket."""
        self.authentication = Authentication(registry, clock, authenticators)
        self._rest = Rest(registry, self.authentication, random)
        self._operations = operations(Handlers(registry, relays))
        self._metrics = metrics
        self._local = LocalOperations(registry, self.authentication.principal)
        self._events = Events(registry, lambda request: self._rest.authorised(request, "events", "read", lambda _: True), asyncio.get_running_loop())
        described = document(self._operations, PREFIX)
        self._document = msgspec.json.encode(described)
        self._page = page(described)

    def close(self) -> None:
        """End the streams of events."""
        self._events.close()

    def routes(self) -> list[BaseRoute]:
        """All routes."""
        return [
            *self._rest.routes(self._operations),
            Route(f"{PREFIX}/events", self._events.endpoint, methods=["GET"]),
            Route(f"{PREFIX}/openapi.json", self._show_document, methods=["GET"]),
            Route("/api/docs", self._show_page, methods=["GET"]),
            Route("/metrics", self._show_metrics, methods=["GET"]),
            *self._local.routes(),
        ]

    async def _show_document(self, _: Request) -> Response:
        return Response(self._document, headers=SECURITY_HEADERS, media_type="application/json")

    async def _show_page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers=SECURITY_HEADERS | {"content-security-policy": CONTENT_SECURITY_POLICY})

    async def _show_metrics(self, request: Request) -> Response:
        await self._rest.authorised(request, "metrics", "read", lambda role: role is not Role.USER)
        return PlainTextResponse(rendered(self._metrics()), headers=SECURITY_HEADERS, media_type="text/plain; version=0.0.4")
