"""How long traffic stays away after each change of network: python -m bench.recovery [--quick]. Real nodes behind real routers, 20 pings a second meanwhile.

Every change is made ten times (--quick: once), in turn, on the same two nodes. Prints a JSON line for each, then a table against the bounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from bench.network import pair
from bench.table import Row, print_table
from calnet.errors import TimedOutError
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.recovery import CHANGES, Change, Recovery, Stage, measure

_ROUNDS, _QUICK_ROUNDS = 10, 1


def run(quick: bool = False) -> list[Row]:
    """Print a JSON line for each change made; return a row for each kind."""
    done: dict[Change, list[Recovery]] = {change: [] for change in CHANGES}
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    with pair() as made:
        cafe = made.lab.site("cafe", NatKind.PORT_RESTRICTED)
        stage = Stage(made.lab, made.server, made.alice, made.bob, made.sites[0], cafe, made.sites[1])
        for _ in range(rounds):
            for change in CHANGES:
                _play(stage, change, done[change])
    return [_row(change, found, rounds) for change, found in done.items()]


def _play(stage: Stage, change: Change, found: list[Recovery]) -> None:
    try:
        result = measure(stage, change)
    except TimedOutError as late:
        print(json.dumps({"bench": "recovery", "change": change.name, "failed": str(late)}), flush=True)
        return
    found.append(result)
    figures = {"seconds": round(result.seconds, 3), "bound_s": change.bound_s, "sent": result.sent, "lost": result.lost, "duplicates": result.duplicates}
    print(json.dumps({"bench": "recovery", "change": change.name, **figures}), flush=True)


def _row(change: Change, found: list[Recovery], rounds: int) -> Row:
    within = sum(result.within for result in found)
    times = sorted(result.seconds for result in found)
    told = f"{within} of {rounds}; median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s" if times else f"0 of {rounds}"
    return Row(f"traffic again after: {change.name}", told, f"{rounds} of {rounds} ≤ {change.bound_s:g} s", within / rounds, False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    print_table(run(parser.parse_args().quick))
    sys.exit(0)
