"""Several servers on one store: who of the nodes is where, and passing candidates and relayed datagrams on to where the receiver is connected.

What is durable all servers read from the store. What is not goes as short messages from each to all (`Store.send`): a beat every few seconds, with the
sender's id and URL; each node that comes, goes, or has other candidates; candidates for a node elsewhere. A server that is new is told all by each other.
One that has been silent for a while is forgotten, and its nodes with it: they are connecting to another meanwhile.

One event loop owns it. Messages are lost where the database is away, so each server tells all it has again every so often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

import msgspec

from calnet.crypto.keys import RandomBytes
from calnet.errors import CalnetError
from calnet.model import Endpoint, NodeId, NodeKey
from calnet.roles.server import mesh
from calnet.roles.server.connection import Connection
from calnet.roles.server.control_hub import ControlHub
from calnet.roles.server.netmaps import Presence
from calnet.roles.server.registry import Registry
from calnet.roles.server.relay_hub import Receiver, RelayHub
from calnet.roles.server.standing import Changed
from calnet.wire.control import MAX_ENDPOINTS, ShortText
from calnet.wire.endpoints import parse_endpoints

log = logging.getLogger(__name__)

BEAT_S: Final = 5.0
SILENCE_S: Final = 15.0
REPEAT_BEATS: Final = 12
"""Every so many beats a server tells again all it has."""
CHUNK: Final = 20
"""Nodes in one message, which holds 4 KiB."""

Endpoints = Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=MAX_ENDPOINTS)]


class Message(msgspec.Struct, frozen=True, tag_field="t", tag=True):
    """Base of all messages; `server` is the sender's id."""

    server: str


class Beat(Message, frozen=True):
    """I am here, at this URL. `new`: tell me all you have."""

    url: str
    connected: int
    new: bool = False


class Leave(Message, frozen=True):
    """I stop."""


class NodeHere(msgspec.Struct, frozen=True):
    """A node as its server sees it."""

    node: int
    online: bool
    since: float | None
    endpoints: Endpoints


class Here(Message, frozen=True):
    """Nodes of mine that came, went, or changed."""

    nodes: tuple[NodeHere, ...]


class Pass(Message, frozen=True):
    """A node's candidates for one that may be yours."""

    sender: int
    receiver: int
    endpoints: Endpoints


_decoder: Final = msgspec.msgpack.Decoder(Beat | Leave | Here | Pass)


@dataclass(slots=True)
class _Server:
    """Another server. `heard_at` is loop time."""

    url: str
    heard_at: float
    connected: int = 0
    link: mesh.MeshLink | None = None
    nodes: set[NodeId] = field(default_factory=set)


class Cluster:
    """See the module. `start` joins, `close` leaves."""

    def __init__(
        self, registry: Registry, control: ControlHub, relay: RelayHub, *, loop: asyncio.AbstractEventLoop, url: Callable[[], str], random: RandomBytes
    ) -> None:
        self._registry, self._control, self._relay = registry, control, relay
        self._loop, self._url, self._random = loop, url, random
        self._id = random(8).hex()
        self._servers: dict[str, _Server] = {}
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue(10_000)
        self._tasks: list[asyncio.Task[None]] = []
        self._unplaced: dict[NodeId, Presence] = {}
        """Presences of nodes that this server has not read from the store yet."""
        self._send = registry.join_servers(self._witnessed, self._heard)
        registry.subscribe(self._changed)

    def start(self) -> None:
        """Tell the others that this server is here."""
        self._control.elsewhere = self._pass_candidates
        self._relay.elsewhere = self._way_to
        self._tasks = [self._loop.create_task(self._write()), self._loop.create_task(self._beat())]

    async def close(self) -> None:
        """Tell the others that it goes, and end the ways to them."""
        for task in self._tasks:
            task.cancel()
        links = [server.link.close() for server in self._servers.values() if server.link is not None]
        await asyncio.gather(*self._tasks, *links, return_exceptions=True)
        with contextlib.suppress(CalnetError):
            await asyncio.to_thread(self._send, msgspec.msgpack.encode(Leave(self._id)))

    def relays(self) -> list[dict[str, object]]:
        """Rows of the other servers' relays, as REST lists them."""
        return [{"url": "ws" + server.url.removeprefix("http") + "/relay", "connected": server.connected} for server in self._servers.values()]

    async def serve_mesh(self, connection: Connection) -> None:
        """Another server's relay connected here."""
        await mesh.serve_mesh(connection, self._registry.control_key, self._random, self._relay.deliver)

    # --- to the others

    def _say(self, message: Message) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._outgoing.put_nowait(message)

    async def _write(self) -> None:
        while True:
            data = msgspec.msgpack.encode(await self._outgoing.get())
            try:
                await asyncio.to_thread(self._send, data)
            except (CalnetError, ValueError) as error:
                log.warning("message_not_sent reason=%s", error)

    async def _beat(self) -> None:
        beats = 0
        while True:
            self._say(Beat(self._id, self._url(), len(self._relay), new=beats == 0))
            if beats % REPEAT_BEATS == 0:
                self._tell_all()
            beats += 1
            await asyncio.sleep(BEAT_S)
            self._forget_silent()

    def _tell_all(self) -> None:
        own = [_here(node, presence) for node, presence in self._registry.presences().items() if presence.online and not presence.awaited and not presence.home]
        for start in range(0, len(own), CHUNK):
            self._say(Here(self._id, tuple(own[start : start + CHUNK])))

    def _witnessed(self, node: NodeId, presence: Presence) -> None:
        """On any thread."""
        if not presence.home:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped
                self._loop.call_soon_threadsafe(self._say, Here(self._id, (_here(node, presence),)))

    def _pass_candidates(self, sender: NodeId, receiver: NodeId, endpoints: tuple[str, ...]) -> None:
        if any(receiver in server.nodes for server in self._servers.values()):
            self._say(Pass(self._id, sender, receiver, endpoints))

    def _way_to(self, node: NodeId, key: NodeKey) -> Receiver | None:
        server = next((server for server in self._servers.values() if node in server.nodes), None)
        if server is None:
            return None
        if server.link is None:
            server.link = mesh.MeshLink(server.url, self._registry.control_key, self._random, self._loop)
        return mesh.RemoteReceiver(server.link, key)

    # --- from the others

    def _heard(self, data: bytes) -> None:
        """On the store's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, data)

    def _take(self, data: bytes) -> None:
        try:
            message = _decoder.decode(data)
        except (msgspec.DecodeError, RecursionError):  # a newer server's word, or a stranger's in the database
            return
        if message.server == self._id:
            return
        match message:
            case Beat():
                self._take_beat(message)
            case Leave():
                self._forget(message.server)
            case Here():
                self._take_nodes(message)
            case Pass():
                self._control.deliver_candidates(NodeId(message.sender), NodeId(message.receiver), message.endpoints)

    def _take_beat(self, message: Beat) -> None:
        known = self._servers.get(message.server)
        if known is None or known.url != message.url:
            self._forget(message.server)
            known = self._servers[message.server] = _Server(message.url, self._loop.time())
            log.info("server_joined id=%s url=%s", message.server, message.url)
        known.heard_at, known.connected = self._loop.time(), message.connected
        if message.new:
            self._say(Beat(self._id, self._url(), len(self._relay)))
            self._tell_all()

    def _take_nodes(self, message: Here) -> None:
        server = self._servers.get(message.server)
        if server is None:
            return  # its beat comes first, or it repeats itself
        server.heard_at = self._loop.time()
        for there in message.nodes:
            node = NodeId(there.node)
            for other in self._servers.values() if there.online else (server,):  # the last word holds: one that was killed never says that its nodes left
                other.nodes.discard(node)
            if there.online:
                server.nodes.add(node)
            self._control.forget(node)
            with contextlib.suppress(CalnetError):
                presence = Presence(online=there.online, since=there.since, endpoints=parse_endpoints(there.endpoints), home=message.server)
                if not self._registry.present_elsewhere(node, presence):
                    self._unplaced[node] = presence
        self._relay.generation += 1

    def _changed(self, change: Changed) -> None:
        """On any thread: the store was read on."""
        if self._unplaced:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._place)

    def _place(self) -> None:
        for node, presence in list(self._unplaced.items()):
            if presence.home not in self._servers or self._registry.present_elsewhere(node, presence):
                del self._unplaced[node]
        self._relay.generation += 1

    def _forget_silent(self) -> None:
        now = self._loop.time()
        for name in [name for name, server in self._servers.items() if now - server.heard_at > SILENCE_S]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        server = self._servers.pop(name, None)
        if server is None:
            return
        log.info("server_left id=%s url=%s", name, server.url)
        if server.link is not None:
            self._tasks.append(server.link.close())
        gone = self._registry.presences()
        for node in server.nodes:
            if node in gone and gone[node].home == name:
                self._registry.present_elsewhere(node, replace(gone[node], online=False, since=self._control.clock()))
        self._relay.generation += 1


def _here(node: NodeId, presence: Presence) -> NodeHere:
    endpoints: tuple[Endpoint, ...] = presence.endpoints[:MAX_ENDPOINTS]
    return NodeHere(node, presence.online, presence.since, tuple(str(endpoint) for endpoint in endpoints))
