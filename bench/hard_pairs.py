"""How often, how soon and with how many probes a site whose NAT gives each destination another port meets a port-restricted one: python -m bench.hard_pairs
[--quick] [--runs N].

Each trial is a fresh internet that takes 20 ms each way, with a server and the two sites; 5 pings a second from the hard side. The routers count what goes by
UDP from each site to the other: all of it are probes until the path is direct. Prints a JSON line a trial, then a table against the targets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time

from bench.network import pair
from bench.table import Row, print_table
from calnet.errors import HostError, TimedOutError
from calnet.roles.demo import traffic
from calnet.roles.demo.changes import table
from calnet.roles.demo.lab import Site
from calnet.roles.demo.namespaces import Namespace
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import eventually

SHARE_TARGET = 0.9
WITHIN_S = 20.0
PROBES_TARGET = 2_000
LATENCY_S = 0.02
_RUNS, _QUICK_RUNS = 40, 3
_COUNTER = "chain forwarding {{ type filter hook forward priority 10; meta l4proto udp ip daddr {address} counter\n}}"


def one_run() -> dict[str, float | None]:
    """One trial: seconds until both ends use a direct path (None: not within WITHIN_S), and datagrams to the other site until then."""
    with pair(LATENCY_S, (NatKind.SYMMETRIC, NatKind.PORT_RESTRICTED)) as made, contextlib.ExitStack() as counting:
        hard, easy = (_router(site) for site in made.sites)
        for router, other in ((hard, made.sites[1]), (easy, made.sites[0])):
            counting.enter_context(table(router, "probes", _COUNTER.format(address=other.public_ipv4)))
        begun = time.monotonic()
        pings = made.alice.host.namespace.task("ping", traffic.ping_stream(made.bob.address(), interval_s=0.2))
        direct: float | None = None
        with contextlib.suppress(TimedOutError):
            eventually(lambda: made.alice.path_to("bob") == made.bob.path_to("alice") == "direct", WITHIN_S)
            direct = round(time.monotonic() - begun, 2)
        probes = _counted(hard) + _counted(easy)
        report = pings.result()
        return {"direct_s": direct, "probes": probes, "pings": traffic.number(report, "sent"), "lost": len(traffic.numbers(report, "lost"))}


def _router(site: Site) -> Namespace:
    if site.router is None:
        raise HostError("an open site has no router")
    return site.router


def _counted(router: Namespace) -> int:
    listing = json.loads(router.run("nft", "-j", "list", "table", "inet", "probes").stdout)
    return sum(int(part["counter"]["packets"]) for entry in listing["nftables"] for part in entry.get("rule", {}).get("expr", []) if "counter" in part)


def run(quick: bool = False, runs: int = 0) -> list[Row]:
    """Print a JSON line a trial; return the table's rows."""
    trials = []
    for _ in range(runs or (_QUICK_RUNS if quick else _RUNS)):
        trials.append(one_run())
        print(json.dumps({"bench": "hard_pairs", **trials[-1]}), flush=True)
    times = sorted(trial["direct_s"] for trial in trials if trial["direct_s"] is not None)
    share = len(times) / len(trials)
    told = f"{len(times)} of {len(trials)}" + (f"; median {statistics.median(times):.1f} s, longest {times[-1]:.1f} s" if times else "")
    lost = sum(trial["lost"] or 0 for trial in trials)
    most = max(trial["probes"] or 0 for trial in trials)
    return [
        Row(f"symmetric × port-restricted direct within {WITHIN_S:g} s", told, f"≥ {SHARE_TARGET:.0%}", share / SHARE_TARGET, False),
        Row("…most probes of both, until then", f"{most:.0f}", f"≤ {PROBES_TARGET:,}", most / PROBES_TARGET, True),
        Row("…pings lost", f"{lost:.0f} of {sum(trial['pings'] or 0 for trial in trials):.0f}", "0", math.inf if lost else 0.0, True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three trials")
    parser.add_argument("--runs", type=int, default=0, help="so many trials")
    args = parser.parse_args()
    print_table(run(args.quick, args.runs))
    sys.exit(0)
