"""All benches in one command: python -m bench [--quick] [--write FILE] [BENCH …], by default all: startup, throughput, exact, first_packet, memory, quiet,
peers, matrix, hard_pairs, recovery, relay, control, policy and simulation.

Each prints its JSON lines as it goes; at the end stands one Markdown table of what was measured against its target. `--write docs/performance.md` puts the
table between the two marker comments there, and throughput's bars to docs/performance.svg. Needs root, ip and nft (except startup, peers, relay, control and
simulation); startup needs the built file, throughput wireguard-go and iperf3.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from pathlib import Path

from bench.table import Row, markdown, print_table
from calnet.errors import CalnetError

BENCHES = (
    *("startup", "throughput", "exact", "first_packet", "memory", "quiet", "peers", "matrix", "hard_pairs"),
    *("recovery", "relay", "control", "policy", "simulation"),
)
QUICK = ("startup", "throughput", "first_packet", "peers", "relay", "simulation")
"""A first look, in less than three minutes."""
BEGIN, END = "<!-- figures: python -m bench --write -->", "<!-- end of figures -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"fewer and shorter runs, by default of {', '.join(QUICK)} alone: a look, not a figure to publish")
    parser.add_argument("bench", nargs="*", choices=[*BENCHES, []], help="which ones (default: all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marker comments of this file")
    args = parser.parse_args()
    rows: list[Row] = []
    failed = False
    for name in args.bench or (QUICK if args.quick else BENCHES):
        print(f"# {name}", flush=True)
        try:
            plot = {"plot": args.write.with_suffix(".svg")} if args.write and name == "throughput" else {}
            rows += importlib.import_module(f"bench.{name}").run(args.quick, **plot)
        except (CalnetError, RuntimeError, OSError) as failure:
            print(f"bench {name} failed: {failure}", file=sys.stderr)
            failed = True
    print_table(rows)
    if args.write and not failed:
        args.write.write_text(with_figures(args.write.read_text(), f"{machine()}\n\n{markdown(rows)}"))
    return 1 if failed else 0


def machine() -> str:
    """What it was measured on, in a line."""
    return f"{os.cpu_count()} cores, Linux {platform.release()}, {platform.machine()}, Python {platform.python_version()}."


def with_figures(document: str, figures: str) -> str:
    """`document` with what stands between the markers replaced. ValueError without markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the file needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
