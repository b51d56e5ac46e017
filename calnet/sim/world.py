"""Nodes, the server they share, and what can happen to them: a whole network from one seed.

The server (control session, relay, STUN) stands in the public realm. A node's two connections to it are TCP's: up some time after they are possible, lost at
once where the server closes them, and noticed after a while where they die without a word (a router that reboots). The relay delivers in order and whole, as
TCP does, unless it is told to misbehave.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from calnet.model import Endpoint, NodeId, Source
from calnet.sim.agenda import Agenda
from calnet.sim.internet import Box, Internet, Realm, Weather
from calnet.sim.nat import Behaviour
from calnet.sim.node import ASKED_S, CONNECT_S, NOTICED_S, Node
from calnet.wire import stun

SERVER: Final = Endpoint("198.51.100.1", 3478)
SECOND: Final = Endpoint("198.51.100.1", 3479)
"""Its second STUN port: by both, a node knows how its NAT maps."""
RELAY_S: Final = 0.002
"""What the relay itself takes."""
TICK_S: Final = 0.1
TELL_S: Final = 0.25
"""Changes of netmaps are gathered for so long."""


@dataclass(slots=True)
class _Connection:
    """One of a node's two. `through` are the reboots of the boxes it was made through, and where the node was."""

    up: bool = False
    through: tuple[object, ...] = ()
    dead_since: float | None = None
    connecting: bool = False


@dataclass(slots=True)
class RelayFaults:
    """How the relay misbehaves: it is nothing that any node has to trust."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder_s: float = 0.0


class World:
    """See the module."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.agenda = Agenda()
        self.internet = Internet(self.agenda, self.random)
        self.nodes: dict[NodeId, Node] = {}
        self.boxes: list[Box] = []
        self.server_up = self.relay_up = True
        self.faults = RelayFaults()
        self.reachable: list[tuple[float, frozenset[NodeId]]] = []
        """From when on which nodes could have had a relay connection: what is true, whatever they know."""
        self._connections: dict[tuple[NodeId, str], _Connection] = {}
        self._traffic: dict[tuple[NodeId, NodeId], float] = {}
        self.internet.public.hosts[SERVER.host] = self._serve
        self.agenda.after(0.0, self._tick)

    @property
    def now(self) -> float:
        return self.agenda.now

    # --- building

    def site(self, address: str, four: Behaviour, six: Behaviour, *, outer: Realm | None = None, weather: Weather | None = None) -> Realm:
        """A realm behind a box that has this address in the realm outside."""
        realm = Realm(f"behind {address}")
        box = Box(realm, outer or self.internet.public, address, four, six, self.random)
        box.weather = weather or Weather()
        self.boxes.append(box)
        return realm

    def node(self, realm: Realm, *addresses: str) -> Node:
        """A node at these addresses, on a port of its own choice as the product has it."""
        node = Node(len(self.nodes) + 1, self.internet, realm, addresses, self._any_port(), self.random)
        node.attach()
        node.world_relayed = lambda peer, data: self._relay(node, peer, data)  # type: ignore[method-assign]
        node.world_candidates = lambda peer, endpoints: self.tell_candidates(node, peer, endpoints)  # type: ignore[method-assign]
        node.world_published = lambda endpoints: self._published(node)  # type: ignore[method-assign]
        self.nodes[node.id] = node
        for kind in ("control", "relay"):
            self._connections[node.id, kind] = _Connection()
        return node

    def start(self) -> None:
        """Everybody is up, and knows everybody."""
        for node in self.nodes.values():
            node.perform(node.paths.set_peers([other.as_peer() for other in self.nodes.values() if other is not node], self.now))
            node.perform(node.paths.set_local_endpoints(node.local(), self.now))
            node.perform(node.paths.set_stun_servers([SERVER, SECOND], self.now))
        self.run(3.0)

    # --- time and traffic

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.agenda.run(seconds)

    def talk(self, one: Node, other: Node, *, every_s: float = 0.1, both_ways: bool = True) -> None:
        """Data from one to the other from now on, and back."""
        for source, target in ((one, other), (other, one)) if both_ways else ((one, other),):
            if (source.id, target.id) not in self._traffic:
                self._traffic[source.id, target.id] = every_s
                self._send(source, target.id)

    def hush(self) -> None:
        """All traffic ends."""
        self._traffic.clear()

    def talking(self) -> list[tuple[Node, Node]]:
        """(source, target) of what flows."""
        return [(self.nodes[source], self.nodes[target]) for source, target in self._traffic]

    def _send(self, source: Node, target: NodeId) -> None:
        every = self._traffic.get((source.id, target))
        if every is not None:
            source.send_data(target)
            self.agenda.after(every, lambda: self._send(source, target))

    # --- what happens

    def move(self, node: Node, realm: Realm, *addresses: str) -> None:
        """To another network, or another address: it knows at once, its connections die with the old address, and it takes another port as the product does."""
        node.detach()
        node.realm, node.addresses, node.port = realm, addresses, self._any_port()
        node.attach()
        node.network_changed(moved=True)

    def _any_port(self) -> int:
        return self.random.randrange(20_000, 60_000)

    def restart_server(self, down_s: float) -> None:
        """Control and relay go away, say so, and come back."""
        self.server_up = False
        self.agenda.after(down_s, lambda: setattr(self, "server_up", True))

    # --- the server

    def _serve(self, to: Endpoint, source: Endpoint, datagram: bytes) -> None:
        if self.server_up and to in (SERVER, SECOND):
            answer = stun.answer(datagram, source)
            if answer is not None:
                self.internet.send(self.internet.public, to, source, answer, Weather(latency_s=0.0))

    def possible(self, node: Node, kind: str) -> bool:
        """Whether the node could have this connection now."""
        return self._serves(kind) and _gets_out(node)

    def _serves(self, kind: str) -> bool:
        return self.server_up and (kind == "control" or self.relay_up)

    def _tick(self) -> None:
        self.agenda.after(TICK_S, self._tick)
        out = {node.id: _gets_out(node) for node in self.nodes.values()}
        for node in self.nodes.values():
            through = _through(node)
            for kind in ("control", "relay"):
                self._look_at(node, kind, self._connections[node.id, kind], through, self._serves(kind) and out[node.id])
        could = frozenset(node for node, gets in out.items() if gets and self._serves("relay"))
        if not self.reachable or self.reachable[-1][1] != could:
            self.reachable.append((self.now, could))

    def _look_at(self, node: Node, kind: str, connection: _Connection, through: tuple[object, ...], possible: bool) -> None:
        if connection.up and (not possible or connection.through != through):
            connection.dead_since = connection.dead_since or self.now
            said = not (self.server_up and self.relay_up) or connection.through[0] != through[0]
            if node.asleep:
                connection.dead_since = self.now
            elif said or self.now >= _noticed_at(node, connection.dead_since):
                connection.up, connection.dead_since = False, None
                self._changed(node, kind, up=False)
        elif connection.up:
            connection.dead_since = None
        elif possible and not connection.connecting:
            connection.connecting = True
            self.agenda.after(self.random.uniform(*CONNECT_S), lambda: self._connect(node, kind, connection))

    def _connect(self, node: Node, kind: str, connection: _Connection) -> None:
        connection.connecting = False
        if self.possible(node, kind):
            connection.up, connection.through, connection.dead_since = True, _through(node), None
            self._changed(node, kind, up=True)

    def _changed(self, node: Node, kind: str, *, up: bool) -> None:
        if kind == "relay":
            node.relay = up
            node.perform(node.paths.relay_connected(up, self.now))
        else:
            node.control = up
            if up:
                self._published(node)
                self._tell(node)

    def _alive(self, node: Node, kind: str) -> bool:
        connection = self._connections[node.id, kind]
        return connection.up and connection.dead_since is None and self.possible(node, kind) and connection.through == _through(node)

    def _latency(self, node: Node) -> float:
        return node.link.latency_s + sum(box.weather.latency_s for box in node.boxes())

    def _relay(self, node: Node, peer: NodeId, data: bytes) -> None:
        other = self.nodes.get(peer)
        if other is None or not self._alive(node, "relay") or not self._alive(other, "relay"):
            return
        faults = self.faults
        if faults.drop and self.random.random() < faults.drop:
            return
        delay = self._latency(node) + RELAY_S + self._latency(other)
        for _ in range(2 if faults.duplicate and self.random.random() < faults.duplicate else 1):
            late = self.random.random() * faults.reorder_s
            self.agenda.after(delay + late, lambda: self._relayed(node.id, other, data))

    def _relayed(self, sender: NodeId, other: Node, data: bytes) -> None:
        if self._alive(other, "relay"):
            other.take(Source(None, sender), data)

    def tell_candidates(self, node: Node, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """What a node says of itself to a peer, by the control session."""
        other = self.nodes.get(peer)
        if other is not None and self._alive(node, "control"):
            self.agenda.after(self._latency(node) + self._latency(other), lambda: self._told(node.id, other, endpoints))

    def _told(self, sender: NodeId, other: Node, endpoints: tuple[Endpoint, ...]) -> None:
        if self._alive(other, "control"):
            other.perform(other.paths.peer_candidates(sender, endpoints, self.now))

    def _published(self, node: Node) -> None:
        """The node's candidates, to all others' netmaps."""
        if not self._alive(node, "control"):
            return
        for other in self.nodes.values():
            if other is not node:
                self.agenda.after(TELL_S, self._teller(other))

    def _teller(self, node: Node) -> Callable[[], None]:
        return lambda: self._tell(node)

    def _tell(self, node: Node) -> None:
        if self._alive(node, "control"):
            peers = [other.as_peer(other.published) for other in self.nodes.values() if other is not node]
            node.perform(node.paths.set_peers(peers, self.now))


def _noticed_at(node: Node, dead_since: float) -> float:
    """When a node notices that a connection is dead: by what it sends, or because it asks after a change of network."""
    by_sending = dead_since + NOTICED_S
    return min(by_sending, node.network_changed_at + ASKED_S) if node.network_changed_at >= dead_since else by_sending


def _passes_tcp(box: Box) -> bool:
    return box.up and box.tcp and box.weather.outward and box.weather.inward


def _gets_out(node: Node) -> bool:
    """Whether TCP connections of the node reach the internet."""
    return not node.asleep and node.link.outward and node.link.inward and all(map(_passes_tcp, node.boxes()))


def _through(node: Node) -> tuple[object, ...]:
    """What a TCP connection lives by: the node's address, and the tables of the boxes on its way."""
    return node.addresses, *((id(box), box.reboots) for box in node.boxes())
