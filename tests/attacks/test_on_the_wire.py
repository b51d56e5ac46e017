"""Attacks that only real machines show: packets from the underlay towards overlay addresses, and a cut-off node's live traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from calnet.roles.demo import traffic
from calnet.roles.demo.product import eventually
from tests.e2e.network import SOON, Network, answers, await_direct, network, pings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

AT_ONCE = 3.0
"""Seconds: the rule says one, a busy machine gets more."""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


def test_attack_12_packet_for_the_overlay_address_on_another_interface_is_refused(net: Network) -> None:
    victim, friend = net.join("victim"), net.join("friend")
    net.acquaint("victim", "friend")
    eventually(lambda: answers(friend, victim.address()), SOON, "the tunnel carries pings")
    router = net.sites["victim"].router
    assert router is not None
    for version in (4, 6):
        router.ip(f"route add {victim.address(version)} dev lan")
    for address in (victim.address(), victim.address(6)):
        assert router.run("ping", "-c2", "-i0.2", "-W1", address, check=False).returncode != 0
    assert answers(friend, victim.address())


def test_attack_23_disabled_expired_and_deleted_nodes_are_dropped_by_every_peer_at_once(net: Network) -> None:
    witness = net.join("witness")
    for verb in ("disable", "expire", "delete"):
        name = f"evil{verb}"
        evil = net.join(name)
        net.acquaint("witness", name)
        await_direct(witness, evil)
        stream = pings(witness, evil)
        assert stream.next_event(SOON) is not None
        net.admin("nodes", verb, name)
        cut_at = time.monotonic() + AT_ONCE
        eventually(lambda end=cut_at + 1.0: time.monotonic() > end, SOON)  # type: ignore[misc]
        report = stream.result()
        begun, lost = traffic.number(report, "begun_at"), set(traffic.numbers(report, "lost"))
        late = [n for n, at in enumerate(traffic.numbers(report, "times_s")) if begun + at > cut_at]
        assert late
        assert lost.issuperset(late), f"traffic went on after the node was cut off by {verb}"
        assert (witness.peer(name) or {"path": "none"})["path"] == "none"


def test_attack_26_routes_nobody_approved_are_installed_by_nobody(net: Network) -> None:
    taker = net.join("taker", flags=("--accept-routes",))
    greedy = net.node("greedy")
    greedy.up(net.server, "--hostname", "greedy", "--advertise-routes", "0.0.0.0/0,192.0.2.0/24", key=net.server.create_key())
    greedy.up(net.server, "--hostname", "greedy", "--advertise-routes", "192.0.2.0/24", key=net.server.create_key())
    eventually(lambda: greedy.state() == "running", SOON, "greedy is running")
    net.acquaint("taker", "greedy")
    for address in ("192.0.2.7", "203.0.113.1"):
        assert "calnet0" not in taker.host.namespace.run("ip", "route", "get", address).stdout
