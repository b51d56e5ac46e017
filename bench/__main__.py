"""All benches in one command: python -m bench [--quick] [--write FILE] [BENCH …], by default all: startup, throughput, handshakes, peers, exact, first_packet,
memory, quiet, matrix, hard_pairs, recovery, relay, processes, control,
policy and simulation.

Each prints its JSON lines as it goes; at the end stands one Markdown table of what was measured against its target. `--write docs/performance.md` puts the
tables between the two marker comments there, and a plot into docs/performance.svg if throughput was measured. Needs root, ip and nft (except startup, relay,
control and simulation); startup needs the built file, throughput wireguard-go and iperf3, handshakes and peers wireguard-go.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.table import Found, markdown, print_table
from calnet.errors import CalnetError

BENCHES = (
    "startup",
    "throughput",
    "handshakes",
    "peers",
    "exact",
    "first_packet",
    "memory",
    "quiet",
    "matrix",
    "hard_pairs",
    "recovery",
    "relay",
    "processes",
    "control",
    "policy",
    "simulation",
)
QUICK = ("startup", "throughput", "handshakes", "first_packet")
"""A first look, in less than three minutes."""
PLOT = "The contenders beside each other: bars are medians, lines reach from the least to the most of all rounds"
BEGIN, END = "<!-- figures: python -m bench --write -->", "<!-- end of figures -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"fewer and shorter runs, by default of {', '.join(QUICK)} alone: a look, not a figure to publish")
    parser.add_argument("bench", nargs="*", choices=[*BENCHES, []], help="which ones (default: all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the marker comments of this file, and the plot beside it")
    args = parser.parse_args()
    found: list[Found] = []
    failed = False
    for name in args.bench or (QUICK if args.quick else BENCHES):
        print(f"# {name}", flush=True)
        try:
            one = importlib.import_module(f"bench.{name}").run(args.quick)
            found.append(one if isinstance(one, Found) else Found(one))
        except (CalnetError, RuntimeError, OSError) as failure:
            print(f"bench {name} failed: {failure}", file=sys.stderr)
            failed = True
    print_table([row for one in found for row in one.rows])
    if args.write and not failed:
        write(args.write, found)
    return 1 if failed else 0


def write(document: Path, found: Sequence[Found]) -> None:
    """Put tables, rows and the plot between the document's markers; the plot itself lies beside it."""
    parts = [machine(), *(one.table for one in found if one.table)]
    for one in found:
        if one.plot:
            image = document.with_suffix(".svg")
            image.write_text(one.plot)
            parts.append(f"![{PLOT}]({image.name})")
    parts.append(markdown([row for one in found for row in one.rows]))
    document.write_text(with_figures(document.read_text(), "\n\n".join(parts)))


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
