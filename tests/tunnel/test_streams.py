"""Super-packets with a stream's key are of that stream and shape, whatever else differs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.tunnel.coalesce import complete
from calnet.tunnel.segment import parse_super
from calnet.tunnel.streams import TCP_SIZE, Headers, is_stream, key, mask_of
from calnet.wire.ip import Protocol, parse_virtio
from tests.ip_packets import DESTINATION_OPTIONS, TIMESTAMPS, V4, V6, as_kernel_gives, tcp, udp, with_extension


def _key(read: bytes) -> int:
    return key(memoryview(read), len(read))


@pytest.mark.parametrize("way", [V4, V6])
def test_what_differs_within_a_stream_does_not_change_its_key(way: tuple[str, str]) -> None:
    one = as_kernel_gives(tcp(bytes(5000), way), 1000)
    assert is_stream(parse_super(memoryview(one)[10:], parse_virtio(one)))
    later = TIMESTAMPS[:4] + bytes(range(8))
    other = as_kernel_gives(tcp(bytes(range(250)) * 30, way, sequence=99, acknowledged=7, window=3, ident=44, flags=0x19, options=later), 1000)
    assert _key(one) == _key(other) != 0
    assert parse_super(memoryview(one)[10:], parse_virtio(one))._replace(length=0) == parse_super(memoryview(other)[10:], parse_virtio(other))._replace(
        length=0
    )


@pytest.mark.parametrize("way", [V4, V6])
@pytest.mark.parametrize(
    "change",
    [
        {"ports": (1000, 2001)},
        {"ports": (1001, 2000)},
        {"tos": 3},
        {"options": b""},
        {"options": b"\x01" * 12},
        {"options": b"\x01" * 20},
        {"options": TIMESTAMPS + b"\x01" * 4},
    ],
)
def test_another_stream_or_shape_has_another_key(way: tuple[str, str], change: dict[str, object]) -> None:
    one = as_kernel_gives(tcp(b"\x55" * 5000, way), 1000)
    assert _key(one) != _key(as_kernel_gives(tcp(b"\x55" * 5000, way, **change), 1000))  # type: ignore[arg-type]
    assert _key(one) != _key(as_kernel_gives(tcp(b"\x55" * 5000, way), 999))
    assert _key(one) != _key(as_kernel_gives(udp(b"\x55" * 5000, way), 1000))


@pytest.mark.parametrize(
    "packet",
    [
        tcp(bytes(5000), V4, options=b""),
        tcp(bytes(5000), V6, options=TIMESTAMPS + b"\1" * 4),
        tcp(bytes(5000), V4, ip_options=b"\1" * 4),
        tcp(bytes(5000), V4, ip_options=b"\1" * 12, options=b""),
        with_extension(tcp(bytes(5000), V6), DESTINATION_OPTIONS),
        udp(bytes(5000), V4),
        udp(bytes(5000), V6),
    ],
)
def test_other_super_packets_are_no_streams(packet: bytes) -> None:
    read = as_kernel_gives(packet, 1000)
    assert not is_stream(parse_super(memoryview(read)[10:], parse_virtio(read)))


@pytest.mark.parametrize("way", [V4, V6])
def test_length_that_the_header_does_not_say_has_none(way: tuple[str, str]) -> None:
    read = as_kernel_gives(tcp(bytes(5000), way), 1000)
    assert key(memoryview(read + b"\0"), len(read) + 1) == 0
    assert key(memoryview(read), len(read) - 1) == 0


@given(st.sampled_from([V4, V6]), st.data())
def test_equal_keys_mean_equal_shapes(way: tuple[str, str], data: st.DataObject) -> None:
    """Any bit of the headers flipped: the key is another, or the shape is the same."""
    read = as_kernel_gives(tcp(bytes(3000), way), 1000)
    shape = parse_super(memoryview(read)[10:], parse_virtio(read))
    changed = bytearray(read)
    bit = data.draw(st.integers(0, (10 + shape.header) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    if key(memoryview(changed), len(changed)) == _key(read):
        assert parse_super(memoryview(changed)[10:], parse_virtio(bytes(changed))) == shape


@pytest.mark.parametrize(("version", "way"), [(4, V4), (6, V6)])
@given(st.data())
def test_headers_of_a_stream_are_what_complete_makes_of_each(version: int, way: tuple[str, str], data: st.DataObject) -> None:
    ip_header, segment = (20, 1000) if version == 4 else (40, 1000)
    first = bytearray(tcp(bytes(segment), way, tos=data.draw(st.integers(0, 255)))[: ip_header + TCP_SIZE])
    common = mask_of(ip_header, length=True).to_bytes(len(first), "big")
    headers = Headers(bytes(first), version, ip_header, segment)
    for _ in range(data.draw(st.integers(1, 4))):
        own = data.draw(st.binary(min_size=len(first), max_size=len(first)))
        header = bytes(a & m | b & ~m & 0xFF for a, b, m in zip(first, own, common, strict=True))
        total = len(header) + data.draw(st.integers(1, 60) | st.sampled_from([segment, segment + 1, 44 * segment, 65_000]))
        expected = complete(bytearray(header), version, Protocol.TCP, ip_header, segment, total)
        assert headers.whole(int.from_bytes(header, "big"), total) == expected


def test_headers_of_any_number_of_lengths_are_right() -> None:
    header = tcp(bytes(100))[: 20 + TCP_SIZE]
    headers = Headers(header, 4, 20, 100)
    for total in [*range(200, 500), *range(200, 300)]:
        assert headers.whole(int.from_bytes(header, "big"), total) == complete(bytearray(header), 4, Protocol.TCP, 20, 100, total)
    assert len(headers._known) <= 64
