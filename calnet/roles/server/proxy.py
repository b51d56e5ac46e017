"""Forwarded headers, believed from trusted proxies alone: the client's address, the scheme and the host it asked for."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from calnet.model import Prefix
from calnet.roles.server.connection import in_prefixes

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class ForwardedHeaders:
    """ASGI middleware: rewrites `client`, `scheme` and the Host header from X-Forwarded-For, -Proto and -Host where the connection is a proxy's."""

    def __init__(self, app: ASGIApp, trusted: tuple[Prefix, ...]) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope.get("client") and in_prefixes(scope["client"][0], self._trusted):
            self._rewrite(scope)
        await self._app(scope, receive, send)

    def _rewrite(self, scope: Scope) -> None:
        headers = {name: value.decode("latin-1").strip() for name, value in scope["headers"] if name.startswith(b"x-forwarded-")}
        scheme = _SCHEMES.get(headers.get(b"x-forwarded-proto", "").lower())
        if scheme is not None:
            scope["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
        if host := headers.get(b"x-forwarded-host"):
            scope["headers"] = [item for item in scope["headers"] if item[0] != b"host"] + [(b"host", host.encode("latin-1"))]
        for client in reversed(headers.get(b"x-forwarded-for", "").split(",")):
            if client.strip():
                scope["client"] = (client.strip().strip("[]"), 0)
            if not in_prefixes(client.strip(), self._trusted):
                break
