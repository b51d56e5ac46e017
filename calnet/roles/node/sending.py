"""Datagrams on their way out of the node: by UDP, through the relay, or both.

Hot path: `run` is called once for each run of datagrams (some 49 of them for a super-packet), not for each datagram.

A UDP socket that is full holds runs back, MAX_HELD of them; `stalled` then asks the caller to read nothing more from the TUN, whose own queue tells the
senders, and `resumed` says that all of them have gone. What is not a run (handshakes, probes) is lost where the socket is full: it is sent again anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from calnet.host.udp import UdpTransport
from calnet.model import Buffer, Endpoint, NodeId, Source
from calnet.paths.effects import Route

MAX_HELD: Final = 8
"""Runs kept while a socket is full. Reading stops at the first; the rest is what was under way."""

SendRelayed = Callable[[NodeId, Sequence[Buffer]], None]
"""Queue datagrams to the relay for a peer; they are copied before this returns."""


class Sender:
    """See the module's docstring."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, udp: UdpTransport, send_relayed: SendRelayed, *, stalled: Callable[[], None], resumed: Callable[[], None]
    ) -> None:
        self._loop, self._udp, self._send_relayed = loop, udp, send_relayed
        self._stalled, self._resumed = stalled, resumed
        self._held: deque[tuple[Endpoint, bytes, int]] = deque()
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether runs wait for the socket."""
        return bool(self._held)

    def run(self, peer: NodeId, route: Route, datagrams: memoryview, size: int) -> int:
        """Send datagrams of `size` bytes (the last may be shorter) that lie side by side. Returns how many runs had to be dropped, 0 or 1."""
        dropped = 0
        endpoint, relay = route
        if endpoint is not None and (self._held or not self._udp.send(endpoint, datagrams, size)):
            dropped = self._hold_back(endpoint, datagrams, size)
        if relay:
            self._send_relayed(peer, [datagrams[start : start + size] for start in range(0, len(datagrams), size)])
        return dropped

    def one(self, peer: NodeId, route: Route, datagram: bytes) -> None:
        """Send one datagram by the peer's route."""
        if route.endpoint is not None:
            self.to(route.endpoint, datagram)
        if route.relay:
            self._send_relayed(peer, [datagram])

    def back(self, source: Source, datagram: bytes) -> None:
        """Send one datagram to where another came from."""
        if source.endpoint is not None:
            self.to(source.endpoint, datagram)
        elif source.relay_peer is not None:
            self._send_relayed(source.relay_peer, [datagram])

    def to(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram by UDP."""
        self._udp.send(endpoint, datagram, len(datagram))

    def close(self) -> None:
        """Send nothing more of what is held."""
        self._closed = True

    def _hold_back(self, endpoint: Endpoint, datagrams: memoryview, size: int) -> int:
        if len(self._held) >= MAX_HELD:
            return 1
        self._held.append((endpoint, bytes(datagrams), size))
        if len(self._held) == 1:
            self._stalled()
            self._udp.when_writable(self._loop, endpoint, self._go_on)
        return 0

    def _go_on(self) -> None:
        while self._held and not self._closed:
            if not self._udp.send(*self._held[0]):
                self._udp.when_writable(self._loop, self._held[0][0], self._go_on)
                return
            self._held.popleft()
        if not self._closed:
            self._resumed()
