"""Our data path beside what Debian ships, on one veth pair, in one run, interleaved: python -m bench.throughput [--quick] [--rounds N] [--seconds S]
[--mtu N] [--only NAME …] [--peer NAME=PROGRAM …].

Each round starts each contender (bench/contenders.py) at both ends and measures: TCP by iperf3, cubic for all, one stream and four, both ways, without
offloads on the wire, and with every hundredth packet lost (bbr for all: under cubic the loss alone decides); UDP of 1,200 bytes as fast as it will go, and of
64 bytes at the highest rate that loses none; ping, idle and beside a stream; CPU seconds a gigabyte and memory of the tunnel's programs; the time from start
to first reply. JSON lines as it goes; at the end a table of medians with their range, and the ratios to Debian's wireguard-go. Both ends and iperf3 share this
machine's cores, so the ratios are the result, not the Mbit/s. What the host of a virtual machine disturbed (steal) is measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.bars import Panel, bars
from bench.contenders import ANCHOR, CONTENDERS, Contender, named
from bench.disturbance import Watch, settle
from bench.table import Found, Row, print_table
from bench.tunnel_lab import Lab, until
from calnet.errors import CalnetError, HostError

MTU: Final = 1420
QUICK: Final = ("calnet", "calnet AES", ANCHOR, "fastd")
LOST_AT_MOST: Final = 0.001
"""Of 64-byte datagrams, for a rate to count as one that loses none: iperf3's first ones are sometimes lost by any tunnel."""
RATE_STEPS: Final = 6
LOWEST_PPS, HIGHEST_PPS = 2_000, 160_000
AGAIN: Final = 2
"""A disturbed measurement is made again so often."""


@dataclass(frozen=True, slots=True)
class Test:
    """One figure. `better` is 1 where more is better, -1 where less is; `quick`: part of a first look."""

    name: str
    unit: str
    better: int
    quick: bool = False


TESTS: Final = (
    Test("TCP, one stream", "Mbit/s", 1, quick=True),
    Test("TCP, one stream back", "Mbit/s", 1),
    Test("TCP, four streams", "Mbit/s", 1),
    Test("TCP, no offloads on the wire", "Mbit/s", 1),
    Test("TCP at 1 % loss", "Mbit/s", 1),
    Test("UDP 1,200 bytes", "Mbit/s", 1, quick=True),
    Test("UDP 64 bytes, lossless", "packets/s", 1),
    Test("UDP 64 bytes, flood", "packets/s", 1),
    Test("ping p50", "ms", -1, quick=True),
    Test("ping p99", "ms", -1, quick=True),
    Test("ping p99.9", "ms", -1),
    Test("ping beside a stream, p50", "ms", -1),
    Test("ping beside a stream, p99", "ms", -1),
    Test("CPU", "s/GB", -1, quick=True),
    Test("memory of an end", "MB", -1, quick=True),
    Test("start to first reply", "s", -1, quick=True),
)
_WHATEVER_CIPHER: Final = (
    ("TCP, four streams", 6.0),
    ("TCP, no offloads on the wire", 2.5),
    ("TCP at 1 % loss", 2.5),
    ("UDP 64 bytes, lossless", 1.3),
    ("UDP 1,200 bytes", 2.5),
    ("ping p50", 1.0),
    ("ping p99", 0.5),
    ("CPU", 0.16),
)
"""Targets that name no cipher, shown for both: nodes choose AES-256-GCM where both have fast hardware for it."""
TARGETS: Final = (
    ("calnet", "TCP, one stream", 6.0),
    ("calnet AES", "TCP, one stream", 7.0),
    *((who, what, ratio) for what, ratio in _WHATEVER_CIPHER for who in ("calnet", "calnet AES")),
    ("calnet to wireguard-go", "TCP, one stream", 1.2),
    ("calnet by relay", "TCP, one stream", 1.0),
)
"""(who, what, ratio to the anchor's that it must reach)."""
PLOTTED: Final = ("TCP, one stream", "UDP 1,200 bytes", "TCP, four streams", "TCP, no offloads on the wire", "UDP 64 bytes, lossless", "CPU")
NOT_PLOTTED: Final = "no tunnel"
"""Beside the bare wire all bars would be short."""

Results = dict[tuple[str, str], list[float]]


class Measuring:
    """One contender, running, and the figures that are taken of it."""

    def __init__(self, lab: Lab, contender: Contender, seconds: float, quick: bool) -> None:
        self.lab, self.contender, self.seconds, self.quick = lab, contender, seconds, quick
        self.one, self.two = lab.ends["a"], lab.ends["b"]
        self.found: dict[str, float] = {}
        self._gigabytes = 0.0

    def run(self) -> dict[str, float]:
        """All figures, by the tests' names."""
        start = time.monotonic()
        self.contender.start(self.lab)
        until(self._answers, f"{self.contender.name} carries a ping")
        if self.one.process is not None:
            self.found["start to first reply"] = time.monotonic() - start
        self._pings(("ping p50", "ping p99", "ping p99.9"), 300)
        self._stream()
        self.found["UDP 1,200 bytes"] = self._undisturbed(lambda: self._udp(1200, 0)[0] * 1200 * 8 / 1e6)
        if not self.quick:
            self.found["TCP, one stream back"] = self._undisturbed(lambda: self._tcp("-R"))
            self.found["TCP, four streams"] = self._undisturbed(lambda: self._tcp("-P", "4"))
            self.found["UDP 64 bytes, flood"] = self._undisturbed(lambda: self._udp(64, 0)[0])
            self.found["UDP 64 bytes, lossless"] = self._lossless()
            self._beside_a_stream()
            with self.lab.without_offloads():
                self.found["TCP, no offloads on the wire"] = self._undisturbed(self._tcp)
                with self.lab.losing(1):
                    self.found["TCP at 1 % loss"] = self._undisturbed(lambda: self._tcp(control="bbr"))
        if self.one.process is not None:
            self.found["memory of an end"] = max(self.one.memory_mb(), self.two.memory_mb())
        return self.found

    def _answers(self) -> bool:
        words = ["ip", "netns", "exec", self.one.space, "ping", "-c1", "-W1", self.contender.target]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def _undisturbed(self, measure: Callable[[], float]) -> float:
        """The figure of a run that nothing disturbed, or the best of those that there were."""
        figures = []
        for _ in range(AGAIN + 1):
            settle()
            with Watch() as watch:
                figures.append(measure())
            if not watch.disturbed:
                return figures[-1]
        return max(figures)

    def _stream(self) -> None:
        """One TCP stream, and what its gigabytes cost."""
        ends = [end for end in (self.one, self.two) if end.process is not None]
        best = 0.0
        for _ in range(AGAIN + 1):
            settle()
            before = sum(end.cpu_s() for end in ends)
            with Watch() as watch:
                rate = self._tcp()
            used = sum(end.cpu_s() for end in ends) - before
            if rate > best:
                best = rate
                self.found["TCP, one stream"] = rate
                if ends:
                    self.found["CPU"] = used / self._gigabytes
            if not watch.disturbed:
                return

    def _tcp(self, *words: str, control: str = "cubic") -> float:
        received = self._iperf("-t", f"{self.seconds:g}", "-C", control, *words)["end"]["sum_received"]
        self._gigabytes = received["bytes"] / 1e9
        return float(received["bits_per_second"]) / 1e6

    def _udp(self, size: int, rate: float, seconds: float | None = None) -> tuple[float, float]:
        """(datagrams a second that arrived, part that was lost); `rate` is in bits a second, 0 for as fast as it will go."""
        done = self._iperf("-u", "-l", str(size), "-b", f"{rate:.0f}", "-w", "4M", "-t", f"{seconds or self.seconds:g}")
        total = done["end"]["sum"]
        arrived = total["packets"] - total["lost_packets"]
        return arrived / total["seconds"], total["lost_packets"] / max(1, total["packets"])

    def _lossless(self) -> float:
        """The highest rate of 64-byte datagrams, by halves, that arrives whole. A rate has two tries: a host that stands still for some milliseconds makes any
        tunnel lose some."""
        low, high, best = LOWEST_PPS, HIGHEST_PPS, 0.0
        for _ in range(RATE_STEPS):
            rate = (low * high) ** 0.5
            arrived, lost = self._udp(64, rate * 64 * 8, seconds=1.5)
            if lost > LOST_AT_MOST:
                arrived, lost = self._udp(64, rate * 64 * 8, seconds=1.5)
            if lost <= LOST_AT_MOST and arrived >= 0.97 * rate:
                low, best = int(rate), max(best, arrived)
            elif lost <= LOST_AT_MOST:
                return max(best, arrived)  # the sender gives no more
            else:
                high = int(rate)
        return best

    def _iperf(self, *words: str) -> dict:  # type: ignore[type-arg]
        with self.two.start("iperf3", "-s", "-1", quiet=True) as server:
            try:
                until(lambda: ":5201" in self.two.run("ss", "-Hltn"), "iperf3 listens")
                done = json.loads(self.one.run("iperf3", "-c", self.contender.target, "-J", *words))
            finally:
                server.kill()
        if "error" in done:
            raise HostError(f"iperf3: {done['error']}")
        return dict(done)

    def _pings(self, names: Sequence[str], count: int) -> None:
        times = self._undisturbed_pings(count)
        for name, part in zip(names, (0.5, 0.99, 0.999), strict=False):
            self.found[name] = times[min(len(times) - 1, int(part * len(times)))]

    def _undisturbed_pings(self, count: int) -> list[float]:
        for _ in range(AGAIN + 1):
            settle()
            with Watch() as watch:
                times = _times(self.one.run("ping", "-n", "-c", str(count), "-i", "0.01", self.contender.target))
            if not watch.disturbed:
                break
        return times

    def _beside_a_stream(self) -> None:
        """Pings while one stream flows."""
        with self.two.start("iperf3", "-s", "-1", quiet=True) as server:
            try:
                until(lambda: ":5201" in self.two.run("ss", "-Hltn"), "iperf3 listens")
                with self.one.start("iperf3", "-c", self.contender.target, "-t", "4", "-C", "cubic", quiet=True) as stream:
                    time.sleep(1)
                    times = _times(self.one.run("ping", "-n", "-c", "200", "-i", "0.01", self.contender.target))
                    stream.wait(20)
            finally:
                server.kill()
        self.found["ping beside a stream, p50"] = times[len(times) // 2]
        self.found["ping beside a stream, p99"] = times[min(len(times) - 1, int(0.99 * len(times)))]


def _times(output: str) -> list[float]:
    times = sorted(float(text) for text in re.findall(r"time=([\d.]+) ms", output))
    if not times:
        raise HostError("no ping was answered")
    return times


def run(
    quick: bool = False, rounds: int | None = None, seconds: float | None = None, mtu: int = MTU, only: Sequence[str] = (), peers: Sequence[str] = ()
) -> Found:
    """All rounds; a row for each target, and table and plot of everything."""
    chosen = [*CONTENDERS, *named(peers)]
    wanted = set(only) | {ANCHOR} if only else set(QUICK) if quick else {one.name for one in chosen}
    if unknown := wanted - {one.name for one in chosen}:
        raise HostError(f"no contender is called {', '.join(sorted(unknown))}; there are: {', '.join(one.name for one in chosen)}")
    chosen = [one for one in chosen if one.name in wanted or one.name in {word.partition("=")[0] for word in peers}]
    missing = sorted({program for one in chosen for program in one.missing()})
    if missing:
        raise HostError(f"the throughput bench needs {', '.join(missing)} (./dev bench installs what Debian has of them; or --only what is here)")
    rounds, seconds = rounds or (2 if quick else 5), seconds or (2.0 if quick else 4.0)
    results: Results = defaultdict(list)
    with Lab(prefix="thr", mtu=mtu) as lab:
        for number in range(rounds):
            for one in chosen:
                try:
                    found = Measuring(lab, one, seconds, quick).run()
                finally:
                    lab.stop()
                figures = {name: round(value, 3) for name, value in found.items()}
                print(json.dumps({"bench": "throughput", "round": number, "contender": one.name, "mtu": mtu, **figures}), flush=True)
                for name, value in found.items():
                    results[one.name, name].append(value)
    names = [one.name for one in chosen]
    everything = table(results, names, quick, f"{rounds} rounds of {seconds:g} s, median (range)")
    print("\n" + everything, flush=True)
    return Found(rows(results), everything, plot(results, names))


def table(results: Results, names: Sequence[str], quick: bool, title: str) -> str:
    """Everything, as Markdown: medians, with the range in brackets."""
    tests = [test for test in TESTS if test.quick or not quick]
    lines = [f"| {title} | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for test in tests:
        cells = [_cell(results.get((name, test.name), [])) for name in names]
        lines.append(f"| {test.name}, {test.unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: Results, names: Sequence[str]) -> str:
    """The contenders beside each other in those of PLOTTED that were measured, as SVG; nothing where none was."""
    panels = []
    for test in sorted((test for test in TESTS if test.name in PLOTTED), key=lambda test: PLOTTED.index(test.name)):
        measured = [(name, results[name, test.name]) for name in names if name != NOT_PLOTTED and results.get((name, test.name))]
        if measured:
            panels.append(Panel(f"{test.name}, {test.unit}{'' if test.better > 0 else ' (less is better)'}", measured))
    return bars(panels) if panels else ""


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    digits = 0 if statistics.median(values) >= 100 else 2
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})" if len(values) > 1 else middle


def rows(results: Results) -> list[Row]:
    """A row for each target that was measured."""
    made = []
    better = {test.name: test.better for test in TESTS}
    for who, what, target in TARGETS:
        ours, anchor = results.get((who, what)), results.get((ANCHOR, what))
        if not ours or not anchor:
            continue
        ratio = statistics.median(ours) / statistics.median(anchor)
        at_most = better[what] < 0
        sign = "≤" if at_most else "≥"
        made.append(Row(f"{what}: {who} × wireguard-go (Debian)", f"{ratio:.2f} ×", f"{sign} {target:g} ×", ratio / target, at_most=at_most))
    bare = results.get(("no tunnel", "TCP, one stream"))
    if bare and results.get(("calnet", "TCP, one stream")):
        part = statistics.median(results["calnet", "TCP, one stream"]) / statistics.median(bare)
        made.append(Row("TCP, one stream: calnet × no tunnel", f"{part:.2f} ×", "≥ 0.25 × (goal)", part / 0.25, at_most=False))
    if memory := results.get(("calnet", "memory of an end")):
        made.append(Row("memory of an end, after load", f"{max(memory):.0f} MB", "≤ 70 MB", max(memory) / 70, at_most=True))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer contenders, tests and rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--mtu", type=int, default=MTU)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this contender, and Debian's wireguard-go (may be given again)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PROGRAM", help="another build of wireguard-go or nebula (may be given again)")
    args = parser.parse_args()
    try:
        print_table(run(args.quick, args.rounds, args.seconds, args.mtu, args.only, args.peer).rows)
    except (CalnetError, RuntimeError, subprocess.SubprocessError) as failure:
        print(f"bench throughput failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
