"""The server's composition root: settings, store, registry, event loop, signals, the ready line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from calnet.crypto.keys import encode_key
from calnet.errors import CalnetError
from calnet.host.service_manager import notify
from calnet.roles.server.settings import ServerSettings, settings_of

if TYPE_CHECKING:  # loaded once the settings are known to be right
    from calnet.roles.server.registry import Registry
    from calnet.roles.server.server import CalnetServer

log = logging.getLogger(__name__)

Reread = Callable[[], Namespace]
SWITCH_S: Final = 0.0005
"""How long a thread may wait for the interpreter: the writer gives it away at each touch of the store, and got it back after the default 5 ms."""


def run(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `args` are the merged flags; `args.reread`, where the caller gives it, returns them read anew (SIGHUP).

    CalnetError where the server can't start: one line for the user, with its exit code.
    """
    logging.basicConfig(level=logging.DEBUG if getattr(args, "debug", False) else logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of every malformed request
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    settings = settings_of(args)
    if getattr(args, "verb", None) == "check":
        from calnet.roles.server.checking import run_check

        return run_check(settings, as_json=bool(args.json))
    import uvloop

    from calnet.roles.server.listeners import raise_descriptor_limit
    from calnet.roles.server.registry import Registry
    from calnet.store.opening import open_store

    os.umask(0o077)
    raise_descriptor_limit()
    sys.setswitchinterval(SWITCH_S)
    registry = Registry(open_store(settings.store, settings.state_dir), clock=time.time, random=os.urandom, prefix=settings.prefix)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, registry, getattr(args, "reread", None)))
    finally:
        registry.close()
    return 0


async def _serve(settings: ServerSettings, registry: Registry, reread: Reread | None) -> None:
    from calnet.roles.server.server import CalnetServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await CalnetServer.start(settings, registry, clock=time.time, random=os.urandom)
    loop.add_signal_handler(signal.SIGHUP, _reload, server, reread)
    print(f"calnet server ready: url={server.url} control-key={encode_key(server.registry.control_key.public)}", file=sys.stderr, flush=True)
    notify("READY=1")
    await stop.wait()
    notify("STOPPING=1")
    await server.stop()


def _reload(server: CalnetServer, reread: Reread | None) -> None:
    try:
        left = server.reload(server.settings if reread is None else settings_of(reread()))
    except CalnetError as error:
        log.error("configuration_not_reloaded reason=%s", error)
        return
    log.info("configuration_reloaded needs_restart=%s", ",".join(left) or "nothing")
