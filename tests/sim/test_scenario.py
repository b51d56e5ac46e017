"""Hundreds of random networks with random lives: what has to hold, holds; and the same seed is the same life."""

from __future__ import annotations

import pytest

from calnet.model import Endpoint
from calnet.sim.adversary import Adversary
from calnet.sim.scenario import Life, play, random_world

RUNS = 160
"""In `bench.simulation` there are thousands."""
GROUPS = 8


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_lives_keep_their_promises(group: int) -> None:
    for seed in range(group * RUNS // GROUPS, (group + 1) * RUNS // GROUPS):
        found = play(seed)
        assert not found.wrong, "\n".join([f"seed {seed}", *found.story, *found.wrong])
        assert found.pairs


def test_same_seed_is_the_same_life() -> None:
    one, other = play(7), play(7)
    assert (one.story, one.datagrams, one.direct) == (other.story, other.datagrams, other.direct)
    assert play(8).story != one.story


def test_most_pairs_that_can_are_direct() -> None:
    found = [play(seed, events=1) for seed in range(1000, 1040)]
    assert sum(one.direct for one in found) >= 0.7 * sum(one.pairs for one in found)


def life() -> Life:
    """A calm one, to spoil."""
    spoilt = Life(random_world(3), 3)
    spoilt.world.start()
    spoilt.started = spoilt.world.now
    one, other, *_ = spoilt.world.nodes.values()
    spoilt.world.talk(one, other)
    spoilt.world.run(10.0)
    return spoilt


def test_silence_is_found() -> None:
    spoilt = life()
    pairs = spoilt.world.talking()
    source, target = pairs[0]
    target.streams[source.id].at = [at for at in target.streams[source.id].at if not spoilt.started + 2 < at < spoilt.started + 7]
    spoilt.check_streams(pairs)
    assert any("nothing from" in text for text in spoilt.found.wrong)
    spoilt.found.wrong.clear()
    target.streams[source.id].at.clear()
    spoilt.check_settled(pairs)
    assert any("nothing at the end" in text for text in spoilt.found.wrong)


def test_silence_of_long_packets_alone_is_found() -> None:
    spoilt = life()
    pairs = spoilt.world.talking()
    source, target = pairs[0]
    target.streams[source.id].long_at = [at for at in target.streams[source.id].long_at if not spoilt.started + 2 < at < spoilt.started + 7]
    spoilt.check_streams(pairs)
    assert spoilt.found.wrong
    assert all("no long packet from" in text for text in spoilt.found.wrong)


def test_data_to_a_strangers_endpoint_is_found() -> None:
    spoilt = life()
    spoilt.check_proven()
    assert spoilt.found.wrong == []
    source, target = spoilt.world.talking()[0]
    source.data_to.append((spoilt.world.now, target.id, Endpoint("198.51.100.66", 6)))
    spoilt.check_proven()
    assert any("had not been answered" in text for text in spoilt.found.wrong)


def test_talk_that_does_not_end_is_found() -> None:
    spoilt = life()
    spoilt.check_silence()  # nobody told them to hush
    assert any("is not silent" in text for text in spoilt.found.wrong)


def test_flood_of_probes_is_found() -> None:
    spoilt = life()
    source, _ = spoilt.world.talking()[0]
    source.datagrams += [(spoilt.world.now, Endpoint("198.51.100.66", port)) for port in range(1, 1000)]
    spoilt.check_bounds()
    assert any("in one second" in text for text in spoilt.found.wrong)


def test_adversary_sees_replays_and_moves_nothing() -> None:
    world = random_world(5)
    adversary = Adversary(world, share=0.5)
    spoilt = Life(world, 5, adversary)
    spoilt.run(events=2)
    assert adversary.replayed > 100
    assert spoilt.found.wrong == []


def test_stranger_that_is_flooded_is_found() -> None:
    spoilt = life()
    spoilt.adversary = Adversary(spoilt.world)
    spoilt.adversary.victim[1000] = 1000
    spoilt.check_victim()
    assert any("a stranger got 1000" in text for text in spoilt.found.wrong)
