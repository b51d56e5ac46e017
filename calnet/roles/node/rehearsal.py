"""Low latency for packets that come now and then: while they do, the data path's code is kept in the processor's caches.

A processor that has slept for some milliseconds has forgotten instructions and branches: a packet that takes 25 µs of this code warm takes 200 then, and a
ping through an idle tunnel passes it four times. So where packets keep coming within WINDOW_S of each other, a packet is rehearsed every TICK_S between them:
of two data paths beside the real one, each the other's only peer, one reads it from a device that is ours alone, seals it and sends it over the loopback, the
other opens it and writes it to its own device. They run the code that the real one runs, in the same event loop, and share nothing else with it: keys, sessions
and ports are theirs, and nobody else knows of them. Measured (docs/performance.md): the median ping is half as long.

What it costs is bounded: a rehearsal is followed by at least REST times its own length without one, it is left out where packets came anyway, and where none
comes for WINDOW_S it ends. What starts it are packets that a session carried, not what strangers send; a stray one starts nothing, nor does one that is
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from calnet.crypto.batch import NewBatch
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import HostError
from calnet.host.mirror import Mirror
from calnet.host.tun import Offloads
from calnet.model import Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, SelfNode
from calnet.paths.paths import Paths
from calnet.roles.node.datapath import DataPath
from calnet.roles.node.engine import NoHost
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.ip import NO_VIRTIO, Protocol, checksum

WINDOW_S: Final = 0.05
TICK_S: Final = 0.002
ENOUGH: Final = 2
"""Packets have to follow others so often for more to be expected: a question and its answer are no reason."""
REST: Final = 9
"""So that at most a tenth of a core's time goes into it."""

PATIENCE_S: Final = 0.1
"""A rehearsal that didn't come back within it is lost."""
MAX_LOST: Final = 16
"""After so many lost in a row (no loopback, a firewall on it, a handshake that takes its time)…"""
PAUSE_S: Final = 60.0
"""…none is tried for so long."""

_ADDRESSES: Final = (IPv4Address("100.70.0.1"), IPv4Address("100.70.0.2"))
_EVERYWHERE: Final = IPv4Network("0.0.0.0/0")


class Rehearsal:
    """The two data paths, at work in the loop of the real one. HostError: there are no sockets for them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        offloads: Offloads,
        *,
        monotonic: Callable[[], float],
        random: RandomBytes,
        new_batch: NewBatch,
        came: Callable[[], None],
    ) -> None:
        """`offloads` are the real device's; `came` is called when a packet has come to the other device."""
        self._loop, self._came = loop, came
        self._turn = 0
        self._paths: list[DataPath] = []
        self._mirrors: list[Mirror] = []
        try:
            for _ in range(2):
                self._mirrors.append(Mirror(offloads))
            for one, other in (self._mirrors, reversed(self._mirrors)):
                one.connect(other)
            keys = [PrivateKey.generate(random) for _ in self._mirrors]
            for here, mirror in enumerate(self._mirrors):
                path = DataPath(
                    loop=loop,
                    tun=mirror.tun,
                    udp=mirror.udp,
                    tunnel=Tunnel(keys[here], random=random, new_batch=new_batch),
                    paths=Paths(node_key=keys[here].public, discovery=PrivateKey.generate(random), random=random),
                    host=NoHost(),
                    monotonic=monotonic,
                    wall=monotonic,  # which never goes back: handshakes' timestamps may not
                    random=random,
                )
                self._paths.append(path)
                path.apply(_netmap(here, keys[1 - here], self._mirrors[1 - here].endpoint), accept_routes=False)
                path.start()
                loop.add_reader(mirror.kernel, self._arrived, mirror)
        except OSError as error:
            self.close()
            raise HostError(f"nothing to rehearse with: {error.strerror}") from error
        except HostError:
            self.close()
            raise
        before = NO_VIRTIO if offloads.vnet_header else b""
        self._packets = [before + _echo_request(here) for here in range(2)]

    def begin(self) -> None:
        """Send a packet one way; the next time, the other."""
        self._turn = 1 - self._turn
        self._mirrors[self._turn].give(self._packets[self._turn])

    def _arrived(self, mirror: Mirror) -> None:
        while packet := mirror.taken():
            if packet in self._packets:
                self._came()

    def close(self) -> None:
        """Give the sockets back; harmless when done before."""
        for mirror in self._mirrors:
            self._loop.remove_reader(mirror.kernel)
        for path in self._paths:
            path.close()
        for mirror in self._mirrors:
            mirror.close()
        self._paths.clear()
        self._mirrors.clear()


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
        if self._followed >= ENOUGH and self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def came_back(self) -> None:
        """The rehearsal is over."""
        now = self._monotonic()
        self._lost = 0
        self._rest_until = now + min(now - self._begun_at, PATIENCE_S) * REST

    def close(self) -> None:
        """Rehearse no more, until packets come again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        now = self._monotonic()
        idle = now - self._packets_at
        if idle >= WINDOW_S:
            return
        wait = min(max(TICK_S, self._rest_until - now), WINDOW_S)
        if idle >= TICK_S / 2 and now >= self._rest_until:
            if self._lost == MAX_LOST:
                self._lost, self._rest_until = 0, now + PAUSE_S
            else:
                self._lost += 1
                self._begun_at, self._rest_until = now, now + PATIENCE_S
                self.begin()
        self._timer = self._loop.call_later(wait, self._tick)


def keep_warm(
    path: DataPath, offloads: Offloads, loop: asyncio.AbstractEventLoop, *, monotonic: Callable[[], float], random: RandomBytes, new_batch: NewBatch
) -> Callable[[], None]:
    """Have packets rehearsed between those of `path`, if this machine can do that. Returns what ends it; the arguments are the path's own."""
    warm = KeepWarm(loop, monotonic)
    try:
        rehearsal = Rehearsal(loop, offloads, monotonic=monotonic, random=random, new_batch=new_batch, came=warm.came_back)
    except HostError:
        return warm.close
    warm.begin, path.on_packets = rehearsal.begin, warm.packets

    def end() -> None:
        path.on_packets = None
        warm.close()
        rehearsal.close()

    return end


def _netmap(here: int, key: PrivateKey, endpoint: Endpoint) -> Netmap:
    """What one of the two knows: itself, and the other one's key and endpoint."""
    peer = Peer(NodeId(1 - here), "other", NodeKey(key.public), (_ADDRESSES[1 - here],), endpoints=(endpoint,), kind=PeerKind.WIREGUARD)
    return Netmap(1, SelfNode(NodeId(here), "self", (_ADDRESSES[here],)), (), (peer,), (FilterRule((_EVERYWHERE,), (_EVERYWHERE,)),))


def _echo_request(here: int) -> bytes:
    """An ICMP echo request from one of the two to the other."""
    payload = bytearray((8, 0, 0, 0, 0, here, 0, 1, *range(56)))
    payload[2:4] = checksum(payload).to_bytes(2, "big")
    header = bytearray((0x45, 0, 0, 20 + len(payload), 0, 0, 0x40, 0, 64, Protocol.ICMP, 0, 0)) + _ADDRESSES[here].packed + _ADDRESSES[1 - here].packed
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header + payload)
