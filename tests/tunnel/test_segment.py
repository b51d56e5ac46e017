"""Super-packets cut: every packet must be the one that a slow oracle builds."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.tunnel.segment import Headers, _checksums, _lanes, finish_checksum, headers_of, parse_super
from calnet.tunnel.sums import payload_sums
from calnet.wire.ip import Virtio, parse_virtio
from tests.ip_packets import (
    DESTINATION_OPTIONS,
    ROUTING,
    TIMESTAMPS,
    V4,
    V6,
    as_kernel_gives,
    cut,
    icmp_echo,
    ip_packet,
    is_sound,
    tcp,
    udp,
    virtio,
    with_extension,
)

ENDS = st.sampled_from([V4, V6])


def _each(made: Headers, count: int) -> list[bytes]:
    """The headers, written out."""
    headers = [bytearray(made.template) for _ in range(count)]
    for offset, numbers in made.columns:
        assert len(numbers) == count
        width = numbers.itemsize
        for header, at in zip(headers, range(0, count * width, width), strict=True):
            header[offset : offset + width] = numbers.tobytes()[at : at + width]
    headers[0][:] = made.first or headers[0]
    headers[-1][:] = made.last
    return [bytes(header) for header in headers]


def _segments(packet: bytes, segment: int) -> list[bytes]:
    view = memoryview(bytearray(as_kernel_gives(packet, segment)))
    shape = parse_super(view[10:], parse_virtio(view))
    payload = packet[shape.header :]
    sums = payload_sums(memoryview(payload), segment)
    headers = _each(headers_of(view[10:], shape, sums), len(sums))
    return [header + payload[index * segment : (index + 1) * segment] for index, header in enumerate(headers)]


@settings(max_examples=150)
@given(
    ENDS,
    st.integers(1, 1500),
    st.integers(1, 6000),
    st.sampled_from([b"", TIMESTAMPS, TIMESTAMPS * 3]),
    st.sampled_from([0x10, 0x18, 0x19, 0x11, 0x90, 0x98, 0xD9, 0x50, 0x30]),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFF),
    st.randoms(),
)
def test_tcp_super_packet_any_shape_is_cut_as_the_oracle_does(ends, segment, length, options, flags, sequence, ident, random) -> None:  # type: ignore[no-untyped-def]
    segment = max(segment, -(-length // 300))
    packet = tcp(random.randbytes(length), ends, options=options, flags=flags, sequence=sequence, ident=ident, tos=2)
    made = _segments(packet, segment)
    assert made == cut(packet, segment)
    assert all(is_sound(one) for one in made)


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
@pytest.mark.parametrize("sequence", [0xFFFFFFFF, 0xFFFFFFFF - 4000, 2**32 - 5000, 2**32 - 10000])
def test_tcp_super_packet_whose_numbers_wrap_is_cut_as_the_oracle_does(ends, fill: bytes, sequence: int) -> None:  # type: ignore[no-untyped-def]
    for ident in (0xFFF0, 0xFFF6, 0xFFFF):
        packet = tcp(fill * 10000, ends, flags=0x99, sequence=sequence, ident=ident)
        assert _segments(packet, 1000) == cut(packet, 1000)


@settings(max_examples=100)
@given(ENDS, st.integers(1, 140), st.integers(1, 600), st.data())
def test_sums_are_taken_as_the_library_gives_them_congruent_and_up_to_64_bits(ends, count: int, segment: int, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    packet = tcp(bytes(range(256)) * (count * segment // 256) + bytes(count * segment % 256), ends)
    view = memoryview(bytearray(as_kernel_gives(packet, segment)))
    shape = parse_super(view[10:], parse_virtio(view))
    sums = payload_sums(memoryview(packet)[shape.header :], shape.segment)
    larger = [one + 65535 * data.draw(st.integers(0, ((1 << 64) - 1 - one) // 65535)) for one in sums]
    assert _each(headers_of(view[10:], shape, larger), len(sums)) == _each(headers_of(view[10:], shape, sums), len(sums))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 128])
@pytest.mark.parametrize("base", [0, 65535, -65535, -1, 1, 1 << 33])
@pytest.mark.parametrize("step", [0, 1, 1368, 65535])
def test_lanes_of_checksums_keep_to_themselves(base: int, step: int, count: int) -> None:
    edges = [0, 65534, 65535, 65536, 0xFFFFFFFF, (1 << 48) - 1, (1 << 48), (1 << 64) - 1, 0x1FFFEFFFF, 0xFFFFFFFE_FFFF0001]
    for shift in range(len(edges)):
        sums = [edges[(k + shift) % len(edges)] for k in range(count)]
        raw = _checksums(base, step, sums, _lanes(count)).tobytes()
        made = [int.from_bytes(raw[at : at + 2], "big") for at in range(0, 2 * count, 2)]
        assert made == [-(base + k * step + value * 256) % 65535 for k, value in enumerate(sums)]


def test_lanes_of_checksums_need_each_fold() -> None:
    """A sum whose lane is 65536 after two folds, a lane of 64 bits, one that is zero: where any step is left out, one of them is wrong or spills over."""
    high = (1 << 32) - 1
    for total in range(0x1FFFE0000, 0x1FFFF0000 + 0x200):
        if 0 <= total - 256 - high < 1 << 32:
            value = high << 32 | (total - 256 - high)
            raw = _checksums(1, 0, [value, 0], _lanes(2)).tobytes()
            assert raw == (-(1 + value * 256) % 65535).to_bytes(2, "big") + (65534).to_bytes(2, "big")
    assert _checksums(0, 0, [0, 0], _lanes(2)).tobytes() == bytes(4)


@pytest.mark.parametrize("count", [1, 2, 45, 64, 65, 128, 129])
def test_identification_and_its_checksum_at_the_edges(count: int) -> None:
    edges = {0, 1, 0x10000 - count, 0x10000 - count + 1, max(0, 0x10000 - count - 1), 0xFFFF}
    check = int.from_bytes(cut(tcp(bytes(8 * count), V4, ident=0), 8)[0][10:12], "big")
    edges |= {(check - first) % 65535 for first in (0, 1, count - 1, count, count + 1)}
    for ident in {edge & 0xFFFF for edge in edges}:
        packet = tcp(bytes(8 * count), V4, ident=ident)
        assert _segments(packet, 8) == cut(packet, 8)


@settings(max_examples=100)
@given(ENDS, st.integers(1, 1500), st.integers(1, 6000), st.integers(0, 0xFFFF), st.randoms())
def test_udp_super_packet_any_shape_is_cut_as_the_oracle_does(ends, segment, length, ident, random) -> None:  # type: ignore[no-untyped-def]
    segment = max(segment, -(-length // 300))
    packet = udp(random.randbytes(length), ends, ident=ident)
    made = _segments(packet, segment)
    assert made == cut(packet, segment)
    assert all(is_sound(one) for one in made)


@pytest.mark.parametrize("make", [tcp, udp])
@pytest.mark.parametrize("extensions", [[DESTINATION_OPTIONS], [ROUTING], [DESTINATION_OPTIONS, ROUTING]])
def test_super_packet_with_ipv6_extension_headers_is_cut_as_the_oracle_does(make, extensions: list[tuple[int, bytes]]) -> None:  # type: ignore[no-untyped-def]
    """The kernel hands such ones over as well: a connection with destination options stood still."""
    packet = make(bytes(range(256)) * 30, V6)
    for extension in extensions:
        packet = with_extension(packet, extension)
    assert _segments(packet, 1000) == cut(packet, 1000)


def test_tcp_super_packet_with_ip_options_is_cut() -> None:
    packet = tcp(b"q" * 3000, ip_options=b"\x01" * 8)
    assert _segments(packet, 1000) == cut(packet, 1000)


def test_udp_checksum_that_comes_out_zero_is_sent_as_ffff() -> None:
    for filler in range(65536):
        probe = struct.pack(">H", filler)
        if udp(probe)[26:28] == b"\xff\xff":
            break
    packet = udp(probe + b"xy" + probe)
    assert _segments(packet, 2)[0][26:28] == b"\xff\xff"


def test_ecn_bit_of_the_virtio_header_is_no_other_type() -> None:
    packet = tcp(b"x" * 100, flags=0x90)
    flags, kind, *rest = virtio(packet, 50)
    assert parse_super(memoryview(packet), Virtio(flags, kind | 0x80, *rest)).segment == 50


@pytest.mark.parametrize(
    ("packet", "change"),
    [
        (tcp(b"x" * 100), {"gso_size": 0}),
        (tcp(b"x" * 100), {"gso_type": 4}),
        (tcp(b"x" * 100), {"gso_type": 5}),
        (tcp(b"x" * 100), {"gso_type": 3}),
        (udp(b"x" * 100), {"gso_type": 1}),
        (tcp(b""), {}),
        (udp(b""), {}),
        (tcp(b"x" * 100) + b"trailing", {}),
        (tcp(b"x" * 100)[:60], {}),
        (ip_packet(b"x" * 12, 6), {}),
        (ip_packet(b"x" * 12 + b"\x40" + bytes(30), 6), {}),
        (ip_packet(b"x" * 12 + b"\xf0" + bytes(30), 6), {}),
        (ip_packet(b"x" * 50, 6, fragment=0x2000), {}),
        (ip_packet(b"x" * 50, 6, fragment=0x0001), {}),
        (icmp_echo(payload=b"x" * 100), {"gso_type": 1}),
        (b"", {}),
        (b"\x45", {}),
    ],
)
def test_super_packet_that_contradicts_itself_raises(packet: bytes, change: dict[str, int]) -> None:
    header = Virtio(*(virtio(packet, 50) if len(packet) > 20 and packet[0] >> 4 in (4, 6) else (1, 1, 0, 50, 20, 16)))
    with pytest.raises(WireError):
        parse_super(memoryview(packet), header._replace(**change))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.tuples(*[st.integers(0, 255)] * 2, *[st.integers(0, 300)] * 4))
def test_anything_as_super_packet_raises_wire_error_or_is_cut(data: bytes, header: tuple[int, ...]) -> None:
    view = memoryview(bytearray(data))
    try:
        shape = parse_super(view, Virtio(*header))
    except WireError:
        pass
    else:
        sums = payload_sums(view[shape.header :], shape.segment)
        headers = _each(headers_of(view, shape, sums), len(sums))
        assert len(headers) == -(-(len(data) - shape.header) // shape.segment)
    try:
        finish_checksum(view, Virtio(*header))
    except WireError:
        assert bytes(view) == data


@pytest.mark.parametrize("packet", [tcp(b"x" * 33), tcp(b"odd", V6), udp(b"y" * 32), udp(b"z", V6)])
def test_finish_checksum_of_what_the_kernel_left_gives_the_sound_packet(packet: bytes) -> None:
    view = memoryview(bytearray(as_kernel_gives(packet)))
    finish_checksum(view[10:], parse_virtio(view))
    assert bytes(view[10:]) == packet
    assert is_sound(packet)


def test_finish_checksum_without_the_flag_changes_nothing() -> None:
    packet = bytearray(tcp(b"x"))
    packet[36:38] = b"zz"
    finish_checksum(memoryview(packet), Virtio(0, 0, 0, 0, 20, 16))
    assert packet[36:38] == b"zz"


@pytest.mark.parametrize(("start", "offset"), [(0, 16), (20, 100), (200, 0), (20, 40)])
def test_finish_checksum_outside_the_packet_raises(start: int, offset: int) -> None:
    with pytest.raises(WireError):
        finish_checksum(memoryview(bytearray(tcp(b"", options=b""))), Virtio(1, 0, 0, 0, start, offset))
