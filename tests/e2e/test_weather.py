"""Across an internet that takes its time and loses packets: a path is found, and what is sent arrives."""

from __future__ import annotations

import os

import pytest

from calnet.roles.demo import traffic
from calnet.roles.demo.product import eventually
from tests.e2e.network import SOON, Network, await_direct, pings, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

_LATENCY_S = 0.02
_LOSS = 0.03


def test_path_is_found_and_a_file_arrives_through_delay_and_loss(net: Network) -> None:
    net.lab.delay(_LATENCY_S)
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    net.lab.lose(_LOSS)
    await_direct(alice, bob)
    stream = pings(alice, bob)
    assert send_file(alice, bob, os.urandom(300_000))
    eventually(lambda: alice.path_to("bob") == "direct", SOON, "the path is direct still, or again")
    result = stream.result()
    assert min(traffic.numbers(result, "rtts_ms")) >= 2_000 * _LATENCY_S
    assert len(traffic.numbers(result, "lost")) <= max(8.0, 4 * _LOSS * traffic.number(result, "sent"))
