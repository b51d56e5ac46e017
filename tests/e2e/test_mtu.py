"""Paths that take less than Ethernet's 1,500 bytes, and say nothing about it: packets are as long as a path takes them, and TCP never stalls."""

from __future__ import annotations

import json
import os

import pytest

from calnet.roles.demo.namespaces import Namespace
from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers, await_direct, pings, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

FULL = 1420
HEADERS = 32 + 8 + 20
"""Calnet's, UDP's and IPv4's."""


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    return alice, bob


def _mtu(node: Node, peer: str) -> object:
    return (node.peer(peer) or {}).get("mtu")


def _interface_mtu(node: Node) -> int:
    return int(json.loads(node.host.namespace.run("ip", "-json", "link", "show", "calnet0").stdout)[0]["mtu"])


def _narrow(net: Network, name: str, mtu: int) -> None:
    """The link to a site takes less from now on, both ways, and the routers at its ends tell nobody who sends UDP."""
    site = net.sites[name]
    assert site.router is not None
    near = net.lab.core.run("ip", "-o", "route", "get", site.public_ipv4).stdout.split(" dev ")[1].split()[0]
    for namespace, interface in ((net.lab.core, near), (site.router, "wan")):
        _hush(namespace)
        namespace.ip(f"link set {interface} mtu {mtu}")


def _hush(namespace: Namespace) -> None:
    rule = "icmp type destination-unreachable icmp code frag-needed @th,136,8 17 drop"
    namespace.nft(f"table ip hush\ndelete table ip hush\ntable ip hush {{ chain out {{ type filter hook output priority 0; {rule}\n}}\n}}")


def _ping_text(node: Node, address: str, length: int) -> str:
    """What ping says of one packet of `length` bytes that may not be fragmented."""
    done = node.host.namespace.run("ping", "-c1", "-W1", "-n", "-Mdo", f"-s{length - 28}", address, check=False)
    return (done.stdout + done.stderr).lower()


def _longest_ping(node: Node, address: str, length: int) -> bool:
    """Whether it is answered."""
    return "1 received" in _ping_text(node, address, length)


def test_interface_starts_with_short_packets_and_takes_longer_ones_once_a_path_does(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    assert (_interface_mtu(alice), _interface_mtu(bob)) == (1280, 1280)
    await_direct(alice, bob)
    assert answers(alice, bob.address())
    eventually(lambda: _mtu(alice, "bob") == _mtu(bob, "alice") == FULL, SOON, "both sides take full packets")
    eventually(lambda: _interface_mtu(alice) == _interface_mtu(bob) == FULL, SOON, "the interfaces do, too")
    assert _longest_ping(alice, bob.address(), FULL)


def test_path_that_takes_less_all_at_once_stalls_no_tcp_and_its_new_mtu_is_found(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    await_direct(alice, bob)
    _narrow(net, "bob", 1400)
    stream = pings(alice, bob)
    for source, target in ((alice, bob), (bob, alice)):
        assert send_file(source, target, os.urandom(3_000_001))
    eventually(lambda: 1280 <= int(str(_mtu(alice, "bob") or 0)) <= 1400 - HEADERS, 2 * SOON, "what the path takes is found")
    eventually(lambda: _mtu(alice, "bob") == 1312, 2 * SOON, "…to the last size that fits")
    assert alice.path_to("bob") == "direct"
    assert stream.result()["lost"] == []
    address = bob.address()
    eventually(lambda: _longest_ping(alice, address, 1312), SOON, "a packet as long as that passes")
    eventually(lambda: "mtu" in _ping_text(alice, address, 1400), SOON, "who sends a longer one is told")
    assert alice.host.namespace.run("ping", "-c1", "-W5", "-n", "-Mdont", f"-s{1400 - 28}", address, check=False).returncode == 0
    for version in (4, 6):
        assert send_file(alice, bob, os.urandom(3_000_001), version=version)
    assert alice.path_to("bob") == "direct"


def test_path_that_does_not_take_base_packets_is_left_for_the_relay(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    await_direct(alice, bob)
    router = net.sites["bob"].router
    assert router is not None
    router.nft("table ip thin { chain forwarding { type filter hook forward priority -10; meta l4proto udp meta length > 1000 drop\n}\n}")
    try:
        assert send_file(alice, bob, os.urandom(1_000_001))
        eventually(lambda: alice.path_to("bob") == "relay", 3 * SOON, "alice leaves a path that carries short packets alone")
    finally:
        router.run("nft", "delete", "table", "ip", "thin")


def test_address_that_is_nobodys_is_said_to_be_unreachable(net: Network, pair: tuple[Node, Node]) -> None:
    said = pair[0].host.namespace.run("ping", "-c1", "-W2", "-n", "100.70.0.200", check=False)
    assert "Destination Host Unreachable" in said.stdout, said.stdout
