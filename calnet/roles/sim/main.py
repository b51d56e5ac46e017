"""`sim FILE`: the simulator on a user's own network. What Calnet's path finding would do there, and how soon."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from calnet.errors import ConfigError
from calnet.paths.effects import describe_route
from calnet.sim.topology import Topology, parse_topology

MAX_SIZE: Final = 1 << 20
NOTABLE_S: Final = 0.5
"""A silence as long as this is worth a line."""


def run(args: Namespace) -> int:
    """Run the file's network; 0, or 1 where some pair never talked."""
    topology = parse_topology(_read(args.file), seed=args.seed)
    played = play(topology)
    if args.json:
        print(json.dumps(asdict(played), indent=2))
    else:
        _print(played)
    return 0 if all(pair.received for pair in played.pairs) else 1


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_SIZE) if path == "-" else Path(path).read_bytes()[:MAX_SIZE]
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None


@dataclass(frozen=True, slots=True)
class Change:
    """Data goes another way from then on."""

    at: float
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing arrived for so long."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Direction:
    """What came of one node's packets to another. Times are seconds from the first packet; None for never."""

    source: str
    target: str
    sent: int
    received: int
    first: float | None
    direct: float | None
    path: str
    silences: list[Silence]
    changes: list[Change]


@dataclass(frozen=True, slots=True)
class Played:
    """All of it, as `--json` prints it."""

    seconds: float
    events: list[Change]
    pairs: list[Direction]


def play(topology: Topology) -> Played:
    """Run it."""
    world = topology.world
    world.start()
    began = world.now
    for one, other, every_s, both in topology.talk:
        world.talk(topology.nodes[one], topology.nodes[other], every_s=every_s, both_ways=both)
    for at, _, action in topology.events:
        world.run(max(0.0, began + at - world.now))
        action()
    world.run(max(0.0, began + topology.seconds - world.now))
    directions = [ends for one, other, _, both in topology.talk for ends in ((one, other), *(((other, one),) if both else ()))]
    events = [Change(at, "", text) for at, text, _ in topology.events]
    return Played(topology.seconds, events, [_direction(topology, source, target, began) for source, target in directions])


def _direction(topology: Topology, source: str, target: str, began: float) -> Direction:
    one, other = topology.nodes[source], topology.nodes[target]
    stream = other.streams[one.id]
    return Direction(
        source,
        target,
        one.sent[other.id],
        len(stream.at),
        _since(stream.at[:1], began),
        _since(stream.direct_at[:1], began),
        describe_route(one.paths.route(other.id)),
        [Silence(round(before - began, 2), round(after - before, 2)) for before, after in pairwise(stream.at) if after - before >= NOTABLE_S],
        [Change(round(at - began, 2), describe_route(change.new), change.why) for at, change in one.changes if change.peer == other.id],
    )


def _since(times: list[float], began: float) -> float | None:
    return round(times[0] - began, 3) if times else None


def _print(played: Played) -> None:
    for event in played.events:
        print(f"at {event.at:g} s: {event.why}")
    for pair in played.pairs:
        direct = "never direct" if pair.direct is None else f"direct after {pair.direct:.2f} s"
        first = "nothing arrived" if pair.first is None else f"first packet after {pair.first:.3f} s"
        print(f"{pair.source} to {pair.target}: {first}, {direct}, {pair.received} of {pair.sent} packets; now {pair.path}")
        for change in pair.changes:
            print(f"  at {change.at:7.2f} s  {change.path} ({change.why})")
        for silence in pair.silences:
            print(f"  at {silence.at:7.2f} s  silent for {silence.seconds:.2f} s")
