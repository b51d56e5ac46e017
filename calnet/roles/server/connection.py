"""One WebSocket as the sessions see it: whole binary messages, who is at the other end, and by which URL it reached the server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from typing import Final

from starlette.types import Receive, Scope, Send

from calnet.errors import InvalidError, ProtocolError, UnreachableError
from calnet.model import Prefix
from calnet.roles.server.admission import Gate
from calnet.roles.server.settings import PublicUrl, is_authority
from calnet.wire.endpoints import source_network

CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL: Final = 1002
CLOSE_POLICY: Final = 1008
CLOSE_TRY_LATER: Final = 1013
CLOSE_LIMIT_S: Final = 1.0
"""How long the close message may wait for a connection that can't be written."""
MAX_REASON: Final = 120
"""Bytes of a close frame's reason (RFC 6455 section 5.5: 123)."""


class Connection:
    """An accepted WebSocket. Sending waits while the other side does not read; one task sends, one receives."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.host: str = scope["client"][0] if scope.get("client") else ""
        """The other end's address, behind a trusted proxy the one it names."""
        self._left: Callable[[], None] | None = None

    async def accept(self, gate: Gate, cut: Callable[[], object], *, trusted: bool) -> bool:
        """Accept, unless the gate refuses one more that has not authenticated; `cut` is what the gate calls to give its place to another."""
        await self._receive()
        place = gate.enter(source_network(self.host), cut, trusted=trusted)
        if place is None:
            await self._send({"type": "websocket.close", "code": CLOSE_TRY_LATER})
            return False
        self._left = lambda: gate.leave(place)
        await self._send({"type": "websocket.accept"})
        return True

    def authenticated(self) -> None:
        """It no longer counts at the gate. Called again, and at the end, nothing happens."""
        if self._left is not None:
            self._left()
            self._left = None

    async def receive(self) -> bytes:
        """The next binary message; UnreachableError once the connection has ended, ProtocolError for a text message."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise UnreachableError("the other side closed the connection")
        data = message.get("bytes")
        if data is None:
            raise ProtocolError("a text message: this WebSocket carries binary ones alone")
        return bytes(data)

    async def send(self, message: bytes | bytearray | memoryview) -> None:
        """Queue one binary message for the kernel; waits while too much is queued. UnreachableError once the connection has ended."""
        try:
            await self._send({"type": "websocket.send", "bytes": message})
        except (OSError, RuntimeError) as error:  # uvicorn's ClientDisconnected is an OSError; RuntimeError: sent after the close
            raise UnreachableError("the other side closed the connection") from error

    async def close(self, code: int, reason: str) -> None:
        """Say why, if it can be said at once; the connection ends when the session's handler returns, read or not."""
        text = reason.encode()[:MAX_REASON].decode(errors="ignore")
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._send({"type": "websocket.close", "code": code, "reason": text})

    def origin(self) -> PublicUrl:
        """The URL by which the other side reached this server, from scheme and Host header. InvalidError if that is no host."""
        hosts = [value for name, value in self._scope["headers"] if name == b"host"]
        authority = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if not is_authority(authority):
            raise InvalidError("the Host header names no host")
        return PublicUrl("https" if self._scope["scheme"] in ("https", "wss") else "http", authority)


def in_prefixes(host: str, prefixes: tuple[Prefix, ...]) -> bool:
    """Whether an address text lies in one of `prefixes`, an IPv4-mapped one as IPv4."""
    if not prefixes:
        return False
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address.version == prefix.version and address in prefix for prefix in prefixes)
