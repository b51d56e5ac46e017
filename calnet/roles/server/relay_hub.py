"""The relay: which node is connected, who may send to whom, and what waits for each. It sees sender, receiver and sizes; never what is inside.

The rule for two connections: a node has one. A newer connection of the same node (with the same node key, or the one before or after a renewal) takes
its place, and the older is closed with the reason REPLACED: a machine that lost its network comes back before the server notices, and what is sent to it
must not go to the dead connection.

A client sends as the node whose key it proved, and to nodes that see it alone; everything else is dropped, and answered by GONE like a peer that is not
connected. All is looked up anew after any change in the registry, so that what was taken away holds at once.

Hot path. `RelayClient.route` is called for each run of datagrams to one peer, `enqueue` for each datagram: a dictionary, one copy and one append. What waits is
packed into frames of up to 64 KiB only when the socket takes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from calnet.model import NodeId, NodeKey
from calnet.roles.server.registry import Registry
from calnet.roles.server.standing import Changed
from calnet.roles.server.timing import Timing
from calnet.wire import relay
from calnet.wire.relay import Data, Reason, RelayDecoder, RelayEncoder

MAX_QUEUE: Final = 1 << 20
"""Bytes that wait for one client; beyond them the oldest are dropped."""
MAX_QUEUED_IN_ALL: Final = 256 << 20
DATAGRAM_OVERHEAD: Final = 128
"""What a waiting datagram costs in memory beside its bytes: empty ones may not fill it."""
MAX_CONTROL_FRAMES: Final = 64
MAX_GONE: Final = 4096
FRAME_TARGET: Final = relay.MAX_FRAME_SIZE


class Receiver(Protocol):
    """Where datagrams go: a client here, or another server's relay."""

    def enqueue(self, sender: NodeKey, datagram: bytes) -> None:
        """A datagram from this sender."""


class RelayClient:
    """One connection that has proved its key: what it may reach, and what waits for it. Its session sends and receives."""

    __slots__ = (
        "_control",
        "_decoder",
        "_encoder",
        "_gone",
        "_hub",
        "_queue",
        "_routes",
        "_routes_at",
        "closing",
        "dropped",
        "key",
        "node",
        "queued",
        "wake",
    )

    def __init__(self, hub: RelayHub, node: NodeId, key: NodeKey) -> None:
        self.node = node
        self.key = key
        self.queued = 0
        self.dropped = 0
        """Datagrams that did not fit."""
        self.closing: tuple[Reason, str] | None = None
        self.wake = asyncio.Event()
        self._hub = hub
        self._queue: deque[tuple[NodeKey, bytes]] = deque()
        self._control: deque[bytes] = deque()
        self._decoder = RelayDecoder()
        self._encoder = RelayEncoder()
        self._routes: dict[NodeKey, Receiver | None] = {}
        self._routes_at = -1
        self._gone: set[NodeKey] = set()

    def take_frame(self, frame: bytes) -> None:
        """One frame from this client. WireError or ProtocolError ends the connection."""
        if self.closing is not None:
            return
        match self._decoder.decode(frame):
            case Data(datagrams):
                self._forward(datagrams)
            case relay.Ping(token):
                self._say(relay.pong_frame(token))
            case relay.Close():
                self.close(Reason.OTHER, "")
            case relay.Bound() | relay.Pong() | relay.Gone() | relay.Unknown():
                pass

    def enqueue(self, sender: NodeKey, datagram: bytes) -> None:
        """A datagram for this client; the oldest make room for it."""
        cost = len(datagram) + DATAGRAM_OVERHEAD
        hub = self._hub
        if self.closing is not None or hub.queued + cost > MAX_QUEUED_IN_ALL:
            self.dropped += 1
            return
        while self.queued + cost > MAX_QUEUE:
            self._release(self._queue.popleft())
            self.dropped += 1
        self._queue.append((sender, datagram))
        self.queued += cost
        hub.queued += cost
        if not self.wake.is_set():
            self.wake.set()

    def take_frames(self) -> list[bytes]:
        """The next frames to send, at most some 64 KiB of datagrams; none if nothing waits."""
        frames = list(self._control)
        self._control.clear()
        if self.closing is not None:
            return [*frames, relay.close_frame(*self.closing)]
        size, queue, add = 0, self._queue, self._encoder.add
        while queue and size < FRAME_TARGET - 2048:
            item = queue.popleft()
            self._release(item)
            add(*item)
            size += len(item[1])
        return frames + self._encoder.take() if size else frames

    def ping(self, token: bytes) -> None:
        """Ask whether the client is there."""
        self._say(relay.ping_frame(token))

    def close(self, reason: Reason, text: str) -> None:
        """Say why and end the connection; nothing is forwarded from or to it any more."""
        if self.closing is None:
            self.closing = (reason, text)
            self.discard()
            self.wake.set()

    def discard(self) -> None:
        """Drop what waits."""
        self._hub.queued -= self.queued
        self.queued = 0
        self._queue.clear()

    def _forward(self, datagrams: list[tuple[NodeKey, memoryview]]) -> None:
        previous: NodeKey | None = None
        target: Receiver | None = None
        sender = self.key
        for key, datagram in datagrams:
            if key is not previous:
                previous, target = key, self._route(key)
            if target is not None:
                target.enqueue(sender, bytes(datagram))

    def _route(self, key: NodeKey) -> Receiver | None:
        """The connection of the peer with this key, None where there is none this client may reach; that is told once until something changes."""
        hub = self._hub
        if self._routes_at != hub.generation:
            self._routes.clear()
            self._gone.clear()
            self._routes_at = hub.generation
        if key in self._routes:
            return self._routes[key]
        if len(self._routes) >= MAX_GONE:
            self._routes.clear()
        target = self._routes[key] = hub.reachable(self.node, key)
        if target is None and key not in self._gone and len(self._gone) < MAX_GONE:
            self._gone.add(key)
            self._say(relay.gone_frame((key,)))
        return target

    def _say(self, frame: bytes) -> None:
        if len(self._control) < MAX_CONTROL_FRAMES:
            self._control.append(frame)
            self.wake.set()

    def _release(self, item: tuple[NodeKey, bytes]) -> None:
        cost = len(item[1]) + DATAGRAM_OVERHEAD
        self.queued -= cost
        self._hub.queued -= cost


class RelayHub:
    """See the module. One event loop owns it."""

    def __init__(self, registry: Registry, *, timing: Timing) -> None:
        self.registry = registry
        self.timing = timing
        self.generation = 0
        """Grows whenever a route may have changed."""
        self.queued = 0
        """Bytes that wait for all clients."""
        self._clients: dict[NodeId, RelayClient] = {}
        self._closing = False
        self.elsewhere: Callable[[NodeId, NodeKey], Receiver | None] | None = None
        """Finds the way to a node that is connected to another server on the same store."""

    def __len__(self) -> int:
        return len(self._clients)

    def admit(self, key: NodeKey) -> RelayClient | tuple[Reason, str]:
        """A client for the proven key; or why not. It replaces an older connection of its node."""
        if self._closing:
            return Reason.SHUTTING_DOWN, "the server stops; connect again shortly"
        node = self.registry.node_of_key(key)
        if node is None:
            return Reason.UNKNOWN_KEY, "this node key is not registered here, or it is expired or disabled"
        client = RelayClient(self, node, key)
        older = self._clients.get(node)
        self._clients[node] = client
        self.generation += 1
        if older is not None:
            older.close(Reason.REPLACED, "a newer connection of this node took its place")
        return client

    def leave(self, client: RelayClient) -> None:
        """The connection ended; nothing happens to a newer one of the node."""
        client.close(Reason.OTHER, "")
        if self._clients.get(client.node) is client:
            del self._clients[client.node]
            self.generation += 1

    def reachable(self, sender: NodeId, key: NodeKey) -> Receiver | None:
        """The connection of the node that holds `key`, if sender and it see each other."""
        node = self.registry.node_of_key(key)
        if node is None or node == sender or not self.registry.sees(sender, node):
            return None
        return self._clients.get(node) or (self.elsewhere(node, key) if self.elsewhere is not None else None)

    def deliver(self, sender: NodeKey, receiver: NodeKey, datagram: bytes) -> None:
        """Another server's relay passes a datagram on. Dropped where the two don't see each other, or the receiver is not connected here."""
        source, target = self.registry.node_of_key(sender), self.registry.node_of_key(receiver)
        if source is not None and target is not None and self.registry.sees(source, target) and (client := self._clients.get(target)) is not None:
            client.enqueue(sender, datagram)

    def changed(self, change: Changed) -> None:
        """Something changed: routes are looked up anew, and who may no longer be here is closed."""
        self.generation += 1
        for node in change.standings:
            client = self._clients.get(node)
            if client is not None and self.registry.node_of_key(client.key) != node:
                client.close(Reason.UNKNOWN_KEY, "this node key was expired, disabled, replaced or deleted")

    def close(self) -> None:
        """Close every connection, because the server stops; none is admitted any more."""
        self._closing = True
        for client in self._clients.values():
            client.close(Reason.SHUTTING_DOWN, "the server stops; connect again shortly")
