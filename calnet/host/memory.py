"""In-memory twins of the TUN device and the UDP port, for tests and the simulator: same contracts, no kernel, seeded misfortune.

`MemoryUnderlay` carries datagrams between `MemoryUdp` ports with latency, loss, reordering and duplication, by the clock of the event loop that watches the
receiving port (a virtual clock's loop makes it deterministic). `MemoryTun` is the device with its kernel side open: `inject` is what the kernel would send
through it, `delivered` what it got.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from calnet.errors import HostError
from calnet.host.receiving import MAX_SEGMENTS, Behind, Receive, Received, of_next
from calnet.host.tun import Offloads, check_interface_name
from calnet.host.udp import MAX_BATCH
from calnet.model import Buffer, Endpoint
from calnet.wire.ip import NO_VIRTIO

QUEUE_LIMIT: Final = 4096
"""Datagrams a port holds before it drops new ones, as a full socket buffer does."""
_FIRST_PORT: Final = 32768


class MemoryTun:
    """A TUN device without a kernel. Packets injected wait, unbounded, until they are read."""

    def __init__(self, name: str = "memory0", offloads: Offloads | None = None) -> None:
        self.name = check_interface_name(name)
        self.offloads = offloads or Offloads(vnet_header=True, tcp=True, udp=True)
        self.delivered: deque[bytes] = deque()
        """What was written, each with its virtio header where the device has them."""
        self._waiting: deque[bytes] = deque()
        self._ready: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def inject(self, packet: bytes, virtio: bytes = NO_VIRTIO) -> None:
        """A packet that the kernel routed to the device."""
        self._waiting.append(virtio + packet if self.offloads.vnet_header else packet)
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None and self._waiting:
            self._loop.call_soon(self._call_ready)

    def _call_ready(self) -> None:
        if self._ready is not None and self._waiting:
            self._ready()
            self._wake()

    def read_into(self, buffer: memoryview) -> int:
        if self._closed:
            raise HostError(f"the interface {self.name} is gone: it was closed")
        if not self._waiting:
            return 0
        packet = self._waiting.popleft()
        length = min(len(packet), len(buffer))
        buffer[:length] = packet[:length]
        return length

    def read_parts(self, parts: Sequence[memoryview]) -> int:
        whole = memoryview(bytearray(sum(len(part) for part in parts)))
        length, at = self.read_into(whole), 0
        for part in parts:
            part[:] = whole[at : at + len(part)]
            at += len(part)
        return length

    def write(self, parts: Sequence[Buffer]) -> bool:
        if self._closed:
            return False
        packet = b"".join(parts)
        before = len(NO_VIRTIO) if self.offloads.vnet_header else 0
        if len(packet) <= before or packet[before] >> 4 not in (4, 6):
            return False
        self.delivered.append(packet)
        return True

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        self._loop, self._ready = loop, ready
        self._wake()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = self._ready = None

    def close(self) -> None:
        self._closed = True


@dataclass(slots=True)
class Weather:
    """How a network treats datagrams; may be changed at any time. Probabilities from 0 to 1; `latency_s` one way; a reordered one comes `reorder_s` later;
    datagrams longer than `whole` go in fragments, where they may."""

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    latency_s: float = 0.0
    reorder_s: float = 0.005
    whole: int = 65_507


class MemoryUnderlay:
    """One broadcast-free network where every address reaches every other. `random()` gives floats in [0, 1); a seeded one makes a run repeatable."""

    def __init__(self, random: Callable[[], float], weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self.carried = 0
        """Datagrams sent into the network."""
        self.blocked: Callable[[Endpoint, Endpoint], bool] = lambda source, target: False
        """Whether datagrams from source to target vanish: a firewall, a dead link."""
        self._random = random
        self._ports: dict[Endpoint, MemoryUdp] = {}
        self._next_port = _FIRST_PORT

    def open(self, hosts: Sequence[str], port: int = 0) -> MemoryUdp:
        """A port at these addresses (the first of a family is the source of what is sent). HostError if it is taken."""
        if not port:
            port = self._next_port
            self._next_port += 1
        for host in hosts:
            if Endpoint(host, port) in self._ports:
                raise HostError(f"UDP port {port} is taken: stop the program that has it, or choose another with --port (0 for any)")
        new = MemoryUdp(self, tuple(hosts), port)
        for host in hosts:
            self._ports[Endpoint(host, port)] = new
        return new

    @property
    def open_ports(self) -> int:
        """Addresses with a port, by port."""
        return len(self._ports)

    def close_port(self, port: MemoryUdp) -> None:
        """Forget the port (MemoryUdp.close does this)."""
        for endpoint in [endpoint for endpoint, one in self._ports.items() if one is port]:
            del self._ports[endpoint]

    def carry(self, source: Endpoint, target: Endpoint, datagram: bytes) -> None:
        """Take a datagram on its way."""
        self.carried += 1
        weather = self.weather
        if self.blocked(source, target) or self._random() < weather.loss:
            return
        for _ in range(2 if self._random() < weather.duplicate else 1):
            late = weather.reorder_s if self._random() < weather.reorder else 0.0
            receiver = self._ports.get(target)
            if receiver is not None:
                receiver.arrive(source, datagram, weather.latency_s + late)


class MemoryUdp:
    """A port of a MemoryUnderlay. Datagrams that arrive while nobody watches wait for whoever does."""

    def __init__(self, network: MemoryUnderlay, hosts: tuple[str, ...], port: int) -> None:
        self.port = port
        self._network = network
        self._hosts = hosts
        self._waiting: deque[tuple[Endpoint, bytes]] = deque()
        self._coming: dict[float, list[tuple[Endpoint, bytes]]] = {}
        """By the time at which they arrive."""
        self._ready: Callable[[Receive], None] | None = None
        self._behind: Behind | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def send(self, endpoint: Endpoint, datagrams: Buffer, segment: int) -> bool:
        source = self._source_for(endpoint)
        if source is None or len(datagrams) > min(MAX_BATCH, MAX_SEGMENTS * segment):
            return True
        whole = bytes(datagrams)
        for start in range(0, len(whole), segment) if whole else (0,):
            self._network.carry(source, endpoint, whole[start : start + segment] if whole else b"")
        return True

    def send_whole(self, endpoint: Endpoint, datagram: Buffer) -> None:
        if len(datagram) <= self._network.weather.whole:
            self.send(endpoint, datagram, len(datagram))

    def send_short(self, endpoint: Endpoint, datagram: Buffer, hops: int) -> None:
        """There are no routers here at which it could end."""
        self.send(endpoint, datagram, max(1, len(datagram)))

    def _source_for(self, target: Endpoint) -> Endpoint | None:
        for host in self._hosts:
            if (":" in host) == (":" in target.host):
                return Endpoint(host, self.port)
        return None

    def arrive(self, source: Endpoint, datagram: bytes, delay_s: float) -> None:
        """What the network brings, `delay_s` from now; what arrives at one moment, in the order in which it was sent (a loop's timers know none)."""
        if delay_s <= 0 or self._loop is None:
            self._put(source, datagram)
            return
        due = self._loop.time() + delay_s
        if due not in self._coming:
            self._coming[due] = []
            self._loop.call_at(due, self._put_all, due)
        self._coming[due].append((source, datagram))

    def _put_all(self, due: float) -> None:
        for source, datagram in self._coming.pop(due):
            self._put(source, datagram)

    def _put(self, source: Endpoint, datagram: bytes) -> None:
        if len(self._waiting) < QUEUE_LIMIT:
            self._waiting.append((source, datagram))
            self._wake()

    def _wake(self) -> None:
        if self._loop is not None and self._waiting:
            self._loop.call_soon(self._call_ready)

    def _call_ready(self) -> None:
        if self._ready is not None and self._waiting:
            self._ready(self._receive)
            self._wake()

    def _receive(self, buffer: memoryview) -> Received | None:
        """One batch: datagrams of one source and size, as UDP_GRO would put them together."""
        if not self._waiting:
            return None
        source, datagram = self._waiting.popleft()
        segment = length = len(datagram)
        buffer[:length] = datagram
        count, most = 1, MAX_SEGMENTS if self._behind is None else 1 + self._behind(buffer[:length])
        while self._waiting and count < min(most, MAX_SEGMENTS) and segment and length == count * segment:
            following = self._waiting[0]
            if following[0] != source or not 0 < len(following[1]) <= segment or length + len(following[1]) > MAX_BATCH:
                break
            self._waiting.popleft()
            buffer[length : length + len(following[1])] = following[1]
            length += len(following[1])
            count += 1
        if self._behind is not None and 1 < count == most and length == count * segment:
            for _ in range(of_next(self._behind, buffer, segment, count, count - 1)):
                length -= segment
                self._waiting.appendleft((source, bytes(buffer[length : length + segment])))
        return Received(length, segment, source)

    def when_writable(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, ready: Callable[[], None]) -> None:
        loop.call_soon(ready)

    def forget_failures(self) -> None:
        """Nothing fails here."""

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[Receive], None], behind: Behind | None = None) -> None:
        self._loop, self._ready, self._behind = loop, ready, behind
        self._wake()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = self._ready = None

    def close(self) -> None:
        self._network.close_port(self)
