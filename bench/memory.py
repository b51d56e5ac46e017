"""Memory of a server with two nodes and of a node, once they have moved some traffic.

python -m bench.memory [--quick]: RSS as the kernel counts it, and PSS (shared pages divided among who shares them), in MB of 10^6 bytes.
Prints one JSON line, then a table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from bench.network import pair
from bench.table import Row, print_table
from calnet.errors import HostError
from calnet.roles.demo import traffic
from calnet.roles.demo.product import Party, eventually

SERVER_TARGET_MB = 90.0
NODE_TARGET_MB = 70.0
_TRAFFIC_S, _QUICK_TRAFFIC_S = 5.0, 1.0


def memory_mb(party: Party) -> dict[str, float]:
    """RSS and PSS of a party's process and its children."""
    if party.process is None:
        raise HostError(f"{party.title} does not run")
    total = {"rss": 0.0, "pss": 0.0}
    for pid in _family(party.process.pid):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for key in total:
            found = re.search(rf"^{key.title()}:\s+(\d+) kB", rollup, re.MULTILINE)
            total[key] += int(found[1]) * 1024 / 1e6 if found else 0.0
    return {key: round(value, 1) for key, value in total.items()}


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]


def run(quick: bool) -> list[Row]:
    with pair() as made:
        pings = made.alice.host.namespace.task("ping", traffic.ping_stream(made.bob.address(), interval_s=0.05))
        eventually(lambda: made.alice.path_to("bob") == "direct", 60, "a direct path")
        sink = made.bob.host.namespace.task("sink", traffic.sink(made.bob.address()))
        port = int(traffic.number(sink.next_event(10) or {}, "port"))
        seconds = _QUICK_TRAFFIC_S if quick else _TRAFFIC_S
        made.alice.host.namespace.task("source", traffic.source(made.bob.address(), port, seconds=seconds)).result(seconds + 20, stop=False)
        sink.result(20, stop=False)
        pings.result()
        figures = {"server": memory_mb(made.server), "alice": memory_mb(made.alice), "bob": memory_mb(made.bob)}
    print(json.dumps({"bench": "memory", **figures}), flush=True)
    node = max(figures["alice"]["rss"], figures["bob"]["rss"])
    server = figures["server"]["rss"]
    return [
        Row("server with 2 nodes, RSS", f"{server:.0f} MB", f"≤ {SERVER_TARGET_MB:.0f} MB", server / SERVER_TARGET_MB, True),
        Row("node, RSS (the larger of two)", f"{node:.0f} MB", f"≤ {NODE_TARGET_MB:.0f} MB", node / NODE_TARGET_MB, True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less traffic before measuring")
    print_table(run(parser.parse_args().quick))
    sys.exit(0)
