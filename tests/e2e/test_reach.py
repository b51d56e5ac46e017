"""Two machines reach each other: by relay at once, directly soon, and by relay again when the direct path dies."""

from __future__ import annotations

import os
import time

import pytest

from calnet.roles.demo import traffic
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import eventually
from tests.e2e.network import SOON, Network, answers, await_direct, bring_up, pings, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

_MORE_PINGS_S = 2.0


def _go_on(seconds: float) -> None:
    """Let a running stream of pings go on: what is measured is that nothing happens to it."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, seconds + 5)


def _first_reply(task: Task) -> float:
    event = task.next_event(SOON)
    assert event is not None
    return traffic.number(event, "first_reply_s")


def test_port_restricted_sites_switch_from_relay_to_direct_without_a_lost_packet(net: Network) -> None:
    alice, bob = net.join("alice"), net.join("bob")
    for name in ("alice", "bob"):
        net.sites[name].verify()
    net.acquaint("alice", "bob")
    stream = pings(alice, bob)
    _first_reply(stream)
    eventually(lambda: alice.path_to("bob") == "direct", SOON, "alice reaches bob directly")
    _go_on(_MORE_PINGS_S)
    result = stream.result()
    assert result["lost"] == []
    assert result["refused"] == 0
    endpoint = str((alice.peer("bob") or {}).get("endpoint"))
    assert endpoint.startswith(net.sites["bob"].public_ipv4 + ":")


@pytest.mark.parametrize("version", [4, 6])
def test_both_ip_versions_inside_carry_pings_and_files_both_ways(net: Network, version: int) -> None:
    alice, bob = net.nodes["alice"], net.nodes["bob"]
    assert answers(alice, bob.address(version))
    assert answers(bob, alice.address(version))
    content = os.urandom(3_000_001)
    assert send_file(alice, bob, content, version=version)
    assert send_file(bob, alice, content, version=version)


def test_direct_path_that_dies_falls_back_to_the_relay_and_returns(net: Network) -> None:
    alice, bob = net.nodes["alice"], net.nodes["bob"]
    await_direct(alice, bob)
    stream = pings(alice, bob)
    _first_reply(stream)
    net.lab.cut_udp(net.sites["alice"], net.sites["bob"])
    eventually(lambda: alice.path_to("bob") == "relay", SOON, "alice falls back to the relay")
    _go_on(_MORE_PINGS_S)
    net.lab.heal_udp()
    eventually(lambda: alice.path_to("bob") == "direct", 5 * SOON, "alice reaches bob directly again", every=0.2)
    _go_on(_MORE_PINGS_S)
    lost = traffic.numbers(stream.result(), "lost")
    assert len(lost) <= 5 * 20, f"{len(lost)} pings lost around the fallback"
    assert lost == [] or max(lost) - min(lost) <= 6 * 20, "pings were lost at the return as well"


@pytest.mark.parametrize("kind", [NatKind.OPEN, NatKind.FULL_CONE, NatKind.RESTRICTED_CONE])
def test_site_of_each_cone_kind_reaches_a_port_restricted_one_directly(net: Network, kind: NatKind) -> None:
    name = kind.value.replace("-", "")
    node = net.join(name, kind)
    net.sites[name].verify()
    net.acquaint("alice", name)
    stream = pings(node, net.nodes["alice"])
    _first_reply(stream)
    eventually(lambda: node.path_to("alice") == "direct", SOON, f"{name} reaches alice directly")
    _go_on(1.0)
    assert stream.result()["lost"] == []


def test_hosts_of_one_site_use_their_private_addresses(net: Network) -> None:
    site = net.lab.site("office", NatKind.PORT_RESTRICTED, hosts=("left", "right"))
    left, right = (net.node_on(host) for host in site.hosts)
    for node in (left, right):
        bring_up(net.server, node)
    net.acquaint("left", "right")
    await_direct(left, right)
    eventually(lambda: str((left.peer("right") or {}).get("endpoint")).startswith(site.hosts[1].ipv4 + ":"), SOON, "left uses right's private address")


def test_sites_with_ipv6_firewalls_reach_each_other_over_ipv6(net: Network) -> None:
    six, seven = net.join("six", ipv6=True), net.join("seven", ipv6=True)
    net.acquaint("six", "seven")
    await_direct(six, seven)
    stream = pings(six, seven, interval_s=0.2)
    eventually(lambda: str((six.peer("seven") or {}).get("endpoint")).startswith("[2001:db8:"), 2 * SOON, "six prefers IPv6")
    assert stream.result()["lost"] == []
    assert send_file(six, seven, os.urandom(3_000_001))


def test_blocked_udp_stays_on_the_relay_and_carries_tcp(net: Network) -> None:
    alice, walled = net.nodes["alice"], net.join("walled", NatKind.BLOCKED_UDP)
    net.sites["walled"].verify()
    net.acquaint("alice", "walled")
    stream = pings(walled, alice)
    _first_reply(stream)
    for content in (os.urandom(5_000_003), b""):
        assert send_file(walled, alice, content)
    assert send_file(alice, walled, os.urandom(5_000_003))
    assert walled.path_to("alice") == "relay"
    assert len(traffic.numbers(stream.result(), "lost")) == 0
    checked = walled.cli("netcheck", "--json")
    assert checked.status == 0
    assert checked.json()["udp"] is False


def test_symmetric_site_and_a_port_restricted_one_meet_by_guessing_ports(net: Network) -> None:
    alice, hard = net.nodes["alice"], net.join("hard", NatKind.SYMMETRIC)
    net.sites["hard"].verify()
    net.acquaint("alice", "hard")
    stream = pings(hard, alice)
    _first_reply(stream)
    checked = hard.cli("netcheck", "--json").json()
    assert checked["mapping"] == "address-and-port-dependent"
    assert checked["hairpin"] is False
    eventually(lambda: hard.path_to("alice") == "direct" and alice.path_to("hard") == "direct", 2 * SOON, "the two meet")
    _go_on(_MORE_PINGS_S)
    assert stream.result()["lost"] == []
    endpoint = str((alice.peer("hard") or {}).get("endpoint"))
    assert endpoint.startswith(net.sites["hard"].public_ipv4 + ":")
    for source, target in ((hard, alice), (alice, hard)):
        assert send_file(source, target, os.urandom(5_000_003))
    assert hard.path_to("alice") == "direct"
    told = hard.cli("why", "alice", "--json").json()
    assert (told["path"], told["here"]["mapping"], told["there"]["path"]) == ("direct", "address-and-port-dependent", "direct")  # type: ignore[index]
    walled = alice.cli("why", "walled").out
    assert "no UDP gets through at the peer's" in walled
    assert "what would help" in walled
