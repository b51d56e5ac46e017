"""The control plane under many nodes: python -m bench.control [--quick]. A real server on loopback with a /16, and simulated nodes that speak the real
protocol in a process of their own, both on this machine's cores.

For each number of nodes: registrations a second, sustained, and how long until everybody has a netmap; the server's memory for each control session, and with
an idle relay connection; how long one node's change, and another policy, take to reach the others; how long until all are settled that begin at once to connect
to a server that was started again. A node that hears nothing makes it fail. Prints JSON lines, then a table, beside headscale's figures too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.simulated_nodes import HEARD_WITHIN_S, percentile
from bench.table import Row, print_table
from calnet.roles.cli.rest import Rest

ROOT = Path(__file__).resolve().parents[1]
SIZES, QUICK_SIZES = (250, 500, 1000, 2000), (100, 250)
STAGE_S = 180.0
"""The longest that one stage of a measurement may take."""
READY = re.compile(r"calnet server ready: url=(\S+) control-key=(\S+)")
TARGETS = {
    "registrations": 150.0,
    "session_kb": 60.0,
    "relay_kb": 100.0,
    "change_p50_ms": 500.0,
    "change_p99_ms": 1500.0,
    "policy_ms": 1000.0,
    "restart_s": 30.0,
    "list_ms": 50.0,
}

HEADSCALE = {
    "registrations": (52.0, "52"),
    "maps_s": (45.0, "45"),
    "change_p50_ms": (1200.0, "1200-1800"),
    "change_last_ms": (2300.0, "2300"),
    "session_kb": (217.0, "217"),
}
"""headscale 0.26 with SQLite, with HEADSCALE_NODES nodes on a machine of the same size: (the figure to divide by, as it was measured)."""
HEADSCALE_NODES = 1000
AT_LEAST = ("registrations",)
"""Figures of which more is better."""

POLICIES = (
    '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22,443"]}]}',  # every filter is another
    '{"acls": [{"action": "accept", "src": ["10.99.0.0/22"], "dst": ["10.99.0.0/23:*"]}]}',  # half of the nodes lose most of their peers
)


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
            [sys.executable, "-m", "bench.simulated_nodes", *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.asked = word
        self.process.stdin.write(word.encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """Its next line. RuntimeError where it ends, or says nothing within STAGE_S."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], STAGE_S)[0]:
            raise RuntimeError(f"the simulated nodes said nothing for {STAGE_S:.0f} s after {self.asked!r}")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the simulated nodes ended after {self.asked!r}")
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
    change = _told(server, nodes, count, "PATCH", "/nodes/1", {"name": "renamed"})
    policy = [_told(server, nodes, count, "PUT", "/policy", {"text": text})[-1] for text in POLICIES]
    listing = _list_ms(server)
    server.stop()
    server.start()
    cpu = server.cpu()
    back = nodes.ask("reconnect")
    return {
        "registrations": registered["per_s"],
        "maps_s": registered["settled_s"],
        "registering_cpu_s": registering_cpu,
        "session_kb": (with_sessions - empty) / count / 1e3,
        "relay_kb": (with_relay - empty) / count / 1e3,
        "change_p50_ms": percentile(change, 0.5),
        "change_p99_ms": percentile(change, 0.99),
        "change_last_ms": change[-1],
        "policy_ms": max(policy),
        "list_ms": listing,
        "restart_s": back["settled_s"],
        "restart_connected_s": back["connected_s"],
        "restart_attempts": back["attempts"],
        "restart_cpu_s": server.cpu() - cpu,
        "restart_mb": back["bytes"] / 1e6,
    }


def _told(server: ServerProcess, nodes: Nodes, count: int, method: str, path: str, body: dict[str, Any]) -> list[float]:
    """Milliseconds from the request to the arrival of what it changes, which concerns all nodes, at each."""
    nodes.say("watch")
    nodes.answer()
    started = time.monotonic()
    server.rest.send(method, path, body)
    return delays(started, nodes.answer()["times"], count, f"{method} {path}")


def delays(started: float, times: Sequence[float], count: int, what: str) -> list[float]:
    """Milliseconds until each of `count` nodes heard, the longest last. RuntimeError where one did not: those who heard say nothing of it."""
    if len(times) != count:
        raise RuntimeError(f"{count - len(times)} of {count} nodes heard nothing of {what} within {HEARD_WITHIN_S:.0f} s")
    return sorted((at - started) * 1e3 for at in times)


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
    found = []
    for count in QUICK_SIZES if quick else SIZES:
        found.append(measure(count))
        print(json.dumps({"bench": "control", **{name: round(value, 2) for name, value in found[-1].items()}}), flush=True)
    return rows(found)


def rows(found: Sequence[dict[str, float]]) -> list[Row]:
    """The figures of the most nodes against their targets; then those of as many as headscale had, or else of the most without a ratio, beside its own."""
    most = found[-1]
    alike = next((figures for figures in found if figures["nodes"] == HEADSCALE_NODES), None)
    targets = [_row(name, most, target, f"{'≥' if name in AT_LEAST else '≤'} {target:.0f}") for name, target in TARGETS.items()]
    attempts = Row(f"{_what(most)}: attempts until all were back", f"{most['restart_attempts']:.0f}", f"{most['nodes']:.0f} at once", None, True)
    beside = [_row(name, alike or most, their if alike else None, f"headscale, {HEADSCALE_NODES}: {text}") for name, (their, text) in HEADSCALE.items()]
    return [*targets, attempts, *beside]


def _row(name: str, found: dict[str, float], target: float | None, text: str) -> Row:
    value = found[name]
    measured = f"{value:.1f}" if value < 10 else f"{value:.0f}"
    return Row(f"{_what(found)}: {name.replace('_', ' ')}", measured, text, None if target is None else value / target, name not in AT_LEAST)


def _what(found: dict[str, float]) -> str:
    return f"control plane, {found['nodes']:.0f} nodes"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print_table(run(parser.parse_args().quick))
