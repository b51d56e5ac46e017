"""The admin socket: REST on a Unix socket in the state directory, for root or the server's user. Whoever can open it is the local administrator."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from calnet.host.local_socket import listen_local
from calnet.roles.server.admission import Gate
from calnet.roles.server.rest.authentication import LOCAL_UID
from calnet.roles.server.web_protocol import BoundedHttpProtocol


class AdminSocket:
    """Made by `open`; `close` ends it and removes the socket's file."""

    def __init__(self, path: Path, server: asyncio.Server) -> None:
        self._path, self._server = path, server

    @classmethod
    async def open(cls, path: Path, config: Config, state: ServerState, gate: Gate) -> AdminSocket:
        """Serve the application of `config` on `path` (0600). HostError where another server does, or the socket can't be made."""
        listener = listen_local(path, 0o600)

        def make() -> _AdminProtocol:
            return _AdminProtocol(config, state, {}, gate=gate, trusted=lambda _: True)

        return cls(path, await asyncio.get_running_loop().create_unix_server(make, sock=listener))

    async def close(self) -> None:
        """Accept no more; connections end with the server's."""
        self._path.unlink(missing_ok=True)
        self._server.close()


class _AdminProtocol(BoundedHttpProtocol):
    """An HTTP connection whose requests are the local administrator's, as the kernel tells who opened it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.app_state: dict[str, Any] = {LOCAL_UID: uid}

    def _await_body(self) -> None:
        """Archives are long, and nobody but the administrator can keep the socket busy."""
