"""A node in the simulator: the product's path finding, with the least around it that makes it work: a socket, a control session, a relay connection, data.

Data is what the tunnel would have authenticated: it names its sender and number, and an adversary can't make any (but may replay what it saw, which a receiver
knows by its number and drops, as the tunnel does).
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from calnet.crypto.keys import PrivateKey
from calnet.model import DiscoveryKey, Endpoint, NodeId, NodeKey, Peer, Source
from calnet.paths.effects import (
    CloseSockets,
    PathChanged,
    PathEffect,
    PongReceived,
    PublishEndpoints,
    Route,
    SendCandidates,
    SendDatagram,
    SendRelayed,
    UseSocket,
    ViewReceived,
)
from calnet.paths.paths import Paths
from calnet.sim.internet import Box, Internet, Realm, Weather, boxes_of
from calnet.wire.discovery import MAGIC
from calnet.wire.tunnel import TRANSPORT_OVERHEAD

DATA: Final = b"data"
KEEPALIVE: Final = b"keep"
MTU: Final = 1420
EVERY: Final = 2
"""Each second packet of data is as long as the tunnel's interface allows, others are short."""
KEEPALIVE_S: Final = 10.0
"""A receiver that sends nothing answers data after so long, as WireGuard's passive keepalive does."""
CONNECT_S: Final = (0.2, 1.0)
"""What a connection to the server takes, once it is possible: least and most."""
NOTICED_S: Final = 2.0
ASKED_S: Final = 1.2
"""How soon a connection that died without a word is noticed by whoever sends through it, and after a change of network (roles/node/relay_client.py)."""


@dataclass(slots=True)
class Stream:
    """What came from one peer: `at` are the times of data that was new; `duplicates` came again."""

    at: list[float] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    long_at: list[float] = field(default_factory=list)
    """Those of packets as long as the path takes."""
    duplicates: int = 0
    direct_at: list[float] = field(default_factory=list)


class Node:
    """See the module. Made by the world, which connects it."""

    def __init__(self, number: int, internet: Internet, realm: Realm, addresses: tuple[str, ...], port: int, random_: random.Random) -> None:
        self.id = NodeId(number)
        self.internet, self.realm, self.addresses, self.port = internet, realm, addresses, port
        self.random = random_
        self.link = Weather(latency_s=0.001)
        self.node_key, self.discovery = PrivateKey.generate(random_.randbytes), PrivateKey.generate(random_.randbytes)
        self.paths = Paths(node_key=self.node_key.public, discovery=self.discovery, random=random_.randbytes, mtu=MTU)
        self.asleep = False
        self.network_changed_at = -1e9
        self.relay = False
        self.control = False
        self.published: tuple[Endpoint, ...] = ()
        self.streams: defaultdict[NodeId, Stream] = defaultdict(Stream)
        self.sent: defaultdict[NodeId, int] = defaultdict(int)
        self.data_to: list[tuple[float, NodeId, Endpoint]] = []
        self.datagrams: list[tuple[float, Endpoint]] = []
        """All that went out by UDP."""
        self.relayed_at: list[float] = []
        self.changes: list[tuple[float, PathChanged]] = []
        self.sockets: dict[int, int] = {}
        """Ports of the sockets beside the first, by number."""
        self.in_use: dict[Endpoint, int] = {}
        self.most_sockets = 0
        self._owed: dict[NodeId, float] = {}
        self._timer_at: float | None = None
        self._boxes: tuple[Realm, list[Box]] | None = None

    @property
    def now(self) -> float:
        return self.internet.agenda.now

    def as_peer(self, endpoints: tuple[Endpoint, ...] = ()) -> Peer:
        """This node in others' netmaps."""
        keys = NodeKey(self.node_key.public), DiscoveryKey(self.discovery.public)
        return Peer(id=self.id, name=f"n{self.id}", node_key=keys[0], addresses=(), discovery_key=keys[1], endpoints=endpoints)

    def local(self) -> tuple[Endpoint, ...]:
        """Its interfaces' addresses, with its port."""
        return tuple(Endpoint(address, self.port) for address in self.addresses)

    def boxes(self) -> list[Box]:
        """What stands between it and the internet."""
        if self._boxes is None or self._boxes[0] is not self.realm:
            self._boxes = self.realm, boxes_of(self.realm)
        return self._boxes[1]

    def attach(self) -> None:
        """Its addresses are in its realm, the global ones routed there."""
        for address in self.addresses:
            self.realm.hosts[address] = self.receive
            if ":" in address and self.realm.box is not None:
                self.realm.box.route(address)

    def detach(self) -> None:
        """They are not any more."""
        for address in self.addresses:
            self.realm.hosts.pop(address, None)
            for box in self.boxes():
                box.outer.boxes.pop(address, None) if address != box.address else None

    # --- what it sends ---

    def send_data(self, peer: NodeId) -> None:
        """One packet of data, as the data path sends it."""
        if self.asleep:
            return
        route, length = self._data(peer, DATA)
        self.perform(self.paths.data_sent(peer, self.now, route, length))

    def _data(self, peer: NodeId, kind: bytes) -> tuple[Route, int]:
        """Where it went, and its length."""
        self._owed.pop(peer, None)
        self.sent[peer] += 1
        data = kind + self.id.to_bytes(4, "big") + self.sent[peer].to_bytes(4, "big")
        endpoint, relay = self.paths.route(peer)
        if kind == DATA and self.sent[peer] % EVERY == 0:
            length = MTU
            if not self.paths.fits(peer, MTU, self.now):
                length, settled = self.paths.mtu_of(peer)
                if self.paths.may_detour(peer) and not settled:
                    length, endpoint, relay = MTU, None, True
            data = data.ljust(length + TRANSPORT_OVERHEAD, b"\0")
        if endpoint is not None:
            self.data_to.append((self.now, peer, endpoint))
            self._datagram(endpoint, data)
        if relay:
            self._relayed(peer, data)
        return Route(endpoint, relay), len(data)

    def perform(self, effects: list[PathEffect]) -> None:
        """Do what the paths want, and sleep until they want something again."""
        for effect in effects:
            match effect:
                case SendDatagram():
                    self._datagram(effect.endpoint, effect.data, effect.socket, effect.hops)
                case UseSocket():
                    self.in_use[effect.endpoint] = effect.socket
                case CloseSockets():
                    kept = set() if effect.all_ else set(self.in_use.values())
                    self.sockets = {number: port for number, port in self.sockets.items() if number in kept}
                    self.in_use = {endpoint: number for endpoint, number in self.in_use.items() if number in self.sockets}
                case SendRelayed():
                    self._relayed(effect.peer, effect.data)
                case SendCandidates():
                    self.world_candidates(effect.peer, effect.endpoints)
                case PublishEndpoints():
                    self.published = effect.endpoints
                    self.world_published(effect.endpoints)
                case PathChanged():
                    self.changes.append((self.now, effect))
                case PongReceived() | ViewReceived():
                    pass
        self._arm()

    def world_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """Set by the world: to the control session."""

    def world_published(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Set by the world: to the control session."""

    def world_relayed(self, peer: NodeId, data: bytes) -> None:
        """Set by the world: to the relay."""

    def _datagram(self, endpoint: Endpoint, data: bytes, socket: int | None = None, hops: int | None = None) -> None:
        number = self.in_use.get(endpoint, 0) if socket is None else socket
        if number and number not in self.sockets:
            self.sockets[number] = 1024 + (self.port + 37 * number) % 64_000
            self.most_sockets = max(self.most_sockets, len(self.sockets))
        port = self.sockets.get(number, self.port)
        source = next((Endpoint(address, port) for address in self.addresses if (":" in address) == (":" in endpoint.host)), None)
        if source is not None:
            self.datagrams.append((self.now, endpoint))
            if data.startswith(MAGIC):
                self.internet.sent[data] = self.id, endpoint
            self.internet.send(self.realm, source, endpoint, data, self.link, hops)

    def _relayed(self, peer: NodeId, data: bytes) -> None:
        if self.relay:
            self.relayed_at.append(self.now)
            self.world_relayed(peer, data)

    # --- what arrives ---

    def receive(self, to: Endpoint, source: Endpoint, datagram: bytes) -> None:
        """A datagram at one of its addresses."""
        number = 0 if to.port == self.port else next((number for number, port in self.sockets.items() if port == to.port), None)
        if not self.asleep and number is not None and self.link.inward:
            self.internet.arrived(self.id, datagram)
            self.take(Source(source, None, number), datagram)

    def take(self, source: Source, datagram: bytes) -> None:
        """A datagram, by UDP or by the relay."""
        if datagram.startswith(MAGIC):
            self.perform(self.paths.receive_probe(datagram, source, self.now))
        elif datagram.startswith((DATA, KEEPALIVE)):
            self._take_data(source, datagram)
        elif source.endpoint is not None:
            self.perform(self.paths.receive_stun(datagram, source.endpoint, self.now))

    def _take_data(self, source: Source, datagram: bytes) -> None:
        peer, number = NodeId(int.from_bytes(datagram[4:8], "big")), int.from_bytes(datagram[8:12], "big")
        stream = self.streams[peer]
        if number in stream.numbers:
            stream.duplicates += 1
            return
        stream.numbers.add(number)
        if datagram.startswith(DATA):
            stream.at.append(self.now)
            if len(datagram) > 100:
                stream.long_at.append(self.now)
        if source.endpoint is not None:
            stream.direct_at.append(self.now)
        self.perform(self.paths.data_received(peer, source, self.now, len(datagram)))
        if datagram.startswith(DATA) and peer not in self._owed:
            self._owed[peer] = self.now + KEEPALIVE_S
            self.internet.agenda.after(KEEPALIVE_S, lambda: self._keepalive(peer))

    def _keepalive(self, peer: NodeId) -> None:
        """Data came and nothing went since: a keepalive goes, which is no data."""
        if not self.asleep and self._owed.get(peer, self.now + 1) <= self.now:
            self._data(peer, KEEPALIVE)

    # --- its machine ---

    def sleep(self) -> None:
        """The lid is closed: nothing goes, nothing comes, no timer runs."""
        self.asleep = True

    def wake(self) -> None:
        """It is opened, and the clock has jumped."""
        self.asleep = False
        self.network_changed()

    def network_changed(self, *, moved: bool = False) -> None:
        """What the daemon does when addresses or routes changed, and (`moved`) with them whence its packets come."""
        self.network_changed_at = self.now
        self.perform(self.paths.network_changed(self.now, local=self.local(), moved=moved))

    def _arm(self) -> None:
        deadline = self.paths.next_deadline()
        if deadline is None or (self._timer_at is not None and self._timer_at <= deadline):
            return
        self._timer_at = deadline
        self.internet.agenda.at(deadline, lambda: self._on_timer(deadline))

    def _on_timer(self, due: float) -> None:
        if self._timer_at == due:
            self._timer_at = None
        if self.asleep:
            self._timer_at = None
            return
        self.perform(self.paths.on_timer(self.now))
