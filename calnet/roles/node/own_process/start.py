"""Starts the data path's process, and waits until it has opened what it is to carry packets between. See the package."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from calnet.errors import WireError, by_code
from calnet.roles.node.engine import EngineHost, Identity, NotStartedError, OpenEngine
from calnet.roles.node.own_process import messages
from calnet.roles.node.own_process.frames import MESSAGE, FrameReader, message_frame
from calnet.roles.node.own_process.proxy import ProxyEngine, how_it_ended, reaped

WORD: Final = "node-data-path"
"""The command that the child is (roles/cli/commands.py)."""
START_S: Final = 15.0
"""The child takes some 0.4 s; a machine that takes so long is in no state to carry packets."""


@dataclass(frozen=True, slots=True)
class Program:
    """How to start this program again, and the descriptors that it needs for it."""

    command: Sequence[str]
    descriptors: tuple[int, ...] = ()


def process_opener(
    program: Program, identity: Callable[[], Identity], stamps: Path, *, tun: str, mtu: int, capabilities: tuple[str, ...], debug: bool
) -> OpenEngine:
    """What the daemon opens its data path with: waits for the child, some tenths of a second. `stamps` is the file that the child keeps timestamps in."""

    def open_engine(port: int, host: EngineHost) -> ProxyEngine:
        asked = messages.Open(port, tun, mtu, str(stamps), messages.secrets_of(identity()), capabilities, debug)
        connection, process = _started(program)
        reader = FrameReader()
        try:
            opened = _opened(connection, reader, asked, host)
        except (OSError, WireError) as error:
            connection.close()
            raise NotStartedError(f"the data path's process did not start: {_trouble(error, process)}") from None
        except BaseException:
            connection.close()
            reaped(process)
            raise
        connection.setblocking(False)
        return ProxyEngine(process, connection, reader, host, opened)

    return open_engine


def _started(program: Program) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*program.command, WORD, "--fd", str(theirs.fileno())]
        try:
            return ours, subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), *program.descriptors))
        except OSError as error:
            ours.close()
            raise NotStartedError(f"the data path's process can't be started: {error.strerror}") from error


def _opened(connection: socket.socket, reader: FrameReader, asked: messages.Open, host: EngineHost) -> messages.Opened:
    """Ask, and wait for the answer. Raises what the child met; OSError or WireError where it does not answer."""
    connection.settimeout(START_S)
    connection.sendall(message_frame(messages.encode(asked)))
    while count := connection.recv_into(reader.room()):
        reader.filled(count)
        for kind, body in reader.frames():
            said = messages.decode_from_data_path(body) if kind == MESSAGE else None
            if isinstance(said, messages.Health):
                host.health(said.code, said.text)
            elif isinstance(said, messages.Failed):
                raise by_code(said.code, said.text)
            elif isinstance(said, messages.Opened):
                return said
    raise ConnectionError


def _trouble(error: OSError | WireError, process: subprocess.Popen[bytes]) -> str:
    if isinstance(error, TimeoutError):
        process.kill()
        process.wait()
        return f"it said nothing for {START_S:.0f} s"
    code = reaped(process)
    return str(error) if isinstance(error, WireError) else f"it {how_it_ended(code)}"
