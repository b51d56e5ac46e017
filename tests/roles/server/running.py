"""A whole server in this process, on a thread and an event loop of its own, for tests that speak to it as outsiders do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from calnet.roles.server.registry import Registry
from calnet.roles.server.server import CalnetServer
from calnet.roles.server.settings import HostPort, PublicUrl, ServerSettings
from calnet.roles.server.signin.settings import OidcSettings
from calnet.store.opening import open_store


@dataclass(frozen=True)
class Running:
    """Where it is, and its registry (whose methods may be called on any thread)."""

    url: str
    socket: Path
    registry: Registry
    reload: Callable[..., tuple[str, ...]]
    """Take over these changes of its settings; what is left for a restart."""


@contextlib.contextmanager
def running(directory: Path, store: str = "kv", *, port: int = 0, oidc: OidcSettings | None = None, public_url: PublicUrl | None = None) -> Iterator[Running]:
    """A server that serves as long as the context."""
    listen = HostPort("127.0.0.1", port)
    settings = ServerSettings(state_dir=directory, listen=listen, stun_listen=HostPort("127.0.0.1", 0), store=store, oidc=oidc, url=public_url)
    registry = Registry(open_store(store, directory), clock=time.time, random=os.urandom)
    started, stop = threading.Event(), asyncio.Event()
    found: list[tuple[asyncio.AbstractEventLoop, CalnetServer]] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        server = await CalnetServer.start(settings, registry, clock=time.time, random=os.urandom)
        found.append((asyncio.get_running_loop(), server))
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
    loop, server = found[0]

    def reload(**changes: object) -> tuple[str, ...]:
        async def on_loop() -> tuple[str, ...]:
            return server.reload(replace(settings, **changes))  # type: ignore[arg-type]

        return asyncio.run_coroutine_threadsafe(on_loop(), loop).result(30)

    try:
        yield Running(f"http://127.0.0.1:{server.port}", directory / "admin.sock", registry, reload)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        registry.close()
