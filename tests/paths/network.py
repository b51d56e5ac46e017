"""A tiny deterministic network for two or more `Paths`: virtual clock, sites behind NATs of every filtering kind, a relay, a control session, a STUN server."""

from __future__ import annotations

import enum
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from calnet.crypto.keys import PrivateKey
from calnet.model import DiscoveryKey, Endpoint, NodeId, NodeKey, Peer, Source
from calnet.paths.effects import PathChanged, PathEffect, PongReceived, PublishEndpoints, SendCandidates, SendDatagram, SendRelayed
from calnet.paths.paths import Paths
from calnet.wire import stun
from calnet.wire.discovery import MAGIC

STUN_SERVER = Endpoint("198.51.100.3", 3478)
DELAY = 0.02
RELAY_DELAY = 0.03
DATA = b"data"


class Nat(enum.Enum):
    """Filtering behaviour (RFC 4787 section 5) in front of a host; the mapping is endpoint-independent except for SYMMETRIC."""

    OPEN = "open"
    FULL_CONE = "full cone"
    RESTRICTED = "restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"
    BLOCKED = "UDP blocked"


@dataclass
class Site:
    """What stands between a host and the internet. `cut` drops all UDP of it."""

    nat: Nat
    public: str
    mappings: dict[tuple[Endpoint, Endpoint | None], Endpoint] = field(default_factory=dict)
    talked_to: set[tuple[Endpoint, Endpoint]] = field(default_factory=set)
    cut: bool = False
    ports: int = 20_000

    def outbound(self, inner: Endpoint, to: Endpoint) -> Endpoint | None:
        """The source that the internet sees."""
        if self.cut or self.nat is Nat.BLOCKED:
            return None
        if self.nat is Nat.OPEN:
            return inner
        key = (inner, to if self.nat is Nat.SYMMETRIC else None)
        if key not in self.mappings:
            self.ports += 1
            self.mappings[key] = Endpoint(self.public, self.ports)
        outer = self.mappings[key]
        self.talked_to.add((outer, to))
        return outer

    def inbound(self, outer: Endpoint, source: Endpoint) -> Endpoint | None:
        """The host that a datagram from `source` to `outer` reaches."""
        if self.cut or self.nat is Nat.BLOCKED:
            return None
        if self.nat is Nat.OPEN:
            return outer
        inner = next((key[0] for key, mapped in self.mappings.items() if mapped == outer), None)
        known = [to for mapped, to in self.talked_to if mapped == outer]
        if self.nat is Nat.RESTRICTED and source.host not in {to.host for to in known}:
            return None
        if self.nat in (Nat.PORT_RESTRICTED, Nat.SYMMETRIC) and source not in known:
            return None
        return inner


@dataclass
class Host:
    """One node: its machine, where it stands, and all that it did. `delivered` are (number, source) of data that arrived."""

    id: NodeId
    address: Endpoint
    site: Site
    paths: Paths
    node_key: PrivateKey
    discovery: PrivateKey
    relay: bool = True
    control: bool = True
    done: list[tuple[float, PathEffect]] = field(default_factory=list)
    delivered: list[tuple[int, Source]] = field(default_factory=list)
    data_to: list[tuple[float, Endpoint]] = field(default_factory=list)
    relayed_data: list[float] = field(default_factory=list)

    def effects(self, kind: type[PathEffect], since: float = 0.0) -> list[PathEffect]:
        return [effect for at, effect in self.done if isinstance(effect, kind) and at >= since]

    def sent_since(self, since: float) -> list[PathEffect]:
        return [effect for at, effect in self.done if at >= since and isinstance(effect, SendDatagram | SendRelayed | SendCandidates)]


class World:
    """Hosts and what connects them. `run` moves the clock, performing what falls due in order."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self.hosts: dict[NodeId, Host] = {}
        self.drop: Callable[[Endpoint, Endpoint, bytes], bool] = lambda source, to, data: False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # --- building ---

    def add(self, nat: Nat, *, relay: bool = True, control: bool = True, site: Site | None = None, local: str | None = None) -> Host:
        number = len(self.hosts) + 1
        inside = local or (f"203.0.113.{number}" if nat is Nat.OPEN else f"192.168.{number}.2")
        node_key, discovery = PrivateKey.generate(self.random.randbytes), PrivateKey.generate(self.random.randbytes)
        paths = Paths(node_key=node_key.public, discovery=discovery, random=self.random.randbytes)
        where = site or Site(nat, f"203.0.113.{number}")
        host = Host(NodeId(number), Endpoint(inside, 40_000 + number), where, paths, node_key, discovery, relay, control)
        self.hosts[host.id] = host
        return host

    def peer(self, host: Host, endpoints: tuple[Endpoint, ...] = ()) -> Peer:
        return Peer(
            id=host.id,
            name=f"node{host.id}",
            node_key=NodeKey(host.node_key.public),
            addresses=(),
            discovery_key=DiscoveryKey(host.discovery.public),
            endpoints=endpoints,
        )

    def start(self, *, stun: bool = True) -> None:
        """Everybody knows everybody and is connected."""
        for host in self.hosts.values():
            peers = [self.peer(other) for other in self.hosts.values() if other is not host]
            self.perform(host, host.paths.set_peers(peers, self.now))
            self.perform(host, host.paths.set_local_endpoints([host.address], self.now))
            self.perform(host, host.paths.relay_connected(host.relay, self.now))
            if stun:
                self.perform(host, host.paths.set_stun_servers([STUN_SERVER], self.now))
        self.run(1.0)

    # --- time ---

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            deadlines = [(deadline, host) for host in self.hosts.values() if (deadline := host.paths.next_deadline()) is not None]
            due, host = min(deadlines, key=lambda pair: pair[0], default=(float("inf"), None))
            queued = self._queue[0][0] if self._queue else float("inf")
            if min(due, queued) > end:
                self.now = end
                return
            if queued <= due:
                self.now, _, action = heapq.heappop(self._queue)
                action()
            elif host is not None:
                self.now = max(self.now, due)
                self.perform(host, host.paths.on_timer(self.now))

    def run_sending(self, source: Host, to: Host, seconds: float, every: float = 0.05, first: int = 0, *, reply: bool = True) -> int:
        """Data from one to the other all the while, answered if `reply`; returns how many were sent."""
        count = round(seconds / every)
        for number in range(count):
            self.send(source, to, first + number)
            if reply:
                self.send(to, source, first + number)
            self.run(every)
        return count

    # --- sending ---

    def send(self, source: Host, to: Host, number: int) -> None:
        """A data packet, as the data path sends one."""
        data = DATA + bytes([source.id]) + number.to_bytes(4, "big")
        endpoint, relay = source.paths.route(to.id)
        if endpoint is not None:
            source.data_to.append((self.now, endpoint))
            self._datagram(source, endpoint, data)
        if relay:
            source.relayed_data.append(self.now)
            self._relayed(source, to.id, data)
        self.perform(source, source.paths.data_sent(to.id, self.now))

    def perform(self, host: Host, effects: list[PathEffect]) -> None:
        for effect in effects:
            host.done.append((self.now, effect))
            match effect:
                case SendDatagram():
                    self._datagram(host, effect.endpoint, effect.data, ends=effect.hops is not None)
                case SendRelayed():
                    self._relayed(host, effect.peer, effect.data)
                case SendCandidates():
                    self._candidates(host, effect)
                case PublishEndpoints() | PathChanged() | PongReceived():
                    pass

    def _candidates(self, host: Host, effect: SendCandidates) -> None:
        other = self.hosts[effect.peer]
        if host.control and other.control:
            self.at(self.now + RELAY_DELAY, lambda: self.perform(other, other.paths.peer_candidates(host.id, effect.endpoints, self.now)))

    def _relayed(self, host: Host, to: NodeId, data: bytes) -> None:
        other = self.hosts[to]
        if host.relay and other.relay:
            self.at(self.now + RELAY_DELAY, lambda: self._arrive(other, Source(None, host.id), data))

    def _datagram(self, host: Host, to: Endpoint, data: bytes, *, ends: bool = False) -> None:
        """`ends`: on the way, beyond this side's NAT."""
        local = [other for other in self.hosts.values() if other.site is host.site and other.address == to]
        if local:
            self.at(self.now + DELAY / 4, lambda: self._arrive(local[0], Source(host.address, None), data))
            return
        source = host.site.outbound(host.address, to)
        if source is None or ends or self.drop(source, to, data):
            return
        if to == STUN_SERVER:
            answer = stun.answer(data, source)
            if answer is not None:
                self.at(self.now + DELAY, lambda: self.deliver(STUN_SERVER, source, answer))
            return
        self.at(self.now + DELAY, lambda: self.deliver(source, to, data))

    def deliver(self, source: Endpoint, to: Endpoint, data: bytes) -> None:
        """A datagram from the internet: what the NAT there lets in."""
        for host in self.hosts.values():
            if host.site.nat is not Nat.OPEN and to.host != host.site.public:
                continue
            if host.site.inbound(to, source) == host.address:
                self._arrive(host, Source(source, None), data)
                return

    def _arrive(self, host: Host, source: Source, data: bytes) -> None:
        if data.startswith(MAGIC):
            self.perform(host, host.paths.receive_probe(data, source, self.now))
        elif data.startswith(DATA):
            host.delivered.append((int.from_bytes(data[5:9], "big"), source))
            self.perform(host, host.paths.data_received(NodeId(data[4]), source, self.now))
        elif source.endpoint is not None:
            self.perform(host, host.paths.receive_stun(data, source.endpoint, self.now))
