"""What the admin socket alone serves: archives out and in. They hold private keys, so no network ever carries them (attack 35)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from calnet.errors import NotFoundError
from calnet.roles.server.actors import Principal
from calnet.roles.server.durable import durable
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest.serving import SECURITY_HEADERS, bounded_body
from calnet.store.archive import read_archive

MAX_ARCHIVE: Final = 1 << 30

Authenticate = Callable[[Request], Awaitable[Principal]]


class LocalOperations:
    """The routes below /local; elsewhere than on the socket there is nothing there."""

    def __init__(self, registry: Registry, authenticate: Authenticate) -> None:
        self._registry = registry
        self._authenticate = authenticate

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        return [
            Route("/local/backup", self._backup, methods=["POST"]),
            Route("/local/restore", self._restore, methods=["POST"]),
            Route("/local/import", self._import, methods=["POST"]),
        ]

    async def _backup(self, request: Request) -> Response:
        await self._local(request)
        return Response(await asyncio.to_thread(self._registry.backup), headers=SECURITY_HEADERS, media_type="application/octet-stream")

    async def _restore(self, request: Request) -> Response:
        return await self._take_in(request, "server.restore")

    async def _import(self, request: Request) -> Response:
        return await self._take_in(request, "server.import")

    async def _take_in(self, request: Request, action: str) -> Response:
        principal = await self._local(request)
        archive = await asyncio.to_thread(read_archive, await bounded_body(request, MAX_ARCHIVE))
        done = await asyncio.to_thread(self._registry.restore, archive, action, principal.actor)
        return JSONResponse({"restart_needed": await durable(done)}, headers=SECURITY_HEADERS)

    async def _local(self, request: Request) -> Principal:
        principal = await self._authenticate(request)
        if principal.actor.kind != "local":
            raise NotFoundError("Not Found")
        return principal
