"""Keeps the machine as it should be: one task that sets up, in its own time, what the daemon wants to stand, and looks again when the network changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from calnet.errors import HostError, StateError
from calnet.model import Netmap
from calnet.roles.node.host_setup import HostSetup

PROBE_S: Final = 60.0
"""Between two looks at firewall and sysctls at least: a large ruleset takes a while to list."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should stand: None in its place is nothing."""

    netmap: Netmap
    accept_routes: bool
    mtu: int
    gso_max_size: int | None
    snat_routes: bool = True


class HostKeeper:
    """See the module's docstring. `wanted()` says what should stand now, `moved()` hears that addresses or gateways changed, `settled(text)` that the machine
    is as wanted (None) or why not. `ready`: what is wanted stands."""

    def __init__(
        self,
        setup: HostSetup,
        *,
        wanted: Callable[[], Wanted | None],
        moved: Callable[[], Awaitable[None]],
        settled: Callable[[str | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._setup, self._wanted, self._moved, self._settled, self._clock = setup, wanted, moved, settled, clock
        self._work = asyncio.Event()
        self._look = True
        self._probed_at = float("-inf")
        self.ready = False

    def again(self) -> None:
        """Something may have to change."""
        self._work.set()

    def network_changed(self) -> None:
        """The machine's interfaces are others now."""
        self._look = True
        self._work.set()

    def down(self) -> None:
        """Nothing is wanted, or all of it anew."""
        self.ready = False
        self._probed_at = float("-inf")

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._once()
                self._settled(None)
            except (HostError, StateError) as error:
                self.ready = False
                self._settled(str(error))

    async def _once(self) -> None:
        if self._look:
            self._look = False
            if await self._setup.look():
                await self._moved()
        wanted = self._wanted()
        if wanted is None:
            await self._setup.clear()
            return
        await self._setup.apply(
            wanted.netmap, accept_routes=wanted.accept_routes, mtu=wanted.mtu, gso_max_size=wanted.gso_max_size, snat_routes=wanted.snat_routes
        )
        self.ready = self._wanted() is not None
        if self._clock() - self._probed_at >= PROBE_S:
            self._probed_at = self._clock()
            await self._setup.probe()
