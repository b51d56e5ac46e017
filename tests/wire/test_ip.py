"""IP headers and checksums against a slow oracle."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.wire import ip
from tests.ip_packets import V4, V6, icmp_echo, ip_packet, is_sound, packed, pseudo, slow_checksum, slow_sum, tcp, udp


@given(st.binary(max_size=3000))
def test_ones_sum_any_bytes_is_the_word_by_word_sum(data: bytes) -> None:
    assert ip.ones_sum(data) == slow_sum(data) % 65535
    assert ip.ones_sum(memoryview(data)) == slow_sum(data) % 65535


@given(st.binary(min_size=1, max_size=200).filter(any), st.integers(0, 1 << 40))
def test_checksum_added_in_makes_the_sum_zero(data: bytes, initial: int) -> None:
    assert (ip.checksum(data, initial) + slow_sum(data) + initial) % 65535 == 0


def test_checksum_matches_the_oracle_canonically() -> None:
    assert ip.checksum(b"\xff\xff") == slow_checksum(b"\xff\xff") == 0
    assert ip.checksum(b"\x12\x34\x56") == slow_checksum(b"\x12\x34\x56")


def test_pseudo_sum_matches_the_oracle() -> None:
    for ends in (V4, V6):
        assert ip.pseudo_sum(packed(ends[0]) + packed(ends[1]), 6, 1234) == slow_sum(pseudo(*ends, 6, 1234)) % 65535


def test_partial_checksum_is_never_zero() -> None:
    assert ip.partial_checksum(0) == ip.partial_checksum(65535) == 65535
    assert ip.partial_checksum(65536) == 1


def test_virtio_roundtrip_and_truncation() -> None:
    raw = struct.pack("=BBHHHH", 1, 4, 66, 1208, 40, 16)
    assert ip.parse_virtio(raw + b"rest") == ip.Virtio(1, 4, 66, 1208, 40, 16)
    for size in range(10):
        with pytest.raises(WireError):
            ip.parse_virtio(raw[:size])


@pytest.mark.parametrize("packet", [tcp(b"x" * 100), udp(b""), tcp(b"y", V6), udp(b"z" * 9, V6), icmp_echo(), icmp_echo(V6)])
def test_packet_length_with_padding_is_the_packets_and_truncated_raises(packet: bytes) -> None:
    assert ip.packet_length(packet) == len(packet)
    assert ip.packet_length(packet + bytes(16)) == len(packet)
    for size in range(len(packet)):
        with pytest.raises(WireError):
            ip.packet_length(packet[:size])


def test_packet_length_of_tricks_raises() -> None:
    packet = bytearray(tcp(b"x"))
    for first in (0x44, 0x40, 0x4F, 0x55, 0x05, 0xF5):
        bad = bytes((first,)) + bytes(packet[1:])
        if first == 0x4F:
            assert ip.packet_length(bad[:2] + (60).to_bytes(2, "big") + bad[4:] + bytes(40)) == 60
            bad = bad[:2] + (59).to_bytes(2, "big") + bad[4:]
        with pytest.raises(WireError):
            ip.packet_length(bad)


@given(st.binary(max_size=120))
def test_parsers_of_anything_raise_wire_error_or_answer_within_the_data(data: bytes) -> None:
    try:
        length = ip.packet_length(data)
    except WireError:
        assert ip.unreachable(data) is ip.too_big(data, 1280) is None
        return
    assert 20 <= length <= len(data)
    assert len(ip.source_of(data)) == len(ip.destination_of(data)) == (4 if data[0] >> 4 == 4 else 16)
    for answer in (ip.unreachable(data), ip.too_big(data, 1280)):
        assert answer is None or is_sound(answer)


def test_addresses_of_both_families() -> None:
    for ends in (V4, V6):
        packet = udp(b"x", ends)
        assert (ip.source_of(packet), ip.destination_of(packet)) == (packed(ends[0]), packed(ends[1]))


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "ff02::1", "::ffff:10.0.0.1", "::127.0.0.1"]
)
def test_is_usable_source_of_what_no_host_may_send_is_false(address: str) -> None:
    # ipaddress writes IPv4-mapped addresses as such; the packed form is what counts
    assert not ip.is_usable_source(packed(address))


@pytest.mark.parametrize("address", ["10.77.0.1", "192.168.1.1", "8.8.8.8", "fd77::1", "2001:db8::1", "fe80::1"])
def test_is_usable_source_of_unicast_is_true(address: str) -> None:
    assert ip.is_usable_source(packed(address))


@pytest.mark.parametrize(("ends", "header"), [(V4, 20), (V6, 40)])
def test_errors_are_sound_and_quote_the_packet(ends: tuple[str, str], header: int) -> None:
    packet = tcp(b"x" * 500, ends)
    for made, kinds, word in ((ip.unreachable(packet), (b"\x03\x01", b"\x01\x03"), 0), (ip.too_big(packet, 1300), (b"\x03\x04", b"\x02\x00"), 1300)):
        assert made is not None
        assert is_sound(made)
        assert (ip.source_of(made), ip.destination_of(made)) == (packed(ends[1]), packed(ends[0]))
        assert made[header : header + 2] == kinds[header == 40]
        assert int.from_bytes(made[header + 4 : header + 8], "big") == word
        assert made[header + 8 :] == packet[:128]


@pytest.mark.parametrize(
    "packet",
    [
        icmp_echo(kind=3),
        icmp_echo(kind=11),
        icmp_echo(V6, kind=1),
        ip_packet(b"", 1),
        ip_packet(b"", 58, V6),
        ip_packet(b"x" * 8, 17, fragment=0x2001),
        udp(b"x", ("10.77.0.1", "224.0.0.1")),
        udp(b"x", ("10.77.0.1", "255.255.255.255")),
        udp(b"x", ("0.0.0.0", "10.77.0.2")),
        udp(b"x", ("fd77::1", "ff02::1")),
        udp(b"x", ("::", "fd77::2")),
    ],
)
def test_unreachable_where_none_may_be_sent_is_none(packet: bytes) -> None:
    assert ip.unreachable(packet) is ip.too_big(packet, 1280) is None


def test_unreachable_for_an_echo_request() -> None:
    assert ip.unreachable(icmp_echo()) is not None
    assert ip.unreachable(icmp_echo(V6)) is not None
