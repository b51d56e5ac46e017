"""What many peers cost a node: python -m bench.peers [--quick]. One data path in memory, without kernel and wire, so that its own work alone is counted.

A node knows 1 peer or 1,000; 1, 10 or 100 of them are active: packets of 64 bytes to each in turn, and from each in turn, so that no two that follow one
another are of one flow. CPU time a packet, as ratio to the node with one peer in the same run: it must not grow with peers that are silent. And handshakes: how
many initiations of 1,000 peers it answers in a second, each up to the response, as ratio to the four X25519 that a responder can't do without (Noise IKpsk2).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from bench.peer import Alone
from bench.table import Row, print_table
from calnet.crypto.keys import PrivateKey
from calnet.host.receiving import Received
from calnet.host.tun import Offloads
from calnet.model import Address, Buffer, Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, SelfNode, Source
from calnet.paths.paths import Paths
from calnet.roles.node.datapath import DataPath
from calnet.tunnel.effects import SendHandshake
from calnet.tunnel.peer import TunnelPeerConfig
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel

CONFIGURED, ACTIVE = 1_000, (1, 10, 100)
BURST, BURSTS, QUICK_BURSTS, ROUNDS = 50, 200, 40, 5
SILENT_TARGET, ACTIVE_TARGET, HANDSHAKE_TARGET = 1.25, 2.5, 3.0
_NOTHING = bytes(10)
_HUB = ip_address("10.64.0.1")
_EVERYWHERE = ip_network("0.0.0.0/0")


class _Tun:
    """Gives the packets in `waiting`, one a read; takes all."""

    name = "memory"
    offloads = Offloads(vnet_header=True, tcp=True, udp=True)

    def __init__(self) -> None:
        self.waiting: list[bytes] = []

    def read_into(self, buffer: memoryview) -> int:
        if not self.waiting:
            return 0
        packet = self.waiting.pop()
        buffer[: len(packet)] = packet
        return len(packet)

    def write(self, _parts: object) -> bool:
        return True

    def watch(self, *_: object) -> None:
        """It is called when there is something."""

    unwatch = watch


class _Udp:
    """Gives the datagrams in `waiting`, one a read; keeps what was sent last."""

    port = 1

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, Endpoint]] = []
        self.sent = b""

    def send(self, _endpoint: Endpoint, datagrams: Buffer, _segment: int) -> bool:
        self.sent = bytes(datagrams)
        return True

    def receive(self, buffer: memoryview) -> Received | None:
        if not self.waiting:
            return None
        datagram, source = self.waiting.pop()
        buffer[: len(datagram)] = datagram
        return Received(len(datagram), len(datagram), source)

    def watch(self, *_: object) -> None:
        """It is called when there is something."""

    unwatch = close = watch


class _Host(Alone):
    def path_changed(self, peer: NodeId, description: str) -> None:
        """Nobody asks."""


@dataclass
class _Other:
    """A peer's own end, without a data path."""

    number: int
    key: PrivateKey
    tunnel: Tunnel = field(init=False)

    def __post_init__(self) -> None:
        self.tunnel = Tunnel(self.key, random=os.urandom)

    @property
    def address(self) -> Address:
        return _HUB + self.number

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("192.0.2.2", 10_000 + self.number)

    def as_peer(self) -> Peer:
        return Peer(NodeId(1 + self.number), f"n{self.number}", NodeKey(self.key.public), (self.address,), endpoints=(self.endpoint,), kind=PeerKind.WIREGUARD)

    def initiation(self, hub: bytes, now: float) -> bytes:
        """The first message of a handshake with the hub."""
        self.tunnel.configure([TunnelPeerConfig(NodeId(1), hub, allowed=(_EVERYWHERE,))], now, now)
        known = self.tunnel.peer(NodeId(1))
        assert known is not None
        _, effects = self.tunnel.session_to_send(known, now, now)
        return next(effect.datagram for effect in effects if isinstance(effect, SendHandshake))

    def session(self) -> Session:
        """The one that stands."""
        known = self.tunnel.peer(NodeId(1))
        assert known is not None
        assert known.current is not None
        return known.current


class Hub:
    """The node that is measured, with so many peers."""

    def __init__(self, peers: int) -> None:
        self.now = 1000.0
        self.key, self.tun, self.udp = PrivateKey.generate(os.urandom), _Tun(), _Udp()
        self.others = [_Other(number, PrivateKey.generate(os.urandom)) for number in range(1, peers + 1)]
        memory: Any = self.tun, self.udp
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        self.path = DataPath(
            loop=asyncio.get_running_loop(),
            tun=memory[0],
            udp=memory[1],
            tunnel=Tunnel(self.key, random=os.urandom),
            paths=Paths(node_key=self.key.public, discovery=PrivateKey.generate(os.urandom), random=os.urandom),
            host=_Host(),
            monotonic=lambda: self.now,
            wall=lambda: self.now,
            random=os.urandom,
        )
        own = SelfNode(NodeId(1), "hub", (_HUB,))
        table = tuple(other.as_peer() for other in self.others)
        self.path.apply(Netmap(1, own, (), table, (FilterRule((_EVERYWHERE,), (_EVERYWHERE,)),)), accept_routes=True)
        self.path.start()
        self.bytes_a_peer = (tracemalloc.get_traced_memory()[0] - before) / peers
        tracemalloc.stop()

    def takes(self, datagram: bytes, other: _Other) -> None:
        """A datagram of a peer's comes."""
        self.udp.waiting.append((datagram, other.endpoint))
        self.path._on_udp(self.udp.receive)

    def meets(self, other: _Other) -> float:
        """A whole handshake; the CPU seconds that it took here to answer the initiation."""
        self.now += 0.05  # a peer a moment: no cookies
        initiation = other.initiation(self.key.public, self.now)
        began = time.thread_time()
        self.takes(initiation, other)
        took = time.thread_time() - began
        other.tunnel.receive(self.udp.sent, Source(Endpoint("192.0.2.1", self.udp.port)), self.now, self.now)
        self.takes(other.session().seal(b""), other)
        return took

    def sends(self, active: list[_Other]) -> float:
        """A burst to the active ones in turn: CPU seconds."""
        self.tun.waiting = [_NOTHING + packet(_HUB, active[k % len(active)].address) for k in range(BURST)]
        began = time.thread_time()
        self.path._on_tun()
        return time.thread_time() - began

    def receives(self, active: list[_Other]) -> float:
        """A burst from the active ones in turn: CPU seconds."""
        chosen = [active[k % len(active)] for k in range(BURST)]
        self.udp.waiting = [(other.session().seal(packet(other.address, _HUB)), other.endpoint) for other in chosen][::-1]
        began = time.thread_time()
        self.path._on_udp(self.udp.receive)
        return time.thread_time() - began


def packet(source: Address, target: Address) -> bytes:
    """An IPv4 UDP packet of 64 bytes, without checksums (nobody looks at them here)."""
    header = bytes((0x45, 0, 0, 64, 0, 0, 0, 0, 64, 17, 0, 0)) + source.packed + target.packed
    return header + (5000).to_bytes(2, "big") * 2 + (44).to_bytes(2, "big") + bytes(2 + 36)


def _median(burst: Callable[[], float], bursts: int) -> float:
    """CPU microseconds a packet."""
    return statistics.median(burst() for _ in range(bursts)) / BURST * 1e6


async def _measure(bursts: int) -> list[Row]:
    alone, crowd = Hub(1), Hub(CONFIGURED)
    handshakes = [crowd.meets(other) for other in crowd.others]
    alone.meets(alone.others[0])
    cases = {"1 of 1": (alone, alone.others)} | {f"{count} of {CONFIGURED:,}": (crowd, crowd.others[:count]) for count in ACTIVE}
    found: dict[tuple[str, str], list[float]] = {(case, way): [] for case in cases for way in ("out", "in")}
    for _ in range(ROUNDS):
        for case, (hub, active) in cases.items():
            found[case, "out"].append(_median(lambda hub=hub, active=active: hub.sends(active), bursts))  # type: ignore[misc]
            found[case, "in"].append(_median(lambda hub=hub, active=active: hub.receives(active), bursts))  # type: ignore[misc]
    figures = {key: statistics.median(values) for key, values in found.items()}
    if crowd.path.dropped or alone.path.dropped:
        raise RuntimeError(f"{crowd.path.dropped + alone.path.dropped} packets were dropped")
    handshake, exchanges = statistics.median(handshakes), _four_exchanges()
    print(
        json.dumps(
            {
                "bench": "peers",
                "us_a_packet": {f"{case} {way}": round(value, 2) for (case, way), value in figures.items()},
                "handshake_us": round(handshake * 1e6),
                "four_x25519_us": round(exchanges * 1e6),
                "bytes_a_peer": round(crowd.bytes_a_peer),
            }
        ),
        flush=True,
    )
    rows = []
    for case in list(cases)[1:]:
        ratio = max(figures[case, way] / figures["1 of 1", way] for way in ("out", "in"))
        target = SILENT_TARGET if case.startswith("1 ") else ACTIVE_TARGET
        told = f"{figures[case, 'out']:.1f} µs out, {figures[case, 'in']:.1f} in"
        rows.append(Row(f"CPU a packet of 64 bytes, {case} peers active, × one peer alone", f"{told}: {ratio:.2f} ×", f"≤ {target:g} ×", ratio / target, True))
    rate, ratio = 1 / handshake, handshake / exchanges
    wanted = f"≤ {HANDSHAKE_TARGET:g} × four X25519"
    rows.append(Row(f"handshakes answered a second, of {CONFIGURED:,} peers", f"{rate:,.0f}; {ratio:.1f} ×", wanted, ratio / HANDSHAKE_TARGET, True))
    rows.append(Row(f"memory of a peer that is silent, of {CONFIGURED:,}", f"{crowd.bytes_a_peer / 1024:.1f} KB", "", None, False))
    for hub in (alone, crowd):
        hub.path.close()
    return rows


def _four_exchanges() -> float:
    """CPU seconds of four X25519."""
    key, other = PrivateKey.generate(os.urandom), PrivateKey.generate(os.urandom).public
    times = []
    for _ in range(200):
        began = time.thread_time()
        for _ in range(4):
            key.exchange(other)
        times.append(time.thread_time() - began)
    return statistics.median(times)


def run(quick: bool = False) -> list[Row]:
    """Print a JSON line; return the table's rows."""
    return asyncio.run(_measure(QUICK_BURSTS if quick else BURSTS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer bursts")
    print_table(run(parser.parse_args().quick))
    sys.exit(0)
