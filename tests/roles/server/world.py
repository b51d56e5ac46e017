"""A server in this process, on loopback and ports of the kernel's choice, with a real store; and what tests do with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import uvloop

from calnet.crypto.keys import PrivateKey
from calnet.roles.server.durable import durable
from calnet.roles.server.registry import Registry
from calnet.roles.server.server import CalnetServer
from calnet.roles.server.settings import HostPort, ServerSettings
from calnet.roles.server.timing import Timing
from calnet.store.opening import open_store
from tests.roles.server.client import WAIT_S, ControlClient, Machine
from tests.roles.server.relay_client import RelayClient

LOOPBACK = HostPort("127.0.0.1", 0)


class World:
    """The server, its registry, and short ways to speak to it."""

    def __init__(self, server: CalnetServer, registry: Registry) -> None:
        self.server = server
        self.registry = registry

    @property
    def url(self) -> str:
        """Where the server listens, whatever it calls itself."""
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def key(self) -> bytes:
        """The server's public control key."""
        return self.registry.control_key.public

    def control(self, machine: Machine) -> ControlClient:
        """A control session of this machine, to be entered."""
        return ControlClient(self.url, self.key, machine)

    def relay(self, node_key: PrivateKey) -> RelayClient:
        """A relay connection with this node key, to be entered."""
        return RelayClient(self.url, self.key, node_key)

    async def auth_key(self, *, reusable: bool = True, ephemeral: bool = False, user: str | None = None, tags: tuple[str, ...] = ()) -> str:
        """A pre-auth key."""
        made = await durable(self.registry.create_key(reusable=reusable, ephemeral=ephemeral, user=user, tags=tags))
        key: str = made["key"]
        return key

    async def joined(self, *names: str, user: str | None = None) -> list[Machine]:
        """Machines that are registered and have gone again."""
        key = await self.auth_key(user=user)
        machines = [Machine(name) for name in names]
        for machine in machines:
            async with self.control(machine) as session:
                await session.join(key)
        return machines


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    *,
    timing: Timing | None = None,
    settings: ServerSettings | None = None,
    clock: Callable[[], float] = time.time,
    same_ports: bool = False,
) -> AsyncIterator[World]:
    """A server on `directory` while the context lasts; on the ports of `settings` or of the kernel's choice."""
    registry = Registry(open_store("kv", directory / "state"), clock=clock, random=os.urandom)
    try:
        chosen = replace(settings or ServerSettings(), state_dir=directory / "state")
        if not same_ports:
            chosen = replace(chosen, listen=LOOPBACK, stun_listen=LOOPBACK)
        server = await CalnetServer.start(chosen, registry, clock=clock, random=os.urandom, timing=timing)
        try:
            yield World(server, registry)
        finally:
            await server.stop()
    finally:
        registry.close()


Scenario = Callable[[World], Awaitable[None]]
FAST = Timing(gather_s=0.02)


def in_world(scenario: Scenario) -> Callable[[Path], None]:
    """Makes a test of `async def test_…(world)`: it runs with a fresh server."""
    return in_world_of()(scenario)


def in_world_of(*, timing: Timing = FAST, settings: ServerSettings | None = None) -> Callable[[Scenario], Callable[[Path], None]]:
    """`in_world` with these times or settings."""

    def decorate(scenario: Scenario) -> Callable[[Path], None]:
        def test(tmp_path: Path) -> None:
            async def run() -> None:
                async with running(tmp_path, timing=timing, settings=settings) as world:
                    await scenario(world)

            uvloop.run(run())

        test.__name__ = test.__qualname__ = getattr(scenario, "__name__", "test")
        test.__doc__ = scenario.__doc__
        test.__module__ = scenario.__module__
        return test

    return decorate


async def eventually(holds: Callable[[], object]) -> None:
    """Wait until `holds()` is true; fails after a generous bound."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.005)
