"""Servers as processes of their own, started with the product's own words, as people start them."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.zipapp import ROOT, environment, run

CHECKOUT = (sys.executable, str(ROOT / "calnet.py"))
"""The program as it stands in the checkout."""
READY = re.compile(r"^calnet server ready: url=(\S+) control-key=(\S+)$", re.MULTILINE)
WAIT_S = 60.0
LOOPBACK = "127.0.0.1:0"


@dataclass(frozen=True)
class ServerProcess:
    """A server that got ready."""

    program: Sequence[str]
    state: Path
    process: subprocess.Popen[bytes]
    url: str
    control_key: str
    """Base64, as the ready line has it."""

    def admin(self, *words: str) -> str:
        """What `calnet admin` prints, asked over this server's socket."""
        done = run(*self.program, "admin", "--state-dir", str(self.state), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


def server_words(state: Path, store: str) -> tuple[str, ...]:
    """The words that start a server on loopback, on ports that are free."""
    return ("server", "--store", store, "--state-dir", str(state), "--listen", LOOPBACK, "--stun-listen", LOOPBACK)


@contextlib.contextmanager
def server_process(state: Path, store: str, program: Sequence[str] = CHECKOUT) -> Iterator[ServerProcess]:
    """A server that lives as long as the context, unless it is killed before."""
    said = state.with_suffix(".stderr")
    with said.open("wb") as output:
        process = subprocess.Popen([*program, *server_words(state, store)], env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        until = time.monotonic() + WAIT_S
        while (ready := READY.search(said.read_text())) is None:
            assert process.poll() is None, f"it ended: {said.read_text()}"
            assert time.monotonic() < until, f"it did not get ready: {said.read_text()}"
            time.sleep(0.05)
        yield ServerProcess(program, state, process, ready[1], ready[2])
    finally:
        process.kill()
        process.wait()
