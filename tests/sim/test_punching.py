"""Pairs that simultaneous punching joins, in the simulator, where one side alone begins: the other answers, as to a ping."""

from __future__ import annotations

import itertools

import pytest

from calnet.model import Source
from calnet.sim.internet import Weather
from calnet.sim.nat import KINDS
from calnet.sim.node import DATA, Node
from calnet.sim.world import World

WITHIN_S = 5.0
_EASY = ("full-cone", "restricted", "port-restricted", "linux", "firewall")


def _direct_after(kinds: tuple[str, str], latency_s: float, seed: int) -> float | None:
    """Seconds until both heard the other directly."""
    world = World(seed)
    nodes = []
    for number, kind in enumerate(kinds, start=1):
        realm = world.site(f"203.0.113.{number}", KINDS[kind], KINDS["firewall"], weather=Weather(latency_s=latency_s))
        routed = kind == "firewall"
        nodes.append(world.node(realm, f"203.0.113.10{number}" if routed else f"192.168.{number}.2"))
        if routed and realm.box is not None:
            realm.box.route(f"203.0.113.10{number}")
    one, other = nodes
    _answer(other, one)
    world.start()
    began = world.now
    world.talk(one, other, both_ways=False)
    world.run(WITHIN_S)
    heard = [one.streams[other.id].direct_at, other.streams[one.id].direct_at]
    return max(times[0] for times in heard) - began if all(heard) else None


def _answer(node: Node, peer: Node) -> None:
    """Let `node` answer data of `peer` with data."""
    take = node.take

    def take_and_answer(source: Source, datagram: bytes) -> None:
        take(source, datagram)
        if datagram.startswith(DATA):
            node.send_data(peer.id)

    node.take = take_and_answer  # type: ignore[method-assign]


@pytest.mark.parametrize("kinds", list(itertools.product(_EASY, _EASY)))
@pytest.mark.parametrize("latency_s", [0.0005, 0.02, 0.15])
def test_pair_is_direct_whichever_side_begins(kinds: tuple[str, str], latency_s: float) -> None:
    assert all(_direct_after(kinds, latency_s, seed) is not None for seed in range(3))
