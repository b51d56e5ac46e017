"""How soon the first overlay reply comes (by relay), how soon the path is direct, and what the switch loses.

python -m bench.first_packet [--quick]: each run is a fresh internet that takes 20 ms each way, with a server and a pair of port-restricted sites; daemons are
up before the first ping, 20 pings a second. Prints one JSON line a run and one of medians, then a table against the targets.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time

from bench.network import pair
from bench.table import Row, print_table
from calnet.roles.demo import traffic
from calnet.roles.demo.product import eventually

FIRST_REPLY_TARGET_S = 1.0
DIRECT_TARGET_S = 1.5
LATENCY_S = 0.02
_RUNS, _QUICK_RUNS = 20, 3
_AFTER_SWITCH_S = 1.5


def one_run() -> dict[str, float]:
    with pair(LATENCY_S) as made:
        begun = time.monotonic()
        pings = made.alice.host.namespace.task("ping", traffic.ping_stream(made.bob.address(), interval_s=0.05))
        first = traffic.number(pings.next_event(30) or {}, "first_reply_s")
        path = made.alice.path_to("bob")
        eventually(lambda: made.alice.path_to("bob") == "direct", 60, "a direct path", every=0.02)
        direct = time.monotonic() - begun
        end = time.monotonic() + _AFTER_SWITCH_S
        eventually(lambda: time.monotonic() > end, 30)
        report = pings.result()
        return {
            "first_reply_s": round(first, 4),
            "first_by_relay": float(path == "relay"),
            "direct_s": round(direct, 3),
            "pings": traffic.number(report, "sent"),
            "lost": len(traffic.numbers(report, "lost")),
        }


def run(quick: bool) -> list[Row]:
    """Print a JSON line a run and one of medians; return the table's rows."""
    runs = []
    for _ in range(_QUICK_RUNS if quick else _RUNS):
        runs.append(one_run())
        print(json.dumps({"bench": "first_packet", **runs[-1]}), flush=True)
    median = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
    lost = sum(each["lost"] for each in runs)
    print(json.dumps({"bench": "first_packet", "median": median, "runs": len(runs), "lost_in_all": lost}), flush=True)
    return [
        Row(
            "first overlay reply after the first ping, 20 ms apart",
            f"{median['first_reply_s']:.3f} s",
            f"≤ {FIRST_REPLY_TARGET_S:.1f} s",
            median["first_reply_s"] / FIRST_REPLY_TARGET_S,
            True,
        ),
        Row(
            "direct between port-restricted sites, 20 ms apart",
            f"{median['direct_s']:.2f} s",
            f"≤ {DIRECT_TARGET_S} s",
            median["direct_s"] / DIRECT_TARGET_S,
            True,
        ),
        Row("pings lost in the switch, all runs", f"{lost:.0f} of {sum(each['pings'] for each in runs):.0f}", "0", math.inf if lost else 0.0, True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    print_table(run(parser.parse_args().quick))
    sys.exit(0)
