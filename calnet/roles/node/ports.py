"""The UDP ports of a data path: the one in use, those that were until a moment ago, and the sockets beside it that some paths need (sending.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from calnet.errors import HostError
from calnet.host.receiving import Receive
from calnet.host.udp import UdpTransport
from calnet.tunnel.chunks import behind

LEFT: Final = -1
"""The number of a UDP port that was ours until a moment ago…"""
LEFT_S: Final = 3.0
"""…and is read so long: a peer that is sent nothing from us notices within a second."""

OnUdp = Callable[[int, Receive], None]
"""`on_udp(number, receive)`: the socket of this number has something; 0 is the port in use."""


class Ports:
    """See the module's docstring. `more` opens a further port (HostError where it can't). Closes `udp` and all that it opened, but those given to others."""

    def __init__(self, loop: asyncio.AbstractEventLoop, udp: UdpTransport, more: Callable[[], UdpTransport] | None, on_udp: OnUdp) -> None:
        self.udp = udp
        """The one in use."""
        self._loop, self._more, self._on_udp = loop, more, on_udp
        self._left: list[UdpTransport] = []
        self._running = False
        """Between `start` and `close`."""

    def start(self) -> None:
        """Begin to read."""
        self._running = True
        self._watch(self.udp, 0)

    def close(self) -> None:
        """Read nothing more, and open none."""
        self._running = False
        for udp in (self.udp, *self._left):
            udp.unwatch(self._loop)
            udp.close()
        self._left.clear()

    def change(self) -> bool:
        """Another one is in use from now on; the old one is read for LEFT_S, under the number LEFT. False: none is to be had, and nothing has changed."""
        udp = self.open_other()
        if udp is None:
            return False
        old, self.udp = self.udp, udp
        self._watch(udp, 0)
        old.unwatch(self._loop)
        self._watch(old, LEFT)
        self._left.append(old)
        self._loop.call_later(LEFT_S, self._end, old)
        return True

    def open_beside(self, number: int) -> UdpTransport | None:
        """A socket beside the one in use, watched; the caller unwatches and closes it. None where there is none to be had."""
        udp = self.open_other()
        if udp is not None:
            self._watch(udp, number)
        return udp

    def open_other(self) -> UdpTransport | None:
        """The same, not watched."""
        if self._more is None or not self._running:
            return None
        try:
            return self._more()
        except HostError:
            return None

    def _watch(self, udp: UdpTransport, number: int) -> None:
        udp.watch(self._loop, partial(self._on_udp, number), behind)

    def _end(self, udp: UdpTransport) -> None:
        if udp in self._left:
            self._left.remove(udp)
            udp.unwatch(self._loop)
            udp.close()
