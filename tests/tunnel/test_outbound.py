"""Sealing in batches: each datagram is one that a session would make alone, and runs are as long as they may be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.tunnel.outbound import MAX_RUN, MAX_RUN_BYTES
from tests.ip_packets import TIMESTAMPS, V4, V6, as_kernel_gives, cut, icmp_echo, tcp, udp
from tests.tunnel.ends import Sender, sessions


def _padded(packet: bytes, mtu: int) -> bytes:
    return packet + bytes(min(-len(packet) % 16, max(0, mtu - len(packet))))


def _check(sender: Sender, session, other, expected: list[bytes], mtu: int) -> None:  # type: ignore[no-untyped-def]
    datagrams = sender.datagrams()
    assert [int.from_bytes(one[8:16], "little") for one in datagrams] == list(range(len(datagrams)))
    assert [other.open(one) for one in datagrams] == [_padded(packet, mtu) for packet in expected]
    for _, run, size in sender.runs:
        assert len(run) <= max(MAX_RUN_BYTES, size)
        assert len(run) <= MAX_RUN * size


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("mtu", [1280, 1420, 1421, 9000])
@pytest.mark.parametrize("segment", [1208, 1228, 1000, 1348, 7, 536])
def test_tcp_super_packet_becomes_the_oracles_packets_padded(ends: tuple[str, str], mtu: int, segment: int) -> None:
    session, other = sessions()
    sender = Sender(mtu)
    payload = bytes(range(256)) * 234
    packet = tcp(payload[: min(len(payload), segment * 200 - 3)], ends, flags=0x18)
    expected = cut(packet, segment)
    sender.take(session, as_kernel_gives(packet, segment))
    sender.take(session, as_kernel_gives(packet, segment))
    _check(sender, session, other, expected * 2, mtu)


def test_udp_super_packet_becomes_datagrams_of_one_run() -> None:
    session, other = sessions()
    sender = Sender()
    packet = udp(b"u" * 64 * 40, V6)
    sender.take(session, as_kernel_gives(packet, 64))
    _check(sender, session, other, cut(packet, 64), 1280)
    assert len(sender.runs) == 1


PACKETS = st.lists(
    st.one_of(
        st.tuples(st.builds(lambda n, e: tcp(b"t" * n, e), st.integers(0, 1200), st.sampled_from([V4, V6])), st.just(0)),
        st.tuples(st.builds(lambda n, e: udp(b"u" * n, e), st.integers(0, 1200), st.sampled_from([V4, V6])), st.just(0)),
        st.tuples(st.just(icmp_echo()), st.just(0)),
        st.tuples(st.builds(lambda n: tcp(b"s" * n, V4), st.integers(1, 9000)), st.integers(30, 1228)),
        st.tuples(st.builds(lambda n: tcp(b"s" * n, V6, options=TIMESTAMPS), st.integers(1, 9000)), st.integers(30, 1208)),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60)
@given(PACKETS, st.lists(st.booleans(), min_size=30, max_size=30))
def test_any_mix_keeps_order_content_and_counters(packets: list[tuple[bytes, int]], flushes: list[bool]) -> None:
    session, other = sessions()
    sender = Sender()
    expected = []
    for (packet, segment), flush in zip(packets, flushes, strict=False):
        proto = packet[6] if packet[0] >> 4 == 6 else packet[9]
        sender.take(session, as_kernel_gives(packet, segment) if segment or proto in (6, 17) else bytes(10) + packet)
        expected += cut(packet, segment) if segment else [packet]
        if flush:
            sender.outbound.flush()
    _check(sender, session, other, expected, 1280)


def test_equal_packets_are_one_run_and_a_shorter_one_ends_it() -> None:
    session, _ = sessions()
    sender = Sender()
    for size in (100, 100, 101, 50, 100, 100, 200):
        sender.take(session, bytes(10) + udp(b"x" * size))
    sender.outbound.flush()
    sender.outbound.flush()
    sizes = [[len(run[at : at + size]) - 32 for at in range(0, len(run), size)] for _, run, size in sender.runs]
    assert sizes == [[128, 128], [144, 80], [128, 128], [240]]


def test_another_session_begins_another_run() -> None:
    one, _ = sessions()
    two, _ = sessions((b"c" * 32, b"d" * 32), (3, 4))
    sender = Sender()
    for session in (one, one, two, one):
        sender.take(session, bytes(10) + udp(b"x"))
    sender.outbound.flush()
    assert [run[0] for run in sender.runs] == [one, two, one]


def test_a_run_is_full_at_its_limits() -> None:
    session, _ = sessions()
    sender = Sender(9000)
    for _ in range(70):
        sender.take(session, bytes(10) + udp(b"x"))
    for _ in range(9):
        sender.take(session, bytes(10) + udp(b"x" * 8900))
    sender.outbound.flush()
    assert [len(run) // size for _, run, size in sender.runs] == [64, 6, 7, 2]


def test_padding_of_stale_bytes_is_zero() -> None:
    session, other = sessions()
    sender = Sender()
    sender.outbound.plain[:] = b"\xee" * len(sender.outbound.plain)
    sender.take(session, bytes(10) + udp(b"abc"))
    (datagram,) = sender.datagrams()
    assert other.open(datagram) == udp(b"abc") + b"\0"


def test_many_shapes_are_forgotten_again() -> None:
    session, other = sessions()
    sender = Sender()
    for segment in range(30, 130):
        packet = tcp(b"z" * 500)
        sender.take(session, as_kernel_gives(packet, segment))
    for datagram in sender.datagrams():
        other.open(datagram)


def test_the_longest_packet_goes_through() -> None:
    session, other = sessions()
    sender = Sender(65535)
    packet = udp(b"m" * (65535 - 28))
    sender.take(session, bytes(10) + packet)
    (datagram,) = sender.datagrams()
    assert other.open(datagram) == packet
