"""The netmap on disk, for a start without the server: written off the loop after each change, with the endpoints that worked last put first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from calnet.errors import StateError
from calnet.model import Endpoint, Netmap, NodeId
from calnet.roles.node.state import StateDirectory

PAUSE_S: Final = 1.0
"""Between two writes at least: a burst of changes is one write."""


class NetmapKeeper:
    """See the module's docstring. `report(text)` hears that it can't be written, or None that it can again."""

    def __init__(self, directory: StateDirectory, report: Callable[[str | None], None]) -> None:
        self._directory, self._report = directory, report
        self._netmap: Netmap | None = None
        self._working: dict[NodeId, Endpoint] = {}
        self._work = asyncio.Event()
        self._begun = False
        """A thread was asked to write, and has not said that it did."""
        self._writing = threading.Lock()

    def keep(self, netmap: Netmap) -> None:
        """`netmap` is the one to keep from now on."""
        self._netmap = netmap
        self._work.set()

    def worked(self, peer: NodeId, endpoint: Endpoint) -> None:
        """Data reaches the peer at `endpoint`."""
        if self._working.get(peer) != endpoint:
            self._working[peer] = endpoint
            self._work.set()

    def forget(self) -> None:
        """None is to be kept, on disk either. StateError where that can't be."""
        self._netmap = None
        self._working.clear()
        self._work.clear()
        with self._writing:
            self._directory.save_netmap(None)

    async def run(self) -> None:
        """Write whenever there is something to write, until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            netmap = self._present()
            if netmap is not None:
                self._begun = True
                try:
                    await asyncio.to_thread(self._write, netmap)
                    self._report(None)
                except StateError as error:
                    self._report(str(error))
                self._begun = False
            await asyncio.sleep(PAUSE_S)

    def write_now(self) -> None:
        """What is not written yet. StateError where it can't be."""
        netmap = self._present()
        if (self._work.is_set() or self._begun) and netmap is not None:
            self._write(netmap)

    def _write(self, netmap: Netmap) -> None:
        with self._writing:
            if self._netmap is not None:  # else forgotten meanwhile: it must not come back
                self._directory.save_netmap(netmap)

    def _present(self) -> Netmap | None:
        if self._netmap is None or not self._working:
            return self._netmap
        peers = tuple(replace(peer, endpoints=_first(self._working.get(peer.id), peer.endpoints)) for peer in self._netmap.peers)
        return replace(self._netmap, peers=peers)


def _first(known: Endpoint | None, published: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """The endpoint that worked last before the others."""
    return published if known is None else (known, *(endpoint for endpoint in published if endpoint != known))
