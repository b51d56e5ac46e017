"""Random networks with random lives, each from its seed alone, and what has to hold in all of them.

What has to hold (`Findings`):
    data between two nodes that talk never stops for longer than RECOVERY_S while both could have reached the relay all the while, nor longer than FALL_BACK_S
    where only UDP died;
    data goes to endpoints alone that answered a probe from the peer, by relay, or nowhere;
    nothing is sent for a peer once nothing has been said to it for IDLE_S;
    what a node remembers stays bounded, and so does what it sends to places that never answered;
    all this also where somebody replays, reflects and forges what he sees, and members name candidates of hostile places: strangers get a trickle at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from calnet.model import NodeId
from calnet.paths import constants as c
from calnet.paths import spray
from calnet.sim.adversary import Adversary
from calnet.sim.internet import Box, Realm, Weather
from calnet.sim.nat import KINDS, Behaviour
from calnet.sim.node import Node
from calnet.sim.world import SECOND, SERVER, RelayFaults, World

RECOVERY_S: Final = 3.0
RECOVERY_LONG_S: Final = RECOVERY_S + 1.0
"""They are fewer: where one in five is lost, so many in a row are."""
FALL_BACK_S: Final = 1.0
SETTLED_S: Final = 2.0
"""At the end something was heard within so long: of a path that loses one in five, three in a row are nothing."""
IDLE_S: Final = c.IDLE_AFTER + 1.0
EVERY_S: Final = 0.2
SLACK_S: Final = 0.25
"""For the step of the simulation's own looking, and the packets' own pace."""
HOSTILE_SHARE: Final = 0.3
"""Of the networks have an adversary."""
VICTIM_PER_S: Final = c.HOST_PROBES_BURST + c.HOST_PROBES_PER_S
MAX_CANDIDATES: Final = c.MAX_TOLD + c.MAX_SEEN
UNPROVEN_PER_S: Final = 60 + 2 * int(spray.PER_S)
"""Datagrams in any second from one node to all places that never answered, for each peer: probes of candidates, and guesses at ports where both allow it, or an
answer and a probe to each guess of the peer's."""


@dataclass
class Findings:
    """What did not hold, in words; and what the run was, for statistics."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    pairs: int = 0
    direct: int = 0
    """Pairs that talked directly at some time."""
    datagrams: int = 0


def random_world(seed: int) -> World:
    """Two to five nodes somewhere: on the internet, behind one box or two, two behind one; with links of any weather."""
    world = World(seed)
    draw = world.random
    realms: list[tuple[Realm, int]] = []
    for number in range(1, draw.randint(2, 4) + 1):
        if draw.random() < 0.15:
            realms.append((world.internet.public, number))
            continue
        outer = world.internet.public
        if draw.random() < 0.15:
            carrier = KINDS[draw.choice(("symmetric", "port-restricted", "full-cone"))]
            outer = world.site(f"203.0.113.{number}", carrier, KINDS["firewall"], weather=_weather(world))
            realms.append((world.site(f"100.64.{number}.2", _random_nat(world), KINDS["firewall"], outer=outer, weather=_weather(world)), number))
        else:
            realms.append((world.site(f"203.0.113.{number}", _random_nat(world), KINDS["firewall"], weather=_weather(world)), number))
    for realm, number in realms:
        for host in range(2, 3 + (draw.random() < 0.25)):
            six = (f"2001:db8:{number}::{host}",) if draw.random() < 0.3 else ()
            four = f"203.0.114.{number}{host}" if realm is world.internet.public else f"192.168.{number}.{host}"
            world.node(realm, four, *six)
        if len(world.nodes) >= 5:
            break
    for box in world.boxes:
        if draw.random() < 0.08:
            box.udp = False
    return world


def _random_nat(world: World) -> Behaviour:
    draw = world.random
    return KINDS[draw.choice(("full-cone", "restricted", "port-restricted", "port-restricted", "linux", "linux", "symmetric", "symmetric-sequential"))]


def _weather(world: World) -> Weather:
    draw = world.random
    return Weather(
        latency_s=draw.choice((0.001, 0.005, 0.02, 0.08)),
        jitter_s=draw.choice((0.0, 0.0, 0.01)),
        loss=draw.choice((0.0, 0.0, 0.0, 0.02, 0.1)),
        reorder=draw.choice((0.0, 0.0, 0.05)),
        duplicate=draw.choice((0.0, 0.0, 0.02)),
        mtu=draw.choice((1472, 1472, 1472, 1464, 1400, 1330)),
    )


class Life:
    """A world's random events, and the properties over all of it."""

    def __init__(self, world: World, seed: int, adversary: Adversary | None = None) -> None:
        """Without an adversary, one in three has one."""
        self.world = world
        self.found = Findings(seed)
        self.started = world.now
        self.happened: list[float] = []
        self.only_udp_died: list[tuple[float, Node]] = []
        self._moves = 0
        hostile = world.random.random() < HOSTILE_SHARE
        self.adversary = adversary or (Adversary(world) if hostile else None)

    def run(self, *, events: int = 8) -> Findings:
        """From the start to the silence at the end."""
        world, draw = self.world, self.world.random
        self.story("start: " + ", ".join(f"n{node.id} {'/'.join(node.addresses)}" for node in world.nodes.values()))
        world.start()
        self.started = world.now
        for one in world.nodes.values():
            for other in world.nodes.values():
                if one.id < other.id and (draw.random() < 0.6 or len(world.nodes) == 2):
                    world.talk(one, other, every_s=EVERY_S)
        if not world.talking():
            world.talk(*list(world.nodes.values())[:2], every_s=EVERY_S)
        self.found.pairs = len(world.talking()) // 2
        for _ in range(events):
            world.run(draw.choice((1.0, 3.0, 8.0, 15.0)))
            self.happened.append(world.now)
            draw.choice(self.events())()
        world.run(20.0)
        self.restore()
        world.run(12.0)
        pairs = world.talking()
        self.check_streams(pairs)
        self.check_settled(pairs)
        world.hush()
        self.check_silence()
        self.check_bounds()
        self.check_proven()
        self.check_victim()
        self.found.direct = sum(1 for one, other in pairs if one.id < other.id and one.streams[other.id].direct_at)
        self.found.datagrams = sum(len(node.datagrams) for node in world.nodes.values())
        return self.found

    def story(self, text: str) -> None:
        self.found.story.append(f"{self.world.now - 1000:8.2f}  {text}")

    # --- what can happen

    def events(self) -> list[Callable[[], None]]:
        """Those that can happen here."""
        found = [self.restart_server, self.sleep, self.move, self.link_down, self.nothing, self.relay_misbehaves]
        if self.adversary is not None:
            found += [self.hostile_candidates] * 2
        if self.world.boxes:
            found += [self.reboot, self.rebind, self.udp_off, self.udp_one_way, self.udp_on, self.one_way, self.weather_changes]
        return found

    def nothing(self) -> None:
        """A quiet while."""

    def restart_server(self) -> None:
        down = self.world.random.choice((0.5, 2.0, 8.0))
        self.story(f"the server is away for {down} s")
        self.world.restart_server(down)

    def sleep(self) -> None:
        node, seconds = self._node(), self.world.random.choice((2.0, 20.0, 90.0))
        self.story(f"n{node.id} sleeps for {seconds} s")
        node.sleep()
        self.world.run(seconds)
        node.wake()

    def move(self) -> None:
        """Wi-Fi to another network, behind another box."""
        node, draw = self._node(), self.world.random
        realm = draw.choice([other.realm for other in self.world.nodes.values()])
        self._moves += 1
        number = 100 + self._moves
        address = f"203.0.115.{number}" if realm is self.world.internet.public else f"{_network_of(realm)}.{number}"
        self.story(f"n{node.id} moves to {address} {realm.name}")
        self.world.move(node, realm, address)

    def link_down(self) -> None:
        node, seconds = self._node(), self.world.random.choice((1.0, 5.0, 30.0))
        self.story(f"n{node.id} has no link for {seconds} s")
        node.link.outward = node.link.inward = False
        self.world.run(seconds)
        node.link.outward = node.link.inward = True
        node.network_changed()

    def reboot(self) -> None:
        box, seconds = self._box(), self.world.random.choice((0.5, 3.0, 20.0))
        self.story(f"box {box.address} reboots for {seconds} s")
        box.up = False
        self.world.run(seconds)
        box.up = True
        box.reboot()

    def rebind(self) -> None:
        box = self._box()
        self.story(f"box {box.address} forgets its UDP mappings")
        box.rebind()

    def udp_off(self) -> None:
        box = self._box()
        if box.udp:
            self.story(f"box {box.address} passes no UDP any more")
            box.udp = False
            self._udp_died(box)

    def udp_one_way(self) -> None:
        """Of UDP one direction alone dies: what comes says nothing of what goes."""
        box, outward = self._box(), self.world.random.random() < 0.5
        if box.udp and box.udp_outward and box.udp_inward:
            self.story(f"box {box.address} passes no UDP {'outward' if outward else 'inward'} any more")
            box.udp_outward, box.udp_inward = not outward, outward
            self._udp_died(box)

    def _udp_died(self, box: Box) -> None:
        self.only_udp_died += [(self.world.now, node) for node in self.world.nodes.values() if box in node.boxes()]

    def udp_on(self) -> None:
        box = self._box()
        self.story(f"box {box.address} passes UDP")
        box.udp = box.udp_outward = box.udp_inward = True

    def one_way(self) -> None:
        """UDP one way alone; TCP is told by its acknowledgements, so it is dead, too."""
        box, seconds = self._box(), self.world.random.choice((2.0, 10.0))
        self.story(f"box {box.address} carries nothing inward for {seconds} s")
        box.weather.inward = False
        self.world.run(seconds)
        box.weather.inward = True

    def weather_changes(self) -> None:
        box = self._box()
        box.weather = _weather(self.world)
        self.story(f"box {box.address}: {box.weather}")

    def relay_misbehaves(self) -> None:
        """It loses, reorders and duplicates: the tunnel doesn't mind."""
        self.story("the relay loses, reorders and duplicates")
        self.world.faults = RelayFaults(drop=0.1, duplicate=0.1, reorder_s=0.05)

    def hostile_candidates(self) -> None:
        """A member names loopback, multicast, and a stranger, two hundred times."""
        member = self._node()
        self.story(f"n{member.id} names hostile candidates")
        if self.adversary is not None:
            for peer in self.world.nodes:
                if peer != member.id:
                    self.adversary.name_hostile_candidates(member, peer)

    def restore(self) -> None:
        """At the end all is well, so that what was found wrong before can be told from what stays so."""
        self.story("all is well again")
        for box in self.world.boxes:
            box.udp = box.udp_outward = box.udp_inward = box.up = True

    # --- what has to hold

    def check_streams(self, pairs: Iterable[tuple[Node, Node]]) -> None:
        """No gap longer than allowed, whenever both ends could use the relay all the while."""
        end = self.world.now
        for source, target in pairs:
            stream = target.streams[source.id]
            arrivals = stream.at
            for begin, until in self._both_reachable(source.id, target.id, end):
                times = [begin, *(at for at in arrivals if begin <= at <= until), until]
                for before, after in pairwise(times):
                    if after - before > RECOVERY_S + SLACK_S:
                        self.wrong(f"n{source.id} to n{target.id}: nothing from {before - 1000:.2f} to {after - 1000:.2f}, while the relay was there")
                for before, after in pairwise([begin, *(at for at in stream.long_at if begin <= at <= until), until]):
                    if after - before > RECOVERY_LONG_S + SLACK_S:
                        self.wrong(f"n{source.id} to n{target.id}: no long packet from {before - 1000:.2f} to {after - 1000:.2f}, while the relay was there")
            for died, node in self.only_udp_died:
                if node in (source, target) and self._calm(source, target, died - 5.0, died + 5.0):
                    first = min((at for at in arrivals if at > died + 0.3), default=end)
                    # where one direction alone died, the far end has to ask, and wait for an answer: two more round trips
                    if first - died > FALL_BACK_S + SLACK_S + 4 * self._relay_latency(source, target):
                        self.wrong(f"n{source.id} to n{target.id}: by relay {first - died:.2f} s after UDP died at {died - 1000:.2f}")

    def _relay_latency(self, source: Node, target: Node) -> float:
        return sum(box.weather.latency_s for node in (source, target) for box in node.boxes())

    def _calm(self, source: Node, target: Node, begin: float, until: float) -> bool:
        """Whether both could use the relay all that time, and talked before it."""
        spans = self._both_reachable(source.id, target.id, self.world.now)
        talked = any(begin <= at <= begin + 5 for at in target.streams[source.id].at)
        others = sum(begin <= at <= until for at in self.happened)
        return talked and others == 1 and any(start + RECOVERY_S <= begin and until <= end for start, end in spans)

    def _both_reachable(self, one: NodeId, other: NodeId, end: float) -> list[tuple[float, float]]:
        spans, since = [], None
        for at, could in [*self.world.reachable, (end, frozenset[NodeId]())]:
            there = one in could and other in could
            if there and since is None:
                since = max(at, self.started)
            elif not there and since is not None:
                if at > since:
                    spans.append((since, at))
                since = None
        return spans

    def check_settled(self, pairs: Iterable[tuple[Node, Node]]) -> None:
        """All is well: everybody hears everybody."""
        for source, target in pairs:
            last = max(target.streams[source.id].at, default=0.0)
            if self.world.now - last > SETTLED_S:
                self.wrong(f"n{source.id} to n{target.id}: nothing at the end, last at {last - 1000:.2f}")

    def check_silence(self) -> None:
        """Idle peers are silent; what is left are a node's own STUN rounds until they end too."""
        self.world.run(IDLE_S + 25.0)  # a keepalive comes 10 s after the last data; either may be lost, and come 5 s later from an adversary
        marks = {node: (len(node.datagrams), len(node.relayed_at)) for node in self.world.nodes.values()}
        self.world.run(120.0)
        for node, (datagrams, relayed) in marks.items():
            said = [to for _, to in node.datagrams[datagrams:] if to not in (SERVER, SECOND)]
            if said or len(node.relayed_at) > relayed:
                self.wrong(f"n{node.id} is not silent: {len(said)} datagrams, {len(node.relayed_at) - relayed} by relay")

    def check_bounds(self) -> None:
        """Memory and rates."""
        for node in self.world.nodes.values():
            for peer in self.world.nodes:
                if len(node.paths.report(peer).candidates) > MAX_CANDIDATES:
                    self.wrong(f"n{node.id} knows {len(node.paths.report(peer).candidates)} candidates of n{peer}")
            seconds: dict[int, int] = {}
            answered = {SERVER, SECOND, *(endpoint for _, _, endpoint in node.data_to)}
            for at, to in node.datagrams:
                if to not in answered:
                    seconds[int(at)] = seconds.get(int(at), 0) + 1
            if seconds and max(seconds.values()) > UNPROVEN_PER_S * max(1, len(self.world.nodes) - 1):
                self.wrong(f"n{node.id} sent {max(seconds.values())} datagrams in one second to places that never answered")

    def check_victim(self) -> None:
        """Nobody is flooded: not by what members name, nor by answers to what comes in its name."""
        if self.adversary is None or not self.adversary.victim:
            return
        most = VICTIM_PER_S * len(self.world.nodes)
        second, count = self.adversary.victim.most_common(1)[0]
        if count > most:
            self.wrong(f"a stranger got {count} datagrams in the second {second - 1000}")

    def check_proven(self) -> None:
        """Data goes to endpoints alone that led to the peer when a probe went there."""
        for node in self.world.nodes.values():
            for at, peer, endpoint in node.data_to:
                led = self.world.internet.led.get((node.id, endpoint, peer))
                if led is None or led > at:
                    self.wrong(f"n{node.id} sent data for n{peer} to {endpoint}, from where it had not been answered")
                    return

    def wrong(self, text: str) -> None:
        self.found.wrong.append(text)

    def _node(self) -> Node:
        return self.world.random.choice(list(self.world.nodes.values()))

    def _box(self) -> Box:
        return self.world.random.choice(self.world.boxes)


def _network_of(realm: Realm) -> str:
    """The first three parts of the addresses in a realm."""
    return next((address.rpartition(".")[0] for address in realm.hosts if "." in address), "192.168.200")


def play(seed: int, *, events: int = 8) -> Findings:
    """One random network's life."""
    return Life(random_world(seed), seed).run(events=events)
