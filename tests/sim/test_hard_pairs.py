"""Hard pairs in the simulator: a symmetric NAT against each that lets in only what it has sent to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from calnet.sim.internet import Weather
from calnet.sim.nat import KINDS
from calnet.sim.world import World

TRIALS = 30
WITHIN_S = 20.0
MAX_PROBES = 2000


@dataclass(frozen=True)
class Trial:
    """When both heard the other directly (None: never), probes of both, and sockets left open on the hard side."""

    direct_s: float | None
    probes: int
    sockets: int
    lost: int


def trial(hard: str, easy: str, seed: int, *, seconds: float = WITHIN_S + 4.0, unwilling: int = 0) -> Trial:
    """`unwilling` is the side (1 hard, 2 easy) that may not guess."""
    world = World(seed)
    sites = [world.site(f"203.0.113.{number}", KINDS[kind], KINDS["firewall"], weather=Weather(latency_s=0.02)) for number, kind in ((1, hard), (2, easy))]
    one = world.node(sites[0], "192.168.1.2")
    routed = easy == "firewall"
    other = world.node(sites[1], "203.0.113.102" if routed else "192.168.2.2")
    if routed and sites[1].box is not None:
        sites[1].box.route("203.0.113.102")
    for side, node in ((1, one), (2, other)):
        node.paths.may_guess = side != unwilling
    world.start()
    began, sent = world.now, len(one.datagrams) + len(other.datagrams)
    world.talk(one, other)
    world.run(seconds)
    world.hush()
    world.run(1.0)
    heard = [one.streams[other.id].direct_at, other.streams[one.id].direct_at]
    direct = max(times[0] for times in heard) - began if all(heard) else None
    probes = len(one.datagrams) + len(other.datagrams) - sent - len(one.data_to) - len(other.data_to)
    lost = one.sent[other.id] - len(other.streams[one.id].numbers)
    return Trial(direct, probes, len(one.sockets), lost)


@pytest.mark.parametrize("easy", ["port-restricted", "linux", "firewall"])
@pytest.mark.parametrize("hard", ["symmetric", "symmetric-sequential"])
def test_hard_pair_is_direct_soon_within_its_budget_and_without_loss(hard: str, easy: str) -> None:
    trials = [trial(hard, easy, seed) for seed in range(TRIALS)]
    soon = [one for one in trials if one.direct_s is not None and one.direct_s <= WITHIN_S]
    assert len(soon) >= 0.9 * TRIALS
    assert max(one.probes for one in trials) <= MAX_PROBES
    assert all(one.lost == 0 for one in trials)
    assert all(one.sockets <= 8 for one in soon), "only the sockets in use stay open"


def test_nat_that_counts_is_guessed_at_once() -> None:
    times = [found.direct_s for found in (trial("symmetric-sequential", "port-restricted", seed, seconds=6.0) for seed in range(10))]
    assert all(time is not None and time < 4.0 for time in times)


def test_two_symmetric_sites_stay_on_the_relay_and_do_not_flood() -> None:
    found = trial("symmetric", "symmetric", 1, seconds=60.0)
    assert found.direct_s is None
    assert found.lost == 0
    assert found.probes <= 400


@pytest.mark.parametrize("unwilling", [1, 2])
def test_side_that_may_not_guess_sends_no_more_than_usual(unwilling: int) -> None:
    found = trial("symmetric", "port-restricted", 1, unwilling=unwilling)
    assert found.direct_s is None
    assert found.lost == 0
    assert found.probes <= 150
    assert found.sockets == 0
