"""Flow keys: equal within a flow and a direction, different otherwise, none for what is malformed, and never an exception."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.policy.packets import flow_key, parse, quoted_destination, reply_key, tcp_flags
from tests.policy.craft import GRE, ICMPV6, TCP, UDP, icmp, ip, tcp, udp

A4, B4, A6, B6 = "100.70.0.1", "100.70.0.2", "fd00::1", "fd00::2"
PAIRS = [(A4, B4), (A6, B6)]
HOP = b"\0"
OPTIONS = b"\x3c\x06\0" + bytes(6)  # destination options (60), next TCP


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_reply_key_is_the_key_of_the_reply(a: str, b: str) -> None:
    echo, answer = (8, 0) if a == A4 else (128, 129)
    assert reply_key(tcp(a, b, 1000, 80)) == flow_key(tcp(b, a, 80, 1000))
    assert reply_key(udp(a, b, 1000, 53)) == flow_key(udp(b, a, 53, 1000))
    assert reply_key(ip(a, b, GRE, b"x")) == flow_key(ip(b, a, GRE, b"yy"))
    assert reply_key(icmp(a, b, echo, 7)) == flow_key(icmp(b, a, answer, 7))
    assert reply_key(icmp(a, b, answer, 7)) == b""


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_keys_of_different_flows_differ(a: str, b: str) -> None:
    packets = [
        tcp(a, b, 1, 2),
        tcp(a, b, 2, 1),
        tcp(b, a, 1, 2),
        udp(a, b, 1, 2),
        ip(a, b, GRE, b""),
        ip(a, b, 132, bytes(12)),
        icmp(a, b, 8 if a == A4 else 128, 1),
        icmp(a, b, 8 if a == A4 else 128, 2),
        icmp(a, b, 0 if a == A4 else 129, 1),
        icmp(a, b, 13 if a == A4 else 135, 1),
        udp(a, b, 1, 2, more=True),
        udp(a, b, 1, 2, more=True, number=2),
        ip(a, b, UDP, b"rest", offset=8),
        ip(a, b, UDP, b"rest", offset=16),
        ip(a, b, UDP, b"rest", offset=8, number=2),
        icmp(a, b, 3 if a == A4 else 1, 0, udp(b, a, 1, 2)),
        icmp(a, b, 3 if a == A4 else 1, 0, udp(b, a, 1, 3)),
    ]
    keys = [flow_key(packet) for packet in packets]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_key_does_not_depend_on_the_rest_of_the_packet() -> None:
    assert flow_key(tcp(A4, B4, 1, 2, number=1)) == flow_key(tcp(A4, B4, 1, 2, number=9) + b"padding")
    assert flow_key(tcp(A4, B4, 1, 2, options=bytes(8))) == flow_key(tcp(A4, B4, 1, 2))
    assert flow_key(tcp(A6, B6, 1, 2, ext=OPTIONS)) == flow_key(tcp(A6, B6, 1, 2))
    assert flow_key(bytearray(tcp(A4, B4, 1, 2))) == flow_key(memoryview(tcp(A4, B4, 1, 2))) == flow_key(tcp(A4, B4, 1, 2))


def chain(*headers: tuple[int, bytes]) -> bytes:
    """Extension headers before TCP: (type, content from its second byte)."""
    kinds = [kind for kind, _ in headers] + [TCP]
    return bytes(kinds[:1]) + b"".join(bytes((kinds[index + 1],)) + content for index, (_, content) in enumerate(headers))


@pytest.mark.parametrize(
    "ext",
    [
        chain((0, bytes(7))),
        chain((0, b"\1" + bytes(14)), (60, bytes(7)), (43, b"\0\4" + bytes(5))),
        chain((51, b"\4" + bytes(22))),
        chain((0, bytes(7)), *[(60, bytes(7))] * 6),
    ],
)
def test_extension_headers_are_passed_over(ext: bytes) -> None:
    assert flow_key(tcp(A6, B6, 1, 2, ext=ext)) == flow_key(tcp(A6, B6, 1, 2))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        bytes(64),
        b"\x55" + tcp(A4, B4, 1, 2)[1:],
        b"\x44" + tcp(A4, B4, 1, 2)[1:],
        b"\x4f" + tcp(A4, B4, 1, 2)[1:30],
        tcp(A4, B4, 1, 2)[:-1],
        tcp(A6, B6, 1, 2)[:-1],
        udp(A4, B4, 1, 2)[:2] + b"\0\x13" + udp(A4, B4, 1, 2)[4:],
        udp(A4, B4, 1, 2)[:2] + b"\0\x1b" + udp(A4, B4, 1, 2)[4:],
        tcp(A4, B4, 1, 2)[:2] + b"\0\x27" + tcp(A4, B4, 1, 2)[4:],
        ip(A4, B4, TCP, bytes(19)),
        ip(A4, B4, UDP, bytes(7)),
        ip(A4, B4, 1, bytes(7)),
        ip(A6, B6, TCP, bytes(19)),
        ip(A6, B6, ICMPV6, bytes(7)),
        ip(A4, B4, TCP, bytes(8), more=True),
        ip(A4, B4, TCP, bytes(8), offset=8),
        ip(A6, B6, TCP, bytes(8), offset=8),
        ip(A6, B6, UDP, bytes(4), more=True),
        tcp(A6, B6, 1, 2, ext=chain(*[(60, bytes(7))] * 8)),
        tcp(A6, B6, 1, 2, ext=chain((43, b"\0\0" + bytes(5)))),
        tcp(A6, B6, 1, 2, ext=chain((0, b"\xff" + bytes(6)))),
        tcp(A6, B6, 1, 2, ext=chain((44, bytes(7)), (44, bytes(7)))),
        ip(A6, B6, 60, b"\x06\0\0\0"),
        b"\x60" + bytes(30),
    ],
)
def test_malformed_packet_has_no_key(packet: bytes) -> None:
    assert flow_key(packet) is None
    assert parse(packet) is None
    assert flow_key(memoryview(packet)) is None


def test_atomic_fragment_is_a_first_fragment() -> None:
    header = struct.pack("!BBHI", UDP, 0, 0, 5)
    parsed = parse(ip(A6, B6, 44, header + struct.pack("!HHHH", 1, 2, 8, 0)))
    assert parsed is not None
    assert parsed.first


@given(st.binary(max_size=120))
def test_random_bytes_never_raise(data: bytes) -> None:
    parsed, key = parse(data), flow_key(data)
    assert (None if parsed is None else parsed.key) == key
    assert reply_key(data) == b"" or parsed is not None or data[:1] == b"\x45"


SAMPLES = [
    tcp(A4, B4, 1, 2),
    tcp(A6, B6, 1, 2),
    udp(A6, B6, 1, 2),
    tcp(A6, B6, 1, 2, ext=OPTIONS),
    icmp(A4, B4, 3, 0, udp(B4, A4, 1, 2)),
    icmp(A6, B6, 1, 0, tcp(B6, A6, 1, 2)),
    udp(A6, B6, 1, 2, more=True),
]


@given(st.sampled_from(SAMPLES), st.data())
def test_changed_and_cut_packets_never_raise_and_both_ways_agree(packet: bytes, data: st.DataObject) -> None:
    changed = bytearray(packet)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, len(changed))) :]
    parsed = parse(changed)
    assert (None if parsed is None else parsed.key) == flow_key(changed)
    if parsed is not None:
        assert reply_key(changed) == parsed.reply


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_quoted_destination_is_where_the_quoted_packet_went(a: str, b: str) -> None:
    kind, router = (3, "192.0.2.1") if a == A4 else (1, "2001:db8::1")
    there = ipaddress.ip_address(b).packed
    for quote in (udp(a, b, 1, 2), tcp(a, b, 1, 2), tcp(a, b, 1, 2)[: 28 if a == A4 else 48]):
        assert quoted_destination(icmp(router, a, kind, 0, quote)) == there
    assert quoted_destination(icmp(router, a, kind, 0, udp(b, a, 1, 2))) == b""  # not sent by the error's receiver
    assert quoted_destination(icmp(router, a, kind, 0, udp(B6 if a == A4 else B4, A6 if a == A4 else A4, 1, 2))) == b""
    assert quoted_destination(icmp(router, a, kind, 0, b"")) == b""
    for other in (udp(a, b, 1, 2), tcp(a, b, 1, 2), icmp(a, b, 8 if a == A4 else 128), ip(a, b, GRE, b""), b"", ip(a, b, ICMPV6 if a == A6 else 1, b"")):
        assert quoted_destination(other) is None


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_tcp_flags_are_those_of_a_whole_header_alone(a: str, b: str) -> None:
    assert tcp_flags(tcp(a, b, 1, 2, flags=0x12)) == 0x12
    assert tcp_flags(tcp(a, b, 1, 2, flags=0x12, more=True)) == 0x12
    for other in (udp(a, b, 1, 2), ip(a, b, TCP, bytes(19)), ip(a, b, TCP, bytes(40), offset=64), tcp(a, b, 1, 2)[:-1], b""):
        assert tcp_flags(other) is None
