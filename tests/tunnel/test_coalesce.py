"""What may join what; the header that a super-packet gets."""

from __future__ import annotations

import pytest

from calnet.tunnel.coalesce import Flow, flow_of, joins_last, super_header
from calnet.wire.ip import parse_virtio
from tests.ip_packets import TIMESTAMPS, V4, V6, as_kernel_gives, cut, icmp_echo, ip_packet, tcp, udp


def _flow(packet: bytes) -> Flow | None:
    return flow_of(memoryview(packet), len(packet))


@pytest.mark.parametrize("ends", [V4, V6])
def test_flow_of_a_data_segment_tells_its_shape(ends: tuple[str, str]) -> None:
    flow = _flow(tcp(b"x" * 700, ends))
    assert flow is not None
    start = 20 if ends is V4 else 40
    assert (flow.protocol, flow.ip_header, flow.header, flow.payload) == (6, start, start + 32, 700)
    assert flow.limit == (65535 - flow.header) // 700


@pytest.mark.parametrize(
    "packet",
    [
        tcp(b""),
        tcp(b"x", flags=0x18),
        tcp(b"x", flags=0x11),
        tcp(b"x", flags=0x12),
        tcp(b"x", flags=0x14),
        tcp(b"x", flags=0x30),
        tcp(b"x", flags=0x00),
        tcp(b"x", ip_options=b"\x01" * 4),
        ip_packet(b"x" * 40, 6, fragment=0x2000),
        ip_packet(b"x" * 40, 6, fragment=0x0001),
        ip_packet(b"x" * 10, 6),
        ip_packet(bytes(12) + b"\x40\x10" + bytes(20), 6),
        ip_packet(bytes(12) + b"\xf0\x10" + bytes(20), 6),
        udp(b""),
        udp(b"x", check=False),
        ip_packet(b"\0\1\0\2\0\x09" + b"zz" + b"xx", 17),
        ip_packet(b"\0\1\0\2", 17),
        icmp_echo(),
        icmp_echo(V6),
        ip_packet(b"x" * 40, 0, V6),
        ip_packet(b"x" * 40, 44, V6),
    ],
)
def test_packet_that_nothing_can_join_has_no_flow(packet: bytes) -> None:
    assert _flow(packet) is None


def test_limit_stops_before_the_sequence_number_wraps() -> None:
    flow = _flow(tcp(b"x" * 100, sequence=(1 << 32) - 250))
    assert flow is not None
    assert flow.limit == 2
    at_the_end = _flow(tcp(b"x" * 100, sequence=(1 << 32) - 50))
    assert at_the_end is not None
    assert at_the_end.limit == 0


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("options", [b"", TIMESTAMPS])
def test_header_of_each_following_segment_is_the_expected_number(ends: tuple[str, str], options: bytes) -> None:
    pieces = cut(tcp(b"x" * 1000, ends, options=options, sequence=0xFFFFFF00 - 1000), 100)
    flow = _flow(pieces[0])
    assert flow is not None
    for index, piece in enumerate(pieces):
        assert int.from_bytes(piece[: flow.header], "big") & flow.mask == flow.expected + index * flow.step


@pytest.mark.parametrize(
    ("packet", "joins"),
    [
        (tcp(b"y" * 30, sequence=101, ident=99), True),
        (tcp(b"y" * 100, sequence=101, flags=0x18), True),
        (tcp(b"y" * 30, sequence=101, flags=0x19), True),
        (tcp(b"y" * 101, sequence=101), False),
        (tcp(b"", sequence=101), False),
        (tcp(b"y" * 30, sequence=102), False),
        (tcp(b"y" * 30, sequence=101, window=9), False),
        (tcp(b"y" * 30, sequence=101, flags=0x14), False),
        (tcp(b"y" * 30, sequence=101, flags=0x90), False),
        (tcp(b"y" * 30, sequence=101, tos=1), False),
        (udp(b"y" * 30), False),
    ],
)
def test_last_segment_may_be_shorter_or_carry_push_and_fin(packet: bytes, joins: bool) -> None:
    flow = _flow(tcp(b"x" * 100))
    assert flow is not None
    assert joins_last(flow, memoryview(packet), len(packet), 1) is joins


@pytest.mark.parametrize(
    ("packet", "joins"),
    [
        (udp(b"y" * 30), True),
        (udp(b"y" * 101), False),
        (udp(b"y" * 30, ports=(1, 2)), False),
        (udp(b"y" * 30, check=False), False),
        (udp(b"y" * 30)[:24] + b"\0\x09" + udp(b"y" * 30)[26:], False),
    ],
)
def test_last_datagram_may_be_shorter(packet: bytes, joins: bool) -> None:
    flow = _flow(udp(b"x" * 100))
    assert flow is not None
    assert joins_last(flow, memoryview(packet), len(packet), 5) is joins


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("whole", [tcp, udp])
def test_super_header_is_the_one_the_kernel_would_give(ends: tuple[str, str], whole) -> None:  # type: ignore[no-untyped-def]
    packet = whole(b"data" * 200, ends)
    first = cut(packet, 100)[0]
    flow = _flow(first)
    assert flow is not None
    made = super_header(flow, memoryview(first), 0x10, len(packet))
    expected = as_kernel_gives(packet, 100)
    assert made[10:] == expected[10 : 10 + flow.header]
    assert parse_virtio(made) == parse_virtio(expected)._replace(hdr_len=flow.header)


def test_push_and_fin_of_the_last_are_the_super_packets() -> None:
    first = tcp(b"x" * 100)
    flow = _flow(first)
    assert flow is not None
    made = super_header(flow, memoryview(first), 0x19, flow.header + 130)
    assert made[10 + 33] == 0x19
