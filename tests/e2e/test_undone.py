"""What a node does to its host is undone when it stops, and after it was killed."""

from __future__ import annotations

import pytest

from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def _picture(node: Node) -> dict[str, str]:
    """All of the host's network configuration that a node might touch."""
    run = node.host.namespace.run
    return {
        "links": run("ip", "-br", "link").stdout,
        "addresses": run("ip", "-o", "address").stdout,
        "routes": run("ip", "route", "show", "table", "all").stdout,
        "routes6": run("ip", "-6", "route", "show", "table", "all").stdout,
        "rules": run("ip", "rule").stdout + run("ip", "-6", "rule").stdout,
        "nft": run("nft", "list", "ruleset").stdout,
    }


def _router(net: Network, name: str) -> tuple[Node, dict[str, str]]:
    """A node that uses all it can of its host, with a network of its own behind it, and the host's picture before it."""
    node = net.node(name)
    lan = 100 + len(net.nodes)
    prefix = f"192.168.{lan}.0/24"
    net.lab.attach_lan(node.host, f"{name}lan", lan)
    node.host.namespace.sysctl("net/ipv4/ip_forward", "1")
    before = _picture(node)
    answer = node.up(net.server, "--hostname", name, "--advertise-routes", prefix, "--accept-routes", key=net.server.create_key())
    assert answer.status == 0, answer
    net.admin("nodes", "routes", "approve", name, prefix)
    eventually(lambda: "calnet" in node.host.namespace.run("nft", "list", "ruleset").stdout, SOON, "source NAT is set up")
    assert "calnet0" in _picture(node)["links"]
    return node, before


@pytest.mark.parametrize("end", ["stop", "down", "logout"])
def test_host_is_as_before_when_the_node_ends(net: Network, end: str) -> None:
    node, before = _router(net, f"node{end}")
    if end == "stop":
        assert node.stop() == 0
    else:
        assert node.cli(end).status == 0
    assert _without_own_link(_picture(node)) == before if end != "stop" else _picture(node) == before


def _without_own_link(picture: dict[str, str]) -> dict[str, str]:
    """A daemon that is down may keep its idle interface."""
    return {key: "".join(line for line in text.splitlines(keepends=True) if "calnet0" not in line) for key, text in picture.items()}


def test_what_a_killed_node_left_is_undone_by_the_next_start_and_stop(net: Network) -> None:
    node, before = _router(net, "crashed")
    node.kill()
    node.start()
    eventually(lambda: node.state() == "running", SOON, "the node is running again")
    assert node.stop() == 0
    assert _picture(node) == before


def test_server_is_reached_while_an_old_interface_of_a_killed_node_is_replaced(net: Network) -> None:
    node, _ = _router(net, "again")
    peer = net.join("peer")
    net.acquaint("again", "peer")
    node.kill()
    node.start()
    eventually(lambda: answers(node, peer.address()), 2 * SOON, "the node reaches its peer again")
