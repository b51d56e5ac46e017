"""A network behind a node: advertised, approved, accepted, reached with source NAT; and never where it would do harm."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass

import pytest

from calnet.roles.demo.lab import Host
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers, await_direct, bring_up

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
LAN = 77
PREFIX = f"192.168.{LAN}.0/24"
GATED_LAN = 78
GATED = f"192.168.{GATED_LAN}.0/24"


@dataclass
class Branch:
    router: Node
    printer: Host
    roamer: Node


@pytest.fixture(scope="module")
def branch(net: Network) -> Branch:
    """`router` with a LAN behind it that knows no way back, and `roamer` elsewhere."""
    router = net.node("router")
    printer = net.lab.attach_lan(router.host, "printer", LAN)
    router.host.namespace.sysctl("net/ipv4/ip_forward", "1")
    bring_up(net.server, router, flags=("--advertise-routes", PREFIX))
    roamer = net.join("roamer", flags=("--accept-routes",))
    net.acquaint("router", "roamer")
    await_direct(router, roamer)
    return Branch(router, printer, roamer)


def _approve(net: Network, routes: str) -> None:
    net.admin("nodes", "routes", "approve", "router", routes)


def _routes_of(node: Node, address: str) -> str:
    return node.host.namespace.run("ip", "route", "get", address, check=False).stdout


def test_route_that_nobody_approved_is_not_installed(net: Network, branch: Branch) -> None:
    assert "calnet0" not in _routes_of(branch.roamer, branch.printer.ipv4)
    listed = json.loads(net.admin("nodes", "routes", "list", "--json").out)
    assert PREFIX in json.dumps(listed)


def test_approved_route_reaches_a_host_that_knows_no_way_back(net: Network, branch: Branch) -> None:
    _approve(net, PREFIX)
    eventually(lambda: "calnet0" in _routes_of(branch.roamer, branch.printer.ipv4), SOON, "the roamer has the route")
    eventually(lambda: answers(branch.roamer, branch.printer.ipv4), SOON, "the roamer reaches the printer")


def test_route_follows_accept_routes_as_it_is_set(net: Network, branch: Branch) -> None:
    assert branch.roamer.cli("set", "--no-accept-routes").status == 0
    eventually(lambda: "calnet0" not in _routes_of(branch.roamer, branch.printer.ipv4), SOON, "the roamer dropped the route")
    assert branch.roamer.cli("set", "--accept-routes").status == 0
    eventually(lambda: answers(branch.roamer, branch.printer.ipv4), SOON, "the roamer reaches the printer again")


def test_route_is_not_laid_over_a_directly_attached_network(net: Network, branch: Branch) -> None:
    neighbour = net.lab.attach_lan(branch.roamer.host, "neighbour", LAN)
    eventually(lambda: f"dev lan{LAN}" in _routes_of(branch.roamer, neighbour.ipv4), SOON, "the attached network wins")
    assert answers(branch.roamer, neighbour.ipv4)
    branch.roamer.host.namespace.ip(f"link del lan{LAN}")
    eventually(lambda: "calnet0" in _routes_of(branch.roamer, branch.printer.ipv4), SOON, "the route returns when the network is gone")


def test_route_that_covers_the_underlay_does_not_swallow_the_tunnel(net: Network, branch: Branch) -> None:
    wide = "198.51.100.0/24"
    assert branch.router.cli("set", "--advertise-routes", f"{PREFIX},{wide}").status == 0
    eventually(lambda: wide in net.admin("nodes", "routes", "list", "--json").out, SOON, "the server knows the wide route", every=0.3)
    net.admin("nodes", "routes", "approve", "router", wide)
    eventually(lambda: "calnet0" in _routes_of(branch.roamer, "198.51.100.250"), SOON, "the roamer has the wide route")
    for _ in range(3):
        assert answers(branch.roamer, branch.router.address())
    server = branch.roamer.status()["server"]
    assert isinstance(server, dict)
    assert server["connected"] is True
    assert branch.router.cli("set", "--advertise-routes", PREFIX).status == 0
    eventually(lambda: "calnet0" not in _routes_of(branch.roamer, "198.51.100.250"), SOON, "the wide route is gone")


def test_without_source_nat_hosts_need_a_route_back_and_see_who_asks(branch: Branch) -> None:
    assert branch.router.cli("set", "--no-snat-routes").status == 0
    eventually(lambda: not answers(branch.roamer, branch.printer.ipv4), SOON, "the printer knows no way back")
    branch.printer.namespace.ip(f"route add 100.70.0.0/24 via 192.168.{LAN}.1")
    eventually(lambda: answers(branch.roamer, branch.printer.ipv4), SOON, "the roamer reaches the printer by its own address")
    branch.printer.namespace.ip("route del 100.70.0.0/24")
    assert branch.router.cli("set", "--snat-routes").status == 0
    eventually(lambda: answers(branch.roamer, branch.printer.ipv4), SOON, "source NAT is back")


def test_second_router_takes_over_and_keeps_the_route_when_the_first_is_back(net: Network, branch: Branch) -> None:
    second = net.node("second")
    net.lab.attach_lan(second.host, "printertoo", LAN)
    second.host.namespace.sysctl("net/ipv4/ip_forward", "1")
    bring_up(net.server, second, flags=("--advertise-routes", PREFIX))
    net.admin("nodes", "routes", "approve", "second", PREFIX)

    def primary() -> str:
        rows = json.loads(net.admin("nodes", "routes", "list", "--json").out)
        return next(str(row["name"]) for row in rows if row["route"] == PREFIX and row["primary"])

    assert primary() == "router"
    net.acquaint("second", "roamer")
    branch.router.kill()
    eventually(lambda: primary() == "second", SOON, "the server moves the route")
    eventually(lambda: answers(branch.roamer, branch.printer.ipv4), SOON, "the roamer goes through the second router")
    branch.router.start()
    eventually(lambda: branch.router.status()["state"] == "running", SOON, "the first router is back")
    assert primary() == "second"
    net.admin("nodes", "routes", "revoke", "second", PREFIX)
    eventually(lambda: primary() == "router", SOON, "what is left routes")
    eventually(lambda: answers(branch.roamer, branch.printer.ipv4), SOON, "the roamer goes through the first router again")


@dataclass
class Gates:
    """Two routers of one prefix on public addresses, each with a printer of the same address behind it; `first` is the server's choice."""

    first: Node
    second: Node
    printer: str


@pytest.fixture
def gates(net: Network, branch: Branch) -> Gates:
    first, second = (net.node(name, NatKind.OPEN) for name in ("eastgate", "westgate"))
    for gate in (first, second):
        net.lab.attach_lan(gate.host, f"{gate.host.name}printer", GATED_LAN)
        gate.host.namespace.sysctl("net/ipv4/ip_forward", "1")
        bring_up(net.server, gate, flags=("--advertise-routes", GATED))
        net.admin("nodes", "routes", "approve", gate.host.name, GATED)
    eventually(lambda: _routes_in_status(branch.roamer, first, "routes") == [GATED], SOON, "the roamer knows the first gate's route")
    eventually(lambda: _routes_in_status(branch.roamer, second, "backup_routes") == [GATED], SOON, "the roamer knows that the second could route it")
    return Gates(first, second, f"192.168.{GATED_LAN}.2")


def _routes_in_status(node: Node, peer: Node, field: str) -> object:
    return (node.peer(peer.host.name) or {}).get(field)


def _moves(node: Node) -> list[str]:
    return [line for line in node.log.read_text().splitlines() if f"router_moved prefix={GATED}" in line]


def test_node_chooses_another_router_by_itself_when_router_and_server_fall_silent(net: Network, branch: Branch, gates: Gates) -> None:
    roamer, server = branch.roamer, net.server.process
    eventually(lambda: answers(roamer, gates.printer), SOON, "the roamer goes through the first gate")
    assert _routes_in_status(roamer, gates.first, "carries") == [GATED]
    assert server is not None
    server.signal(signal.SIGSTOP)
    try:
        gates.first.host.namespace.ip("link set wan down")
        eventually(lambda: answers(roamer, gates.printer), 3 * SOON, "the roamer goes through the second gate")
        assert _routes_in_status(roamer, gates.second, "carries") == [GATED]
        assert "router-silent" in json.dumps(roamer.status()["health"])
        _bring_back(gates.first)
        eventually(lambda: answers(roamer, gates.first.address()), 3 * SOON, "the first gate is back")
        assert answers(roamer, gates.printer)
        assert _routes_in_status(roamer, gates.second, "carries") == [GATED]
        assert len(_moves(roamer)) == 1
    finally:
        server.signal(signal.SIGCONT)
    net.admin("nodes", "routes", "revoke", "westgate", GATED)
    eventually(lambda: _routes_in_status(roamer, gates.first, "carries") == [GATED], 3 * SOON, "the server's word holds")
    eventually(lambda: answers(roamer, gates.printer), SOON, "the roamer goes through the first gate again")


def _bring_back(gate: Node) -> None:
    """The kernel forgot the default route with the link."""
    third, fourth = gate.host.ipv4.rsplit(".", 1)
    gate.host.namespace.ip(f"link set wan up\nroute add default via {third}.{int(fourth) - 1}")


def test_revoked_route_is_gone_at_once(net: Network, branch: Branch) -> None:
    net.admin("nodes", "routes", "revoke", "router", PREFIX)
    eventually(lambda: "calnet0" not in _routes_of(branch.roamer, branch.printer.ipv4), SOON, "the roamer dropped the route")
    assert not answers(branch.roamer, branch.printer.ipv4)


def test_source_nat_is_removed_with_the_node(branch: Branch) -> None:
    assert branch.router.stop() == 0
    assert "calnet" not in branch.router.host.namespace.run("nft", "list", "ruleset").stdout
