"""The TLS listener where accepting fails. What it does with connections, the attack tests and those of the server's start show."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import Any

import pytest

from calnet.roles.server import tls
from calnet.roles.server.admission import Gate
from calnet.roles.server.tls import TlsListener


class Poor:
    """A listening socket whose process has no descriptor left, a few times."""

    def __init__(self, listener: socket.socket, failures: int) -> None:
        self.listener, self.failures, self.accepted = listener, failures, 0

    def fileno(self) -> int:
        return self.listener.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        accepted = self.listener.accept()
        self.accepted += 1
        return accepted


def test_listener_without_descriptors_left_waits_and_accepts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "ACCEPT_RETRY_S", 0.02)

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as real:
            real.setblocking(False)
            poor, gate = Poor(real, 2), Gate()
            listener = TlsListener(poor, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), asyncio.Protocol, gate=gate, trusted=lambda _: False)  # type: ignore[arg-type]
            with socket.create_connection(real.getsockname()):
                async with asyncio.timeout(10):
                    while not len(gate):
                        await asyncio.sleep(0.005)
                    assert (poor.failures, poor.accepted) == (0, 1)
                    listener.close()
                    while len(gate):
                        await asyncio.sleep(0.005)

    asyncio.run(run())
