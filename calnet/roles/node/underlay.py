"""Connections to the server that never enter the tunnel: TCP sockets with the daemon's fwmark, WebSockets and one HTTP request over them.

A `Dial` opens a message socket; the control and relay clients know only that, and tests give them one in memory. No proxy and no compression is used,
whatever the environment says. Every failure is an UnreachableError whose text names host and reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from calnet.crypto.keys import RandomBytes, decode_key
from calnet.errors import CalnetError, InvalidError, ProtocolError, UnreachableError
from calnet.model import Endpoint
from calnet.wire.endpoints import is_candidate

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
STAGGER_S: Final = 0.25
"""Next address of a host after so long without a connection (RFC 8305)."""
MAX_ADDRESSES: Final = 8
STABLE_S: Final = 5.0
"""A connection that lasted so long starts the backoff anew."""
CONTROL_PATH: Final = "/control/ws"
KEY_PATH: Final = "/control/key"
_URL: Final = re.compile(r"[A-Za-z0-9:/._~%\[\]-]+")
_ANSWER_LIMIT: Final = 4096


class MessageSocket(Protocol):
    """A connection of whole binary messages. UnreachableError from any call once it is gone."""

    async def send(self, message: bytes) -> None:
        """Send one message, waiting while the connection is slow."""

    async def receive(self) -> bytes:
        """The next message. ProtocolError for a text message."""

    async def close(self) -> None:
        """Close; never raises, a second call does nothing. It waits a while for the other side to agree."""

    def drop(self) -> None:
        """Close without a word, as it would not arrive."""


class Dial(Protocol):
    """Opens a connection; `url` is ws:// or wss://, `max_size` the longest message accepted."""

    def __call__(self, url: str, max_size: int) -> Coroutine[Any, Any, MessageSocket]: ...


@dataclass(frozen=True, slots=True)
class Server:
    """A server's URL taken apart. `base` is its path without a slash at the end."""

    secure: bool
    host: str
    port: int
    base: str = ""

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    def url(self) -> str:
        """As people write it."""
        return f"{'https' if self.secure else 'http'}://{self._authority}{self.base}"

    def socket_url(self, path: str) -> str:
        """The WebSocket at `path`."""
        return f"{'wss' if self.secure else 'ws'}://{self._authority}{self.base}{path}"


def parse_server(text: str) -> Server:
    """`https://host[:port][/base]`, `http://…`, `ws(s)://…`, or `host[:port]` alone (http). InvalidError for anything else."""
    whole = text.strip()
    try:
        parts = urlsplit(whole if "://" in whole else f"http://{whole}")
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise InvalidError(f"{text!r} is not a server's URL: {error}") from None
    if parts.scheme not in ("http", "https", "ws", "wss") or not host or parts.username or parts.query or parts.fragment or not _URL.fullmatch(whole):
        raise InvalidError(f"{text!r} is not a server's URL such as https://calnet.example.org or http://192.0.2.7:8080")
    secure = parts.scheme in ("https", "wss")
    return Server(secure, host, port or (443 if secure else 80), parts.path.rstrip("/"))


async def connect_marked(host: str, port: int, mark: int) -> socket.socket:
    """A connected, non-blocking TCP socket that carries `mark` (0: none); the host's addresses are tried staggered, the first to answer wins."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return await _race([entry[0] for entry in found][:MAX_ADDRESSES], [entry[4] for entry in found][:MAX_ADDRESSES], mark)
    except TimeoutError:
        raise UnreachableError(f"{host} port {port} does not answer") from None
    except socket.gaierror as error:
        raise UnreachableError(f"the name {host} does not resolve: {error.strerror}") from error
    except PermissionError as error:
        raise UnreachableError(f"can't connect to {host}: {error.strerror}; the daemon needs CAP_NET_ADMIN") from error
    except (OSError, UnicodeError) as error:
        raise UnreachableError(f"{host} port {port}: {_reason(error)}; is the server running there, and its port open?") from error


def _reason(error: Exception) -> str:
    """The operating system's words: asyncio's say less."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else str(error)


def _tls_reason(host: str, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} does not hold: {error.verify_message}; renew it, or have this machine trust who signed it"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return f"{host} does not speak TLS on that port: is its URL http:// rather than https://?"
    return f"TLS with {host} failed: {error.reason or error}"


async def _race(families: Sequence[int], addresses: Sequence[Any], mark: int) -> socket.socket:
    waiting: set[asyncio.Task[socket.socket]] = set()
    failure: OSError = OSError("no address")
    winner: socket.socket | None = None
    try:
        for number, (family, address) in enumerate(zip(families, addresses, strict=True)):
            waiting.add(asyncio.create_task(_connect_one(family, address, mark)))
            last = number == len(addresses) - 1
            while waiting and winner is None:
                done, waiting = await asyncio.wait(waiting, timeout=None if last else STAGGER_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if isinstance(error, OSError):
                        failure = error
                    elif error is not None:
                        raise error
                    elif winner is None:
                        winner = task.result()
                    else:
                        task.result().close()
                if not done:
                    break
            if winner is not None:
                return winner
        raise failure
    finally:
        for task in waiting:
            task.cancel()
            task.add_done_callback(_close_late)


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect_one(family: int, address: Any, mark: int) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if mark:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


class _WebSocket:
    """A `websockets` connection as a MessageSocket."""

    def __init__(self, connection: Any, closed: type[Exception]) -> None:
        self._connection, self._closed = connection, closed

    async def send(self, message: bytes) -> None:
        try:
            await self._connection.send(message)
        except self._closed as error:
            raise UnreachableError(_closing(error)) from error

    async def receive(self) -> bytes:
        try:
            message = await self._connection.recv()
        except self._closed as error:
            raise UnreachableError(_closing(error)) from error
        if not isinstance(message, bytes):
            raise ProtocolError("the server sent a text message")
        return message

    async def close(self) -> None:
        with contextlib.suppress(OSError, self._closed):
            await self._connection.close()

    def drop(self) -> None:
        self._connection.transport.abort()


def _closing(error: Exception) -> str:
    received = getattr(error, "rcvd", None)
    reason = f" ({received.code} {received.reason})" if received is not None and received.reason else ""
    return f"the server closed the connection{reason}"


def websocket_dial(mark: int) -> Dial:
    """A `Dial` whose sockets carry `mark`."""

    async def dial(url: str, max_size: int) -> MessageSocket:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

        try:
            parts = urlsplit(url)
            secure = parts.scheme == "wss"
            host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        except ValueError as error:
            raise UnreachableError(f"{url!r} is not a WebSocket's URL") from error
        if parts.scheme not in ("ws", "wss") or not host:
            raise UnreachableError(f"{url!r} is not a WebSocket's URL")
        connection = await connect_marked(host, port, mark)
        try:
            opened = await connect(
                url,
                sock=connection,
                proxy=None,
                compression=None,
                max_size=max_size,
                ping_interval=None,
                open_timeout=CONNECT_TIMEOUT_S,
                close_timeout=2.0,
                user_agent_header=None,
            )
        except (InvalidHandshake, InvalidURI, ConnectionClosed, EOFError) as error:
            connection.close()
            raise UnreachableError(f"{host} port {port} is no Calnet server, or wants https:// rather than http://: {error}") from error
        except ssl.SSLError as error:
            connection.close()
            raise UnreachableError(_tls_reason(host, error)) from error
        except TimeoutError as error:
            connection.close()
            raise UnreachableError(f"{host} port {port} does not answer") from error
        except OSError as error:
            connection.close()
            raise UnreachableError(f"{host} port {port}: {_reason(error)}; is the server running there, and its port open?") from error
        return _WebSocket(opened, ConnectionClosed)

    return dial


async def resolve(servers: Sequence[str]) -> tuple[Endpoint, ...]:
    """The UDP addresses of `host:port` texts; what doesn't parse or resolve, or is nobody's address (link-local, multicast), is left out."""
    loop = asyncio.get_running_loop()
    found: dict[Endpoint, None] = {}
    for text in servers:
        host, _, port = text.rpartition(":")
        try:
            if not 0 < int(port) < 65_536:
                continue
            entries = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        except (OSError, ValueError, UnicodeError):
            continue
        for entry in entries:
            found[Endpoint(str(entry[4][0]).partition("%")[0], int(entry[4][1]))] = None
    return tuple(endpoint for endpoint in found if is_candidate(endpoint) or ip_address(endpoint.host).is_loopback)


async def fetch_server_key(server: Server, mark: int) -> bytes:
    """The control key a server says it has (`GET /control/key`): trust on first use. UnreachableError; ProtocolError where the answer is none."""
    connection = await connect_marked(server.host, server.port, mark)
    try:
        status, body = await asyncio.to_thread(_get, connection, server)
    except ssl.SSLError as error:
        raise UnreachableError(_tls_reason(server.host, error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{server.url()} does not answer as a Calnet server: {error}") from error
    finally:
        connection.close()
    try:
        document = json.loads(body)
        if status != 200 or not isinstance(document, dict):
            raise ProtocolError(f"{server.url()} is no Calnet server (HTTP status {status})")
        return decode_key(str(document.get("control_key")))
    except (ValueError, RecursionError, InvalidError) as error:
        raise ProtocolError(f"{server.url()} is no Calnet server: it answers {KEY_PATH} with something else") from error


def _get(connection: socket.socket, server: Server) -> tuple[int, bytes]:
    connection.setblocking(True)
    connection.settimeout(CONNECT_TIMEOUT_S)
    client = http.client.HTTPConnection(server.host, server.port, timeout=CONNECT_TIMEOUT_S)
    client.sock = ssl.create_default_context().wrap_socket(connection, server_hostname=server.host) if server.secure else connection
    try:
        client.request("GET", server.base + KEY_PATH, headers={"Accept": "application/json"})
        answer = client.getresponse()
        return answer.status, answer.read(_ANSWER_LIMIT)
    finally:
        client.close()


class Reconnecting:
    """Makes a connection again and again, with jittered backoff; one that lasted for STABLE_S starts the backoff anew.

    This is the boundary that a defect does not pass: one that ends a connection, or arises in telling that it ended, is logged, and the next connection made.

    Whoever is done with it calls `stop` and then cancels the task that runs it: a connection that breaks at that moment would swallow the cancel.
    """

    def __init__(self, random: RandomBytes) -> None:
        self._random = random
        self._wake = asyncio.Event()
        self._pausing = False
        self.stopped = False

    async def run(self, connection: Callable[[], Awaitable[None]], lost: Callable[[CalnetError], None]) -> None:
        """Await `connection()` until cancelled or stopped; `lost` hears why each one ended."""
        attempt, loop = 0, asyncio.get_running_loop()
        while not self.stopped:
            started = loop.time()
            try:
                await connection()
            except CalnetError as error:
                self._tell(lost, error)
            except Exception as error:
                log.error("connection_failed error=%r", error, exc_info=error)
                self._tell(
                    lost, UnreachableError(f"the connection was ended by a defect of Calnet ({type(error).__name__}): please report it with the daemon's log")
                )
            attempt = 0 if loop.time() - started > STABLE_S else attempt + 1
            if await self._pause(backoff(max(0, attempt - 1), self._random(1)[0] / 256)):
                attempt = 0

    def _tell(self, lost: Callable[[CalnetError], None], error: CalnetError) -> None:
        try:
            lost(error)
        except Exception as defect:
            log.error("connection_failed error=%r", defect, exc_info=defect)

    async def _pause(self, seconds: float) -> bool:
        """Whether it was cut short."""
        if self.stopped:
            return False
        self._pausing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        woken, self._pausing = self._wake.is_set(), False
        self._wake.clear()
        return woken

    def now(self, *, after_this: bool = False) -> None:
        """Don't wait for the backoff, and start it anew: the network changed. `after_this`: nor where the one that stands, or is being made, ends now."""
        if self._pausing or after_this:
            self._wake.set()

    def stop(self) -> None:
        """Make no further connection: `run` returns when this one ends."""
        self.stopped = True
        self._wake.set()


def backoff(attempt: int, fraction: float) -> float:
    """Seconds before reconnection number `attempt` (0 is the first), jittered to 50-100 % by `fraction` in [0, 1).

    0.5, 1, then 2 s eight times (a server that restarts is found soon after it is back), then doubling, 30 s at most.
    """
    doublings = min(attempt, 2) + min(max(0, attempt - 9), 4)
    return min(30.0, 0.5 * float(1 << doublings)) * (0.5 + fraction / 2)
