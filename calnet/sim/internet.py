"""An internet of realms: address spaces with hosts, joined by boxes (NATs, firewalls) to the realm outside, up to the public one.

A datagram goes up through the boxes of its realm until some realm knows the destination, and down through the boxes there. What a box does to it on the way
up is decided when it is sent, on the way down when it arrives. Links have weather: delay, jitter, loss, reordering, duplication, a largest size, and
directions that carry nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from calnet.model import Endpoint, NodeId
from calnet.sim.agenda import Agenda
from calnet.sim.nat import Behaviour, Nat

BURST_S: Final = 0.1
FULL_SIZE: Final = 1500
Receive = Callable[[Endpoint, Endpoint, bytes], None]
"""(the endpoint it was sent to, its source, the datagram)."""


@dataclass(slots=True)
class Weather:
    """A link's. `latency_s` is one way; probabilities from 0 to 1."""

    latency_s: float = 0.005
    jitter_s: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    mtu: int = 1472
    """Bytes of a UDP datagram's payload."""
    outward: bool = True
    inward: bool = True
    """Whether that direction carries anything."""


class Policer:
    """Lets `rate` bytes a second through, and BURST_S of them at once; what is more is dropped."""

    def __init__(self, rate: float) -> None:
        self._rate, self._room, self._at = rate, 0.0, 0.0

    def passes(self, size: int, now: float) -> bool:
        """Whether so long a datagram passes now."""
        self._room = min(max(self._rate * BURST_S, FULL_SIZE), self._room + (now - self._at) * self._rate)
        self._at = now
        passes = size <= self._room
        self._room -= size * passes
        return passes


@dataclass(eq=False)
class Realm:
    """An address space. `box` leads out of it, None in the public one."""

    name: str
    box: Box | None = None
    hosts: dict[str, Receive] = field(default_factory=dict)
    boxes: dict[str, Box] = field(default_factory=dict)
    """Boxes by the addresses that lead to them: their own, and those routed behind them."""

    def __contains__(self, address: str) -> bool:
        return address in self.hosts or address in self.boxes


class Box:
    """A router between `inner` and `outer`. `udp` (one way: `udp_outward`, `udp_inward`) and `tcp` say what passes; `up` is its power, and its uplink's."""

    def __init__(self, inner: Realm, outer: Realm, address: str, four: Behaviour, six: Behaviour, random_: random.Random) -> None:
        self.inner, self.outer, self.address = inner, outer, address
        self.four, self.six = Nat(four, address, random_), Nat(six, "", random_)
        self.udp = self.tcp = self.up = True
        self.udp_outward = self.udp_inward = True
        self.weather = Weather()
        self.policers: tuple[Policer, Policer] | None = None
        """Of UDP outward and inward; TCP is left alone."""
        self.reboots = 0
        inner.box = self
        outer.boxes[address] = self

    def nat_for(self, endpoint: Endpoint) -> Nat:
        """The table for the endpoint's family."""
        return self.six if ":" in endpoint.host else self.four

    def route(self, address: str) -> None:
        """Lead this address, which is behind it as it is, through it."""
        self.outer.boxes[address] = self
        if self.outer.box is not None:
            self.outer.box.route(address)

    def throttle(self, rate: float | None) -> None:
        """Let so many bytes of UDP a second through in each direction; None: all."""
        self.policers = None if rate is None else (Policer(rate), Policer(rate))

    def rebind(self) -> None:
        """It forgets its UDP mappings, and nothing else."""
        self.four.reboot()
        self.six.reboot()

    def reboot(self) -> None:
        """All its tables are gone, and with them the TCP connections through it."""
        self.rebind()
        self.reboots += 1


class Internet:
    """See the module."""

    def __init__(self, agenda: Agenda, random_: random.Random) -> None:
        self.agenda = agenda
        self.random = random_
        self.public = Realm("internet")
        self.carried = 0
        self.sent: dict[bytes, tuple[NodeId, Endpoint]] = {}
        """By whom a probe was sent, and to where: no two are alike."""
        self.led: dict[tuple[NodeId, Endpoint, NodeId], float] = {}
        """What only the simulation knows: (who sent, to which endpoint, whom it reached), and when first."""
        self.observe: Callable[[Endpoint, Endpoint, bytes], None] = lambda source, to, datagram: None
        """Sees each datagram as it passes the realm where it turns down."""

    def send(self, realm: Realm, source: Endpoint, to: Endpoint, datagram: bytes, weather: Weather, hops: int | None = None) -> None:
        """A host in `realm`, behind a link of this weather, sends a datagram. `hops`: its time to live; the public realm has more routers than that."""
        self.carried += 1
        delay = self._crossed(weather, len(datagram), outward=True)
        while delay is not None:
            if to.host in realm:
                self._turn(realm, source, to, datagram, delay, hops)
                return
            box = realm.box
            if box is None or not (box.up and box.udp and box.udp_outward) or hops == 1:
                return
            hops = None if hops is None else hops - 1
            crossed = self._through(box, len(datagram), outward=True)
            nat = box.nat_for(to)
            inside, source = source, nat.outbound(source, to, self.agenda.now)
            if to.host == box.address and box.nat_for(to).behaviour.translates:
                self._hairpin(box, nat, inside, to, datagram, delay)
                return
            delay = None if crossed is None else delay + crossed
            realm = box.outer

    def arrived(self, node: NodeId, datagram: bytes) -> None:
        """A node got it."""
        if (known := self.sent.get(datagram)) is not None:
            self.led.setdefault((*known, node), self.agenda.now)

    def _turn(self, realm: Realm, source: Endpoint, to: Endpoint, datagram: bytes, delay: float, hops: int | None) -> None:
        self.observe(source, to, datagram)
        if hops is None or realm.box is not None:
            self.agenda.after(delay, lambda: self._down(realm, source, to, datagram, hops))

    def _hairpin(self, box: Box, nat: Nat, inside: Endpoint, to: Endpoint, datagram: bytes, delay: float) -> None:
        """From inside to the box's own address outside."""
        if nat.behaviour.hairpin:
            source = nat.outbound(inside, to, self.agenda.now)
            self.agenda.after(delay, lambda: self._down(box.outer, source, to, datagram))

    def _down(self, realm: Realm, source: Endpoint, to: Endpoint, datagram: bytes, hops: int | None = None) -> None:
        """It arrives in a realm that knows where it goes."""
        receive = realm.hosts.get(to.host)
        if receive is not None:
            receive(to, source, datagram)
            return
        box = realm.boxes.get(to.host)
        if box is None or not (box.up and box.udp and box.udp_inward):
            return
        delay = self._through(box, len(datagram), outward=False)
        if delay is None:
            return
        copies = 2 if self.random.random() < box.weather.duplicate else 1
        for _ in range(copies):
            self.agenda.after(delay, lambda: self._inside(box, source, to, datagram, hops))

    def _inside(self, box: Box, source: Endpoint, to: Endpoint, datagram: bytes, hops: int | None) -> None:
        inner = box.nat_for(to).inbound(to, source, self.agenda.now)
        if inner is not None and hops != 1:
            self._down(box.inner, source, inner, datagram, None if hops is None else hops - 1)

    def _through(self, box: Box, size: int, *, outward: bool) -> float | None:
        """The delay of crossing a box's link; None where the datagram is lost, or more than may pass."""
        if box.policers is not None and not box.policers[not outward].passes(size, self.agenda.now):
            return None
        return self._crossed(box.weather, size, outward=outward)

    def _crossed(self, weather: Weather, size: int, *, outward: bool) -> float | None:
        """The delay of crossing a link; None where the datagram is lost."""
        if size > weather.mtu or not (weather.outward if outward else weather.inward) or (weather.loss and self.random.random() < weather.loss):
            return None
        late = weather.jitter_s * self.random.random() if weather.jitter_s else 0.0
        if weather.reorder and self.random.random() < weather.reorder:
            late += 2 * weather.latency_s + 0.005
        return weather.latency_s + late


def boxes_of(realm: Realm) -> list[Box]:
    """The boxes between a realm and the public one."""
    found = []
    while realm.box is not None:
        found.append(realm.box)
        realm = realm.box.outer
    return found
