"""How quiet an idle node is: python -m bench.quiet [--quick]. A real node behind a NAT with 200 peers in its netmap that nobody speaks to.

Counted where the packets leave the node's machine: by protocol and connection, TCP's bare acknowledgements too; and the node's CPU seconds. Prints one JSON
line, then a table.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from bench.network import ROOT, program
from bench.table import Row, print_table
from calnet.errors import HostError
from calnet.roles.demo.lab import Lab
from calnet.roles.demo.namespaces import Namespace
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, Server, eventually

PEERS, QUICK_PEERS = 200, 20
SECONDS, QUICK_SECONDS = 200.0, 60.0
SETTLE_S = 75.0
"""After which what coming up brought about (STUN rounds, candidates) is over."""
EVERY_S = 20.0
CPU_SHARE = 0.002
COUNTERS = """
table inet quiet {
    set connections { type inet_service; flags dynamic; counter; }
    counter datagrams { }
    chain out { type filter hook output priority 0; oifname "eth0" meta l4proto udp counter name datagrams;
        oifname "eth0" meta l4proto tcp update @connections { tcp sport }
    }
}
"""


def sent(namespace: Namespace) -> dict[str, int]:
    """Packets that left so far: `udp`, and by the local port of each TCP connection."""
    listed = json.loads(namespace.run("nft", "-j", "list", "table", "inet", "quiet").stdout)["nftables"]
    found = {"udp": next(entry["counter"]["packets"] for entry in listed if "counter" in entry)}
    for entry in listed:
        for element in entry.get("set", {}).get("elem", []):
            found[str(element["elem"]["val"])] = element["elem"]["counter"]["packets"]
    return found


def cpu(pid: int) -> float:
    """Seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(quick: bool = False) -> list[Row]:
    peers, seconds = (QUICK_PEERS, QUICK_SECONDS) if quick else (PEERS, SECONDS)
    with Lab() as lab:
        server = Server(lab.public_host("server"), program())
        server.start("--prefix", "100.70.0.0/16")
        node = Node(lab.site("home", NatKind.PORT_RESTRICTED).host, program())
        node.start()
        if node.up(server, key=server.create_key()).status != 0:
            raise HostError("the node did not come up")
        found = re.search(r"control-key=(\S+)", server.log.read_text())
        assert found is not None
        words = [server.url, base64.b64decode(found[1]).hex(), server.create_key("--reusable"), str(peers)]
        command = ["ip", "netns", "exec", server.host.namespace.name, sys.executable, "-m", "bench.simulated_nodes", *words]
        others = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert others.stdin is not None
            print("register", file=others.stdin, flush=True)
            eventually(lambda: len(node.status()["peers"]) == peers, 60, "the node knows all")  # type: ignore[arg-type]
            time.sleep(SETTLE_S)
            node.host.namespace.nft(COUNTERS)
            assert node.process is not None
            before = cpu(node.process.pid)
            time.sleep(seconds)
            packets, spent = sent(node.host.namespace), cpu(node.process.pid) - before
        finally:
            others.kill()
            others.communicate()
    print(json.dumps({"bench": "quiet", "peers": peers, "seconds": seconds, "packets": packets, "cpu_s": spent}), flush=True)
    # Of the two connections to the server, the control session is the one that says more.
    connections = sorted(count for name, count in packets.items() if name != "udp")
    beside = packets["udp"] + sum(connections[:-1])
    share = spent / seconds
    return [
        Row(
            f"idle node, {peers} peers: packets in 20 s beside the control session's",
            f"{beside / seconds * EVERY_S:.2f}",
            "≤ 1",
            beside / seconds * EVERY_S,
            True,
        ),
        Row("…of the control session", f"{connections[-1] / seconds * EVERY_S:.2f}" if connections else "0", "", None, True),
        Row("…share of one core", f"{share:.3%}", f"≤ {CPU_SHARE:.1%}", share / CPU_SHARE, True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer peers, for a shorter time")
    print_table(run(parser.parse_args().quick))
    sys.exit(0)
