"""uvicorn's HTTP and WebSocket protocols with the bounds they lack: time and size of a request's head, time of its body, connections that have not
authenticated, and the end of a connection whose other side no longer reads."""

from __future__ import annotations

import asyncio
import json
from asyncio.transports import BaseTransport
from collections.abc import Callable
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from calnet.errors import ProtocolError
from calnet.roles.server.admission import Gate, Place
from calnet.wire.endpoints import source_network

HEAD_TIMEOUT_S: Final = 10.0
"""From the connection (or the end of the last request) to the end of a request's head."""
HEAD_LIMIT: Final = 32_768
"""Bytes of a request's head."""
BODY_TIMEOUT_S: Final = 15.0
"""From the end of a request's head to the end of its body, whoever reads it or nobody: uvicorn waits for ever, also after it has answered."""
LINGER_S: Final = 3.0
"""How long a closed WebSocket may take to be read to its end by the other side."""
MAX_PIPELINED: Final = 8
"""Requests that may wait for the answers before them. uvicorn keeps reading while they wait: without a bound 13 MB of requests filled 500 MB."""
UNREAD_TIMEOUT_S: Final = 10.0
"""How long an HTTP client may leave its answers unread."""
UNREAD_LIMIT: Final = 512 * 1024
"""Bytes that wait for a WebSocket at most. Sessions stop at 64 KiB and one message; answers to pings, which the WebSocket layer gives by itself, don't."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One HTTP connection. It counts at the gate until it ends or becomes a WebSocket; that then counts itself, until it has authenticated."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        gate: Gate,
        trusted: Callable[[str], bool],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._gate = gate
        self._trusted = trusted
        self._place: Place | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        self._place = self._gate.enter(source_network(host), transport.abort, trusted=self._trusted(host))
        if self._place is None:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_body()
        self._end_unread()
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT:
            self._refuse("431 Request Header Fields Too Large")
        if self._is_idle():  # what came was no request, and ended uvicorn's own timer
            self._await_head()
        if self.transport.is_closing():  # closing waits for what is unread
            self.loop.call_later(LINGER_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_unread()
        super().resume_writing()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ProtocolError("too many requests at once")  # uvicorn answers 400 and closes
        super().on_message_begin()
        if not self._in_head:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()
        self._await_body()

    def on_message_complete(self) -> None:
        self._end_body()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._leave()
        self._end_body()
        self._end_unread()
        super().handle_websocket_upgrade()

    def _await_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, "408 Request Timeout")

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _await_body(self) -> None:
        """From here on a body has its time."""
        self._end_body()
        self._body_timer = self.loop.call_later(BODY_TIMEOUT_S, self._give_up_body)

    def _end_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _give_up_body(self) -> None:
        """Answer so, where nothing was answered yet, and close."""
        self._end_body()
        cycle = self.cycle
        if self.pipeline or cycle.response_started:
            self.transport.close()
            self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            detail = f"the body did not come within {BODY_TIMEOUT_S:.0f} s"
            self._refuse("408 Request Timeout", {"type": "about:blank", "title": "Request Timeout", "status": 408, "detail": detail, "code": "too-slow"})
        cycle.disconnected = True  # who waits for the body hears that it ends
        cycle.message_event.set()

    def _is_idle(self) -> bool:
        """Whether nothing is under way and no timer runs: neither head nor body, no answer, no wait for the next request."""
        timers = (self._head_timer, self._body_timer, self.timeout_keep_alive_task)
        return not self._in_head and timers == (None, None, None) and self.cycle is not None and self.cycle.response_complete and not self.pipeline

    def _end_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _refuse(self, status: str, problem: dict[str, object] | None = None) -> None:
        self._end_head()
        if not self.transport.is_closing():
            body = b"" if problem is None else json.dumps(problem).encode()
            kind = "" if problem is None else "content-type: application/problem+json\r\n"
            self.transport.write(f"HTTP/1.1 {status}\r\n{kind}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            self.transport.close()
            self.loop.call_later(LINGER_S, self.transport.abort)

    def _leave(self) -> None:
        if self._place is not None:
            self._gate.leave(self._place)
            self._place = None


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection, cut off where its other side doesn't read what closes it, or the answers to its pings."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.close_timeout = LINGER_S

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > UNREAD_LIMIT:
            self.transport.abort()

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(LINGER_S, self.transport.abort)


def bounded_http(gate: Gate, trusted: Callable[[str], bool]) -> type[asyncio.Protocol]:
    """The HTTP protocol class for uvicorn's configuration, which counts at `gate`; `trusted` says which hosts are proxies."""

    class GatedHttpProtocol(BoundedHttpProtocol):
        def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
            super().__init__(config, server_state, app_state, _loop, gate=gate, trusted=trusted)

    return GatedHttpProtocol
