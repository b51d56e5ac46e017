"""Acknowledgements that are left out: only bare ones, for later ones of their flow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.tunnel.acks import LONGEST, bare_ack
from tests.ip_packets import TIMESTAMPS, V4, V6, tcp, udp

SACK = b"\x01\x01\x05\x0a" + bytes(8)


def _later(ack: bytes, packet: bytes) -> bool:
    known, later = bare_ack(memoryview(ack)), bare_ack(memoryview(packet))
    assert known is not None
    before = known.acknowledged
    replaced = known.replaced_by(memoryview(packet))
    assert known.acknowledged == (later.acknowledged if replaced and later is not None else before)
    return replaced


def _stamped(value: int) -> bytes:
    return TIMESTAMPS[:4] + value.to_bytes(8, "big")


@pytest.mark.parametrize("way", [V4, V6])
@pytest.mark.parametrize("options", [b"", TIMESTAMPS])
def test_later_acknowledgement_stands_for_the_earlier_one(way: tuple[str, str], options: bytes) -> None:
    ack = tcp(b"", way, options=options, acknowledged=100)
    assert len(ack) <= LONGEST
    assert _later(ack, tcp(b"", way, options=options, acknowledged=101, ident=9, window=7))
    assert not _later(ack, tcp(b"", way, options=options, acknowledged=100))
    assert not _later(ack, tcp(b"", way, options=options, acknowledged=100, window=7)), "a window update"
    assert not _later(ack, tcp(b"", way, options=options, acknowledged=99))
    assert not _later(ack, tcp(b"", way, options=options, acknowledged=101, sequence=2))
    assert not _later(ack, tcp(b"", way, options=options, acknowledged=101, ports=(1000, 2001)))
    assert not _later(ack, tcp(b"", way, options=options, acknowledged=101, tos=3))


def test_timestamps_may_be_others_and_numbers_wrap() -> None:
    ack = tcp(b"", acknowledged=0xFFFFFFF0, options=_stamped(1))
    assert _later(ack, tcp(b"", acknowledged=5, options=_stamped(77)))
    assert not _later(tcp(b"", acknowledged=5), tcp(b"", acknowledged=0xFFFFFFF0))
    assert not _later(tcp(b"", acknowledged=0), tcp(b"", acknowledged=1 << 31)), "it could be the earlier one as well"


@pytest.mark.parametrize(
    "packet",
    [
        tcp(b"x"),
        tcp(b"", flags=0x12),
        tcp(b"", flags=0x11),
        tcp(b"", flags=0x14),
        tcp(b"", flags=0x18),
        tcp(b"", flags=0x50),
        tcp(b"", flags=0x90),
        tcp(b"", flags=0x00),
        tcp(b"", options=SACK),
        tcp(b"", options=b"\x01" * 12),
        tcp(b"", options=b"\x08\x0a" + bytes(8) + b"\x01\x01"),
        tcp(b"", ip_options=b"\x01" * 4, options=b""),
        tcp(b"x" * 12, options=b""),
        udp(bytes(12)),
        udp(bytes(24)),
        bytes(40),
        bytes(52),
        b"",
    ],
)
def test_anything_else_is_no_bare_acknowledgement(packet: bytes) -> None:
    assert bare_ack(memoryview(packet)) is None


@given(st.sampled_from([40, 52, 60, 72]), st.data())
def test_bytes_of_any_kind_are_read_without_an_error(length: int, data: st.DataObject) -> None:
    packet = bytearray(data.draw(st.binary(min_size=length, max_size=length)))
    bare_ack(memoryview(packet))


@given(st.integers(0, 71), st.integers(0, 7), st.sampled_from([V4, V6]))
def test_one_bit_elsewhere_makes_it_another_packet(byte: int, bit: int, way: tuple[str, str]) -> None:
    ack, later = tcp(b"", way, acknowledged=100), bytearray(tcp(b"", way, acknowledged=200))
    start = 20 if way is V4 else 40
    free = {start + 8 + k for k in range(4)} | {start + 14, start + 15, start + 16, start + 17} | set(range(start + 24, start + 32))
    free |= {4, 5, 10, 11} if way is V4 else set()
    if byte < len(later) and byte not in free:
        later[byte] ^= 1 << bit
        assert not _later(ack, bytes(later))
