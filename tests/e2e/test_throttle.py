"""A site whose router lets UDP through at a trickle and leaves TCP alone: what is sent in bulk moves to the relay, and is faster there; nothing flaps."""

from __future__ import annotations

import contextlib
import time

import pytest

from calnet.paths.constants import HOLD_FIRST
from calnet.roles.demo import traffic
from calnet.roles.demo.changes import table
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.product import Node, eventually
from calnet.roles.demo.recovery import let_pass
from tests.e2e.network import SOON, Network, await_direct, pings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TRICKLE = "chain forwarding { type filter hook forward priority -10; meta l4proto udp limit rate over 60 kbytes/second burst 20 kbytes drop; }"
BULK_S = 90.0
PROBE_S = 4.0
"""For so long a rate is measured."""
AFTER_S = 12.0
"""A trial would begin within it."""


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    return alice, bob


def bulk(source: Node, target: Node, seconds: float) -> Task:
    """TCP through the tunnel, as fast as it goes."""
    sink = target.host.namespace.task("sink", traffic.sink(target.address()))
    port = int(traffic.number(sink.next_event(SOON) or {}, "port"))
    return source.host.namespace.task("source", traffic.source(target.address(), port, seconds=seconds))


def received(node: Node, peer: str) -> int:
    return int(str((node.peer(peer) or {})["rx_bytes"]))


def rate(node: Node, peer: str) -> float:
    """Bytes a second that come from the peer."""
    before, began = received(node, peer), time.monotonic()
    let_pass(PROBE_S)
    return (received(node, peer) - before) / (time.monotonic() - began)


def moves(node: Node) -> list[str]:
    """What its log says of moves to the relay alone."""
    lines = (node.process.output() if node.process is not None else "").splitlines()
    return [line for line in lines if "path_changed" in line and " path=relay" in line]


def test_bulk_on_a_throttled_path_goes_by_relay_and_much_faster_and_back_when_it_is_free(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    await_direct(alice, bob)
    router = net.sites["bob"].router
    assert router is not None
    with table(router, "trickle", TRICKLE):
        stream = bulk(alice, bob, BULK_S)
        throttled = rate(bob, "alice")
        assert alice.path_to("bob") == "direct"
        eventually(lambda: "throttled" in str((alice.peer("bob") or {}).get("path_note")), 3 * SOON, "alice leaves the path")
        assert alice.path_to("bob") == "relay"
        by_relay = rate(bob, "alice")
        print(f"{throttled * 8 / 1e6:.2f} Mbit/s directly, {by_relay * 8 / 1e6:.2f} by relay")
        assert by_relay >= 3 * throttled
        assert "by relay: UDP is throttled here" in alice.cli("why", "bob").out
        assert "relay (UDP is throttled here" in alice.cli("status").out
        stream.result(SOON)
    for node in (alice, bob):  # a change of network ends the path's rest
        node.host.namespace.ip(f"address add {node.host.ipv4.rsplit('.', 1)[0]}.99/24 dev eth0")
    with contextlib.closing(pings(alice, bob)):
        eventually(lambda: alice.path_to("bob") == "direct", HOLD_FIRST, "the path is tried again, and is free")
        stream = bulk(alice, bob, BULK_S)
        let_pass(AFTER_S)
        freed = rate(bob, "alice")
        stream.result(SOON)
    assert alice.path_to("bob") == "direct"
    assert freed >= 3 * throttled
    for node in (alice, bob):
        assert len(moves(node)) <= 1, "it flaps"
