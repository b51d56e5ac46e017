"""A server and two nodes behind port-restricted routers, as several benches need them, and the program they run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calnet.errors import HostError
from calnet.roles.demo.lab import Lab
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, Server, eventually

ROOT = Path(__file__).resolve().parent.parent


def program() -> tuple[str, ...]:
    """The built file where there is one, by this interpreter; else the checkout."""
    built = ROOT / "calnet.pyz"
    return (sys.executable, "-IS", str(built)) if built.is_file() else (sys.executable, str(ROOT / "calnet.py"))


@dataclass
class Pair:
    """A server with two nodes up that know each other and have not spoken yet."""

    lab: Lab
    server: Server
    alice: Node
    bob: Node


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        server = Server(lab.public_host("server"), program())
        server.start()
        key = server.create_key("--reusable")
        nodes = []
        for name in ("alice", "bob"):
            node = Node(lab.site(name, NatKind.PORT_RESTRICTED).host, program())
            node.start()
            answer = node.up(server, "--hostname", name, key=key)
            if answer.status != 0:
                raise HostError(f"{name} did not come up: {answer.err}")
            nodes.append(node)
        made = Pair(lab, server, *nodes)
        eventually(lambda: made.alice.peer("bob") and made.bob.peer("alice"), 20, "the nodes know each other")
        yield made
