"""All benches in one command: python -m bench [--quick] [startup|throughput|first_packet|memory …].

Each prints its JSON lines as it goes; at the end stands one Markdown table of what was measured against its target. Needs root (except startup), ip and nft.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from bench.table import Row, print_table
from calnet.errors import CalnetError

BENCHES = ("startup", "throughput", "first_packet", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: a look, not a figure to publish")
    parser.add_argument("bench", nargs="*", choices=[*BENCHES, []], help="which ones (default: all)")
    args = parser.parse_args()
    rows: list[Row] = []
    failed = False
    for name in args.bench or BENCHES:
        print(f"# {name}", flush=True)
        try:
            rows += importlib.import_module(f"bench.{name}").run(args.quick)
        except (CalnetError, RuntimeError, OSError) as failure:
            print(f"bench {name} failed: {failure}", file=sys.stderr)
            failed = True
    print_table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
