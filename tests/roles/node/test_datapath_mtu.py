"""Packets longer than a direct path takes: by relay until that is known, then their sender is told; what may be fragmented goes all the same."""

from __future__ import annotations

import pytest

from calnet.host.memory import Weather
from calnet.host.tun import Offloads
from calnet.model import PeerKind
from tests.ip_packets import cut, ip_packet, is_sound, tcp, udp
from tests.roles.node.datapath_world import Node, World, ends, give, play

MTU = 1420
WIDTH = 1312
WEATHER = Weather(latency_s=0.01, whole=32 + WIDTH)


def _direct(world: World, *, relay: bool = True, offloads: Offloads | None = None) -> tuple[Node, Node]:
    one, two = world.node(1, mtu=MTU, offloads=offloads), world.node(2, mtu=MTU, offloads=offloads)
    for node, peer in ((one, two), (two, one)):
        node.path.relay_connected(relay)
        node.path.local_endpoints([node.endpoint])
        node.knows(peer.as_peer(kind=PeerKind.CALNET, endpoints=(peer.endpoint,), discovery_key=peer.discovery.public))
    return one, two


def test_host_is_told_how_long_packets_may_be_once_each_time_it_is_more() -> None:
    async def scene(world: World) -> None:
        one, two = _direct(world)
        one.path.mtu = two.path.mtu = 1280
        await _settled(world, one, two)
        await world.passes(2.0)
        assert one.raised == [WIDTH]
        assert one.path.mtu == WIDTH

    play(scene, WEATHER)


async def _settled(world: World, one: Node, two: Node) -> None:
    for _ in range(100):
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(0.2)
        if one.paths.mtu_of(two.id) == (WIDTH, True):
            break
    one.packets(), two.packets()


def _long(length: int, *, six: bool = False) -> bytes:
    return udp(bytes(length - (48 if six else 28)), ends(1, 2, six=six))


def test_long_packets_go_by_relay_until_the_path_is_known() -> None:
    async def scene(world: World) -> None:
        one, two = _direct(world)
        sent = []
        for k in range(50):
            sent.append(udp(k.to_bytes(2, "big") + bytes(1350), ends(1, 2), ident=k))
            give(one, sent[-1])
            await world.passes(0.05)
            if one.path.peer_status(two.id).path == "direct" and one.paths.mtu_of(two.id)[1]:
                break
        await world.passes()
        assert len(sent) > 3
        assert two.packets() == sent[: len(sent)]
        assert one.packets() == []

    play(scene, WEATHER)


@pytest.mark.parametrize("offloads", [None, Offloads(vnet_header=False)])
@pytest.mark.parametrize("six", [False, True])
def test_senders_of_longer_packets_are_told_how_long_they_may_be(six: bool, offloads: Offloads | None) -> None:
    async def scene(world: World) -> None:
        one, two = _direct(world, offloads=offloads)
        await _settled(world, one, two)
        give(one, _long(WIDTH + 1, six=six))
        give(one, _long(WIDTH, six=six))
        await world.passes()
        (told,) = one.packets()
        assert is_sound(told)
        assert told[20:22] == b"\x03\x04" if not six else told[40:42] == b"\x02\x00"
        assert int.from_bytes(told[24:28] if not six else told[44:48], "big") == WIDTH
        assert two.packets() == [_long(WIDTH, six=six)]

    play(scene, WEATHER)


def test_super_packet_of_long_segments_is_told_once_and_one_of_short_ones_goes() -> None:
    async def scene(world: World) -> None:
        one, two = _direct(world)
        await _settled(world, one, two)
        packet = tcp(bytes(20_000), ends(1, 2))
        give(one, packet, MTU - 52)
        await world.passes()
        (told,) = one.packets()
        assert told[20:22] == b"\x03\x04"
        assert two.packets() == []
        give(one, packet, WIDTH - 52)
        await world.passes()
        assert sorted(len(part) for part in two.packets()) == sorted(len(part) for part in cut(packet, WIDTH - 52))
        assert one.packets() == []

    play(scene, WEATHER)


@pytest.mark.parametrize("relay", [False, True])
def test_packet_that_may_be_fragmented_goes_all_the_same(relay: bool) -> None:
    async def scene(world: World) -> None:
        one, two = _direct(world, relay=relay)
        await _settled(world, one, two)
        packet = ip_packet(_long(1400)[20:], 17, ends(1, 2), fragment=0)
        give(one, packet)
        await world.passes()
        assert two.packets() == [packet]
        assert one.packets() == []

    play(scene, WEATHER)


def test_without_a_relay_long_packets_are_told_at_once() -> None:
    async def scene(world: World) -> None:
        one, two = _direct(world, relay=False)
        give(one, udp(b"x", ends(1, 2)))
        await world.passes(0.2)
        give(one, _long(MTU))
        await world.passes(0.1)
        assert [told[20:22] for told in one.packets()] == [b"\x03\x04"]
        assert two.packets() == [udp(b"x", ends(1, 2))]

    play(scene, WEATHER)


def test_by_relay_alone_any_length_goes() -> None:
    async def scene(world: World) -> None:
        one, two = world.node(1, mtu=MTU), world.node(2, mtu=MTU)
        for node, peer in ((one, two), (two, one)):
            node.path.relay_connected(True)
            node.knows(peer.as_peer(kind=PeerKind.CALNET, endpoints=(), discovery_key=peer.discovery.public))
        give(one, _long(MTU))
        await world.passes()
        assert two.packets() == [_long(MTU)]

    play(scene, WEATHER)
