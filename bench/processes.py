"""A data path in a process of its own beside one in the daemon's: python -m bench.processes [--rounds N] [--seconds S] [--peers N].

A server and two nodes on one veth pair, the nodes with `--processes 1` and with 2 in turns, in each round in another order: one TCP stream by iperf3 directly
and by relay, CPU seconds a gigabyte, pings through an idle tunnel, and pings at 500 a second while the server pushes one node a netmap with so many more peers,
and then one without them: the longest time without a reply. The peers are registered and offline, so that the server has little else to do.
Needs root, iperf3 and ip.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.disturbance import settle
from bench.tunnel_lab import ROOT, UNDERLAY, End, Lab, until
from calnet.errors import CalnetError, HostError
from calnet.roles.demo.product import ask
from calnet.wire.authkey import parse_auth_key

PROGRAM: Final = (sys.executable, "-B", str(ROOT / "calnet.py"))
URL: Final = f"http://{UNDERLAY['a'][0]}:8080"
USERS: Final = {"a": "anna", "b": "bert"}
APART: Final = '{"acls": [{"action": "accept", "src": ["anna@"], "dst": ["bert@:*"]}]}'
TOGETHER: Final = '{"acls": [{"action": "accept", "src": ["anna@"], "dst": ["bert@:*", "crowd@:*"]}]}'
PUSHES: Final = 3
"""Of each of the two, in a round."""
PING_S: Final = 0.002
PUSHED_S: Final = 2.0
"""A netmap is with the nodes so soon."""
PATIENCE_S: Final = 90.0
PROCESSES: Final = (1, 2)
TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figure:
    """`better` is 1 where more is better, -1 where less is."""

    name: str
    unit: str
    better: int


FIGURES: Final = (
    Figure("TCP, one stream", "Mbit/s", 1),
    Figure("TCP by relay", "Mbit/s", 1),
    Figure("CPU", "s/GB", -1),
    Figure("ping p50", "ms", -1),
    Figure("ping p99", "ms", -1),
    Figure("longest gap, peers come", "ms", -1),
    Figure("longest gap, peers go", "ms", -1),
    Figure("memory of an end", "MB", -1),
)


def family(pid: int) -> list[int]:
    """`pid` and all that it, and they, started."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a family."""
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in family(pid)]
    return sum(int(words[11]) + int(words[12]) for words in fields) / TICK


def memory_mb(pid: int) -> float:
    """What a family holds for itself, and its part of what it shares (PSS)."""
    texts = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in family(pid)]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in texts) / 1024


class Network:
    """The server, and the nodes' daemons as they come and go."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.one, self.two = lab.ends["a"], lab.ends["b"]
        self.server = lab.also(self.one, *PROGRAM, "server", "--state-dir", str(lab.files / "server"), "--url", URL, "--prefix", "100.70.0.0/16")
        until(lambda: self._admin("users", "list").returncode == 0, "the server answers", PATIENCE_S)

    def _admin(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", self.one.space, *PROGRAM, "admin", "--state-dir", str(self.lab.files / "server"), *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def admin(self, *words: str) -> str:
        """A command that has to succeed."""
        done = self._admin(*words)
        if done.returncode:
            raise HostError(f"admin {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def add_crowd(self, count: int) -> None:
        """So many nodes of another user: registered, and gone."""
        for user in (*USERS.values(), "crowd"):
            self.admin("users", "create", user)
        key = self.admin("keys", "create", "--reusable", "--user", "crowd")
        server_key = parse_auth_key(key).server_key
        words = ("-m", "bench.simulated_nodes", "http://127.0.0.1:8080", server_key.hex(), key, str(count))
        with self.one.start(sys.executable, *words) as crowd:
            assert crowd.stdin is not None
            assert crowd.stdout is not None
            crowd.stdin.write("register\n")
            crowd.stdin.flush()
            if not select.select([crowd.stdout], [], [], 3 * PATIENCE_S)[0] or not crowd.stdout.readline():
                crowd.kill()
                raise HostError("the crowd did not register")
            crowd.stdin.write("quit\n")
            crowd.stdin.flush()

    def policy(self, text: str) -> None:
        """Set it; the nodes hear of it on their own."""
        path = self.lab.files / "policy"
        path.write_text(text)
        self.admin("policy", "set", str(path))

    def start(self, processes: int) -> None:
        """Both nodes, up and known to each other by a direct path."""
        for side, end in self.lab.ends.items():
            key = self.admin("keys", "create", "--user", USERS[side])
            place = self.lab.files / side
            words = ("--state-dir", str(place), "--socket", str(self.socket(end)), "--tun", end.device, "--processes", str(processes))
            end.process = end.start(*PROGRAM, "node", *words, quiet=True)
            until(lambda end=end: self.state(end) is not None, "the node answers")  # type: ignore[misc]
            end.run(*PROGRAM, "up", "--socket", str(self.socket(end)), "--server", URL, "--auth-key", "-", "--hostname", side, stdin=key + "\n")
        for end in self.lab.ends.values():
            until(lambda end=end: self.peer(end) is not None, "the nodes know each other")  # type: ignore[misc]
        self.await_path("direct")

    def socket(self, end: End) -> Path:
        return self.lab.files / f"{end.side}.sock"

    def state(self, end: End) -> dict[str, object] | None:
        """Its status document."""
        try:
            found = ask(self.socket(end), "status")
        except CalnetError:
            return None
        return found if isinstance(found, dict) else None

    def peers(self, end: End) -> list[dict[str, object]]:
        found = (self.state(end) or {}).get("peers")
        return found if isinstance(found, list) else []

    def peer(self, end: End) -> dict[str, object] | None:
        """The other end, as this one sees it."""
        return next((peer for peer in self.peers(end) if peer["name"] == self.lab.other(end).side), None)

    def await_path(self, path: str) -> None:
        """Set the path, and ping until it is that."""
        for end in self.lab.ends.values():
            wish = "relay" if path == "relay" else "auto"
            end.run(*PROGRAM, "set", "--socket", str(self.socket(end)), "--path", f"{self.lab.other(end).side}={wish}")
        until(lambda: self.answers() and (self.peer(self.one) or {}).get("path") == path, f"the path is {path}", PATIENCE_S)

    @property
    def target(self) -> str:
        return str((self.peer(self.one) or {}).get("ip"))

    def answers(self) -> bool:
        words = ["ip", "netns", "exec", self.one.space, "ping", "-c1", "-W1", self.target]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def stream(net: Network, seconds: float) -> tuple[float, float]:
    """(Mbit/s of one TCP stream, CPU seconds a gigabyte of both ends)."""
    target, pids = net.target, [end.pid for end in net.lab.ends.values()]
    with net.two.start("iperf3", "-s", "-1", quiet=True) as server:
        try:
            until(lambda: ":5201" in net.two.run("ss", "-Hltn"), "iperf3 listens")
            settle()
            before = sum(map(cpu_s, pids))
            done = json.loads(net.one.run("iperf3", "-c", target, "-J", "-t", f"{seconds:g}", "-C", "cubic"))["end"]["sum_received"]
            used = sum(map(cpu_s, pids)) - before
        finally:
            server.kill()
    return done["bits_per_second"] / 1e6, used / (done["bytes"] / 1e9)


def pings(net: Network) -> tuple[float, float]:
    """(median, 99th percentile) of round trips in ms through an idle tunnel."""
    settle()
    times = sorted(float(text) for text in re.findall(r"time=([\d.]+) ms", net.one.run("ping", "-n", "-c", "300", "-i", "0.01", net.target)))
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def longest_gap(net: Network, policy: str, peers: int) -> float:
    """Milliseconds without a reply, at most, while the node that pings gets to have so many peers."""
    settle()
    words = ("ping", "-n", "-D", "-i", f"{PING_S:g}", net.target)
    with net.one.start(*words) as stream:
        time.sleep(0.5)
        net.policy(policy)
        time.sleep(PUSHED_S)  # asking the daemons meanwhile would be more work for them than the netmap
        stream.terminate()
        said, _ = stream.communicate(timeout=20)
    until(lambda: len(net.peers(net.one)) == peers, f"it has {peers} peers", 1.0)
    at = sorted(float(text) for text in re.findall(r"^\[([\d.]+)\] \d+ bytes from", said, re.MULTILINE))
    if len(at) < 100:
        raise HostError("the pings were not answered")
    return max(later - earlier for earlier, later in itertools.pairwise(at)) * 1000


def measured(net: Network, processes: int, peers: int, seconds: float) -> dict[str, float]:
    """All figures of nodes with so many processes."""
    net.policy(APART)
    net.start(processes)
    found: dict[str, float] = {}
    found["TCP, one stream"], found["CPU"] = stream(net, seconds)
    found["ping p50"], found["ping p99"] = pings(net)
    come, go = [], []
    for _ in range(PUSHES):
        come.append(longest_gap(net, TOGETHER, peers + 1))
        go.append(longest_gap(net, APART, 1))
    found["longest gap, peers come"], found["longest gap, peers go"] = statistics.median(come), statistics.median(go)
    net.await_path("relay")
    found["TCP by relay"], _ = stream(net, seconds)
    found["memory of an end"] = max(memory_mb(end.pid) for end in net.lab.ends.values())
    for end in net.lab.ends.values():
        if end.process is not None:
            end.process.terminate()
            end.process.wait(20)
    return found


def table(results: dict[tuple[int, str], list[float]], rounds: int) -> str:
    """Medians with their ranges, and what the second is of the first."""
    lines = [f"| {rounds} rounds, median (range) | one process | two | two / one |", "| --- | --- | --- | --- |"]
    for figure in FIGURES:
        cells, middles = [], []
        for processes in PROCESSES:
            values = results[processes, figure.name]
            middles.append(statistics.median(values))
            cells.append(f"{middles[-1]:,.2f} ({min(values):,.2f}-{max(values):,.2f})")
        lines.append(f"| {figure.name}, {figure.unit} | {' | '.join(cells)} | {middles[1] / middles[0]:.2f} |")
    return "\n".join(lines)


def run(rounds: int, seconds: float, peers: int) -> str:
    """The table of all rounds."""
    results: dict[tuple[int, str], list[float]] = defaultdict(list)
    with Lab(prefix="prc") as lab:
        net = Network(lab)
        net.add_crowd(peers)
        for number in range(rounds):
            for processes in PROCESSES if number % 2 == 0 else PROCESSES[::-1]:
                found = measured(net, processes, peers, seconds)
                print(json.dumps({"bench": "processes", "round": number, "processes": processes} | {k: round(v, 3) for k, v in found.items()}), flush=True)
                for name, value in found.items():
                    results[processes, name].append(value)
    return table(results, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--peers", type=int, default=1000)
    args = parser.parse_args()
    try:
        print("\n" + run(args.rounds, args.seconds, args.peers))
    except (CalnetError, RuntimeError, TimeoutError, subprocess.SubprocessError) as failure:
        print(f"bench processes failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
