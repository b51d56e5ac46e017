"""Attacks on the data path: replayed, moved, spoofed and malformed packets, end to end through two data paths; and the host's overlay address from outside."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import ip_address, ip_network

import pytest

from calnet.host.nft import Ruleset, render
from calnet.model import Endpoint, NodeId
from tests.ip_packets import ip_packet, packed, tcp, udp
from tests.roles.node.datapath_world import Node, World, ends, give, overlay, play


class Recorder:
    """An attacker on the way: keeps a copy of each datagram."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.datagrams: list[tuple[Endpoint, Endpoint, bytes]] = []
        self._carry = world.network.carry
        world.network.carry = self.carry  # type: ignore[method-assign]

    def carry(self, source: Endpoint, target: Endpoint, datagram: bytes) -> None:
        self.datagrams.append((source, target, datagram))
        self._carry(source, target, datagram)

    def send(self, source: Endpoint, target: Endpoint, datagram: bytes) -> None:
        self._carry(source, target, datagram)


async def _connected(world: World) -> tuple[Node, Node]:
    one, two = world.pair()
    give(one, udp(b"hello", ends(1, 2)))
    await world.passes()
    assert two.packets() == [udp(b"hello", ends(1, 2))]
    return one, two


def _sealed(one: Node, two: Node, packet: bytes, *, pad: bool = True) -> bytes:
    """What node one's own daemon could be made to send by a hostile owner: anything at all, sealed under its session."""
    session = one.tunnel.peer(two.id).current  # type: ignore[union-attr]
    assert session is not None
    return session.seal(packet + bytes(-len(packet) % 16 if pad else 0))


def test_attack_05_replayed_and_concurrent_datagrams_are_delivered_once() -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        recorder = Recorder(world)
        sent = [udp(k.to_bytes(2, "big"), ends(1, 2), ident=k) for k in range(100)]
        for packet in sent:
            give(one, packet)
        give(one, tcp(b"bulk" * 3000, ends(1, 2)), 1228)
        await world.passes()
        first = len(two.packets())
        assert first >= 100
        for again in (recorder.datagrams, recorder.datagrams[::-1], recorder.datagrams * 2):
            for datagram in list(again):
                recorder.send(*datagram)
        for _, _, data in recorder.datagrams:
            two.path.relayed(one.id, [data])
        await world.passes()
        assert two.packets() == []

    play(scene)


def test_attack_05_datagram_behind_the_window_is_dropped() -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        old = _sealed(one, two, udp(b"old", ends(1, 2)))
        one.tunnel.peer(two.id).current.take_counters(20_000)  # type: ignore[union-attr]
        recorder = Recorder(world)
        recorder.send(one.endpoint, two.endpoint, _sealed(one, two, udp(b"new", ends(1, 2))))
        recorder.send(one.endpoint, two.endpoint, old)
        await world.passes()
        assert two.packets() == [udp(b"new", ends(1, 2))]

    play(scene)


def test_attack_06_forged_packet_from_elsewhere_moves_nothing_and_a_genuine_one_moves_wireguard_peers() -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        elsewhere = world.network.open(("192.0.2.66",))
        there = Endpoint("192.0.2.66", elsewhere.port)
        genuine = _sealed(one, two, udp(b"roamed", ends(1, 2)))
        for at in range(len(genuine)):
            forged = bytearray(genuine)
            forged[at] ^= 1
            elsewhere.send(two.endpoint, bytes(forged), len(forged))
        await world.passes()
        assert two.packets() == []
        assert two.path.peer_status(one.id).endpoint == one.endpoint
        elsewhere.send(two.endpoint, genuine, len(genuine))
        await world.passes()
        assert two.packets() == [udp(b"roamed", ends(1, 2))]
        assert two.path.peer_status(one.id).endpoint == there
        # A replay from another place again moves nothing.
        third = world.network.open(("192.0.2.67",))
        third.send(two.endpoint, genuine, len(genuine))
        await world.passes()
        assert two.path.peer_status(one.id).endpoint == there

    play(scene)


SPOOFED = [
    ends(2, 2),
    ends(3, 2),
    ("10.77.0.9", "10.77.0.2"),
    ("8.8.8.8", "10.77.0.2"),
    ("192.168.9.1", "10.77.0.2"),
    ("fd77::3", "fd77::2"),
    ("fe80::1", "fd77::2"),
]


@pytest.mark.parametrize("spoofed", SPOOFED)
def test_attack_07_inner_source_of_another_is_dropped(spoofed: tuple[str, str]) -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        three = world.node(3)
        two.knows(one.as_peer(routes=(ip_network("192.168.5.0/24"),)), three.as_peer(routes=(ip_network("192.168.5.128/25"),)))
        recorder = Recorder(world)
        for packet in (udp(b"x", spoofed), tcp(b"x", spoofed)):
            recorder.send(one.endpoint, two.endpoint, _sealed(one, two, packet))
        await world.passes()
        assert two.packets() == []
        # Inside a run of genuine packets too, whatever joins it.
        batch = [udp(b"a" * 8, (overlay(1)[0], overlay(2)[0]), ident=1), udp(b"a" * 8, ("10.77.0.9", overlay(2)[0]), ident=2)] * 3
        for packet in batch:
            recorder.send(one.endpoint, two.endpoint, _sealed(one, two, packet))
        await world.passes()
        assert {packet[12:16] for packet in two.packets()} == {packed(overlay(1)[0])}

    play(scene)


def test_attack_07_each_address_and_route_is_its_owners_alone() -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        three = world.node(3)
        second = (ip_address("10.77.0.1"), ip_address("10.77.0.11"), ip_address("fd77::1"))
        wide, narrow = ip_network("192.168.5.0/24"), ip_network("192.168.5.128/25")
        two.knows(one.as_peer(addresses=second, routes=(wide,)), three.as_peer(routes=(narrow,)))
        recorder = Recorder(world)
        allowed = ["10.77.0.1", "10.77.0.11", "192.168.5.1", "192.168.5.127"]
        for source in [*allowed, "10.77.0.12", "192.168.5.128", "192.168.5.255", "192.168.6.1"]:
            recorder.send(one.endpoint, two.endpoint, _sealed(one, two, udp(b"x", (source, "10.77.0.2"))))
        await world.passes()
        assert [packet[12:16] for packet in two.packets()] == [packed(source) for source in allowed]

    play(scene)


@pytest.mark.parametrize("target", ["10.77.0.3", "8.8.8.8", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.77.0.255"])
def test_attack_07_packet_to_somebody_else_is_not_forwarded(target: str) -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        Recorder(world).send(one.endpoint, two.endpoint, _sealed(one, two, udp(b"x", ("10.77.0.1", target))))
        await world.passes()
        assert two.packets() == []

    play(scene)


def _malformed() -> list[bytes]:
    four, six = udp(b"x" * 40, ends(1, 2)), tcp(b"x" * 40, ends(1, 2, six=True))
    made = [four[:size] for size in range(1, len(four))] + [six[:size] for size in range(1, len(six))]
    made += [bytes((first,)) + four[1:] for first in (0x40, 0x44, 0x55, 0x75, 0x00)]
    made += [four[:2] + length.to_bytes(2, "big") + four[4:] for length in (0, 19, 27, 200, 65535)]
    made += [six[:4] + length.to_bytes(2, "big") + six[6:] for length in (200, 65535)]
    endless = b"".join(bytes((60, 0)) + bytes(6) for _ in range(20))
    made += [
        ip_packet(endless, 60, ends(1, 2, six=True)),
        ip_packet(bytes((60, 255)) + bytes(6), 60, ends(1, 2, six=True)),
        ip_packet(b"\0", 0, ends(1, 2, six=True)),
    ]
    made += [ip_packet(b"\x2c\x00", 44, ends(1, 2, six=True)), b"\x4f" + four[1:60]]
    return made


def test_attack_08_malformed_packets_inside_are_dropped_without_an_error() -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        recorder = Recorder(world)
        for packet in _malformed():
            recorder.send(one.endpoint, two.endpoint, _sealed(one, two, packet, pad=False))
            await world.passes(0.01)
        assert two.packets() == []
        give(one, udp(b"after", ends(1, 2)))
        await world.passes()
        assert two.packets() == [udp(b"after", ends(1, 2))]

    play(scene)


@pytest.mark.parametrize("source", ["127.0.0.1", "0.0.0.0", "224.0.0.251", "255.255.255.255", "::1", "::", "ff02::fb", "::ffff:10.77.0.1"])
def test_attack_08_loopback_and_multicast_sources_are_dropped_even_if_routed(source: str) -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        two.knows(one.as_peer(routes=(ip_network("0.0.0.0/0"), ip_network("::/0"))))
        target = overlay(2)[1 if ":" in source else 0]
        packet = bytearray(udp(b"x", ("10.1.1.1" if "." in target else "fd99::9", target)))
        at = 8 if ":" in source else 12
        packet[at : at + len(packed(source))] = packed(source)
        Recorder(world).send(one.endpoint, two.endpoint, _sealed(one, two, bytes(packet)))
        await world.passes()
        assert two.packets() == []

    play(scene)


def test_attack_19_datagram_from_the_relay_in_anothers_name_is_not_taken() -> None:
    async def scene(world: World) -> None:
        one, two = await _connected(world)
        two.path.relayed(NodeId(3), [_sealed(one, two, udp(b"x", ends(1, 2)))])
        assert two.packets() == []
        assert two.relayed == 0

    play(scene)


@pytest.mark.e2e
def test_attack_12_overlay_address_on_another_interface_is_refused() -> None:
    from bench.tunnel_lab import Lab

    if shutil.which("nft") is None:
        pytest.skip("needs nft (apt install nftables)")
    with Lab(prefix="at12") as lab:
        victim, neighbour = lab.ends["a"], lab.ends["b"]
        victim.run("ip", "tuntap", "add", "calnet0", "mode", "tun")
        victim.run("ip", "link", "set", "calnet0", "up")
        victim.run("ip", "address", "add", "10.77.0.1/32", "dev", "calnet0")
        victim.run("ip", "address", "add", "fd77::1/128", "dev", "calnet0", "nodad")
        neighbour.run("ip", "route", "add", "10.77.0.1", "via", "192.0.2.1")
        neighbour.run("ip", "route", "add", "fd77::1", "via", "2001:db8::1")

        def answers(address: str) -> bool:
            words = ["ip", "netns", "exec", neighbour.space, "ping", "-c", "2", "-i", "0.2", "-W", "1", address]
            return subprocess.run(words, capture_output=True, check=False).returncode == 0

        assert answers("10.77.0.1")
        assert answers("fd77::1")
        victim.run("nft", "-f", "-", stdin=render(Ruleset("calnet0", (ip_address("10.77.0.1"), ip_address("fd77::1")))))
        assert not answers("10.77.0.1")
        assert not answers("fd77::1")
        assert answers("192.0.2.1")
        victim.run("ping", "-c", "1", "-W", "1", "10.77.0.1")


@pytest.mark.parametrize("six", [False, True])
def test_attack_07_icmp_error_about_what_was_sent_to_another_is_dropped(six: bool) -> None:
    """Else one peer could end or slow our flows to another, or to the Internet: kernels believe the addresses that an error quotes."""

    async def scene(world: World) -> None:
        one, two = await _connected(world)
        three = world.node(3)
        lan = "fd99::7" if six else "192.168.5.7"
        two.knows(one.as_peer(routes=(ip_network("192.168.5.0/24"), ip_network("fd99::/64"))), three.as_peer())
        us, router = overlay(2)[six], overlay(1)[six]

        def error(quoted: tuple[str, str], source: str = router) -> bytes:
            quote = udp(b"quoted", quoted)
            return ip_packet((bytes((2, 0)) if six else bytes((3, 4))) + bytes(2) + bytes((0, 0, 5, 0)) + quote, 58 if six else 1, (source, us))

        fit = [error((us, router)), error((us, lan)), error((us, lan), lan), error((us, router), lan)]
        unfit = [error((us, overlay(3)[six])), error((us, "2001:db8::1" if six else "8.8.8.8")), error((overlay(3)[six], router)), fit[0][:-20]]
        unfit.append(error(ends(2, 1, six=not six)))
        for packet in [*unfit, *fit]:
            Recorder(world).send(one.endpoint, two.endpoint, _sealed(one, two, packet))
        await world.passes()
        assert two.packets() == fit

    play(scene)
