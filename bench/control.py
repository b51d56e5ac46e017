"""The control plane under many nodes: python -m bench.control [--quick]. A real server on loopback with a /16, and simulated nodes that speak the real
protocol in a process of their own, both on this machine's cores.

For each number of nodes: registrations a second, sustained; the server's memory for each control session, and with an idle relay connection; how long one
node's change takes to reach the others; how long until all are settled after the server was started again. Prints JSON lines, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.simulated_nodes import percentile
from bench.table import Row, print_table
from calnet.roles.cli.rest import Rest

ROOT = Path(__file__).resolve().parents[1]
SIZES, QUICK_SIZES = (250, 500, 1000, 2000), (100, 250)
READY = re.compile(r"calnet server ready: url=(\S+) control-key=(\S+)")
TARGETS = {"registrations": 150.0, "session_kb": 60.0, "relay_kb": 100.0, "change_p50_ms": 500.0, "change_p99_ms": 1500.0, "restart_s": 30.0, "list_ms": 50.0}


class ServerProcess:
    """A server, by its state directory and port; `start` again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.rest = Rest(socket_path=str(directory / "admin.sock"))

    def start(self) -> None:
        listen = ["--listen", f"127.0.0.1:{self.port}", "--stun-listen", "127.0.0.1:0", "--prefix", "10.99.0.0/16"]
        command = [sys.executable, str(ROOT / "calnet.py"), "server", "--state-dir", str(self.directory), *listen]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := READY.search(line):
                self.url, self.key = found[1], found[2]
                return
        raise RuntimeError("the server did not start")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def memory(self) -> float:
        """Resident bytes."""
        return float(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Nodes:
    """The process of simulated nodes."""

    def __init__(self, server: ServerProcess, count: int) -> None:
        import base64

        key = str(server.rest.send("POST", "/keys", {"reusable": True})["key"])
        words = [server.url, base64.b64decode(server.key).hex(), key, str(count)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.simulated_nodes", *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the simulated nodes ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, word: str) -> dict[str, Any]:
        self.say(word)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def measure(count: int) -> dict[str, float]:
    """All figures with so many nodes."""
    with tempfile.TemporaryDirectory(prefix="calnet-bench-") as directory, _running(ServerProcess(Path(directory) / "state")) as server:
        nodes = Nodes(server, count)
        try:
            return {"nodes": count, **_figures(server, nodes, count)}
        finally:
            nodes.close()


def _figures(server: ServerProcess, nodes: Nodes, count: int) -> dict[str, float]:
    empty, cpu = server.memory(), server.cpu()
    registered = nodes.ask("register")
    registering_cpu = server.cpu() - cpu
    with_sessions = server.memory()
    nodes.ask("relay")
    time.sleep(1)
    with_relay = server.memory()
    p50, p99 = _change(server, nodes)
    listing = _list_ms(server)
    server.stop()
    nodes.say("reconnect")
    server.start()
    cpu = server.cpu()
    back = nodes.answer()
    return {
        "registrations": registered["per_s"],
        "registering_cpu_s": registering_cpu,
        "session_kb": (with_sessions - empty) / count / 1e3,
        "relay_kb": (with_relay - empty) / count / 1e3,
        "change_p50_ms": p50,
        "change_p99_ms": p99,
        "list_ms": listing,
        "restart_s": back["settled_s"],
        "restart_cpu_s": server.cpu() - cpu,
        "restart_mb": back["bytes"] / 1e6,
    }


def _change(server: ServerProcess, nodes: Nodes) -> tuple[float, float]:
    """Milliseconds from the request that renames a node to its arrival at the others, median and 99th percentile."""
    nodes.say("watch")
    nodes.answer()
    started = time.monotonic()
    server.rest.send("PATCH", "/nodes/1", {"name": "renamed"})
    times = [(at - started) * 1e3 for at in nodes.answer()["times"]]
    return percentile(times, 0.5), percentile(times, 0.99)


def _list_ms(server: ServerProcess) -> float:
    """The REST list of up to 1,000 nodes, the quickest of five."""
    took = []
    for _ in range(5):
        started = time.monotonic()
        server.rest.get("/nodes", limit=1000)
        took.append((time.monotonic() - started) * 1e3)
    return min(took)


@contextlib.contextmanager
def _running(server: ServerProcess) -> Iterator[ServerProcess]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def run(quick: bool) -> list[Row]:
    """The figures of each size as JSON lines; rows for the largest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    found: dict[str, float] = {}
    for count in QUICK_SIZES if quick else SIZES:
        found = measure(count)
        print(json.dumps({"bench": "control", **{name: round(value, 2) for name, value in found.items()}}), flush=True)
    return [_row(name, target, found) for name, target in TARGETS.items()]


def _row(name: str, target: float, found: dict[str, float]) -> Row:
    value = found[name]
    most = name != "registrations"
    what = f"control plane, {found['nodes']:.0f} nodes: {name.replace('_', ' ')}"
    return Row(what, f"{value:.0f}", f"{'≤' if most else '≥'} {target:.0f}", value / target if most else target / value, True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print_table(run(parser.parse_args().quick))
