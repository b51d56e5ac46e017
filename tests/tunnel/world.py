"""Two or more tunnels on a virtual network and a virtual clock: tests read as what is sent, lost and advanced.

A `Node` is what the shell is to the tunnel: it performs effects in order, queues packets until a session is ready, seals and opens data, checks the inner
source, and runs the timer. Datagrams wait in `World.wire` until `deliver`; a test may look at, drop, damage or keep them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import assert_never

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import RemoteError
from calnet.model import Endpoint, NodeId, PeerKind, Source
from calnet.tunnel import effects as do
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.tunnel import DatagramKind, classify, parse_transport_header

WALL = 1_800_000_000.0


def seeded(seed: str) -> RandomBytes:
    """Reproducible bytes."""
    return random.Random(seed).randbytes


def private_key(seed: str) -> PrivateKey:
    """A reproducible key."""
    return PrivateKey.generate(seeded("key " + seed))


def endpoint(number: int, port: int = 41641) -> Endpoint:
    """The underlay address of node `number`."""
    return Endpoint(f"192.0.2.{number}", port)


def inner(number: int) -> bytes:
    """The packed overlay address of node `number`."""
    return bytes((100, 70, 0, number))


def packet(source: int, target: int, text: bytes = b"") -> bytes:
    """A stand-in for an IP packet: packed source and destination, then the text."""
    return inner(source) + inner(target) + text


@dataclass
class Datagram:
    """On its way. `source` is as the receiver will see it."""

    data: bytes
    source: Source
    target: Endpoint | None
    relay_to: NodeId | None = None


@dataclass
class Node:
    """One tunnel and its shell."""

    world: World
    number: int
    key: PrivateKey
    tunnel: Tunnel
    endpoint: Endpoint
    configs: dict[int, TunnelPeerConfig] = field(default_factory=dict)
    routes: dict[int, Endpoint] = field(default_factory=dict)
    queue: dict[int, list[bytes]] = field(default_factory=dict)
    received: list[bytes] = field(default_factory=list)
    effects: list[do.TunnelEffect] = field(default_factory=list)
    accepted: dict[bytes, bytes] = field(default_factory=dict)
    sent: dict[bytes, bytes] = field(default_factory=dict)
    dropped_inner: int = 0

    def peer_with(self, other: int) -> TunnelPeer:
        """The tunnel's peer for a node number."""
        peer = self.tunnel.peer(NodeId(other))
        assert peer is not None
        return peer

    def configure(self, *configs: TunnelPeerConfig) -> None:
        """Sets the whole table."""
        self.configs = {config.id: config for config in configs}
        self.perform(self.tunnel.configure(configs, self.world.now, self.world.wall))

    def change(self, other: int, **changes: object) -> None:
        """Changes one peer's configuration."""
        self.configs[other] = replace(self.configs[other], **changes)  # type: ignore[arg-type]
        self.configure(*self.configs.values())

    def send(self, data: bytes) -> None:
        """An application's packet, routed by its inner destination; without an owner it is dropped."""
        peer = self.tunnel.lookup(data[4:8])
        if peer is None:
            return
        self.queue.setdefault(peer.id, []).append(data)
        self.flush(peer)

    def flush(self, peer: TunnelPeer) -> None:
        """Sends what waits for the peer, if it has a session."""
        while self.queue.get(peer.id):
            session, effects = self.tunnel.session_to_send(peer, self.world.now, self.world.wall)
            if session is not None:
                self.seal(session, self.queue[peer.id].pop(0))
            self.perform(effects)
            if session is None:
                return

    def seal(self, session: Session, data: bytes) -> None:
        """One transport datagram."""
        datagram = session.seal(data)
        self.put(session.peer.id, datagram, None)
        self.tunnel.data_sent(session, self.world.now, len(datagram), bool(data))

    def put(self, peer: NodeId, data: bytes, reply_to: Source | None) -> None:
        """Onto the wire: back to a source, or on the peer's path (relay where there is no route)."""
        target = self.routes.get(peer) if reply_to is None else reply_to.endpoint
        if target is None:
            relayed = peer if reply_to is None or reply_to.relay_peer is None else reply_to.relay_peer
            self.world.wire.append(Datagram(data, Source(None, NodeId(self.number)), None, relayed))
        else:
            self.world.wire.append(Datagram(data, Source(self.endpoint), target))

    def take(self, data: bytes, source: Source) -> list[do.TunnelEffect]:
        """A datagram arrives; what the tunnel made of it."""
        if classify(data) is DatagramKind.TUNNEL_DATA:
            return self.perform(self.open(data, source))
        return self.perform(self.tunnel.receive(data, source, self.world.now, self.world.wall))

    def open(self, data: bytes, source: Source) -> list[do.TunnelEffect]:
        """The data path's order: session, AEAD and replay window, the tunnel, inner source."""
        index, _ = parse_transport_header(data)
        session = self.tunnel.session_by_index(index, self.world.now)
        if session is None:
            return []
        try:
            plain = session.open(data)
        except RemoteError:
            return []
        effects = self.tunnel.data_received(session, source, self.world.now, self.world.wall, len(data), bool(plain))
        if plain and self.tunnel.owns(session.peer, plain[:4]):
            self.received.append(plain)
        elif plain:
            self.dropped_inner += 1
        return effects

    def perform(self, effects: list[do.TunnelEffect]) -> list[do.TunnelEffect]:
        """Each effect in order, and kept for the test to look at."""
        for effect in effects:
            self.effects.append(effect)
            self._perform(effect)
        return effects

    def _perform(self, effect: do.TunnelEffect) -> None:
        match effect:
            case do.SendHandshake(peer, datagram, reply_to):
                self.put(peer, datagram, reply_to)
            case do.SendCookie(reply_to, datagram):
                self.put(NodeId(0), datagram, reply_to)
            case do.SendKeepalive(session, confirms):
                if not (confirms and session.send_counter):
                    self.seal(session, b"")
            case do.PersistTimestamp(node_key, timestamp, sent):
                (self.sent if sent else self.accepted)[node_key] = timestamp
            case do.SessionReady(peer):
                self.flush(self.peer_with(peer))
            case do.EndpointAuthenticated(peer, source):
                if self.peer_with(peer).kind is PeerKind.WIREGUARD and source.endpoint is not None:
                    self.routes[peer] = source.endpoint
            case do.HandshakeFailed(peer) | do.SessionsDropped(peer):
                self.queue.pop(peer, None)
            case do.ClockAhead() | do.ResponseRejected():
                pass
            case _:
                assert_never(effect)

    def count(self, kind: type) -> int:
        """How many effects of a kind there were."""
        return sum(isinstance(effect, kind) for effect in self.effects)

    def initiations(self) -> int:
        """How many initiations were sent."""
        return sum(isinstance(effect, do.SendHandshake) and effect.datagram[0] == 1 for effect in self.effects)

    def texts(self) -> list[bytes]:
        """What applications received, without addresses."""
        return [data[8:] for data in self.received]


class World:
    """The nodes, the wire between them, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_offset = WALL - self.now
        self.nodes: dict[int, Node] = {}
        self.wire: list[Datagram] = []
        self.carried: list[Datagram] = []

    @property
    def wall(self) -> float:
        """Unix seconds."""
        return self.now + self.wall_offset

    def add(self, number: int, key: PrivateKey | None = None) -> Node:
        """A node that knows nobody yet."""
        key = key or private_key(str(number))
        node = Node(self, number, key, Tunnel(key, random=seeded(f"random {number}")), endpoint(number))
        self.nodes[number] = node
        return node

    def restart(self, number: int) -> Node:
        """The node loses its memory and starts from what it persisted."""
        old = self.nodes[number]
        node = self.add(number, old.key)
        node.tunnel = Tunnel(old.key, random=seeded(f"restarted {number} {self.now}"))
        node.tunnel.load_timestamps(old.accepted, old.sent)
        node.accepted, node.sent, node.routes = dict(old.accepted), dict(old.sent), dict(old.routes)
        node.configure(*old.configs.values())
        return node

    def deliver(self, *, lose: bool = False) -> None:
        """Until nothing is on its way any more; `lose` throws away instead what is on its way now."""
        if lose:
            self.wire.clear()
        while self.wire:
            self.hand_over(self.wire.pop(0))

    def hand_over(self, datagram: Datagram) -> None:
        """One datagram to the node it is for, if there is one."""
        self.carried.append(datagram)
        for node in self.nodes.values():
            if node.endpoint == datagram.target or (datagram.target is None and node.number == datagram.relay_to):
                node.take(datagram.data, datagram.source)

    def advance(self, seconds: float, *, lose: bool = False) -> None:
        """Time passes: timers run when due, and what they send arrives (or is lost)."""
        until = self.now + seconds
        while True:
            deadlines = [(deadline, node.number) for node in self.nodes.values() if (deadline := node.tunnel.next_deadline()) is not None]
            if not deadlines or min(deadlines)[0] > until:
                break
            deadline, number = min(deadlines)
            self.now = max(self.now, deadline)
            node = self.nodes[number]
            node.perform(node.tunnel.on_timer(self.now, self.wall))
            self.deliver(lose=lose)
        self.now = until


def config_of(node: Node, **changes: object) -> TunnelPeerConfig:
    """A peer's configuration as others hold it: its one address /32."""
    plain = TunnelPeerConfig(NodeId(node.number), node.key.public, allowed=(ip_network(f"100.70.0.{node.number}/32"),))
    return replace(plain, **changes)  # type: ignore[arg-type]


def pair(**changes: object) -> tuple[World, Node, Node]:
    """Nodes 1 and 2 that know each other and each other's endpoint; `changes` go into both configurations."""
    world = World()
    alice, bob = world.add(1), world.add(2)
    alice.routes[2], bob.routes[1] = bob.endpoint, alice.endpoint
    alice.configure(config_of(bob, **changes))
    bob.configure(config_of(alice, **changes))
    world.deliver(lose=True)
    return world, alice, bob


def connected(**changes: object) -> tuple[World, Node, Node]:
    """A pair whose session stands: 1 initiated, and both can send."""
    world, alice, bob = pair(**changes)
    alice.send(packet(1, 2, b"first"))
    world.deliver()
    assert bob.texts() == [b"first"]
    return world, alice, bob
