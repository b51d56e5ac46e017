"""The node's composition root: `calnet node`. Checks what the machine must give, opens the state, serves the local API, runs until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from calnet.errors import HostError, UsageError
from calnet.host.process import no_core_dumps
from calnet.host.service_manager import notify
from calnet.roles.node import log_format

if TYPE_CHECKING:
    from calnet.crypto.batch import NewBatch
    from calnet.roles.node.clocks import Clocks
    from calnet.roles.node.engine import Identity, OpenEngine
    from calnet.roles.node.state import StateDirectory

log = logging.getLogger(__name__)

DEFAULT_STATE_DIR: Final = "/var/lib/calnet"
DEFAULT_SOCKET: Final = "/run/calnet/calnet.sock"
DEFAULT_TUN: Final = "calnet0"
DEFAULT_MTU: Final = 1280
"""At first: it is raised to what paths are found to take (paths/mtu.py)."""
MIN_MTU: Final = 1280
"""IPv6's least (RFC 8200, section 5)."""
MAX_MTU: Final = 9000
SOCKET_MODE: Final = 0o666
"""Open to all local users: the daemon decides by who they are."""
CLOSE_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The flags, checked."""

    state_dir: Path
    socket: Path
    tun: str
    port: int
    mtu: int
    operator: str
    processes: int
    """2: the data path has one of its own."""
    debug: bool


def settings_of(args: Namespace) -> Settings:
    """The settings behind merged flags. UsageError names the flag that can't be."""
    from calnet.host.tun import check_interface_name

    tun = str(getattr(args, "tun", None) or DEFAULT_TUN)
    try:
        check_interface_name(tun)
    except HostError as error:
        raise UsageError(f"--tun: {error}") from None
    return Settings(
        state_dir=Path(getattr(args, "state_dir", None) or DEFAULT_STATE_DIR).absolute(),
        socket=Path(getattr(args, "socket", None) or DEFAULT_SOCKET).absolute(),
        tun=tun,
        port=_number(args, "port", 0, 0, 65_535),
        mtu=_number(args, "mtu", DEFAULT_MTU, MIN_MTU, MAX_MTU),
        operator=str(getattr(args, "operator", None) or ""),
        processes=_number(args, "processes", 1, 1, 2),
        debug=bool(getattr(args, "debug", False)),
    )


def _number(args: Namespace, name: str, default: int, least: int, most: int) -> int:
    value = getattr(args, name, None)
    if value in (None, ""):
        return default
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise UsageError(f"--{name}: {value} is not a whole number from {least} to {most}")
    return number


def run(args: Namespace) -> int:
    """Run the daemon until SIGTERM or SIGINT; 0. CalnetError where it can't run: one line for the user, with its exit code."""
    settings = settings_of(args)
    log_format.set_up(debug=settings.debug)
    os.umask(0o077)
    check_machine()
    no_core_dumps()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, getattr(args, "bundle", None)))


def check_machine(device: Path = Path("/dev/net/tun")) -> None:
    """HostError, with what to do, where this machine can't give a TUN device."""
    from calnet.host.probes import missing_capability

    if not device.exists():
        raise HostError(f"{device} is missing: load the module (modprobe tun); in a container, pass the device in (--device {device})")
    lacking = missing_capability()
    if lacking is not None:
        raise HostError(f"{lacking} is missing: run the daemon as root, or install it (calnet.pyz install node)")


def make_socket_directory(path: Path) -> None:
    """The socket's directory, 0755 whatever the umask, where it is missing."""
    if path.parent.is_dir():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
    except OSError as error:
        raise HostError(f"can't make {path.parent}: {error.strerror}; give another path with --socket") from error


class Bundle(Protocol):
    """The one file that this runs from (roles/cli/bundle.py)."""

    def again(self) -> tuple[str, int]: ...


def _opener(
    settings: Settings, bundle: Bundle | None, directory: StateDirectory, clocks: Clocks, capabilities: tuple[str, ...], new_batch: NewBatch
) -> OpenEngine:
    """What the daemon opens its data path with: here, or in a process of its own (which finds out for itself what it does batches with)."""

    def identity() -> Identity:
        return directory.state.keys.identity()

    if settings.processes == 1:
        from calnet.roles.node.opening import engine_opener

        return engine_opener(
            identity,
            directory.stamps,
            tun=settings.tun,
            mtu=settings.mtu,
            clocks=clocks,
            random=os.urandom,
            capabilities=capabilities,
            new_batch=new_batch,
        )
    from calnet.host.process import self_command
    from calnet.roles.node.own_process.start import Program, process_opener
    from calnet.roles.node.state import STAMPS_FILE

    if bundle is None:
        program = Program(self_command())
    else:
        path, descriptor = bundle.again()
        program = Program((sys.executable, "-IS", path), (descriptor,))
    directory.stamps.close()  # they are the other process's to write, and it alone must have them open
    stamps = directory.path / STAMPS_FILE
    return process_opener(program, identity, stamps, tun=settings.tun, mtu=settings.mtu, capabilities=capabilities, debug=settings.debug)


async def _serve(settings: Settings, bundle: Bundle | None) -> int:
    from calnet.crypto.choice import choose, load_library
    from calnet.host.libraries import batch_libraries
    from calnet.host.local_socket import LocalRequest, serve_local
    from calnet.host.netlink import MARK, KernelNetwork
    from calnet.host.nft import KernelNftables
    from calnet.host.probes import host_name
    from calnet.roles.node.clocks import Clocks
    from calnet.roles.node.daemon import Daemon, Machine
    from calnet.roles.node.host_setup import HostSetup
    from calnet.roles.node.login import Logins
    from calnet.roles.node.operations import Operations
    from calnet.roles.node.reporting import report_health
    from calnet.roles.node.state import StateDirectory
    from calnet.roles.node.underlay import fetch_server_key, websocket_dial
    from calnet.tunnel.capabilities import AES, CHUNKS

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clocks = Clocks(time.time, time.monotonic, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    network, nft = KernelNetwork(), KernelNftables()
    with contextlib.closing(network):
        directory = StateDirectory(settings.state_dir, os.urandom)
        setup = HostSetup(directory, network, nft, nft, settings.tun)
        choice = choose(time.perf_counter, load_library(batch_libraries()))
        log.info("batches %s", " ".join(f"{aead.value}={by.replace(' ', '-')}" for aead, by in choice.by.items()))
        machine = Machine(host_name(), capabilities=(CHUNKS, *((AES,) if choice.aes else ())))
        opener = _opener(settings, bundle, directory, clocks, machine.capabilities, choice.new_batch)
        daemon = Daemon(
            directory,
            setup,
            opener,
            websocket_dial(MARK),
            lambda server: fetch_server_key(server, MARK),
            machine=machine,
            clocks=clocks,
            random=os.urandom,
            fixed_port=settings.port,
            mark=MARK,
        )
        operations = Operations(daemon, Logins(daemon), settings.operator)
        try:
            make_socket_directory(settings.socket)
            started = asyncio.Event()

            async def handle(request: LocalRequest) -> object:
                # The socket is taken first, so that a second daemon stops before it touches anything; requests wait until the daemon stands.
                await started.wait()
                return await operations.handle(request)

            listening = await serve_local(settings.socket, handle, mode=SOCKET_MODE)
            try:
                await daemon.start()
                started.set()
                reporting = asyncio.create_task(report_health(daemon))
                _ready(settings)
                await stop.wait()
                reporting.cancel()
                notify("STOPPING=1")
            finally:
                await listening.close()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await daemon.close()
    return 0


def _ready(settings: Settings) -> None:
    gc.collect()
    gc.freeze()
    print(f"calnet node ready: socket={settings.socket} state-dir={settings.state_dir}", file=sys.stderr, flush=True)
    notify("READY=1")
