"""Attacks by the server itself, or whoever holds its key: what a node believes of a netmap, and that nothing it is sent ends the daemon."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from calnet.errors import UnreachableError
from calnet.model import Endpoint, Netmap, PeerKind, Relay
from calnet.roles.node import routes
from calnet.roles.node.state import Pin
from calnet.roles.node.underlay import resolve, websocket_dial
from calnet.wire import control
from calnet.wire.netmap import wire_netmap
from tests.roles.node.fakes import World, a_netmap, a_peer, run, until

GOOD = a_netmap(version=9, peers=(a_peer(2), a_peer(3), a_peer(4)))
SELF = a_netmap().self

UNBELIEVABLE: dict[str, Netmap] = {
    "no address of ours": a_netmap(2, self=replace(SELF, addresses=())),
    "an address of ours outside the overlay": a_netmap(2, self=replace(SELF, addresses=(ip_address("8.8.8.8"),))),
    "no overlay": a_netmap(2, prefixes=()),
    "an overlay of all IPv4": a_netmap(2, prefixes=(ip_network("0.0.0.0/0"),)),
    "an overlay of half of IPv4": a_netmap(2, prefixes=(ip_network("0.0.0.0/1"), ip_network("fd12::/64"))),
    "an overlay of all IPv6": a_netmap(2, prefixes=(ip_network("100.70.0.0/24"), ip_network("::/0"))),
    "an overlay over loopback": a_netmap(2, prefixes=(ip_network("100.70.0.0/24"), ip_network("fd12::/64"), ip_network("127.0.0.0/8"))),
    "an overlay over metadata": a_netmap(2, prefixes=(ip_network("100.70.0.0/24"), ip_network("fd12::/64"), ip_network("169.254.0.0/16"))),
    "a key that expires never and always": a_netmap(2, self=replace(SELF, key_expires=math.nan)),
    "a peer's key that expires at no time": a_netmap(2, peers=(a_peer(2, key_expires=math.nan),)),
}


@pytest.mark.parametrize("what", UNBELIEVABLE)
def test_attack_26_netmap_that_takes_too_much_or_makes_no_sense_is_refused_and_the_old_one_stands(tmp_path: Path, what: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        before = world.daemon.control.netmap
        await world.server.session.say(wire_netmap(UNBELIEVABLE[what]))
        world.server.netmap = before
        await until(lambda: len(world.server.sessions) >= 2)
        assert world.network.configured is not None
        assert world.network.configured.routes == a_netmap().prefixes
        assert world.daemon.control.netmap == before
        world.server.netmap = GOOD
        await world.server.session.say(wire_netmap(GOOD))
        await until(lambda: world.daemon.control.netmap == GOOD)
        assert "internal" not in world.codes()

    run(tmp_path, script)


LEFT_OUT: dict[str, Callable[[World], dict[str, object]]] = {
    "our own id": lambda world: {"id": SELF.id},
    "our own address": lambda world: {"addresses": SELF.addresses},
    "no address": lambda world: {"addresses": ()},
    "an address outside the overlay": lambda world: {"addresses": (ip_address("8.8.8.8"),)},
    "another peer's address": lambda world: {"addresses": a_peer(2).addresses},
    "another peer's key": lambda world: {"node_key": a_peer(2).node_key},
    "no relay and no discovery": lambda world: {"kind": PeerKind.WIREGUARD, "endpoints": (Endpoint("192.0.2.99", 53),), "keepalive_s": 1},
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_attack_07_peer_that_no_honest_netmap_has_is_left_out(tmp_path: Path, what: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        odd = a_peer(5, **LEFT_OUT[what](world))
        await world.server.session.say(wire_netmap(replace(GOOD, peers=(*GOOD.peers, odd))))
        await until(lambda: world.daemon.control.netmap is not None and world.daemon.control.netmap.version == GOOD.version)
        await until(lambda: world.engine.netmaps[-1][0].peers == GOOD.peers)
        assert "peer-refused" in world.codes()

    run(tmp_path, script)


def test_attack_27_route_over_a_pinned_peers_address_is_refused_whatever_the_overlay_is_said_to_be() -> None:
    """Else another peer could stand in the pinned one's place without a key of its own changing."""
    bob, mallory = a_peer(2), a_peer(3, routes=(ip_network("100.70.0.2/32"), ip_network("100.0.0.0/8"), ip_network("10.9.0.0/16")), addresses=())
    pin = Pin(2, "node2", ("100.70.0.2",), bob.node_key)
    moved = a_netmap(prefixes=(ip_network("10.1.0.0/24"),), peers=(replace(mallory, addresses=(ip_address("10.1.0.3"),)),))
    netmap, findings = routes.trusted(moved, (pin,))
    assert netmap.peers[0].routes == (ip_network("10.9.0.0/16"),)
    assert [finding.code for finding in findings] == ["route-refused", "route-refused"]


@pytest.mark.parametrize(
    "url", ["ws://[", "file:///etc/passwd", "ws://:99999/", "ws://server.test:0x10/", "http://server.test/", "", "ws://a b/", "ws://\u0130.test/"]
)
def test_attack_15_relay_url_that_is_none_leaves_the_node_running(tmp_path: Path, url: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.session.say(wire_netmap(replace(GOOD, relays=(Relay(url),))))
        await until(lambda: world.daemon.control.netmap is not None and world.daemon.control.netmap.version == GOOD.version)
        await world.server.session.say(wire_netmap(replace(GOOD, version=10)))
        await until(lambda: world.daemon.control.netmap is not None and world.daemon.control.netmap.version == 10)
        assert "internal" not in world.codes()

    run(tmp_path, script)


@pytest.mark.parametrize("url", ["ws://[", "ws://server.test:99999/", "file:///etc/passwd", "ws://a b/", "ws://"])
def test_attack_15_dialled_url_that_is_none_is_unreachable_and_nothing_worse(url: str) -> None:
    with pytest.raises(UnreachableError):
        asyncio.run(websocket_dial(0)(url, 1000))


def test_attack_13_stun_server_that_is_no_endpoint_is_left_out() -> None:
    hostile = (
        "127.0.0.1:70000",
        "127.0.0.1:-1",
        "127.0.0.1:0",
        "169.254.169.254:80",
        "224.0.0.1:3478",
        "255.255.255.255:9",
        "0.0.0.0:53",
        "[fe80::1]:3478",
        "x",
    )
    assert asyncio.run(resolve(hostile)) == ()
    assert asyncio.run(resolve(("192.0.2.1:3478", "[2001:db8::1]:3478"))) == (Endpoint("192.0.2.1", 3478), Endpoint("2001:db8::1", 3478))


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, 1e300, -5.0])
def test_attack_02_server_time_that_is_no_time_is_not_believed(tmp_path: Path, time: float) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.session.say(control.Pong(1, time))
        await until(lambda: len(world.server.sessions) >= 2 or any(isinstance(message, control.Ping) for message in world.server.heard))
        assert abs(world.daemon.control.clock_offset) < 1

    run(tmp_path, script)
