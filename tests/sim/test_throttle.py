"""Paths that let UDP through at a trickle: data moves to the relay where that carries more, and back when the trickle is over; nothing else moves it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from calnet.paths import constants as c
from calnet.paths.delivery import Phase
from calnet.paths.effects import PathChanged
from calnet.paths.way import Way
from calnet.sim.internet import Box, Weather
from calnet.sim.nat import KINDS
from calnet.sim.node import Node
from calnet.sim.world import World

TRICKLE = 8_000.0
"""Bytes a second of UDP."""
EVERY_S = 0.02
"""Some 36 KB a second, as each second packet is a full one."""
TALK_S = 60.0


def pair(seed: int = 1, *, loss: float = 0.0, kind: str = "port-restricted") -> tuple[World, Node, Node, Box]:
    """Two sites with a direct path; the box is the first one's."""
    world = World(seed)
    sites = [
        world.site(f"203.0.113.{number}", KINDS[kind], KINDS["firewall"], weather=Weather(latency_s=0.02, loss=loss if number == 1 else 0.0))
        for number in (1, 2)
    ]
    one, other = (world.node(site, f"192.168.{number}.2") for number, site in enumerate(sites, 1))
    world.start()
    world.talk(one, other, every_s=0.2)
    world.run(5.0)
    assert one.paths.report(other.id).path == other.paths.report(one.id).path == "direct"
    world.hush()
    world.run(1.0)
    box = sites[0].box
    assert box is not None
    return world, one, other, box


def changes(node: Node, since: float) -> list[PathChanged]:
    return [change for at, change in node.changes if at >= since]


def received(node: Node, peer: Node, begin: float, until: float) -> int:
    """Full packets."""
    return sum(begin <= at < until for at in node.streams[peer.id].long_at)


@pytest.mark.parametrize("seed", range(5))
def test_throttled_path_is_left_for_the_relay_and_used_again_when_it_is_free(seed: int) -> None:
    world, one, other, box = pair(seed)
    box.throttle(TRICKLE)
    began = world.now
    world.talk(one, other, every_s=EVERY_S, both_ways=False)
    world.talk(other, one, every_s=0.2, both_ways=False)
    world.run(25.0)
    assert one.paths.report(other.id).path == "relay"
    assert re.match(r"UDP is throttled here: 0\.0[56] Mbit/s directly with [78]\d% lost, 0\.3 by relay", one.paths.report(other.id).left)
    (change,) = [change for change in changes(one, began) if change.new.endpoint is None]
    assert change.why.startswith("UDP is throttled here")
    assert received(other, one, world.now - 2.0, world.now) >= 2 * received(other, one, began + 4.0, began + 6.0) > 0
    held = world.now
    box.throttle(None)
    world.run(120.0)
    assert one.paths.report(other.id).path == "direct"
    assert one.paths.report(other.id).left == ""
    back = [change.new.endpoint is not None for change in changes(one, held)]
    assert back == [True]
    sent = one.sent[other.id]
    world.hush()
    world.run(2.0)
    numbers = other.streams[one.id].numbers
    fresh = sent - round(120.0 / EVERY_S) + 10
    assert all(number in numbers for number in range(fresh, sent + 1)), "not a packet is lost on the way back"


def test_path_that_stays_throttled_is_tried_again_more_and_more_seldom() -> None:
    world, one, other, box = pair()
    box.throttle(TRICKLE)
    began = world.now
    world.talk(one, other, every_s=EVERY_S, both_ways=False)
    world.talk(other, one, every_s=0.2, both_ways=False)
    world.run(600.0)
    left = [at for at, change in one.changes if at >= began and change.new.endpoint is None and change.new.relay]
    assert 3 <= len(left) <= 4
    holds = [after - before for before, after in pairwise(left)]
    assert all(after > 1.5 * before for before, after in pairwise(holds))
    by_relay = len([at for at in one.relayed_at if at >= began])
    assert by_relay > 0.85 * 600.0 / EVERY_S


@pytest.mark.parametrize("loss", [0.01, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_random_loss_moves_nothing(seed: int, loss: float) -> None:
    world, one, other, _ = pair(seed, loss=loss)
    began = world.now
    relayed = len(one.relayed_at)
    world.talk(one, other, every_s=EVERY_S)
    world.run(TALK_S)
    assert one.paths.report(other.id).path == "direct"
    assert not changes(one, began)
    assert len(one.relayed_at) - relayed <= 20, "no trial was made"


def test_flow_at_its_own_pace_on_a_lossy_path_is_tried_by_relay_and_stays_direct() -> None:
    world, one, other, _ = pair(3, loss=0.1)
    began = world.now
    world.talk(one, other, every_s=EVERY_S)
    tried = 0
    for _ in range(6000):
        world.run(0.05)
        tried += one.paths._deliveries[other.id].phase is Phase.TRYING
    assert tried * 0.05 <= 3 * 15.5, "trials of fifteen seconds, after a pause of one minute, then two, then four"
    assert tried
    assert not [change for change in changes(one, began) if "throttled" in change.why]
    assert one.paths.report(other.id).path == "direct"


def test_little_traffic_on_a_throttled_path_costs_no_message() -> None:
    world, one, other, box = pair()
    box.throttle(200.0)
    world.talk(one, other, every_s=0.5)
    relayed = len(one.relayed_at)
    world.run(20.0)
    assert one.paths.report(other.id).path == "direct" or len(one.relayed_at) > relayed
    assert one.paths._deliveries[other.id]._number == 0


@pytest.mark.parametrize("way", [Way.DIRECT, Way.RELAY])
def test_path_that_the_user_chose_is_not_measured(way: Way) -> None:
    world, one, other, box = pair()
    one.perform(one.paths.set_ways({other.id: way}, world.now))
    box.throttle(TRICKLE)
    world.talk(one, other, every_s=EVERY_S)
    world.run(30.0)
    assert one.paths._deliveries[other.id]._number == 0


def test_relay_that_goes_away_meanwhile_gives_the_path_back() -> None:
    world, one, other, box = pair()
    box.throttle(TRICKLE)
    world.talk(one, other, every_s=EVERY_S, both_ways=False)
    world.talk(other, one, every_s=0.2, both_ways=False)
    world.run(25.0)
    assert one.paths.report(other.id).path == "relay"
    world.relay_up = False
    world.run(5.0)
    assert one.paths.report(other.id).path == "direct"
    assert received(other, one, world.now - 2.0, world.now) >= 8


def test_user_who_insists_has_the_path_back() -> None:
    world, one, other, box = pair()
    box.throttle(TRICKLE)
    world.talk(one, other, every_s=EVERY_S, both_ways=False)
    world.talk(other, one, every_s=0.2, both_ways=False)
    world.run(25.0)
    assert one.paths.report(other.id).path == "relay"
    one.perform(one.paths.set_ways({other.id: Way.DIRECT}, world.now))
    world.run(3.0)
    assert one.paths.report(other.id).path == "direct"
    world.run(30.0)
    assert one.paths.report(other.id).path == "direct"


def test_peer_without_a_relay_is_never_sent_a_trial() -> None:
    world, one, other, box = pair()
    other.link.outward = True
    other_box = other.boxes()[0]
    other_box.tcp = False
    world.run(5.0)
    box.throttle(TRICKLE)
    began = world.now
    world.talk(one, other, every_s=EVERY_S, both_ways=False)
    world.talk(other, one, every_s=0.2, both_ways=False)
    for _ in range(40):
        world.run(1.0)
        assert one.paths._deliveries[other.id].phase is Phase.WATCHING
    assert not [change for change in changes(one, began) if "throttled" in change.why]


def test_network_changed_forgets_the_hold() -> None:
    world, one, other, box = pair()
    box.throttle(TRICKLE)
    world.talk(one, other, every_s=EVERY_S, both_ways=False)
    world.talk(other, one, every_s=0.2, both_ways=False)
    world.run(25.0)
    assert one.paths.report(other.id).path == "relay"
    box.throttle(None)
    one.network_changed()
    world.run(3.0)
    assert one.paths.report(other.id).path == "direct"
    assert c.HOLD_FIRST > 25.0
