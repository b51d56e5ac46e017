"""A Unix stream socket that answers local requests (calnet.wire.local), with the caller's credentials from the kernel.

The handler gets a LocalRequest and returns the result, or raises a CalnetError, which becomes the error that the client sees. A client that goes
away cancels its handler. One connection carries one request.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from calnet.errors import CalnetError, HostError, WireError
from calnet.wire import local

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""A client that has connected has to send its request within this time."""
WRITE_TIMEOUT_S = 30.0
"""A client that doesn't read its answers for so long is dropped."""
MAX_CLIENTS = 128
"""Connections served at a time; one more is closed at once, so that a local user can't use up the daemon's descriptors."""
MAX_CLIENTS_PER_USER = 32
"""Of one user other than root: nobody can lock the others out."""
MAX_CLIENTS_NOT_ROOT = 96
"""Of all users other than root: one who has many user ids (as /etc/subuid gives) can't keep root out either."""


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """One request and who makes it. `emit` sends a progress event."""

    op: str
    args: dict[str, object]
    uid: int
    gid: int
    pid: int
    emit: Callable[[dict[str, object]], Awaitable[None]]


Handler = Callable[[LocalRequest], Awaitable[object]]


class LocalServer:
    """A listening local socket; made by serve_local."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[None], int] = {}

    async def start(self, mode: int) -> None:
        """Binds and listens; the socket file appears with `mode` at once, whatever the umask."""
        self._listener = await asyncio.to_thread(listen_local, self._path, mode)
        found = os.lstat(self._path)
        self._identity = (found.st_dev, found.st_ino)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Stops listening, cancels what is being handled and removes the socket file if it is still ours."""
        tasks = [task for task in (self._accepting, *self._clients) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        with suppress(FileNotFoundError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("local_accept_failed error=%s", error)
                await asyncio.sleep(0.1)
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        try:
            pid, uid, gid = _credentials(connection)
        except OSError:
            connection.close()
            return
        if not self._has_room_for(uid):
            connection.close()
            return
        task = asyncio.create_task(self._serve(connection, pid, uid, gid))
        self._clients[task] = uid
        task.add_done_callback(self._forget)

    def _has_room_for(self, uid: int) -> bool:
        if uid == 0:
            return len(self._clients) < MAX_CLIENTS
        others = [other for other in self._clients.values() if other != 0]
        return len(others) < MAX_CLIENTS_NOT_ROOT and others.count(uid) < MAX_CLIENTS_PER_USER

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._clients.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("local_client_failed error=%r", error)

    async def _serve(self, connection: socket.socket, pid: int, uid: int, gid: int) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=local.MAX_LINE)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                line = await _read_line(reader)
            op, args = local.decode_request(line)
            request = LocalRequest(op, args, uid, gid, pid, lambda event: _send_event(writer, event))
            await _send(writer, await self._answer_unless_gone(request, reader))
        except WireError as error:
            with suppress(OSError, TimeoutError):
                await _send(writer, local.encode_error(error))
        except (OSError, TimeoutError, EOFError):
            pass  # the client went away or stalled: there is nobody to tell
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer_unless_gone(self, request: LocalRequest, reader: asyncio.StreamReader) -> bytes:
        """The closing line. Raises EOFError, with the handler cancelled and finished, if the client closes first."""
        handling = asyncio.create_task(self._answer(request))
        watching = asyncio.create_task(_wait_for_close(reader))
        try:
            await asyncio.wait((handling, watching), return_when=asyncio.FIRST_COMPLETED)
            if handling.done():
                return handling.result()
            raise EOFError
        finally:
            for task in (handling, watching):
                task.cancel()
            await asyncio.gather(handling, watching, return_exceptions=True)

    async def _answer(self, request: LocalRequest) -> bytes:
        try:
            return local.encode_result(await self._handler(request))
        except CalnetError as error:
            return local.encode_error(error)
        except Exception as error:  # a defect in one request must not end the daemon, and its client has to hear of it
            log.exception("local_request_failed op=%s", request.op[:64].encode("unicode_escape").decode())
            return local.encode_error(CalnetError(f"an internal error ({type(error).__name__}): the daemon's log has the details"))


async def serve_local(path: Path, handler: Handler, *, mode: int) -> LocalServer:
    """Listens on `path` with file mode `mode` (0o600 for root or the server's user alone, 0o666 where the handler decides by uid).

    A stale socket file is replaced; HostError for a live one, for anything at `path` that isn't a socket (a symlink too), and for what the
    operating system refuses. The directory has to be there.
    """
    server = LocalServer(path, handler)
    await server.start(mode)
    return server


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\n"))[:-1]
    except asyncio.LimitOverrunError:
        raise WireError(f"a line is longer than {local.MAX_LINE} bytes") from None


async def _wait_for_close(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(4096):
            pass


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await writer.drain()


async def _send_event(writer: asyncio.StreamWriter, event: dict[str, object]) -> None:
    """A client that doesn't take its events is cut off; the handler is cancelled by that, not failed by this."""
    try:
        await _send(writer, local.encode_event(event))
    except (OSError, TimeoutError):
        writer.transport.abort()


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever connected, as the kernel recorded them at connect."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def listen_local(path: Path, mode: int) -> socket.socket:
    """A listening socket, moved to `path` by rename only when its mode is set, so that nobody connects before."""
    _refuse_unless_stale(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            fresh.unlink()
        listener.bind(str(fresh))
        os.chmod(fresh, mode)
        listener.listen(64)
        os.rename(fresh, path)
    except OSError as error:
        listener.close()
        with suppress(OSError):
            fresh.unlink()
        raise HostError(_why(path, error)) from None
    return listener


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: its directory is not there; make it, or give another path with --socket"
    if error.errno is None or "too long" in str(error):
        return f"{path}: too long for a socket's path (107 bytes at most); give a shorter one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path}: no right to make a socket there; run as root or give another path with --socket"
    return f"{path}: can't listen there: {error.strerror or error}"


def _refuse_unless_stale(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(_why(path, error)) from None
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError(f"{path} exists and is not a socket: move it away, or give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # EAGAIN: its backlog is full, so somebody is listening
                raise HostError(_why(path, error)) from None
    raise HostError(f"another daemon is running and listens on {path}; stop it first, or give another path with --socket")
