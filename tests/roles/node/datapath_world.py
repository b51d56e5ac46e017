"""Nodes' data paths on in-memory TUNs and an in-memory network, in virtual time: two minutes pass in milliseconds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from calnet.crypto.keys import PrivateKey
from calnet.errors import StateError
from calnet.host.memory import MemoryTun, MemoryUdp, MemoryUnderlay, Weather
from calnet.host.tun import Offloads
from calnet.model import Buffer, Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, Prefix, SelfNode
from calnet.paths.effects import Route
from calnet.paths.paths import Paths
from calnet.roles.node.datapath import DataPath
from calnet.tunnel.tunnel import Tunnel
from tests.ip_packets import as_kernel_gives, cut, headers_of

EVERYWHERE: tuple[Prefix, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
OPEN = (FilterRule(EVERYWHERE, EVERYWHERE),)
WALL = 1_800_000_000.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything is ready, and jumps to the next timer when nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 1000.0

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._virtual = max(self._virtual, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def play(scene: Callable[[World], Coroutine[Any, Any, None]], weather: Weather | None = None) -> None:
    """Run a scene in virtual time."""

    async def run() -> None:
        world = World(weather)
        await scene(world)
        for node in world.nodes.values():
            node.path.close()

    loop = VirtualLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def overlay(number: int) -> tuple[str, str]:
    return f"10.77.0.{number}", f"fd77::{number:x}"


def ends(one: int, two: int, *, six: bool = False) -> tuple[str, str]:
    """Source and destination address of a packet from node `one` to node `two`."""
    return overlay(one)[six], overlay(two)[six]


def give(node: Node, packet: bytes, segment: int = 0) -> None:
    """The kernel sends the packet; a TCP or UDP one with its checksum left to us, where the device has offloads."""
    if not node.tun.offloads.vnet_header:
        node.tun.inject(packet)
        return
    given = as_kernel_gives(packet, segment) if headers_of(packet)[1] in (6, 17) else bytes(10) + packet
    node.tun.inject(given[10:], given[:10])


class Node:
    """A data path and its host, as the daemon would be; what the host hears is kept."""

    def __init__(
        self,
        world: World,
        number: int,
        offloads: Offloads | None = None,
        previous: PrivateKey | None = None,
        paths: Callable[[], Any] | None = None,
        mtu: int = 1280,
        capabilities: tuple[str, ...] = (),
    ) -> None:
        self.capabilities = capabilities
        self.world, self.id = world, NodeId(number)
        self.key = PrivateKey.generate(random.Random(number).randbytes)
        self.discovery = PrivateKey.generate(random.Random(1000 + number).randbytes)
        self.tun = MemoryTun(offloads=offloads)
        self.udp: MemoryUdp = world.network.open((f"192.0.2.{number}", f"2001:db8::{number:x}"))
        self.tunnel = Tunnel(self.key, random=random.Random(2000 + number).randbytes, previous=previous)
        real = Paths(node_key=self.key.public, discovery=self.discovery, random=random.Random(3000 + number).randbytes, mtu=mtu)
        self.paths: Any = real if paths is None else paths()
        self.healths: dict[str, str] = {}
        self.changes: list[str] = []
        self.moves: list[tuple[str, int, int]] = []
        self.published: list[tuple[Endpoint, ...]] = []
        self.stamps: list[tuple[bytes, bytes, bool]] = []
        self.raised: list[int] = []
        self.relayed = 0
        self.disk_full = False
        self.clock_ahead = 0.0
        self.path = DataPath(
            loop=asyncio.get_running_loop(),
            tun=self.tun,
            udp=self.udp,
            tunnel=self.tunnel,
            paths=self.paths,
            host=self,
            monotonic=asyncio.get_running_loop().time,
            wall=lambda: WALL + asyncio.get_running_loop().time() + self.clock_ahead,
            random=random.Random(4000 + number).randbytes,
            mtu=mtu,
            more_udp=lambda: world.network.open((f"192.0.2.{number}",)),
            capabilities=capabilities,
        )

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"192.0.2.{self.id}", self.udp.port)

    def as_peer(self, **change: Any) -> Peer:
        values: dict[str, Any] = {
            "id": self.id,
            "name": f"n{self.id}",
            "node_key": NodeKey(self.key.public),
            "addresses": tuple(ip_address(one) for one in overlay(self.id)),
            "endpoints": (self.endpoint,),
            "kind": PeerKind.WIREGUARD,
            "capabilities": self.capabilities,
        }
        return Peer(**{**values, **change})

    def knows(self, *peers: Peer, rules: Sequence[FilterRule] = OPEN, routes: tuple[str, ...] = (), accept_routes: bool = True, reject: bool = False) -> None:
        own = SelfNode(self.id, f"n{self.id}", tuple(ip_address(one) for one in overlay(self.id)), routes=tuple(ip_network(one) for one in routes))
        self.path.apply(Netmap(1, own, (), peers, tuple(rules), reject=reject), accept_routes=accept_routes)

    def packets(self) -> list[bytes]:
        """What the kernel was given so far, super-packets cut; forgotten here."""
        made = []
        while self.tun.delivered:
            write = self.tun.delivered.popleft()
            if self.tun.offloads.vnet_header:
                made += cut(write[10:], int.from_bytes(write[4:6], "little") or len(write)) if write[0] else [write[10:]]
            else:
                made.append(write)
        return made

    # --- DataPathHost ---

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        for datagram in datagrams:
            self.relayed += 1
            copy = bytes(datagram)
            other = self.world.nodes.get(peer)
            if other is not None and self.world.relay_up and not self.world.relay_cut & {self.id, peer}:
                self.world.relay_at = max(self.world.relay_at + 1e-6, asyncio.get_running_loop().time() + 0.01)
                asyncio.get_running_loop().call_at(self.world.relay_at, other.path.relayed, self.id, [copy])

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        self.world.nodes[peer].path.candidates(self.id, endpoints)

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.published.append(endpoints)

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None:
        if self.disk_full:
            raise StateError("the disk is full")
        self.stamps.append((node_key, timestamp, sent))

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None:
        self.changes.append(description)

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None:
        self.moves.append((str(prefix), old, new))

    def mtu_raised(self, mtu: int) -> None:
        self.raised.append(mtu)

    def health(self, code: str, text: str | None) -> None:
        self.healths.pop(code, None)
        if text is not None:
            self.healths[code] = text


class World:
    """All nodes, and the network and relay between them."""

    def __init__(self, weather: Weather | None = None) -> None:
        self.network = MemoryUnderlay(random.Random(5).random, weather)
        self.nodes: dict[NodeId, Node] = {}
        self.relay_up = True
        self.relay_cut: set[NodeId] = set()
        """Nodes that the relay doesn't reach."""
        self.relay_at = 0.0

    def node(self, number: int, **settings: Any) -> Node:
        node = self.nodes[NodeId(number)] = Node(self, number, **settings)
        node.path.start()
        return node

    def pair(self, **settings: Any) -> tuple[Node, Node]:
        """Nodes 1 and 2, stock WireGuard to each other, each knowing the other's endpoint."""
        one, two = self.node(1, **settings), self.node(2, **settings)
        one.knows(two.as_peer())
        two.knows(one.as_peer())
        return one, two

    def relayed_pair(self) -> tuple[Node, Node]:
        """Nodes 1 and 2, Calnet to each other, with a relay and no endpoints."""
        one, two = self.node(1), self.node(2)
        for node, peer in ((one, two), (two, one)):
            node.path.relay_connected(True)
            node.knows(peer.as_peer(kind=PeerKind.CALNET, endpoints=(), discovery_key=peer.discovery.public))
        return one, two

    async def passes(self, seconds: float = 0.5) -> None:
        await asyncio.sleep(seconds)


class Scripted:
    """Paths whose answers a test writes."""

    def __init__(self) -> None:
        self.where = Route(None, False)
        self.calls: list[tuple[object, ...]] = []
        self.answer: list[object] = []

    def route(self, peer: NodeId) -> Route:
        return self.where

    def next_deadline(self) -> float | None:
        return None

    def ping(self, peer: NodeId, now: float) -> tuple[int, list[object]]:
        return 5, self.answer

    def __getattr__(self, name: str) -> Callable[..., list[object]]:
        def call(*arguments: object, **_named: object) -> list[object]:
            self.calls.append((name, *arguments))
            return []

        return call
