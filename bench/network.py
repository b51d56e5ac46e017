"""A server and two nodes behind routers, port-restricted ones where nothing else is said, as several benches need them, and the program they run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calnet.errors import HostError
from calnet.roles.demo.lab import Lab, Site
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, Server, eventually

ROOT = Path(__file__).resolve().parent.parent


def program() -> tuple[str, ...]:
    """The built file where there is one, built again if the sources are newer, by this interpreter; else the checkout."""
    built = ROOT / "calnet.pyz"
    if built.is_file():
        subprocess.run([sys.executable, str(ROOT / "build_zipapp.py"), "--if-stale"], check=True, stdout=sys.stderr)
    return (sys.executable, "-IS", str(built)) if built.is_file() else (sys.executable, str(ROOT / "calnet.py"))


@dataclass
class Pair:
    """A server with two nodes up that know each other and have not spoken yet."""

    lab: Lab
    server: Server
    alice: Node
    bob: Node
    sites: tuple[Site, Site]


@contextlib.contextmanager
def pair(latency_s: float = 0.0, kinds: tuple[NatKind, NatKind] = (NatKind.PORT_RESTRICTED, NatKind.PORT_RESTRICTED)) -> Iterator[Pair]:
    """`latency_s`: how long the internet takes, each way; `kinds` of alice's site and of bob's."""
    with Lab() as lab:
        if latency_s:
            lab.delay(latency_s)
        server = Server(lab.public_host("server"), program())
        server.start()
        key = server.create_key("--reusable")
        sites = lab.site("alice", kinds[0]), lab.site("bob", kinds[1])
        nodes = []
        for site in sites:
            name = site.host.name
            node = Node(site.host, program())
            node.start()
            answer = node.up(server, "--hostname", name, key=key)
            if answer.status != 0:
                raise HostError(f"{name} did not come up: {answer.err}")
            nodes.append(node)
        made = Pair(lab, server, nodes[0], nodes[1], sites)
        eventually(lambda: made.alice.peer("bob") and made.bob.peer("alice"), 20, "the nodes know each other")
        yield made
