"""A machine whose address changes behind the router that it had: the router still has connections of the old one."""

from __future__ import annotations

import pytest

from calnet.paths.constants import ATTEMPT_INTERVAL
from calnet.sim.internet import Weather
from calnet.sim.nat import KINDS
from calnet.sim.world import World

WITHIN_S = 5.0


@pytest.mark.parametrize("other_kind", ["port-restricted", "linux", "restricted"])
@pytest.mark.parametrize("seed", range(10))
def test_another_address_behind_the_same_linux_router_is_direct_again_at_once(other_kind: str, seed: int) -> None:
    world = World(seed)
    sites = [
        world.site(f"203.0.113.{number}", KINDS[kind], KINDS["firewall"], weather=Weather(latency_s=0.02)) for number, kind in ((1, "linux"), (2, other_kind))
    ]
    one, other = world.node(sites[0], "192.168.1.2"), world.node(sites[1], "192.168.2.2")
    world.start()
    world.talk(one, other)
    world.run(ATTEMPT_INTERVAL)
    for number in range(3, 6):
        world.move(one, sites[0], f"192.168.1.{number}")
        moved = world.now
        world.run(WITHIN_S)
        for here, there in ((one, other), (other, one)):
            assert [at for at in here.streams[there.id].direct_at if at > moved + 0.5], f"nothing came directly from n{there.id} since the move to .{number}"
        world.run(ATTEMPT_INTERVAL)


@pytest.mark.parametrize("seed", range(4))
def test_path_that_was_doubted_when_the_new_address_came_is_not_probed_before_the_peer_knows(seed: int) -> None:
    """A full probe to the router that a moment ago let everything in would meet a closed one, and take our port there for 30 s."""
    world = World(seed)
    sites = [world.site(f"203.0.113.{number}", KINDS["linux"], KINDS["firewall"], weather=Weather(latency_s=0.02)) for number in (1, 2)]
    one, other = world.node(sites[0], "192.168.1.2"), world.node(sites[1], "192.168.2.2")
    world.start()
    world.talk(one, other, every_s=2.0)
    world.run(ATTEMPT_INTERVAL)
    one.detach()
    world.run(4.0)
    world.move(one, sites[0], "192.168.1.3")
    moved = world.now
    world.run(WITHIN_S)
    for here, there in ((one, other), (other, one)):
        assert [at for at in here.streams[there.id].direct_at if at > moved + 0.5], f"nothing came directly from n{there.id}"
