"""How long commands take, as ratios to bare Python: `calnet.pyz --version` and `status` against `PYTHON -IS -c pass`.

python -m bench.startup [--quick]: the same interpreter by its own path (never a shim in front of it), runs interleaved, minima (what the work costs) and
medians (what this machine made of it). `status` asks a real local socket, whose answer is a status document with 20 peers. Needs no root; needs the
built file (./dev build). Prints one JSON line, then a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.table import Row, print_table
from calnet.errors import HostError
from calnet.host.local_socket import LocalRequest, serve_local

FILE = Path(__file__).resolve().parents[1] / "calnet.pyz"
PYTHON = os.path.realpath(sys.executable)
VERSION_TARGET, STATUS_TARGET = 3.0, 6.0
PEERS = 20
_ROUNDS, _QUICK_ROUNDS = 60, 15


def peer(number: int) -> dict[str, object]:
    """A peer as the status document has it."""
    ips = [f"100.70.0.{number}", f"fd5e:1f2a:9c11::{number:x}"]
    return {"id": number, "name": f"host-{number}", "user": "admin", "os": "linux", "ip": ips[0], "ips": ips, "online": number % 5 != 0} | {
        "last_seen": "2026-01-31T12:00:00Z",
        "path": ("direct", "relay", "none")[number % 3],
        "endpoint": f"203.0.113.{number}:41641" if number % 3 == 0 else None,
        "rtt_ms": 12.25,
        "last_handshake_s": 31.5,
        "rx_bytes": number * 123_456_789,
        "tx_bytes": number * 98_765_432,
        "routes": [],
        "tags": [],
    }


def status() -> dict[str, object]:
    """What a node with PEERS peers answers."""
    own = {"id": 1, "name": "alice", "user": "admin", "os": "linux", "ip": "100.70.0.1", "ips": ["100.70.0.1", "fd5e:1f2a:9c11::1"], "prefix": "100.70.0.0/24"}
    own |= {
        "public_key": "A" * 43 + "=",
        "udp_port": 41234,
        "endpoints": ["198.51.100.7:41234"],
        "tags": [],
        "routes": [],
        "key_expires": "2026-07-01T00:00:00Z",
    }
    server = {"url": "https://calnet.example.org", "connected": True, "last_seen_s": 0.4}
    return {"state": "running", "server": server, "self": own, "peers": [peer(number) for number in range(2, PEERS + 2)], "health": [], "version": "0.1.0"}


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """A local socket at `path` that answers every request with the status document, from a thread with its own event loop."""
    document, ready, done = status(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def answer(_request: LocalRequest) -> object:
        return document

    async def serve() -> None:
        server = await serve_local(path, answer, mode=0o600)
        ready.set()
        await done.wait()
        await server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        if not ready.wait(10):
            raise HostError(f"no local socket at {path}")
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def seconds(command: Sequence[str]) -> float:
    """How long a command takes; HostError if it fails."""
    begun = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    taken = time.perf_counter() - begun
    if done.returncode != 0:
        raise HostError(f"{' '.join(command)} exits with {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return taken


def measure(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round, the commands taking turns. A first round warms the caches and is not counted."""
    figures: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            taken = seconds(command)
            if number:
                figures[name].append(taken)
    return figures


def run(quick: bool) -> list[Row]:
    if not FILE.is_file():
        raise HostError(f"{FILE} is not there: ./dev build")
    calnet = (PYTHON, "-IS", str(FILE))
    with tempfile.TemporaryDirectory(prefix="calnet-bench-") as directory:
        path = Path(directory) / "calnet.sock"
        commands = {"bare": (PYTHON, "-IS", "-c", "pass"), "version": (*calnet, "--version"), "status": (*calnet, "status", "--socket", str(path))}
        with answering(path):
            figures = measure(commands, _QUICK_ROUNDS if quick else _ROUNDS)
    ratios = {
        f"{name}_{kind}": round(of(figures[name]) / of(figures["bare"]), 2)
        for name in ("version", "status")
        for kind, of in (("min", min), ("median", statistics.median))
    }
    milliseconds = {f"{name}_ms": round(min(taken) * 1000, 2) for name, taken in figures.items()}
    print(json.dumps({"bench": "startup", "python": sys.version.split()[0], "rounds": len(figures["bare"]), **ratios, **milliseconds}), flush=True)
    return [
        row(words, ratios[f"{name}_min"], target) for name, words, target in (("version", "--version", VERSION_TARGET), ("status", "status", STATUS_TARGET))
    ]


def row(words: str, ratio: float, target: float) -> Row:
    return Row(f"calnet.pyz {words}, against bare Python", f"{ratio:.2f} ×", f"≤ {target:.0f} ×", ratio / target, True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    print_table(run(parser.parse_args().quick))
    sys.exit(0)
