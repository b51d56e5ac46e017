"""Low latency for packets that come now and then: while they do, the data path's code is kept in the processor's caches.

A processor that has slept for some milliseconds has forgotten instructions and branches: a packet that takes 25 µs of this code warm takes 200 then, and a
ping through an idle tunnel passes it four times. So between packets that follow one another within WINDOW_S a packet is rehearsed every TICK_S: a second data
path, which is its own only peer under a key of its own, reads one from a device that is ours alone, seals it, sends it to itself over the loopback, opens it
and writes it to the device. It runs the code that the real one runs, in the same event loop, and shares nothing else with it. Measured (docs/performance.md):
the median ping is half as long.

What it costs is bounded: a rehearsal is followed by at least REST times its own length without one, it is left out where packets came anyway, and where none
comes for WINDOW_S it ends. A stray packet starts nothing, nor does one that is answered.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from calnet.crypto.batch import NewBatch
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import HostError
from calnet.host.mirror import Mirror
from calnet.host.tun import Offloads
from calnet.model import Buffer, Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, Prefix, SelfNode
from calnet.paths.paths import Paths
from calnet.roles.node.datapath import DataPath
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.ip import NO_VIRTIO, ones_sum

WINDOW_S: Final = 0.05
TICK_S: Final = 0.002
ENOUGH: Final = 2
"""Packets have to follow others so often for more to be expected: a question and its answer are no reason."""
REST: Final = 9
"""So that at most a tenth of a core's time goes into it."""

_ADDRESS: Final = IPv4Address("100.70.0.1")
_EVERYWHERE: Final = IPv4Network("0.0.0.0/0")
PATIENCE_S: Final = 0.1
"""A rehearsal that didn't come back within it is lost."""
MAX_LOST: Final = 16
"""So many lost in a row (no loopback, a firewall on it), and none is tried any more."""


class Rehearsal:
    """The second data path, at work in the loop of the first. HostError: there are no sockets for it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        offloads: Offloads,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        random: RandomBytes,
        new_batch: NewBatch,
        came: Callable[[], None],
    ) -> None:
        """`offloads` are the real device's; `came` is called when a packet has come back to the device."""
        self._loop, self._came = loop, came
        self._mirror = mirror = Mirror(offloads)
        key = PrivateKey.generate(random)
        self._path = DataPath(
            loop=loop,
            tun=mirror.tun,
            udp=mirror.udp,
            tunnel=Tunnel(key, random=random, new_batch=new_batch),
            paths=Paths(node_key=key.public, discovery=key, random=random),
            host=_NoHost(),
            monotonic=monotonic,
            wall=wall,
            random=random,
        )
        self._path.apply(_netmap(key, mirror.endpoint), accept_routes=False)
        self._path.start()
        self._packet = (NO_VIRTIO if offloads.vnet_header else b"") + _echo_request()
        loop.add_reader(mirror.kernel, self._back)

    def begin(self) -> None:
        """Send a packet to ourselves."""
        self._mirror.give(self._packet)

    def _back(self) -> None:
        came = False
        while packet := self._mirror.taken():
            came = came or packet == self._packet
        if came:
            self._came()

    def close(self) -> None:
        """Give the sockets back."""
        self._loop.remove_reader(self._mirror.kernel)
        self._path.close()
        self._mirror.close()


class KeepWarm:
    """When there is something to rehearse: see the module's docstring. `begin` begins a rehearsal, `came_back` ends it; times are `monotonic`'s."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float]) -> None:
        self.begin: Callable[[], object] = lambda: None
        self._loop, self._monotonic = loop, monotonic
        self._packets_at = self._begun_at = self._rest_until = float("-inf")
        self._followed = 0
        """How often in a row packets followed others within WINDOW_S, but not at once."""
        self._lost = 0
        """Rehearsals in a row that did not come back."""
        self._timer: asyncio.TimerHandle | None = None

    def packets(self, now: float) -> None:
        """Packets came or left. Hot."""
        gap, self._packets_at = now - self._packets_at, now
        if gap < TICK_S:
            return
        self._followed = self._followed + 1 if gap < WINDOW_S else 0
        if self._followed >= ENOUGH and self._timer is None and self._lost < MAX_LOST:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def came_back(self) -> None:
        """The rehearsal is over."""
        now = self._monotonic()
        self._lost = 0
        self._rest_until = now + (now - self._begun_at) * REST

    def close(self) -> None:
        """Rehearse no more, until packets come again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        now = self._monotonic()
        idle = now - self._packets_at
        if idle >= WINDOW_S or self._lost >= MAX_LOST:
            return
        if idle >= TICK_S / 2 and now >= self._rest_until:
            self._lost += 1
            self._begun_at, self._rest_until = now, now + PATIENCE_S
            self.begin()
        self._timer = self._loop.call_later(TICK_S, self._tick)


def keep_warm(
    path: DataPath,
    offloads: Offloads,
    loop: asyncio.AbstractEventLoop,
    *,
    monotonic: Callable[[], float],
    wall: Callable[[], float],
    random: RandomBytes,
    new_batch: NewBatch,
) -> Callable[[], None]:
    """Have packets rehearsed between those of `path`, if this machine can do that. Returns what ends it; the arguments are the path's own."""
    warm = KeepWarm(loop, monotonic)
    try:
        rehearsal = Rehearsal(loop, offloads, monotonic=monotonic, wall=wall, random=random, new_batch=new_batch, came=warm.came_back)
    except HostError:
        return warm.close
    warm.begin, path.on_packets = rehearsal.begin, warm.packets

    def end() -> None:
        path.on_packets = None
        warm.close()
        rehearsal.close()

    return end


def _netmap(key: PrivateKey, endpoint: Endpoint) -> Netmap:
    """A network of one node, whose one peer has its key, its address and its endpoint."""
    peer = Peer(NodeId(2), "mirror", NodeKey(key.public), (_ADDRESS,), endpoints=(endpoint,), kind=PeerKind.WIREGUARD)
    return Netmap(1, SelfNode(NodeId(1), "self", (_ADDRESS,)), (), (peer,), (FilterRule((_EVERYWHERE,), (_EVERYWHERE,)),))


def _echo_request() -> bytes:
    """An ICMP echo request from us to us."""
    payload = bytearray((8, 0, 0, 0, 0, 1, 0, 1, *range(56)))
    payload[2:4] = (0xFFFF - ones_sum(payload)).to_bytes(2, "big")
    header = bytearray((0x45, 0, 0, 20 + len(payload), 0, 0, 0x40, 0, 64, socket.IPPROTO_ICMP, 0, 0)) + _ADDRESS.packed * 2
    header[10:12] = (0xFFFF - ones_sum(header)).to_bytes(2, "big")
    return bytes(header + payload)


class _NoHost:
    """A host that has nobody to tell."""

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None: ...

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None: ...

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None: ...

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None: ...

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None: ...

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None: ...

    def mtu_raised(self, mtu: int) -> None: ...

    def health(self, code: str, text: str | None) -> None: ...
