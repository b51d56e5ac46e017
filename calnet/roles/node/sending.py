"""Datagrams on their way out of the node: by UDP, through the relay, or both.

Hot path: `run` is called once for each run of datagrams (some 49 of them for a super-packet), not for each datagram.

Beside the port that everything uses there can be other sockets, for paths that were found through one of them (paths/spray.py): numbers from 1, each in use
for the endpoints that `use` named. Whoever replays a ping from forged addresses can have many of them named, so there are MAX_IN_USE; the one that goes first
is one to which nothing was sent. Where nothing was for IDLE_S either, the NAT has forgotten too: that one goes as soon as sockets are closed.

A UDP socket that is full holds runs back, MAX_HELD of them; `stalled` then asks the caller to read nothing more from the TUN, whose own queue tells the
senders, and `resumed` says that all of them have gone. Where the socket is closed meanwhile they go by the first, as all for their endpoint does then. What is
not a run (handshakes, probes) is lost where the socket is full: it is sent again anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from calnet.host.udp import UdpTransport
from calnet.model import Buffer, Endpoint, NodeId, Source
from calnet.paths.effects import Route

MAX_HELD: Final = 8
"""Runs kept while a socket is full. Reading stops at the first; the rest is what was under way."""
MAX_IN_USE: Final = 64
"""Endpoints that are reached from a socket beside the first."""
IDLE_S: Final = 300.0
"""A NAT keeps a mapping without traffic for 2 minutes and more, 5 are recommended (RFC 4787, section 4.3)."""

SendRelayed = Callable[[NodeId, Sequence[Buffer]], None]
"""Queue datagrams to the relay for a peer; they are copied before this returns."""


@dataclass(slots=True)
class _Use:
    """What goes to an endpoint leaves from socket `number`. Loop times; 0.0 for never."""

    number: int
    named_at: float
    sent_at: float = 0.0


class Sender:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        udp: UdpTransport,
        send_relayed: SendRelayed,
        *,
        stalled: Callable[[], None],
        resumed: Callable[[], None],
        open_socket: Callable[[int], UdpTransport | None] = lambda number: None,
    ) -> None:
        """`open_socket` gives socket `number`, watched; None where there is none to be had."""
        self._loop, self._udp, self._send_relayed, self._open_socket = loop, udp, send_relayed, open_socket
        self._more: dict[int, UdpTransport] = {}
        self._in_use: dict[Endpoint, _Use] = {}
        self._awaited: UdpTransport | None = None
        """The one that tells when it is writable, while runs are held."""
        self._stalled, self._resumed = stalled, resumed
        self.held: deque[tuple[Endpoint, bytes, int]] = deque()
        """Runs that wait for the socket; others only look whether there are any."""
        self._closed = False

    def run(self, peer: NodeId, route: Route, datagrams: memoryview, size: int) -> int:
        """Send datagrams of `size` bytes (the last may be shorter) that lie side by side. Returns how many runs had to be dropped, 0 or 1."""
        dropped = 0
        endpoint, relay = route
        if endpoint is not None and (self.held or not self._socket_for(endpoint).send(endpoint, datagrams, size)):
            dropped = self._hold_back(endpoint, datagrams, size)
        if relay:
            self._send_relayed(peer, [datagrams[start : start + size] for start in range(0, len(datagrams), size)])
        return dropped

    def first_socket(self, endpoint: Endpoint) -> UdpTransport | None:
        """The first socket, if it is the one for `endpoint` and nothing has to be known of each use; until something changes here."""
        return None if endpoint in self._in_use else self._udp

    def one(self, peer: NodeId, route: Route, datagram: bytes) -> None:
        """Send one datagram by the peer's route."""
        if route.endpoint is not None:
            self.to(route.endpoint, datagram)
        if route.relay:
            self._send_relayed(peer, [datagram])

    def back(self, source: Source, datagram: bytes) -> None:
        """Send one datagram to where another came from."""
        if source.endpoint is not None:
            self.to(source.endpoint, datagram, source.socket)
        elif source.relay_peer is not None:
            self._send_relayed(source.relay_peer, [datagram])

    def to(self, endpoint: Endpoint, datagram: bytes, number: int | None = None, *, whole: bool = False, hops: int | None = None) -> None:
        """Send one datagram by UDP, from socket `number`; None: from the one in use for this endpoint.

        `whole`: rather lost than in fragments. `hops`: its time to live, if not the usual one.
        """
        udp = self._socket_for(endpoint) if number is None else self._numbered(number)
        if udp is not None and hops is not None:
            udp.send_short(endpoint, datagram, hops)
        elif udp is not None and whole:
            udp.send_whole(endpoint, datagram)
        elif udp is not None:
            udp.send(endpoint, datagram, len(datagram))

    def use(self, endpoint: Endpoint, number: int) -> None:
        """Send what goes to `endpoint` from this socket from now on; 0, the first: a socket that served it alone is closed."""
        before, now = self._in_use.pop(endpoint, None), self._loop.time()
        if number in self._more:
            if len(self._in_use) == MAX_IN_USE:
                del self._in_use[min(self._in_use, key=lambda known: self._in_use[known].sent_at)]
            self._in_use[endpoint] = _Use(number, now, 0.0 if before is None else before.sent_at)
        elif before is not None:
            self._close({before.number} - self._numbers_in_use())

    def close_sockets(self, *, all_: bool) -> None:
        """Close the sockets beside the first that are not in use; or all of them."""
        since = self._loop.time() - IDLE_S
        self._in_use = {} if all_ else {endpoint: use for endpoint, use in self._in_use.items() if max(use.named_at, use.sent_at) > since}
        self._close(self._more.keys() - self._numbers_in_use())

    def change_socket(self, udp: UdpTransport) -> None:
        """The first socket is another one now, as this machine moved. What is held is lost, as what is on its way is: it would knock where nobody knows us."""
        self._udp = udp
        if self.held:
            self.held.clear()
            self._go_on()

    def forget_failures(self) -> None:
        """The network changed."""
        for udp in (self._udp, *self._more.values()):
            udp.forget_failures()

    def close(self) -> None:
        """Send nothing more of what is held, and close all sockets beside the first."""
        self._closed = True
        self.close_sockets(all_=True)

    def _numbers_in_use(self) -> set[int]:
        return {use.number for use in self._in_use.values()}

    def _close(self, numbers: Iterable[int]) -> None:
        """None of them is in use."""
        closed = [self._more.pop(number) for number in numbers]
        for udp in closed:
            udp.unwatch(self._loop)
            udp.close()
        if self._awaited in closed:
            self._go_on()

    def _socket_for(self, endpoint: Endpoint) -> UdpTransport:
        use = self._in_use.get(endpoint) if self._in_use else None
        if use is None:
            return self._udp
        use.sent_at = self._loop.time()
        return self._more[use.number]

    def _numbered(self, number: int) -> UdpTransport | None:
        if number == 0:
            return self._udp
        found = self._more.get(number) or self._open_socket(number)
        if found is not None:
            self._more[number] = found
        return found

    def _hold_back(self, endpoint: Endpoint, datagrams: memoryview, size: int) -> int:
        if len(self.held) >= MAX_HELD:
            return 1
        self.held.append((endpoint, bytes(datagrams), size))
        if len(self.held) == 1:
            self._stalled()
            self._await(self._socket_for(endpoint), endpoint)
        return 0

    def _await(self, udp: UdpTransport, endpoint: Endpoint) -> None:
        self._awaited = udp
        udp.when_writable(self._loop, endpoint, self._go_on)

    def _go_on(self) -> None:
        self._awaited = None
        while self.held and not self._closed:
            udp = self._socket_for(self.held[0][0])
            if not udp.send(*self.held[0]):
                self._await(udp, self.held[0][0])
                return
            self.held.popleft()
        if not self._closed:
            self._resumed()
