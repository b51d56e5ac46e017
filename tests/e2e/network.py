"""A lab with a Calnet server and nodes in it, as the end-to-end tests use it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from calnet.roles.demo import traffic
from calnet.roles.demo.lab import Host, Lab, Site
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Answer, Node, Server, eventually
from calnet.roles.demo.recovery import answers as answers
from calnet.roles.demo.recovery import await_direct as await_direct
from calnet.roles.demo.recovery import pings as pings

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, str(ROOT / "calnet.py"))
"""The checkout, by the interpreter that runs the tests."""

SOON = 20.0
"""Seconds within which what should happen at once surely has, on a busy machine."""


@dataclass
class Network:
    """The server, the nodes by name, and the sites they are on."""

    lab: Lab
    server: Server
    nodes: dict[str, Node] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)

    def node(self, name: str, kind: NatKind = NatKind.PORT_RESTRICTED, *, ipv6: bool = False, daemon: tuple[str, ...] = ()) -> Node:
        """A node with its daemon started (`daemon` are its flags) and no login, on a site of its own."""
        self.sites[name] = self.lab.site(name, kind, ipv6=ipv6)
        return self.node_on(self.sites[name].host, daemon=daemon)

    def node_on(self, host: Host, *, daemon: tuple[str, ...] = ()) -> Node:
        node = Node(host, PROGRAM)
        self.nodes[host.name] = node
        node.start(*daemon)
        return node

    def join(
        self,
        name: str,
        kind: NatKind = NatKind.PORT_RESTRICTED,
        *,
        ipv6: bool = False,
        daemon: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
        key: tuple[str, ...] = (),
    ) -> Node:
        """A node that is up. `daemon` are its daemon's flags, `flags` go to `up`, `key` to `admin keys create`."""
        node = self.node(name, kind, ipv6=ipv6, daemon=daemon)
        bring_up(self.server, node, flags=flags, key=key)
        return node

    def acquaint(self, *names: str) -> None:
        """Wait until these nodes see each other in their netmaps."""
        for one in names:
            for other in names:
                if one != other:
                    eventually(lambda one=one, other=other: self.nodes[one].peer(other), SOON, f"{one} knows {other}")  # type: ignore[misc]

    def admin(self, *words: str) -> Answer:
        """An admin command that must succeed."""
        answer = self.server.admin(*words)
        assert answer.status == 0, f"admin {' '.join(words)}: exit {answer.status}, {answer.err}"
        return answer

    def logs(self) -> list[tuple[str, str]]:
        """The end of every log, for a failed test's report."""
        paths = sorted(self.lab.directory.glob("*.log"))
        return [(path.name, "\n".join(path.read_text(errors="replace").splitlines()[-40:])) for path in paths]


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A lab with a running server."""
    with Lab() as lab:
        server = Server(lab.public_host("server"), PROGRAM)
        server.start()
        yield Network(lab, server)


def bring_up(server: Server, node: Node, *, flags: tuple[str, ...] = (), key: tuple[str, ...] = ()) -> None:
    answer = node.up(server, "--hostname", node.host.name, *flags, key=server.create_key(*key))
    assert answer.status == 0, f"up on {node.host.name}: exit {answer.status}\n{answer.err}\n{node.process.output() if node.process else ''}"


def send_file(source: Node, target: Node, content: bytes, *, version: int = 4) -> bool:
    """Send `content` by TCP through the tunnel; whether it arrived with the hash it left with."""
    address = target.address(version)
    directory = source.host.namespace.directory
    (directory / "sent").write_bytes(content)
    sink = target.host.namespace.task("sink", traffic.sink(address, save=directory / "received"))
    port = int(traffic.number(sink.next_event(SOON) or {}, "port"))
    sent = source.host.namespace.task("source", traffic.send_file(address, port, directory / "sent")).result(3 * SOON, stop=False)
    return sent["sha256"] == sink.result(3 * SOON, stop=False)["sha256"]
