"""A scripted daemon behind a real local socket, and the CLI run against it in this process."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from calnet.errors import CalnetError
from calnet.host.local_socket import LocalRequest, serve_local
from calnet.roles.cli.main import run

Script = dict[str, object]
"""{op: result}; a CalnetError is raised, a list is its events and then its result, a callable is awaited with the request."""


@dataclass
class ScriptedDaemon:
    """What it was asked, in order."""

    socket: Path
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)


@contextmanager
def scripted(directory: Path, script: Script) -> Iterator[ScriptedDaemon]:
    """Serve `script` on a socket in `directory` while the block runs."""
    daemon = ScriptedDaemon(directory / "calnet.sock")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def handle(request: LocalRequest) -> object:
        daemon.asked.append((request.op, request.args))
        answer = script[request.op]
        if callable(answer):
            step: Callable[[LocalRequest], Awaitable[object]] = answer
            return await step(request)
        events, result = (answer[:-1], answer[-1]) if isinstance(answer, list) and request.op in ("up", "login", "ping", "set") else ([], answer)
        for event in events:
            await request.emit(event)
        if isinstance(result, CalnetError):
            raise result
        return result

    server = asyncio.run_coroutine_threadsafe(serve_local(daemon.socket, handle, mode=0o600), loop).result(10)
    try:
        yield daemon
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


class Cli:
    """Runs command lines in this process, with the program's name and an environment without Calnet's variables."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        monkeypatch.setattr(sys, "argv", ["calnet.pyz"])

    def __call__(self, *words: str) -> Outcome:
        self._capsys.readouterr()
        code = run(list(words))
        printed = self._capsys.readouterr()
        return Outcome(code, printed.out, printed.err)
