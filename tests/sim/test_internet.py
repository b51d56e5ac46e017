"""Datagrams through realms and boxes: where they go, what they look like there, and what the weather does."""

from __future__ import annotations

import random

import pytest

from calnet.model import Endpoint
from calnet.sim.agenda import Agenda
from calnet.sim.internet import Box, Internet, Policer, Realm, Weather
from calnet.sim.nat import KINDS

SERVER = Endpoint("198.51.100.1", 9)
FINE = Weather(latency_s=0.001)


class Place:
    """Two sites, the second behind two boxes, and a server; what each host got."""

    def __init__(self, kind: str = "full-cone") -> None:
        self.agenda = Agenda()
        draw = random.Random(1)
        self.internet = Internet(self.agenda, draw)
        self.got: dict[str, list[tuple[Endpoint, bytes]]] = {}
        self.home = Realm("home")
        self.box = Box(self.home, self.internet.public, "203.0.113.1", KINDS[kind], KINDS["firewall"], draw)
        self.carrier, self.far = Realm("carrier"), Realm("far")
        self.carrier_box = Box(self.carrier, self.internet.public, "203.0.113.2", KINDS["full-cone"], KINDS["firewall"], draw)
        self.far_box = Box(self.far, self.carrier, "100.64.0.2", KINDS["full-cone"], KINDS["firewall"], draw)
        for realm, address in ((self.home, "192.168.1.2"), (self.home, "192.168.1.3"), (self.far, "192.168.1.2"), (self.internet.public, SERVER.host)):
            self.host(realm, address)

    def host(self, realm: Realm, address: str) -> None:
        def receive(to: Endpoint, source: Endpoint, datagram: bytes) -> None:
            self.got.setdefault(f"{realm.name} {to.host}", []).append((source, datagram))

        realm.hosts[address] = receive

    def send(self, realm: Realm, source: Endpoint, to: Endpoint, datagram: bytes = b"x", weather: Weather = FINE) -> None:
        self.internet.send(realm, source, to, datagram, weather)
        self.agenda.run(5.0)

    def take(self, name: str) -> list[tuple[Endpoint, bytes]]:
        return self.got.pop(name, [])


INNER = Endpoint("192.168.1.2", 7)


def test_datagram_goes_out_as_the_boxes_and_comes_back_in() -> None:
    place = Place()
    place.send(place.far, INNER, SERVER, b"there")
    ((source, datagram),) = place.take("internet 198.51.100.1")
    assert (source.host, datagram) == ("203.0.113.2", b"there")
    place.send(place.internet.public, SERVER, source, b"back")
    assert place.take("far 192.168.1.2") == [(SERVER, b"back")]


def test_same_private_address_elsewhere_is_another_host() -> None:
    place = Place()
    place.send(place.home, Endpoint("192.168.1.3", 7), INNER)
    assert len(place.take("home 192.168.1.2")) == 1
    assert place.take("far 192.168.1.2") == []
    place.send(place.home, INNER, Endpoint("192.168.9.9", 1))
    place.send(place.internet.public, SERVER, INNER)
    assert place.got == {}


def test_datagram_with_few_hops_opens_the_boxes_on_its_side_alone() -> None:
    place = Place("port-restricted")
    place.send(place.internet.public, SERVER, Endpoint("203.0.113.1", 7), b"unasked")
    place.internet.send(place.home, INNER, SERVER, b"opens", FINE, 2)
    place.agenda.run(5.0)
    assert place.got == {}
    place.send(place.internet.public, SERVER, Endpoint("203.0.113.1", 7), b"comes in")
    assert place.take("home 192.168.1.2") == [(SERVER, b"comes in")]
    place.internet.send(place.home, Endpoint("192.168.1.3", 7), INNER, b"next door", FINE, 2)
    place.agenda.run(5.0)
    assert len(place.take("home 192.168.1.2")) == 1
    place.internet.send(place.far, INNER, SERVER, b"ends at the carrier", FINE, 2)
    assert len(place.far_box.four) == 1
    assert len(place.carrier_box.four) == 0


def test_hairpin_is_the_boxs_choice() -> None:
    for kind, comes in (("full-cone", True), ("port-restricted", False)):
        place = Place(kind)
        place.send(place.home, INNER, SERVER)
        ((outer, _),) = place.take("internet 198.51.100.1")
        place.send(place.home, Endpoint("192.168.1.3", 7), outer, b"round")
        arrived = place.take("home 192.168.1.2")
        assert bool(arrived) == comes
        assert all(source.host == "203.0.113.1" for source, _ in arrived)


def test_global_address_behind_a_firewall_is_itself_and_answers_alone_come_in() -> None:
    place = Place()
    global_ = Endpoint("2001:db8:1::2", 7)
    place.host(place.home, global_.host)
    place.host(place.internet.public, "2001:db8:9::1")
    place.box.route(global_.host)
    server = Endpoint("2001:db8:9::1", 9)
    place.send(place.internet.public, server, global_, b"unasked")
    assert place.got == {}
    place.send(place.home, global_, server, b"ask")
    assert place.take("internet 2001:db8:9::1") == [(global_, b"ask")]
    place.send(place.internet.public, server, global_, b"answer")
    assert place.take("home 2001:db8:1::2") == [(server, b"answer")]


@pytest.mark.parametrize("change", [{"up": False}, {"udp": False}])
def test_box_that_is_off_or_passes_no_udp_passes_nothing(change: dict[str, bool]) -> None:
    place = Place()
    place.send(place.home, INNER, SERVER)
    ((outer, _),) = place.take("internet 198.51.100.1")
    for name, value in change.items():
        setattr(place.box, name, value)
    place.send(place.home, INNER, SERVER)
    place.send(place.internet.public, SERVER, outer)
    assert place.got == {}


def test_weather_delays_loses_doubles_and_cuts() -> None:
    place = Place()
    place.box.weather = Weather(latency_s=0.5)
    place.internet.send(place.home, INNER, SERVER, b"x", FINE)
    place.agenda.run(0.45)
    assert place.got == {}
    place.agenda.run(0.1)
    ((outer, _),) = place.take("internet 198.51.100.1")
    place.box.weather = Weather(duplicate=1.0)
    place.send(place.internet.public, SERVER, outer)
    assert len(place.take("home 192.168.1.2")) == 2
    place.box.weather = Weather(mtu=3)
    place.send(place.home, INNER, SERVER, b"long")
    assert place.got == {}
    place.box.weather = Weather(inward=False)
    place.send(place.home, INNER, SERVER, b"out")
    assert len(place.take("internet 198.51.100.1")) == 1
    place.send(place.internet.public, SERVER, outer, b"in")
    assert place.got == {}
    place.box.weather = Weather(loss=0.3)
    for _ in range(1000):
        place.internet.send(place.home, INNER, SERVER, b"x", FINE)
    place.agenda.run(1.0)
    assert 600 < len(place.take("internet 198.51.100.1")) < 800


def test_policer_lets_its_rate_through_and_a_little_at_once() -> None:
    policer = Policer(10_000.0)
    assert sum(policer.passes(500, 1000.0) for _ in range(10)) == 3, "a full packet's length, though a tenth of a second is less"
    assert sum(policer.passes(500, 1000.0 + tick / 100) for tick in range(1, 1001)) == pytest.approx(200, abs=1)


def test_box_that_throttles_drops_udp_in_each_direction_by_itself() -> None:
    place = Place()
    place.box.throttle(1000.0)
    for _ in range(10):
        place.internet.send(place.home, INNER, SERVER, bytes(500), FINE)
    place.agenda.run(5.0)
    arrived = place.take("internet 198.51.100.1")
    assert len(arrived) == 3
    for _ in range(10):
        place.internet.send(place.internet.public, SERVER, arrived[0][0], bytes(500), FINE)
    place.agenda.run(5.0)
    assert len(place.take("home 192.168.1.2")) == 3
    place.box.throttle(None)
    for _ in range(10):
        place.internet.send(place.home, INNER, SERVER, bytes(500), FINE)
    place.agenda.run(5.0)
    assert len(place.take("internet 198.51.100.1")) == 10
