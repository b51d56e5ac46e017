"""A whole server in this process, on a thread and an event loop of its own, for tests that speak to it as outsiders do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from calnet.roles.server.registry import Registry
from calnet.roles.server.server import CalnetServer
from calnet.roles.server.settings import HostPort, ServerSettings
from calnet.roles.server.signin.settings import OidcSettings
from calnet.store.opening import open_store


@dataclass(frozen=True)
class Running:
    """Where it is, and its registry (whose methods may be called on any thread)."""

    url: str
    socket: Path
    registry: Registry


@contextlib.contextmanager
def running(directory: Path, store: str = "kv", *, port: int = 0, oidc: OidcSettings | None = None) -> Iterator[Running]:
    """A server that serves as long as the context."""
    listen = HostPort("127.0.0.1", port)
    settings = ServerSettings(state_dir=directory, listen=listen, stun_listen=HostPort("127.0.0.1", 0), store=store, oidc=oidc)
    registry = Registry(open_store(store, directory), clock=time.time, random=os.urandom)
    started, stop = threading.Event(), asyncio.Event()
    found: list[tuple[asyncio.AbstractEventLoop, str]] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        server = await CalnetServer.start(settings, registry, clock=time.time, random=os.urandom)
        found.append((asyncio.get_running_loop(), server.url))
        started.set()
        await stop.wait()
        await server.stop()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001  told to the test, which fails with it
            failed.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    if failed:
        registry.close()
        raise failed[0]
    try:
        yield Running(found[0][1], directory / "admin.sock", registry)
    finally:
        found[0][0].call_soon_threadsafe(stop.set)
        thread.join()
        registry.close()
