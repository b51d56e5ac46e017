"""Which of several ways data takes: on one LAN the LAN, never a container's bridge or the overlay itself, and none that carries no data."""

from __future__ import annotations

import json
import os

import pytest

from calnet.roles.demo.changes import table
from calnet.roles.demo.namespaces import Namespace
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers, await_direct, bring_up, pings, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

_CONTENT = 2_000_000
_TRANSPORT = "@th,64,8 4"
"""nft's words for the first byte of UDP's payload, where it is that of WireGuard's transport data."""


@pytest.fixture(scope="module")
def neighbours(net: Network) -> tuple[Node, Node]:
    """Two nodes on one LAN, whose router hairpins; each has the same container bridge."""
    site = net.sites["home"] = net.lab.site("home", NatKind.HAIRPIN, hosts=("left", "right"))
    for host in site.hosts:
        host.namespace.ip("link add docker0 type bridge\naddress add 172.17.0.1/16 dev docker0\nlink set docker0 up")
        bring_up(net.server, net.node_on(host))
    net.acquaint("left", "right")
    return net.nodes["left"], net.nodes["right"]


def _endpoint(node: Node, peer: str) -> str:
    """Host of the endpoint in use."""
    return str((node.peer(peer) or {}).get("endpoint")).rsplit(":", 1)[0]


def _routed(router: Namespace) -> int:
    """Bytes of UDP that the router sent back to its LAN so far."""
    listed = json.loads(router.run("nft", "-j", "list", "counter", "inet", "watched", "back").stdout)["nftables"]
    return next(int(entry["counter"]["bytes"]) for entry in listed if "counter" in entry)


def test_neighbours_speak_on_their_lan_and_never_through_the_router(net: Network, neighbours: tuple[Node, Node]) -> None:
    left, right = neighbours
    router = net.sites["home"].router
    assert router is not None
    back = 'counter back { }\nchain forwarding { type filter hook forward priority 10; iifname "lan" oifname "lan" meta l4proto udp counter name back; }'
    with table(router, "watched", back):
        await_direct(left, right)
        eventually(lambda: _endpoint(left, "right") == right.host.ipv4, SOON, "left speaks to right on the LAN", every=0.1)
        eventually(lambda: _endpoint(right, "left") == left.host.ipv4, SOON, "right speaks to left on the LAN", every=0.1)
        before = _routed(router)
        assert send_file(left, right, os.urandom(_CONTENT))
        assert _routed(router) - before < _CONTENT / 100
        assert _endpoint(left, "right") == right.host.ipv4


def test_container_bridges_and_the_overlay_are_no_candidates(neighbours: tuple[Node, Node]) -> None:
    left, right = neighbours
    answer = left.cli("why", "right", "--json")
    assert answer.status == 0, answer.err
    told = json.dumps(answer.json())
    assert f"{right.host.ipv4}:" in told
    assert "172.17.0.1:" not in told
    assert "100.70.0." not in told.replace(right.address(), "").replace(left.address(), "")
    assert f"{right.address()}:" not in told
    assert f"{left.address()}:" not in told


def test_path_that_answers_probes_but_carries_no_data_is_left_for_the_relay_by_both(net: Network) -> None:
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    await_direct(alice, bob)
    router = net.sites["alice"].router
    assert router is not None
    swallow = f"chain forwarding {{ type filter hook forward priority 10; meta l4proto udp {_TRANSPORT} drop; }}"
    stream = pings(alice, bob)
    with table(router, "swallow", swallow):
        eventually(lambda: alice.path_to("bob") == "relay", 3 * SOON, "alice leaves the path that carries nothing", every=0.2)
        assert "carried no data" in alice.cli("why", "bob").out
        eventually(lambda: answers(alice, bob.address()), 3 * SOON, "bob leaves it too")
        assert bob.path_to("alice") == "relay"
    stream.close()


def test_relay_alone_and_direct_alone_are_obeyed(net: Network) -> None:
    alice, bob = net.nodes["alice"], net.nodes["bob"]
    assert alice.cli("set", "--path", "bob=relay").status == 0
    eventually(lambda: alice.path_to("bob") == "relay", SOON, "alice speaks to bob by relay")
    assert answers(alice, bob.address())
    assert alice.cli("set", "--path", "bob=auto").status == 0
