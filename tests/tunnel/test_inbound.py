"""Opening in batches: whatever arrives, each genuine new packet is delivered once, in order, equal to what was sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ip_packets import TIMESTAMPS, V4, V6, as_kernel_gives, cut, icmp_echo, ip_packet, tcp, udp
from tests.tunnel.ends import Receiver, Sender, sessions


def _run(packet: bytes, segment: int, mtu: int = 1280) -> tuple[list[tuple[bytes, int]], Receiver]:
    one, two = sessions()
    sender = Sender(mtu)
    sender.take(one, as_kernel_gives(packet, segment))
    sender.outbound.flush()
    return [(run, size) for _, run, size in sender.runs], Receiver(two)


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize(("segment", "length", "flags"), [(1208, 40000, 0x10), (1200, 12000, 0x18), (1001, 7777, 0x19), (500, 30000, 0x18)])
@pytest.mark.parametrize("mtu", [1280, 1420, 1039, 1233])
def test_tcp_run_is_written_as_one_super_packet(ends: tuple[str, str], segment: int, length: int, flags: int, mtu: int) -> None:
    packet = tcp(bytes(i * 7 & 0xFF for i in range(length)), ends, flags=flags)
    batches, receiver = _run(packet, segment, mtu)
    for batch, size in batches:
        receiver.take(batch, size)
    assert receiver.packets() == cut(packet, segment)
    assert len(receiver.writes) == len(batches)
    assert receiver.inbound.dropped == 0


def test_super_packet_has_the_original_header_but_for_checksums() -> None:
    for ends in (V4, V6):
        packet = tcp(b"d" * 12080, ends, flags=0x18)
        batches, receiver = _run(packet, 1208)
        receiver.take(*batches[0])
        (write,) = receiver.writes
        start = 20 if ends is V4 else 40
        flags, kind, _, segment, at, offset = (*write[:2], *(int.from_bytes(write[i : i + 2], "little") for i in (2, 4, 6, 8)))
        assert (flags, kind, segment, at, offset) == (1, 1 if ends is V4 else 4, 1208, start, 16)
        assert write == as_kernel_gives(packet, 1208)[:2] + write[2:4] + as_kernel_gives(packet, 1208)[4:]


@pytest.mark.parametrize("ends", [V4, V6])
def test_udp_run_is_written_as_one_super_packet(ends: tuple[str, str]) -> None:
    packet = udp(bytes(range(250)) * 20, ends)
    batches, receiver = _run(packet, 300)
    receiver.take(*batches[0])
    assert len(receiver.writes) == 1
    assert receiver.packets() == cut(packet, 300)


@pytest.mark.parametrize(("vnet", "tcp_", "udp_"), [(False, True, True), (True, False, False)])
def test_without_offloads_each_packet_is_written_alone(vnet: bool, tcp_: bool, udp_: bool) -> None:
    one, two = sessions()
    sender, receiver = Sender(), Receiver(two, vnet=vnet, tcp=tcp_, udp=udp_)
    packet = tcp(b"p" * 6000)
    sender.take(one, as_kernel_gives(packet, 1208))
    for datagram in sender.datagrams():
        receiver.take(datagram)
    sender.runs.clear()
    sender.take(one, as_kernel_gives(packet, 1208))
    sender.outbound.flush()
    receiver.take(sender.runs[0][1], sender.runs[0][2])
    assert len(receiver.writes) == 10
    assert receiver.packets() == cut(packet, 1208) * 2


def _sealed(packets: list[bytes], mtu: int = 1280) -> tuple[list[tuple[bytes, int]], Receiver]:
    one, two = sessions()
    sender = Sender(mtu)
    for packet in packets:
        sender.take(one, bytes(10) + packet)
    sender.outbound.flush()
    return [(run, size) for _, run, size in sender.runs], Receiver(two)


def _deliver(packets: list[bytes]) -> Receiver:
    batches, receiver = _sealed(packets)
    for batch, size in batches:
        receiver.take(batch, size)
    assert receiver.packets() == packets
    return receiver


DATA = b"d" * 100


def _flow(count: int, **change: object) -> list[bytes]:
    return [tcp(DATA, sequence=1 + 100 * k, ident=k, **change) for k in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("odd", "writes"),
    [
        (tcp(DATA, sequence=301, ident=3, flags=0x12), 3),
        (tcp(DATA, sequence=301, ident=3, window=77), 2),
        (tcp(DATA, sequence=301, ident=3, acknowledged=100), 2),
        (tcp(DATA, sequence=301, ident=3, tos=3), 3),
        (tcp(DATA, sequence=302, ident=3), 3),
        (tcp(DATA, sequence=301, ident=3, ports=(1, 2000)), 3),
        (tcp(DATA, sequence=301, ident=3, options=b"\x01\x01\x08\x0a\0\0\0\x07\0\0\0\x06"), 3),
        (tcp(DATA, V6, sequence=301), 3),
        (tcp(DATA, sequence=301, ident=3, flags=0x18), 2),
        (tcp(DATA, sequence=301, ident=3, flags=0x11), 2),
        (tcp(DATA, sequence=301, ident=3, flags=0x30), 3),
        (tcp(DATA, sequence=301, ident=3, ip_options=b"\x01" * 4), 3),
        (tcp(b"", sequence=301, ident=3), 3),
        (ip_packet(DATA, 6, fragment=0x2000), 3),
        (ip_packet(DATA, 47), 3),
        (icmp_echo(), 3),
        (udp(DATA), 3),
    ],
)
def test_packet_that_differs_splits_the_run_and_nothing_is_lost(odd: bytes, writes: int) -> None:
    one, two = sessions()
    packets = [*_flow(3), odd, *_flow(7)[4:]]
    sender, receiver = Sender(), Receiver(two)
    # All padded to one size, so that they make one batch.
    size = -(-max(len(packet) for packet in packets) // 16) * 16
    for packet in packets:
        sender.outbound.plain[10 : 10 + size] = packet + bytes(size - len(packet))
        sender.outbound.add_packet(one, size)
    sender.outbound.flush()
    ((_, batch, step),) = sender.runs
    receiver.take(batch, step)
    got = receiver.packets()
    assert [packet[20:] for packet in got if packet != odd] == [packet[20:] for packet in packets if packet != odd]
    assert odd in got
    assert len(receiver.writes) <= writes + 1


@pytest.mark.parametrize("before", [50, 250])
def test_sequence_numbers_that_wrap_are_not_joined_across(before: int) -> None:
    packets = [tcp(DATA, sequence=(1 << 32) - before + 100 * k, ident=k) for k in range(6)]
    _deliver(packets)


def test_joined_run_ends_at_push_and_goes_on_behind() -> None:
    packets = [tcp(DATA, sequence=1 + 100 * k, ident=k, flags=0x18 if k == 2 else 0x10) for k in range(6)]
    batches, receiver = _sealed(packets)
    receiver.take(*batches[0])
    assert len(receiver.writes) == 2
    assert receiver.packets() == packets


def test_udp_of_changing_sizes_and_without_checksum_goes_unchanged() -> None:
    _deliver([udp(b"a" * n, ident=index) for index, n in enumerate((9, 9, 9, 5, 9, 9, 10))])
    _deliver([udp(b"a" * 9, check=False), udp(b"a" * 9, check=False)])
    _deliver([udp(b""), udp(b"")])


@pytest.mark.parametrize(
    "packet", [icmp_echo(), icmp_echo(V6), ip_packet(b"gre" * 9, 47), ip_packet(b"x" * 64, 17, fragment=0x2000), ip_packet(b"\x3b\0" + b"x" * 30, 0, V6)]
)
def test_what_is_neither_tcp_nor_udp_passes_unchanged(packet: bytes) -> None:
    _deliver([packet, packet, packet])


def test_lost_datagram_splits_the_run_only() -> None:
    packet = tcp(b"l" * 1208 * 8)
    batches, receiver = _run(packet, 1208)
    batch, size = batches[0]
    receiver.take(batch[: 3 * size] + batch[4 * size :], size)
    expected = cut(packet, 1208)
    assert receiver.packets() == [packet for index, packet in enumerate(expected) if index != 3]
    assert len(receiver.writes) == 2


def test_corrupt_datagram_is_dropped_alone_and_the_genuine_one_still_counts() -> None:
    packet = tcp(b"l" * 1208 * 8)
    batches, receiver = _run(packet, 1208)
    batch, size = batches[0]
    bad = bytearray(batch)
    bad[3 * size + 40] ^= 1
    receiver.take(bytes(bad), size)
    expected = cut(packet, 1208)
    assert receiver.packets() == [one for index, one in enumerate(expected) if index != 3]
    assert receiver.inbound.dropped == 1
    assert sum(event[1] for event in receiver.events) == len(batch) - size, "what was not genuine was not received"  # type: ignore[misc]
    receiver.take(batch[3 * size : 4 * size])
    assert receiver.packets()[-1] == expected[3]


def test_replayed_batch_and_datagram_are_dropped() -> None:
    packet = tcp(b"l" * 1208 * 8)
    batches, receiver = _run(packet, 1208)
    for _ in range(2):
        for batch, size in batches:
            receiver.take(batch, size)
    receiver.take(batches[0][0][: batches[0][1]])
    assert receiver.packets() == cut(packet, 1208)
    assert receiver.inbound.dropped == 9


def test_half_replayed_batch_delivers_the_new_half() -> None:
    packet = tcp(b"l" * 1208 * 8)
    batches, receiver = _run(packet, 1208)
    batch, size = batches[0]
    receiver.take(batch[: 4 * size], size)
    receiver.take(batch, size)
    assert receiver.packets() == cut(packet, 1208)


@settings(max_examples=60)
@given(st.permutations(list(range(12))), st.integers(1, 12))
def test_any_order_and_batching_delivers_each_once(order: list[int], at_once: int) -> None:
    packet = tcp(bytes(range(200)) * 12, ports=(7, 7))
    batches, receiver = _run(packet, 200)
    batch, size = batches[0]
    datagrams = [batch[at : at + size] for at in range(0, len(batch), size)]
    shuffled = [datagrams[index] for index in order]
    for at in range(0, 12, at_once):
        receiver.take(b"".join(shuffled[at : at + at_once]), size)
    expected = cut(packet, 200)
    assert [one[20:] for one in receiver.packets()] == [expected[index][20:] for index in order]


def test_refused_by_accept_is_not_written() -> None:
    packet = tcp(b"l" * 1208 * 3)
    batches, receiver = _run(packet, 1208)
    receiver.accepts = lambda one: False
    receiver.take(*batches[0])
    assert receiver.writes == []
    assert receiver.inbound.dropped == 3


def test_accept_sees_a_whole_sound_packet() -> None:
    packet = tcp(b"l" * 1208 * 3)
    batches, receiver = _run(packet, 1208)
    seen: list[bytes] = []
    receiver.accepts = lambda one: not seen.append(one)
    receiver.take(*batches[0])
    assert seen == cut(packet, 1208)[:1]


def test_keepalive_is_reported_as_no_data_and_not_written() -> None:
    one, two = sessions()
    receiver = Receiver(two)
    receiver.take(one.seal(b""))
    receiver.take(one.seal(b"") + one.seal(b""), 32)
    assert receiver.events == [(two, 32, False), (two, 64, False)]
    assert receiver.writes == []
    assert receiver.inbound.dropped == 0


def test_unknown_receiver_other_kinds_and_mixtures() -> None:
    one, two = sessions()
    receiver = Receiver(two)
    stranger, _ = sessions(indices=(1, 2))
    data = one.seal(tcp(b"x" * 20) + bytes(8))
    receiver.take(stranger.seal(tcp(b"x")))
    receiver.take(stranger.seal(b"") + stranger.seal(b""), 32)
    assert receiver.inbound.dropped == 3
    receiver.take(b"\1" + bytes(147))
    other = b"\1" + bytes(len(data) - 1)
    receiver.take(data + other + one.seal(b""), len(data))
    assert receiver.others == [b"\1" + bytes(147), other]
    assert receiver.packets() == [tcp(b"x" * 20)]


def test_tail_too_short_for_a_datagram_is_dropped() -> None:
    one, two = sessions()
    receiver = Receiver(two)
    data = one.seal(udp(b"x" * 4)) + one.seal(udp(b"y" * 4))
    size = len(data) // 2
    receiver.take(data + b"\4\0\0\0", size)
    assert len(receiver.packets()) == 2
    assert receiver.others == [b"\4\0\0\0"], "whose dropping is counted there"


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 300), st.booleans())
def test_anything_from_the_wire_raises_nothing(data: bytes, size: int, ours: bool) -> None:
    one, two = sessions()
    receiver = Receiver(two)
    if ours:
        data = one.seal(data)[:16] + data
    receiver.take(data, size)
    assert receiver.writes == []
    assert receiver.events == []


@settings(max_examples=200)
@given(st.lists(st.binary(min_size=0, max_size=64), min_size=1, max_size=6))
def test_anything_authentic_inside_raises_nothing(plains: list[bytes]) -> None:
    one, two = sessions()
    receiver = Receiver(two)
    receiver.take(b"".join(one.seal(plain.ljust(64, b"\0")) for plain in plains), 96)
    assert all(len(write) >= 30 for write in receiver.writes)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=6), st.sampled_from([V4, V6]), st.booleans())
def test_authentic_batch_with_flipped_header_bytes_raises_nothing(flips: list[tuple[int, int]], ends: tuple[str, str], datagrams: bool) -> None:
    one, two = sessions()
    receiver = Receiver(two)
    made = [bytearray((udp(b"u" * 60, ends) if datagrams else tcp(b"t" * 60, ends, sequence=1 + 60 * k)).ljust(160, b"\0")) for k in range(5)]
    for at, value in flips:
        made[at % 5][at] = value
    receiver.take(b"".join(one.seal(packet) for packet in made), 192)
    receiver.take(one.seal(bytes(made[0])))


def test_many_sizes_and_shapes_are_forgotten_again() -> None:
    for size in range(40, 600, 8):
        packet = tcp(b"s" * size * 3, options=b"")
        one, two = sessions()
        sender, receiver = Sender(), Receiver(two)
        for segment in range(size, size + 2):
            sender.take(one, as_kernel_gives(packet, segment))
        for datagram in sender.datagrams():
            receiver.take(datagram)
        assert len(receiver.packets()) >= 6
    one, two = sessions()
    receiver = Receiver(two)
    for size in range(64, 800, 16):
        sender = Sender()
        for index in range(3):
            sender.take(one, bytes(10) + tcp(b"s" * size, sequence=1 + size * index))
        sender.outbound.flush()
        receiver.take(sender.runs[0][1], sender.runs[0][2])
    assert receiver.inbound.dropped == 0


@pytest.mark.parametrize("way", [V4, V6])
@pytest.mark.parametrize("options", [b"", TIMESTAMPS])
def test_of_acknowledgements_in_a_batch_the_last_is_written(way: tuple[str, str], options: bytes) -> None:
    one, two = sessions()
    receiver = Receiver(two)

    def ack(number: int, **change: Any) -> bytes:
        return tcp(b"", way, options=options, acknowledged=number, **change)

    run = [ack(100), ack(200), ack(300), ack(300), ack(300), ack(400), ack(500, ports=(5, 6)), ack(600), ack(700), ack(800, flags=0x50), ack(900), ack(850)]
    sealed = [one.seal(packet + bytes(-len(packet) % 16)) for packet in run]
    receiver.take(b"".join(sealed), len(sealed[0]))
    assert receiver.packets() == [run[k] for k in (2, 3, 5, 6, 8, 9, 10, 11)]
    assert receiver.inbound.dropped == 0
    forged = bytearray(b"".join([one.seal(packet + bytes(-len(packet) % 16)) for packet in (ack(1000), ack(1100))]))
    forged[-1] ^= 1
    receiver.take(bytes(forged), len(forged) // 2)
    assert receiver.packets()[-1] == ack(1000)
