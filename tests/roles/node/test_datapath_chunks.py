"""The fast way against the plain one, packet by packet, through two whole data paths and whatever the network does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.host.memory import Weather
from calnet.host.tun import Offloads
from calnet.model import NodeId
from calnet.tunnel.capabilities import AES, CHUNKS
from tests.ip_packets import DESTINATION_OPTIONS, TIMESTAMPS, cut, icmp_echo, ip_packet, tcp, udp, with_extension
from tests.roles.node.datapath_world import World, ends, give, play

WAYS = [(), (CHUNKS,), (CHUNKS, AES)]
Given = tuple[bytes, int]
"""A packet, and what its payload is cut by (0: it is no super-packet)."""


@st.composite
def traffic(draw: st.DrawFn) -> Given:
    """What a kernel hands over: super-packets of TCP and UDP, with options and flags, and packets of every other kind and size."""
    six, length = draw(st.booleans()), draw(st.integers(0, 4000))
    payload = random.Random(draw(st.integers(0, 99))).randbytes(length)
    way = ends(1, 2, six=six)
    kind = draw(st.sampled_from(["tcp", "tcp", "udp", "udp", "icmp", "other", "extension"]))
    if kind == "tcp":
        options = draw(st.sampled_from([b"", TIMESTAMPS, b"\x01" * 40, b"\x02\x04\x05\xb4"]))
        flags = draw(st.sampled_from([0x10, 0x18, 0x19, 0x11, 0x14, 0x02, 0x90, 0xD8, 0x50, 0x38]))
        segment = draw(st.sampled_from([0, 100, 536, 1188]))
        carried = payload if segment and length > segment else payload[:1188]
        packet = tcp(carried, way, sequence=draw(st.integers(0, 0xFFFFFFFF)), flags=flags, options=options, tos=draw(st.sampled_from([0, 2, 3])))
        return packet, segment if len(carried) > segment else 0
    if kind == "udp":
        segment = draw(st.sampled_from([0, 1, 64, 1200])) if length < 2000 else 1200
        carried = payload[: 40 * segment] if segment and length > segment else payload[:1200]
        return udp(carried, way), segment if len(carried) > segment else 0
    if kind == "extension":
        return with_extension(tcp(payload, ends(1, 2, six=True)), DESTINATION_OPTIONS), 1000 if length > 1000 else 0
    if kind == "icmp":
        return icmp_echo(way, payload[:1200]), 0
    return ip_packet(payload[:1200], 47, way), 0


def nameless(packet: bytes) -> bytes:
    """Without IPv4's identification (and the checksum over it): packets put together for one write are numbered anew, as GRO and TSO do."""
    return packet if packet[0] >> 4 == 6 else packet[:4] + packet[6:10] + packet[12:]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(traffic(), min_size=1, max_size=25),
    st.sampled_from([None, Offloads(vnet_header=True), Offloads(vnet_header=True, tcp=True), Offloads(vnet_header=False)]),
)
def test_every_way_delivers_the_same_packets_as_the_oracle_cuts(packets: list[Given], receiving: Offloads | None) -> None:
    packets = [(ip_packet(bytes(104), 47, ends(1, 2), fragment=0x2000), 0), *packets]
    expected = [piece for packet, segment in packets for piece in (cut(packet, segment) if segment else [packet])]
    for capabilities in WAYS:

        async def scene(world: World, capabilities: tuple[str, ...] = capabilities) -> None:
            one = world.node(1, capabilities=capabilities)
            two = world.node(2, capabilities=capabilities, **({} if receiving is None else {"offloads": receiving}))
            one.knows(two.as_peer())
            two.knows(one.as_peer())
            give(one, icmp_echo(ends(1, 2)))
            await world.passes()
            two.packets()
            for packet, segment in packets:
                give(one, packet, segment)
            await world.passes()
            assert [nameless(packet) for packet in two.packets()] == [nameless(packet) for packet in expected]

        play(scene)


@pytest.mark.parametrize("capabilities", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_bad_weather_brings_no_packet_that_was_not_sent_and_none_twice(capabilities: tuple[str, ...], seed: int) -> None:
    draw = random.Random(seed)

    async def scene(world: World) -> None:
        one, two = world.pair(capabilities=capabilities)
        give(one, icmp_echo(ends(1, 2)))
        await world.passes(10)
        two.packets()
        sent: set[bytes] = set()
        for number in range(60):
            six, payload = draw.random() < 0.5, draw.randbytes(draw.randrange(2000, 9000))
            packet = (
                tcp(payload, ends(1, 2, six=six), sequence=number * 10_000, ident=number * 20)
                if number % 3
                else udp(payload, ends(1, 2, six=six), ident=number * 20)
            )
            give(one, packet, 1000)
            sent.update(nameless(piece) for piece in cut(packet, 1000))
            await world.passes(0.02)
        await world.passes(1)
        delivered = [nameless(packet) for packet in two.packets()]
        assert set(delivered) <= sent
        assert len(set(delivered)) == len(delivered)
        assert len(delivered) > 0.7 * len(sent)

    play(scene, Weather(loss=0.05, duplicate=0.2, reorder=0.2, latency_s=0.01))


def test_peer_that_takes_no_chunks_gets_packets_and_cipher_is_told() -> None:
    async def scene(world: World) -> None:
        one, two = world.node(1, capabilities=(CHUNKS, AES)), world.node(2, capabilities=())
        one.knows(two.as_peer())
        two.knows(one.as_peer())
        packet = tcp(bytes(5000), ends(1, 2))
        give(one, packet, 1000)
        await world.passes()
        assert two.packets() == cut(packet, 1000)
        assert one.path.peer_status(NodeId(2)).cipher == "ChaCha20-Poly1305"
        one.knows(two.as_peer(capabilities=(CHUNKS, AES)))
        await world.passes(130)
        give(one, packet, 1000)
        await world.passes()
        give(one, packet, 1000)
        await world.passes()
        assert two.packets() == cut(packet, 1000) * 2
        assert one.path.peer_status(NodeId(2)).cipher == "AES-256-GCM"

    play(scene)


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("size", [1, 64, 1200])
def test_datagrams_that_come_in_numbers_travel_and_arrive_together(six: bool, size: int) -> None:
    async def scene(world: World) -> None:
        one, two = world.pair(capabilities=(CHUNKS,))
        give(one, icmp_echo(ends(1, 2)))
        await world.passes()
        two.packets()
        way = ends(1, 2, six=six)
        sent = [udp(bytes((number & 255,)) * size, way, ident=0) for number in range(300)]
        sent[100:100] = [tcp(b"between", way), udp(b"x" * 1100, way, ports=(7, 8)), udp(bytes(size // 2 + 1), way)]
        sent += [icmp_echo(way), tcp(bytes(2500), way)]
        for packet in sent:
            give(one, packet, 1000 if len(packet) > 2000 else 0)
        before = world.network.carried
        await world.passes()
        writes = len(two.tun.delivered)
        expected = [nameless(piece) for packet in sent for piece in (cut(packet, 1000) if len(packet) > 2000 else [packet])]
        assert [nameless(packet) for packet in two.packets()] == expected
        assert writes < 60
        assert world.network.carried - before == len(expected)

    play(scene)
