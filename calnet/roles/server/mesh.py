"""Relays of one network passing datagrams to each other: a WebSocket from server to server, proved and sealed by Noise IK with the control key, which all
servers on one store share and nobody else has.

A message is a MessagePack list of (receiver's node key, sender's node key, datagram). The receiving side looks up anew whether the two see each other: a server
is trusted, but may know less than the other at that moment. Datagrams are ciphertext of the nodes'. What can't be sent at once waits, bounded, the oldest
dropped first, as for a client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import AuthenticationError, CalnetError, WireError
from calnet.model import NodeKey
from calnet.roles.server.connection import CLOSE_PROTOCOL, Connection
from calnet.wire.channel import Channel

log = logging.getLogger(__name__)

PROLOGUE: Final = b"calnet relay mesh v1"
MAX_QUEUE: Final = 4 << 20
"""Bytes that wait for one other server."""
MAX_BATCH: Final = 48 * 1024
RETRY_S: Final = 1.0
OPEN_S: Final = 10.0

Deliver = Callable[[NodeKey, NodeKey, bytes], None]
"""(sender, receiver, datagram)."""
_Batch = list[tuple[bytes, bytes, bytes]]
_decoder: Final = msgspec.msgpack.Decoder(_Batch)


class MeshLink:
    """The way to one other server. Made when something is to be sent there; `close` ends it."""

    def __init__(self, url: str, control_key: PrivateKey, random: RandomBytes, loop: asyncio.AbstractEventLoop) -> None:
        """`url` is the other server's, http or https."""
        self._url = "ws" + url.removeprefix("http") + "/relay/mesh"
        self._control_key, self._random = control_key, random
        self._queue: deque[tuple[bytes, bytes, bytes]] = deque()
        self._queued = 0
        self._wake = asyncio.Event()
        self._task = loop.create_task(self._run())

    def send(self, receiver: NodeKey, sender: NodeKey, datagram: bytes) -> None:
        """Queue one datagram."""
        while self._queue and self._queued + len(datagram) > MAX_QUEUE:
            self._queued -= len(self._queue.popleft()[2])
        self._queue.append((receiver, sender, datagram))
        self._queued += len(datagram)
        self._wake.set()

    def close(self) -> asyncio.Task[None]:
        """End it; the task to wait for."""
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except (OSError, TimeoutError, WebSocketException, CalnetError) as error:
                log.warning("mesh_lost url=%s error=%s", self._url, error or type(error).__name__)
            await asyncio.sleep(RETRY_S)

    async def _session(self) -> None:
        async with connect(self._url, compression=None, open_timeout=OPEN_S, max_size=65_536, ping_interval=20, proxy=None) as socket:
            channel = Channel.client(self._control_key, self._control_key.public, PrivateKey.generate(self._random), PROLOGUE)
            await socket.send(channel.opening())
            async with asyncio.timeout(OPEN_S):
                answer = await socket.recv()
            channel.receive_handshake(answer if isinstance(answer, bytes) else b"")
            log.info("mesh_connected url=%s", self._url)
            while True:
                batch = self._take()
                for part in channel.send(msgspec.msgpack.encode(batch)) if batch else ():
                    await socket.send(part)
                if not batch:
                    self._wake.clear()
                    await self._wake.wait()

    def _take(self) -> _Batch:
        batch: _Batch = []
        size = 0
        while self._queue and size < MAX_BATCH:
            item = self._queue.popleft()
            self._queued -= len(item[2])
            size += len(item[2]) + 80
            batch.append(item)
        return batch


class RemoteReceiver:
    """A node at another server, as the relay sees it."""

    __slots__ = ("_key", "_link")

    def __init__(self, link: MeshLink, key: NodeKey) -> None:
        self._link, self._key = link, key

    def enqueue(self, sender: NodeKey, datagram: bytes) -> None:
        """Pass it on."""
        self._link.send(self._key, sender, datagram)


async def serve_mesh(connection: Connection, control_key: PrivateKey, random: RandomBytes, deliver: Deliver) -> None:
    """Run an accepted connection of another server to its end. Nothing is delivered before a message that proves the shared key."""
    channel = Channel.server(control_key, PrivateKey.generate(random), PROLOGUE)
    try:
        async with asyncio.timeout(OPEN_S):
            answer = channel.receive_handshake(await connection.receive())
            if channel.remote_static != control_key.public:
                raise AuthenticationError("that is no server of this network")
            await connection.send(answer or b"")
        while True:
            whole = channel.receive(await connection.receive())
            connection.authenticated()
            for receiver, sender, datagram in () if whole is None else _decoded(whole):
                deliver(NodeKey(sender), NodeKey(receiver), datagram)
    except TimeoutError:
        await connection.close(CLOSE_PROTOCOL, "no handshake came in time")
    except CalnetError as error:
        await connection.close(CLOSE_PROTOCOL, str(error))


def _decoded(whole: bytes) -> _Batch:
    try:
        batch = _decoder.decode(whole)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError("not a message between relays") from error
    if not all(len(receiver) == len(sender) == 32 for receiver, sender, _ in batch):
        raise WireError("a key is 32 bytes")
    return batch
