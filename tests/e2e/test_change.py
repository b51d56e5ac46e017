"""The network changes under a node while traffic flows: it flows again soon, and nothing comes twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.recovery import CHANGES, Change, Stage, measure
from tests.e2e.network import Network

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

_NOISE: Final = 3.0
"""Times the promised bound is what a busy test machine is given; `python -m bench.recovery` holds the bounds themselves."""


@pytest.fixture(scope="module")
def stage(net: Network) -> Stage:
    alice, bob = net.join("alice"), net.join("bob")
    cafe = net.lab.site("cafe", NatKind.PORT_RESTRICTED)
    net.acquaint("alice", "bob")
    return Stage(net.lab, net.server, alice, bob, net.sites["alice"], cafe, net.sites["bob"])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name.replace(" ", "-"))
def test_change_of_network_is_recovered_from(stage: Stage, change: Change, record_property: Callable[[str, object], None]) -> None:
    recovery = measure(stage, change)
    record_property("recovery_s", round(recovery.seconds, 3))
    print(f"{change.name}: traffic flows again after {recovery.seconds:.2f} s (bound {change.bound_s:g} s), {recovery.lost} of {recovery.sent} lost")
    assert recovery.seconds <= _NOISE * change.bound_s
    assert recovery.duplicates == 0
