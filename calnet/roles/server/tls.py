"""TLS, counted at the gate from the first byte: a handshake that does not end is a connection that has not authenticated.

asyncio's own servers make the handshake before any protocol hears of the connection, and allow it a minute. So connections are accepted here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from calnet.roles.server.admission import Gate
from calnet.wire.endpoints import source_network

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 10.0
SHUTDOWN_TIMEOUT_S: Final = 3.0
"""How long the other side may take to answer the end of TLS."""
ACCEPT_BATCH: Final = 64
ACCEPT_RETRY_S: Final = 1.0
"""Pause where the process has no descriptor left."""


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's context (TLS 1.2 and later); OSError (ssl.SSLError) for files that can't be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class TlsListener:
    """Accepts on `listener`, which stays the caller's to close after `close`; each connection is `make()`'s once its handshake is done."""

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol], *, gate: Gate, trusted: Callable[[str], bool]
    ) -> None:
        self._listener = listener
        self._context = context
        self._make = make
        self._gate = gate
        self._trusted = trusted
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._resume()

    def close(self) -> None:
        """Accept no more, and end the handshakes under way."""
        self._pause()
        for task in self._tasks:
            task.cancel()

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        if self._retry is not None:
            self._retry.cancel()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor or memory left
                log.error("accept_failed reason=%s", error)
                self._pause()
                self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._resume)
                return
            self._begin(accepted, str(address[0]))

    def _begin(self, accepted: socket.socket, host: str) -> None:
        accepted.setblocking(False)
        task = self._loop.create_task(self._shake_hands(accepted))
        self._tasks.add(task)
        place = self._gate.enter(source_network(host), task.cancel, trusted=self._trusted(host))
        task.add_done_callback(partial(self._done, accepted))
        if place is None:
            task.cancel()
        else:
            task.add_done_callback(lambda _: self._gate.leave(place))

    async def _shake_hands(self, accepted: socket.socket) -> None:
        await self._loop.connect_accepted_socket(
            self._make, accepted, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S, ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )

    def _done(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            accepted.close()
        elif (error := task.exception()) is not None and not isinstance(error, OSError):  # OSError: the client's, ssl.SSLError too
            log.error("tls_handshake_failed", exc_info=error)
