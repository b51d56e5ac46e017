"""Which router routes a prefix."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from calnet.model import NodeId
from calnet.roles.server.failover import Routers, choose

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
LAN, WIDE = ip_network("192.168.1.0/24"), ip_network("192.168.0.0/16")


@pytest.mark.parametrize(
    ("routers", "online", "present", "chosen"),
    [
        ((), {}, None, None),
        ((ONE, TWO), {}, None, ONE),
        ((ONE, TWO), {TWO: 5.0}, None, TWO),
        ((ONE, TWO), {ONE: 1.0, TWO: 5.0}, TWO, TWO),
        ((ONE, TWO), {ONE: 1.0}, TWO, ONE),
        ((ONE, TWO), {}, TWO, TWO),
        ((ONE,), {ONE: 5.0, TWO: 1.0}, TWO, ONE),
        ((ONE,), {TWO: 1.0}, TWO, ONE),
        ((ONE, TWO, THREE), {ONE: 9.0, THREE: 1.0}, TWO, THREE),
        ((ONE, TWO, THREE), {ONE: 1.0, THREE: 1.0}, TWO, ONE),
    ],
)
def test_choose(routers: tuple[NodeId, ...], online: dict[NodeId, float], present: NodeId | None, chosen: NodeId | None) -> None:
    assert choose(routers, online, present) == chosen


def test_router_that_goes_hands_over_and_does_not_take_back() -> None:
    routers = Routers()
    assert routers.put(ONE, [LAN], online=True) == {ONE}
    assert routers.put(TWO, [LAN], online=True) == set()
    assert routers.put(ONE, [LAN], online=False) == {ONE, TWO}
    assert routers.routed_by(TWO) == {LAN}
    assert routers.put(ONE, [LAN], online=True) == set()
    assert routers.primaries() == {LAN: TWO}
    assert routers.put(TWO, [], online=True) == {ONE, TWO}
    assert routers.primaries() == {LAN: ONE}
    assert routers.put(ONE, [], online=False) == {ONE}
    assert routers.primaries() == {}


def test_router_that_flaps_moves_the_prefix_once() -> None:
    routers = Routers()
    routers.put(ONE, [LAN, WIDE], online=True)
    routers.put(TWO, [LAN], online=True)
    moves = 0
    for _ in range(10):
        moves += bool(routers.put(ONE, [LAN, WIDE], online=False))
        moves += bool(routers.put(ONE, [LAN, WIDE], online=True))
    assert moves == 1
    assert routers.primaries() == {LAN: TWO, WIDE: ONE}


def test_router_that_flaps_is_not_chosen_over_one_that_stays() -> None:
    routers = Routers()
    for node in (ONE, TWO, THREE):
        routers.put(node, [LAN], online=True, since=100.0)
    for time in range(200, 210):
        routers.put(ONE, [LAN], online=False, since=float(time))
        routers.put(ONE, [LAN], online=True, since=time + 0.5)
    assert routers.primaries() == {LAN: TWO}
    routers.put(TWO, [LAN], online=False, since=300.0)
    assert routers.primaries() == {LAN: THREE}


def test_router_that_connects_anew_without_having_gone_keeps_its_prefix_and_counts_as_new() -> None:
    routers = Routers()
    for node in (ONE, TWO, THREE):
        routers.put(node, [LAN], online=True, since=100.0)
    assert routers.put(TWO, [LAN], online=True, since=200.0) == set()
    routers.put(ONE, [LAN], online=True, since=200.0)
    routers.put(ONE, [LAN], online=False, since=201.0)
    assert routers.primaries() == {LAN: THREE}
