"""The answers to refused packets, byte by byte, and what never gets one."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.limits import RateLimiter
from calnet.policy import reject
from calnet.policy.packets import parse
from calnet.policy.reject import new_limiter, rejection
from tests import ip_packets
from tests.policy.craft import GRE, ICMP, ICMPV6, TCP, UDP, icmp, ip, tcp, udp

ME, PEER = "100.70.0.1", "100.70.0.2"
ME6, PEER6 = "fd00::1", "fd00::2"
SIDES = [(ME, PEER), (ME6, PEER6)]


def answer(packet: bytes) -> bytes | None:
    return rejection(packet, new_limiter(), 0.0)


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ends(packet: bytes) -> tuple[bytes, bytes]:
    return (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])


def transport(packet: bytes) -> bytes:
    return packet[20:] if packet[0] >> 4 == 4 else packet[40:]


@pytest.mark.parametrize(("me", "peer"), SIDES)
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
@pytest.mark.parametrize(("flags", "extra"), [(0x02, 1), (0x01, 1), (0x03, 2), (0x00, 0)])
def test_tcp_without_ack_gets_a_reset_that_acknowledges_it(me: str, peer: str, payload: bytes, flags: int, extra: int) -> None:
    packet = ip_packets.tcp(payload, (peer, me), ports=(5000, 22), sequence=0xFFFF_FFFF, flags=flags)
    found = answer(packet)
    assert found is not None
    assert ip_packets.is_sound(found)
    assert ends(found) == (packed(me), packed(peer))
    expected = (len(payload) + extra - 1) & 0xFFFF_FFFF
    assert struct.unpack(">HHIIBB", transport(found)[:14]) == (22, 5000, 0, expected, 0x50, 0x14)
    assert len(transport(found)) == 20


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_tcp_with_ack_gets_a_reset_at_what_it_acknowledged(me: str, peer: str) -> None:
    found = answer(ip_packets.tcp(b"data", (peer, me), ports=(5000, 22), flags=0x18, acknowledged=77))
    assert found is not None
    assert ip_packets.is_sound(found)
    assert ends(found) == (packed(me), packed(peer))
    assert struct.unpack(">HHIIBB", transport(found)[:14]) == (22, 5000, 77, 0, 0x50, 0x04)


@pytest.mark.parametrize(("me", "peer"), SIDES)
@pytest.mark.parametrize("kind", ["udp", "gre", "echo", "first fragment of tcp"])
def test_all_else_gets_administratively_prohibited_with_a_quote(me: str, peer: str, kind: str) -> None:
    packet = {
        "udp": udp(peer, me, 9, 53) + b"padding",
        "gre": ip(peer, me, GRE, bytes(500)),
        "echo": icmp(peer, me, 8 if me == ME else 128, 1),
        "first fragment of tcp": tcp(peer, me, 1, 2, more=True),
    }[kind]
    found = answer(packet)
    assert found is not None
    assert ip_packets.is_sound(found)
    assert ends(found) == (packed(me), packed(peer))
    assert transport(found)[:2] == (b"\x03\x0d" if me == ME else b"\x01\x01")
    assert transport(found)[4:8] == bytes(4)
    assert transport(found)[8:] == packet.removesuffix(b"padding")[:128]


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_options_and_extension_headers_do_not_shift_the_answer(me: str, peer: str) -> None:
    options = {"options": b"\x01" * 8} if me == ME else {"ext": bytes((0, TCP, 0, 1, 4, 0, 0, 0, 0))}
    found = answer(tcp(peer, me, 5000, 22, **options))  # type: ignore[arg-type]
    assert found is not None
    assert ip_packets.is_sound(found)
    assert struct.unpack(">HHIIBB", transport(found)[:14]) == (22, 5000, 2, 0, 0x50, 0x04)


NEVER = {
    "reset": tcp(PEER, ME, 1, 2, flags=0x04),
    "reset6": tcp(PEER6, ME6, 1, 2, flags=0x14),
    "later fragment": ip(PEER, ME, UDP, b"rest", offset=1480),
    "later fragment6": ip(PEER6, ME6, UDP, b"rest", offset=1480),
    "to multicast": udp(PEER, "224.0.0.251", 5353, 5353),
    "to multicast6": udp(PEER6, "ff02::fb", 5353, 5353),
    "to broadcast": udp(PEER, "255.255.255.255", 67, 68),
    "from nobody": udp("0.0.0.0", ME, 68, 67),
    "from multicast": tcp("ff02::1", ME6, 1, 2),
    "from loopback": tcp("127.0.0.1", ME, 1, 2),
    "cut": tcp(PEER, ME, 1, 2)[:-1],
    "half a TCP header": ip(PEER, ME, TCP, bytes(12)),
    "TCP header longer than its packet": ip(PEER, ME, TCP, bytes(12) + b"\xf0" + bytes(7)),
    "no ICMP at all": ip(PEER, ME, ICMP, b""),
    "no ICMPv6 at all": ip(PEER6, ME6, ICMPV6, b""),
    "empty": b"",
}


@pytest.mark.parametrize("packet", NEVER.values(), ids=NEVER)
def test_some_packets_are_never_answered(packet: bytes) -> None:
    assert answer(packet) is None


def test_icmp_that_asks_nothing_is_never_answered() -> None:
    assert [kind for kind in range(256) if answer(icmp(PEER, ME, kind)) is not None] == [8, 13]
    assert [kind for kind in range(256) if answer(icmp(PEER6, ME6, kind)) is not None] == [128]


def test_answers_are_limited_for_each_sender_and_silence_costs_nothing() -> None:
    limiter = RateLimiter(1.0, 2.0)
    packet, other = udp(PEER, ME, 1, 2), udp("100.70.0.3", ME, 1, 2)
    for never in NEVER.values():
        assert rejection(never, limiter, 0.0) is None
    assert [rejection(packet, limiter, 0.0) is not None for _ in range(4)] == [True, True, False, False]
    assert rejection(other, limiter, 0.0) is not None
    assert rejection(packet, limiter, 1.0) is not None
    default = new_limiter()
    assert sum(rejection(packet, default, 0.0) is not None for _ in range(1000)) == reject.BURST


@given(st.one_of(st.binary(max_size=120), st.builds(lambda head, rest: head + rest, st.sampled_from([b"\x45", b"\x60", b"\x46"]), st.binary(max_size=120))))
def test_any_bytes_get_a_sound_answer_or_none_and_an_answer_gets_none(packet: bytes) -> None:
    found = answer(packet)
    if found is not None:
        assert ip_packets.is_sound(found)
        assert parse(found) is not None
        assert answer(found) is None
