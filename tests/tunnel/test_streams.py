"""Super-packets with a stream's key are of that stream and shape, whatever else differs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.tunnel.segment import parse_super
from calnet.tunnel.streams import is_stream, key
from calnet.wire.ip import parse_virtio
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
