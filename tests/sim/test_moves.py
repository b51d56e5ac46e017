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
