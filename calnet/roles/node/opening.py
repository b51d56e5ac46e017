"""The real engine: TUN, UDP port, tunnel and paths, opened together and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from calnet.crypto.batch import NewBatch
from calnet.crypto.keys import RandomBytes
from calnet.errors import CalnetError
from calnet.host.netlink import MARK
from calnet.host.tun import TunDevice, open_tun
from calnet.host.udp import open_udp
from calnet.model import Buffer, Endpoint, Netmap, NodeId
from calnet.paths.explain import View
from calnet.paths.mtu import ETHERNET
from calnet.paths.paths import Paths
from calnet.paths.way import Way
from calnet.roles.node.clocks import Clocks
from calnet.roles.node.datapath import DataPath
from calnet.roles.node.engine import NO_WAYS, EngineHost, Figures, Identity, Netcheck, OpenEngine, PeerStatus, PingAnswer
from calnet.roles.node.handshake_log import HandshakeLog
from calnet.roles.node.rehearsal import keep_warm
from calnet.tunnel.outbound import MAX_RUN, MAX_RUN_BYTES
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.tunnel import TRANSPORT_OVERHEAD

_USUAL_HEADERS: Final = 52
"""IPv4 and TCP with timestamps: what each packet of a super-packet repeats."""
_TCP_SPARES: Final = 321
"""Of gso_max_size the kernel's TCP leaves MAX_TCP_HEADER + 1 bytes free: 193 to 321 on most machines."""


def super_packet_size(mtu: int) -> int:
    """What gso_max_size has to be for the kernel's TCP to make super-packets as large as still leave in one send: more would make a second, short one.
    So it is for headers up to 72 bytes; with longer ones (SACK blocks) there may be a packet or two too many."""
    count = min(MAX_RUN, MAX_RUN_BYTES // (mtu + TRANSPORT_OVERHEAD))
    return count * (mtu - _USUAL_HEADERS) + _TCP_SPARES


class ServerClock:
    """Unix seconds in server time."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall, self.offset = wall, 0.0

    def __call__(self) -> float:
        return self._wall() + self.offset


class RealEngine:
    """`engine.Engine` over a TUN device and a UDP port."""

    def __init__(self, tun: TunDevice, tunnel: Tunnel, paths: Paths, path: DataPath, clock: ServerClock, cool: Callable[[], None]) -> None:
        """`cool` ends the rehearsals of `path`."""
        self._tun, self._tunnel, self._paths, self._path, self._clock, self._cool = tun, tunnel, paths, path, clock, cool

    @property
    def port(self) -> int:
        return self._path.port

    @property
    def mtu(self) -> int:
        return self._path.mtu

    @property
    def gso_max_size(self) -> int | None:
        return super_packet_size(self._path.mtu) if self._tun.offloads.vnet_header else None

    def apply(self, netmap: Netmap, *, accept_routes: bool, guess_ports: bool = True, ways: Mapping[NodeId, Way] = NO_WAYS) -> None:
        self._paths.may_guess = guess_ports
        self._path.apply(netmap, accept_routes=accept_routes, ways=ways)

    def set_clock(self, offset: float) -> None:
        self._clock.offset = offset

    def set_identity(self, identity: Identity) -> None:
        self._tunnel.set_identity(identity.node, identity.previous)
        self._paths.set_identity(identity.node.public, identity.discovery)

    def relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        self._path.relayed(peer, datagrams)

    def relay_connected(self, connected: bool) -> None:
        self._path.relay_connected(connected)

    def candidates(self, peer: NodeId, endpoints: Iterable[Endpoint]) -> None:
        self._path.candidates(peer, endpoints)

    def network_changed(self, endpoints: Iterable[Endpoint], *, moved: bool = False) -> None:
        self._path.network_changed(endpoints, moved=moved)

    async def change_port(self) -> None:
        self._path.change_port()

    def mapped_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        self._path.mapped_endpoints(endpoints)

    def stun_servers(self, servers: Iterable[Endpoint]) -> None:
        self._path.stun_servers(servers)

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        return await self._path.ping(peer, timeout_s)

    async def why(self, peer: NodeId, timeout_s: float) -> tuple[View, View | None]:
        return await self._path.why(peer, timeout_s)

    async def statuses(self, peers: Sequence[NodeId]) -> Mapping[NodeId, PeerStatus]:
        return {peer: self._path.peer_status(peer) for peer in peers}

    async def netcheck(self, timeout_s: float) -> Netcheck:
        hairpin = await self._path.hairpin(timeout_s)
        seen = self._paths.reflexive()
        ipv4 = next((endpoint for endpoint in seen if ":" not in endpoint.host), None)
        ipv6 = next((endpoint for endpoint in seen if ":" in endpoint.host), None)
        return Netcheck(ipv4, ipv6, self._paths.mapping(), hairpin)

    async def figures(self) -> Figures:
        return Figures(self._path.dropped, dict(self._path.path_changes))

    def close(self) -> None:
        self._cool()
        self._path.close()
        self._tun.close()


def engine_opener(
    identity: Callable[[], Identity],
    stamps: HandshakeLog,
    *,
    tun: str,
    mtu: int,
    clocks: Clocks,
    random: RandomBytes,
    capabilities: tuple[str, ...],
    new_batch: NewBatch,
) -> OpenEngine:
    """What the daemon opens its data path with. `stamps` are what the host persists."""

    def open_engine(port: int, host: EngineHost) -> RealEngine:
        device = open_tun(tun)
        try:
            udp = open_udp(port, mark=MARK, report=host.health)
        except CalnetError:
            device.close()
            raise
        keys, clock = identity(), ServerClock(clocks.wall)
        tunnel = Tunnel(keys.node, random=random, previous=keys.previous, new_batch=new_batch)
        tunnel.load_timestamps(stamps.accepted, stamps.sent)
        paths = Paths(node_key=keys.node.public, discovery=keys.discovery, random=random, mtu=max(mtu, ETHERNET))
        loop = asyncio.get_running_loop()
        path = DataPath(
            loop=loop,
            tun=device,
            udp=udp,
            tunnel=tunnel,
            paths=paths,
            host=host,
            monotonic=clocks.elapsed,
            wall=clock,
            random=random,
            mtu=mtu,
            more_udp=lambda: open_udp(0, mark=MARK, report=host.health),
            capabilities=capabilities,
        )
        path.start()
        cool = keep_warm(path, device.offloads, loop, monotonic=clocks.elapsed, random=random, new_batch=new_batch)
        return RealEngine(device, tunnel, paths, path, clock, cool)

    return open_engine
