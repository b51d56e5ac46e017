"""Random networks with random lives in the simulator, thousands of them: python -m bench.simulation [--quick] [--first SEED] [--runs N].

For each seed that breaks a promise, its story; then how many broke one, and how many lives a minute this machine plays.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time

from bench.table import Row, print_table
from calnet.sim.scenario import Findings, play

RUNS, QUICK_RUNS = 4000, 300
TARGET_PER_MINUTE = 300.0


def run(quick: bool, *, first: int = 10_000, runs: int | None = None) -> list[Row]:
    """JSON lines of what broke, and the table's rows. Other seeds than the tests' own."""
    runs = runs or (QUICK_RUNS if quick else RUNS)
    cores = os.cpu_count() or 1
    started = time.monotonic()
    wrong = pairs = direct = 0
    with multiprocessing.Pool(cores) as pool:
        for found in pool.imap_unordered(play, range(first, first + runs), chunksize=10):
            pairs, direct = pairs + found.pairs, direct + found.direct
            wrong += _told(found)
    minutes = (time.monotonic() - started) / 60
    figures = {"bench": "simulation", "runs": runs, "wrong": wrong, "pairs": pairs, "direct": direct, "per_minute": round(runs / minutes), "cores": cores}
    print(json.dumps(figures), flush=True)
    kept, each = 100 * (runs - wrong) / runs, runs / minutes
    return [
        Row("simulated lives a minute", f"{each:.0f}", f"≥ {TARGET_PER_MINUTE:.0f}", each / TARGET_PER_MINUTE, False),
        Row(f"simulated lives that keep every promise, of {runs}", f"{kept:.2f} %", "≥ 99 %", kept / 99, False),
    ]


def _told(found: Findings) -> bool:
    if found.wrong:
        print(json.dumps({"bench": "simulation", "seed": found.seed, "wrong": found.wrong, "story": found.story}), flush=True)
    return bool(found.wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--first", type=int, default=10_000)
    parser.add_argument("--runs", type=int)
    args = parser.parse_args()
    print_table(run(args.quick, first=args.first, runs=args.runs))
