"""The simulator's boxes against the terms of RFC 4787."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from calnet.model import Endpoint
from calnet.sim.nat import KINDS, Assignment, Behaviour, Dependence, Nat

HOST = "203.0.113.1"
ONE, TWO = Endpoint("192.168.1.2", 5000), Endpoint("192.168.1.3", 5000)
PEER, SAME_HOST, OTHER = Endpoint("198.51.100.1", 1000), Endpoint("198.51.100.1", 2000), Endpoint("198.51.100.2", 1000)


def nat(kind: str, **changes: object) -> Nat:
    return Nat(replace(KINDS[kind], **changes), HOST, random.Random(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "from_port", "from_host"),
    [("full-cone", True, True), ("restricted", True, False), ("port-restricted", False, False), ("linux", False, False), ("symmetric", False, False)],
)
def test_filtering_lets_in_whom_its_kind_says(kind: str, from_port: bool, from_host: bool) -> None:
    box = nat(kind)
    outer = box.outbound(ONE, PEER, 0.0)
    assert outer.host == HOST
    assert box.inbound(outer, PEER, 1.0) == ONE
    assert (box.inbound(outer, SAME_HOST, 1.0) == ONE) == from_port
    assert (box.inbound(outer, OTHER, 1.0) == ONE) == from_host
    assert box.inbound(Endpoint(HOST, outer.port + 1), PEER, 1.0) is None


@pytest.mark.parametrize(
    ("mapping", "same_host", "other_host"), [(d, d is not Dependence.ADDRESS_AND_PORT_DEPENDENT, d is Dependence.ENDPOINT_INDEPENDENT) for d in Dependence]
)
def test_mapping_depends_on_what_its_kind_says(mapping: Dependence, same_host: bool, other_host: bool) -> None:
    box = Nat(Behaviour(mapping, assignment=Assignment.RANDOM), HOST, random.Random(1))
    first = box.outbound(ONE, PEER, 0.0)
    assert box.outbound(ONE, PEER, 1.0) == first
    assert (box.outbound(ONE, SAME_HOST, 1.0) == first) == same_host
    assert (box.outbound(ONE, OTHER, 1.0) == first) == other_host


def test_port_is_kept_where_it_is_free_and_another_where_not() -> None:
    box = nat("port-restricted")
    assert box.outbound(ONE, PEER, 0.0) == Endpoint(HOST, 5000)
    second = box.outbound(TWO, PEER, 0.0)
    assert second.port != 5000
    assert box.inbound(second, PEER, 0.0) == TWO


def test_linux_keeps_the_port_towards_each_destination_that_has_it_free() -> None:
    box = nat("linux")
    assert box.outbound(ONE, PEER, 0.0).port == 5000
    assert box.outbound(TWO, OTHER, 0.0).port == 5000
    assert box.outbound(TWO, PEER, 0.0).port != 5000


def test_linux_packet_that_was_refused_first_costs_the_port_towards_its_sender_and_whoever_comes_after() -> None:
    box = nat("linux")
    assert box.outbound(ONE, SAME_HOST, 0.0).port == 5000
    assert box.inbound(Endpoint(HOST, 5000), PEER, 0.0) is None
    clashed = box.outbound(ONE, PEER, 1.0)
    assert clashed.port != 5000
    assert box.outbound(ONE, OTHER, 2.0) == clashed
    assert box.outbound(ONE, SAME_HOST, 3.0).port == 5000
    assert box.outbound(ONE, Endpoint("198.51.100.78", 7), 60.0).port == 5000
    assert nat("linux").outbound(ONE, PEER, 1.0).port == 5000


def test_sequential_ports_follow_one_another() -> None:
    box = nat("symmetric-sequential")
    ports = [box.outbound(ONE, Endpoint("198.51.100.1", port), 0.0).port for port in range(1, 6)]
    assert [port - ports[0] for port in ports] == [0, 1, 2, 3, 4]


def test_mapping_ends_after_its_timeout_and_lives_while_used() -> None:
    box = nat("symmetric", timeout_s=30.0)
    first = box.outbound(ONE, PEER, 0.0)
    assert box.outbound(ONE, PEER, 29.0) == first
    assert box.inbound(first, PEER, 58.0) == ONE
    assert box.inbound(first, PEER, 59.5) is None
    assert box.outbound(ONE, PEER, 60.0) != first
    assert len(box) == 1


def test_linux_mapping_that_was_answered_lives_on_by_what_comes_in_and_keeps_its_port_from_a_neighbour() -> None:
    box = nat("linux")
    outer = box.outbound(ONE, PEER, 0.0)
    assert [box.inbound(outer, PEER, at) for at in (10.0, 120.0, 230.0)] == [ONE] * 3
    assert box.outbound(TWO, PEER, 340.0) != outer
    assert box.inbound(outer, PEER, 351.0) is None
    assert box.inbound(box.outbound(ONE, OTHER, 0.0), OTHER, 31.0) is None


def test_permission_of_one_peer_ends_though_the_mapping_lives_on() -> None:
    box = nat("port-restricted", timeout_s=30.0)
    outer = box.outbound(ONE, PEER, 0.0)
    box.outbound(ONE, OTHER, 25.0)
    assert box.inbound(outer, OTHER, 40.0) == ONE
    assert box.inbound(outer, PEER, 40.0) is None


def test_reboot_forgets() -> None:
    box = nat("symmetric")
    outer = box.outbound(ONE, PEER, 0.0)
    box.reboot()
    assert box.inbound(outer, PEER, 0.0) is None
    assert len(box) == 0


def test_firewall_translates_nothing_and_lets_answers_in() -> None:
    box = nat("firewall")
    assert box.inbound(ONE, PEER, 0.0) is None
    assert box.outbound(ONE, PEER, 0.0) == ONE
    assert box.inbound(ONE, PEER, 1.0) == ONE
    assert box.inbound(ONE, SAME_HOST, 1.0) is None
