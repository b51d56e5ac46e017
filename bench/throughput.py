"""TCP through the tunnel on one veth pair: our data path against Debian's wireguard-go, in one run, interleaved.

python -m bench.throughput [--quick] [--rounds N] [--seconds S] [--mtu N]: each round starts each contender at both ends, sends one TCP stream by iperf3, and
prints one JSON line: Mbit/s, CPU seconds a gigabyte (both ends together), resident memory. At the end medians, and their ratios to wireguard-go's. Both
ends and iperf3 share this machine's cores, so the ratios are the result, not the Mbit/s.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass

from bench.table import Row, print_table
from bench.tunnel_lab import OVERLAY, End, Lab, until
from calnet.errors import HostError

TARGET = 2.0
"""TCP one stream, times wireguard-go's."""
CONTENDERS = ("calnet", "wireguard-go")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one contender; `cpu_s_per_gb` of both ends' tunnel programs together, `memory_mb` of the larger one."""

    contender: str
    mtu: int
    mbit_s: float
    retransmits: int
    cpu_s_per_gb: float
    memory_mb: float
    ping_ms: float


def _start(lab: Lab, contender: str) -> tuple[End, End]:
    if contender == "calnet":
        return lab.start_calnet("a"), lab.start_calnet("b")
    for side in "ab":
        lab.endpoint(lab.ends[side], ipv6=False)
    return lab.start_wireguard_go("a"), lab.start_wireguard_go("b")


def measure(lab: Lab, contender: str, seconds: float) -> Measured:
    """Start the contender at both ends, measure, and stop it."""
    one, two = _start(lab, contender)
    try:
        target = OVERLAY["b"][0]
        one.run("ping", "-c", "1", "-W", "5", target)
        ping = one.run("ping", "-q", "-c", "50", "-i", "0.01", target)
        with two.start("iperf3", "-s", "-1") as server:
            until(lambda: ":5201" in two.run("ss", "-Hltn"), "iperf3 listens")
            before = one.cpu_s() + two.cpu_s()
            done = json.loads(one.run("iperf3", "-c", target, "-t", str(seconds), "-O", "1", "-J"))
            used = one.cpu_s() + two.cpu_s() - before
            server.kill()
        received = done["end"]["sum_received"]
        everything = done["end"]["sum_received"]["bytes"] * (seconds + 1) / seconds
        return Measured(
            contender,
            lab.mtu,
            round(received["bits_per_second"] / 1e6, 1),
            done["end"]["sum_sent"]["retransmits"],
            round(used / (everything / 1e9), 2),
            round(max(one.memory_mb(), two.memory_mb()), 1),
            float(ping.rpartition("= ")[2].split("/")[1]),
        )
    finally:
        lab.stop()


def run(quick: bool = False, rounds: int | None = None, seconds: float | None = None, mtu: int = 1280) -> list[Row]:
    """All rounds; a row for the target, and rows for what it costs."""
    missing = [name for name in ("wireguard-go", "wg", "iperf3") if shutil.which(name) is None]
    if missing:
        raise HostError(f"the throughput bench needs {', '.join(missing)} (apt install wireguard-go wireguard-tools iperf3)")
    rounds = rounds or (2 if quick else 5)
    seconds = seconds or (3.0 if quick else 8.0)
    results: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    with Lab(prefix="thr", mtu=mtu) as lab:
        for _ in range(rounds):
            for name in CONTENDERS:
                measured = measure(lab, name, seconds)
                results[name].append(measured)
                print(json.dumps(asdict(measured)), flush=True)
    return _rows(results)


def _rows(results: dict[str, list[Measured]]) -> list[Row]:
    def median(name: str, field: str) -> float:
        return float(statistics.median(getattr(one, field) for one in results[name]))

    ours, theirs = CONTENDERS
    rate = median(ours, "mbit_s") / median(theirs, "mbit_s")
    print(json.dumps({"tcp_ratio": round(rate, 2), "cpu_ratio": round(median(ours, "cpu_s_per_gb") / median(theirs, "cpu_s_per_gb"), 2)}), flush=True)
    rows = [
        Row("TCP, one stream, × wireguard-go (Debian)", f"{rate:.2f} × ({median(ours, 'mbit_s'):.0f} Mbit/s)", f"≥ {TARGET} ×", rate / TARGET, at_most=False)
    ]
    for what, field, unit in (("CPU, both ends", "cpu_s_per_gb", "s/GB"), ("memory of an end", "memory_mb", "MB"), ("ping", "ping_ms", "ms")):
        rows.append(Row(what, f"{median(ours, field):.2f} {unit}", f"wireguard-go: {median(theirs, field):.2f} {unit}", None, at_most=True))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--mtu", type=int, default=1280)
    args = parser.parse_args()
    try:
        print_table(run(args.quick, args.rounds, args.seconds, args.mtu))
    except (HostError, RuntimeError, subprocess.SubprocessError) as failure:
        print(f"bench throughput failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
