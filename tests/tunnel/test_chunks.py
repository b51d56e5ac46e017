"""The segment extension: whatever the network does to chunks, what the kernel gets is made of the packets that the plain way would bring, and of no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.crypto.aead import Aead, nonce_of
from calnet.model import NodeId
from calnet.tunnel.chunks import MAX_CHUNKS, MAX_HEADER, announced, behind, can_be_chunks, first_word, shape_of
from calnet.tunnel.outbound import MAX_RUN_BYTES
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.segment import parse_super
from calnet.tunnel.session import Session
from calnet.wire.ip import VIRTIO_HEADER, parse_virtio
from tests.ip_packets import TIMESTAMPS, V4, V6, as_kernel_gives, cut, tcp, udp
from tests.tunnel.ends import Receiver, Sender, sessions

VECTORS = Path(__file__).parents[1] / "vectors" / "chunks.json"
PATTERN = bytes(i * 7 & 0xFF for i in range(65535))


def _send(packet: bytes, segment: int, mtu: int = 1420) -> tuple[list[tuple[bytes, int]], Session]:
    one, two = sessions()
    sender = Sender(mtu, chunks=True)
    sender.take(one, as_kernel_gives(packet, segment))
    return [(run, size) for _, run, size in sender.runs], two


def _datagrams(batches: list[tuple[bytes, int]]) -> list[bytes]:
    return [run[at : at + size] for run, size in batches for at in range(0, len(run), size)]


SHAPES = [(V4, 1368, 60000, 0x10), (V6, 1348, 60000, 0x18), (V4, 1001, 7777, 0x19), (V6, 500, 30000, 0xD8), (V4, 7, 600, 0x18), (V4, 300, 64000, 0x19)]


@pytest.mark.parametrize(("ends", "segment", "length", "flags"), SHAPES)
@pytest.mark.parametrize("options", [b"", TIMESTAMPS, b"\x01" * 40])
def test_super_packet_arrives_as_one_write_for_each_send(ends: tuple[str, str], segment: int, length: int, flags: int, options: bytes) -> None:
    packet = tcp(PATTERN[:length], ends, flags=flags, options=options, ident=0xFFFE, sequence=0xFFFFFF00)
    batches, two = _send(packet, segment)
    receiver = Receiver(two)
    for batch, size in batches:
        assert len(batch) <= MAX_RUN_BYTES
        assert size == segment + 32 + (len(packet) - length)
        receiver.take(batch, size)
    assert receiver.packets() == cut(packet, segment)
    assert len(receiver.writes) == len(batches)
    assert receiver.inbound.dropped == 0
    assert sum(length for _, length, _ in receiver.events) == sum(len(batch) for batch, _ in batches)  # type: ignore[misc]


@pytest.mark.parametrize("ends", [V4, V6])
def test_udp_datagrams_arrive_as_one_write(ends: tuple[str, str]) -> None:
    packet = udp(PATTERN[:12345], ends)
    batches, two = _send(packet, 300)
    receiver = Receiver(two)
    receiver.take(*batches[0])
    assert len(receiver.writes) == 1
    assert receiver.packets() == cut(packet, 300)


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("make", [tcp, udp])
@pytest.mark.parametrize(("vnet", "tcp_", "udp_"), [(False, True, True), (True, False, False), (True, True, False)])
def test_without_offloads_each_chunk_is_written_as_a_packet(ends: tuple[str, str], make, vnet: bool, tcp_: bool, udp_: bool) -> None:  # type: ignore[no-untyped-def]
    packet = make(PATTERN[:5000], ends)
    batches, two = _send(packet, 1000)
    receiver = Receiver(two, vnet=vnet, tcp=tcp_, udp=udp_)
    receiver.take(*batches[0])
    assert receiver.packets() == cut(packet, 1000)


@settings(max_examples=150)
@given(
    st.sampled_from([V4, V6]),
    st.sampled_from(["tcp", "udp"]),
    st.integers(1, 40),
    st.integers(60, 3000),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0x10, 0x18, 0x19, 0xD8]),
    st.data(),
)
def test_lost_doubled_and_reordered_chunks_bring_their_own_packets_and_no_others(
    ends: tuple[str, str], kind: str, segment: int, length: int, sequence: int, flags: int, data: st.DataObject
) -> None:
    segment *= 11
    payload = PATTERN[:length]
    packet = tcp(payload, ends, sequence=sequence, flags=flags) if kind == "tcp" else udp(payload, ends)
    if length <= segment:
        return
    batches, two = _send(packet, segment)
    datagrams, size = _datagrams(batches), batches[0][1]
    order = data.draw(st.lists(st.integers(0, len(datagrams) - 1), max_size=80))
    receiver = Receiver(two)
    batch: list[bytes] = []
    for index in order:
        batch.append(datagrams[index])
        if len(datagrams[index]) < size or len(batch) == 30 or data.draw(st.booleans()):
            receiver.take(b"".join(batch), size)
            batch = []
    if batch:
        receiver.take(b"".join(batch), size)
    expected, seen = cut(packet, segment), dict.fromkeys(order)
    assert receiver.packets() == [expected[index] for index in seen]
    assert receiver.inbound.dropped == len(order) - len(seen)


@settings(max_examples=150)
@given(st.sampled_from([V4, V6]), st.integers(0, 5), st.integers(0, 8 * 1031 - 1), st.booleans())
def test_flipped_bit_costs_that_chunk_alone(ends: tuple[str, str], which: int, bit: int, alone: bool) -> None:
    packet = tcp(PATTERN[:6000], ends)
    batches, two = _send(packet, 1000)
    datagrams, size = _datagrams(batches), batches[0][1]
    broken = bytearray(datagrams[which])
    broken[bit // 8] ^= 1 << bit % 8
    received = [*datagrams[:which], bytes(broken), *datagrams[which + 1 :]]
    receiver, expected = Receiver(two), cut(packet, 1000)
    if alone:
        for datagram in received:
            receiver.take(datagram)
    else:
        receiver.take(b"".join(received), size)
    assert receiver.packets() == expected[:which] + expected[which + 1 :]
    receiver.take(datagrams[which])
    assert sorted(receiver.packets()) == sorted(expected)


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text())["cases"], ids=lambda case: case["aead"])
def test_recorded_vectors_are_met_byte_for_byte_both_ways(case: dict[str, Any]) -> None:
    key, aead = bytes.fromhex(case["key"]), Aead(case["aead"])
    peer = TunnelPeer(TunnelPeerConfig(NodeId(1), bytes(32)))
    ends: dict[str, Any] = {"remote_static": bytes(32), "keys": (key, key), "now": 5.0, "aead": aead, "initiator": True}
    one = Session(peer, local_index=1, remote_index=case["receiver_index"], **ends)
    two = Session(peer, local_index=case["receiver_index"], remote_index=1, **ends)
    one.send_counter = case["first_counter"]
    packet, size = bytes.fromhex(case["super_packet"]), case["chunk_size"]
    sender = Sender(1420, chunks=True)
    kind = (5 if packet[6] == 17 else 4) if packet[0] >> 4 == 6 else 1
    start = 40 if packet[0] >> 4 == 6 else 20
    sender.take(one, VIRTIO_HEADER.pack(1, kind, 0, size, start, 6 if kind == 5 else 16) + packet)
    assert [datagram.hex() for datagram in sender.datagrams()] == case["datagrams"]
    receiver = Receiver(two)
    ((_, run, width),) = sender.runs
    receiver.take(run, width)
    assert receiver.packets() == cut(packet, size)


def test_two_super_packets_in_one_batch_and_plain_packets_between() -> None:
    one, two = sessions()
    sender, receiver = Sender(1420, chunks=True), Receiver(two)
    first, second = tcp(PATTERN[:3000]), tcp(PATTERN[:4000], V6)
    lone = tcp(PATTERN[:980])
    for read in (as_kernel_gives(first, 1000), as_kernel_gives(second, 980), as_kernel_gives(lone)):
        sender.take(one, read)
    datagrams = sender.datagrams()
    assert [len(datagram) for datagram in datagrams] == [1084, 1084, 1084, 1084, 1084, 1084, 1084, 1084 - 900, 1072]
    receiver.take(b"".join(datagrams[:8]), 1084)
    receiver.take(datagrams[8])
    assert receiver.packets() == [*cut(first, 1000), *cut(second, 980), lone]
    assert len(receiver.writes) == 3


@settings(max_examples=100)
@given(st.data(), st.sampled_from([V4, V6]), st.sampled_from([1000, 1001]), st.booleans(), st.sampled_from([0, 12, 20, 32, 40]))
def test_several_super_packets_of_a_stream_with_losses_are_opened_together_as_one_by_one(
    data: st.DataObject, ends: tuple[str, str], segment: int, offload: bool, options: int
) -> None:
    one, two = sessions()
    sender = Sender(1420, chunks=True)
    for number in range(3):
        packet = tcp(PATTERN[: 7 * segment], ends, sequence=1 + 7 * segment * number, flags=0x18, options=b"\x01" * options)
        sender.take(one, as_kernel_gives(packet, segment))
    datagrams, size = sender.datagrams(), segment + 32 + (40 if ends is V4 else 60) + options
    came = [k for k in range(len(datagrams)) if data.draw(st.integers(0, 5))]
    for _ in range(data.draw(st.integers(0, 2))):
        came.insert(data.draw(st.integers(0, len(came))), data.draw(st.integers(0, len(datagrams) - 1)))
    forged = set(data.draw(st.lists(st.integers(0, len(came) or 1), max_size=2)))
    heard = [datagrams[k][:100] + b"x" + datagrams[k][101:] if at in forged and datagrams[k][100:101] != b"x" else datagrams[k] for at, k in enumerate(came)]
    together, singly = Receiver(two, tcp=offload), Receiver(sessions()[1], tcp=offload)
    first = 0
    while first < len(heard):
        count = data.draw(st.integers(1, 21))
        together.take(b"".join(heard[first : first + count]), size)
        first += count
    for datagram in heard:
        singly.take(datagram)
    assert together.packets() == singly.packets()
    assert together.inbound.dropped == singly.inbound.dropped
    assert offload or not any(write[1] for write in together.writes), "a device that takes no super-packets gets none"


def test_last_chunk_of_a_batch_may_be_of_another_super_packet_with_shorter_ones() -> None:
    one, two = sessions()
    sender, receiver = Sender(1420, chunks=True), Receiver(two)
    first, second = tcp(PATTERN[:3000]), tcp(PATTERN[:2000], ports=(7, 8))
    for packet, segment in ((first, 1000), (second, 900)):
        sender.take(one, as_kernel_gives(packet, segment))
    datagrams = sender.datagrams()
    receiver.take(b"".join([*datagrams[:2], datagrams[3]]), 1084)
    receiver.take(datagrams[2])
    assert receiver.packets() == [*cut(first, 1000)[:2], cut(second, 900)[0], cut(first, 1000)[2]]
    assert receiver.inbound.dropped == 0


def test_datagrams_behind_a_chunk_are_those_of_its_super_packet() -> None:
    one, _ = sessions()
    one.send_counter = 250
    sender = Sender(1420, chunks=True)
    sender.take(one, as_kernel_gives(tcp(PATTERN[:45_000]), 1000))
    sender.take(one, as_kernel_gives(tcp(PATTERN[:900])))
    *chunks, plain = (memoryview(datagram) for datagram in sender.datagrams())
    assert [behind(chunk) for chunk in chunks] == list(range(44, -1, -1))
    assert behind(plain) == MAX_CHUNKS
    assert behind(chunks[0][:31]) == behind(memoryview(b"")) == behind(memoryview(b"\5" + b"\xff" * 40)) == MAX_CHUNKS


def _forge(session: Session, word: int, plain: bytes) -> bytes:
    """A chunk as an authenticated peer could make it, whatever it says."""
    counter = session.take_counters(1)
    out = bytearray(len(plain) + 16)
    head = word.to_bytes(4, "little")
    session.seal_into(head + counter.to_bytes(8, "little"), plain, None, out)
    return head + session.remote_index.to_bytes(4, "little") + counter.to_bytes(8, "little") + bytes(out)


def _trailer(packet: bytes, header: int, size: int) -> bytearray:
    trailer = bytearray(packet[:header])
    at = 2 if packet[0] >> 4 == 4 else 4
    trailer[at : at + 2] = size.to_bytes(2, "big")
    return trailer


@pytest.mark.parametrize(
    ("change", "header"),
    [
        ({0: 0x46}, 52),
        ({0: 0x65}, 52),
        ({0: 0x35}, 52),
        ({9: 1}, 52),
        ({9: 17}, 52),
        ({6: 0x20}, 52),
        ({7: 1}, 52),
        ({2: 0, 3: 0}, 52),
        ({2: 0, 3: 99}, 52),
        ({32: 0x40}, 52),
        ({32: 0xF0}, 52),
        ({32: 0x60}, 52),
        ({}, 48),
    ],
)
def test_trailer_of_a_hostile_peer_is_dropped(change: dict[int, int], header: int) -> None:
    one, two = sessions()
    receiver = Receiver(two)
    trailer = _trailer(tcp(PATTERN[:100]), header, 100)
    for at, value in change.items():
        trailer[at] = value
    receiver.take(_forge(one, first_word(header, 0, 2), PATTERN[:100] + trailer))
    assert receiver.writes == []
    assert receiver.inbound.dropped == 1
    receiver.take(_forge(one, first_word(52, 1, 1), PATTERN[:100] + _trailer(tcp(PATTERN[:100]), 52, 100)))
    assert receiver.packets() == [tcp(PATTERN[:100])]


@pytest.mark.parametrize("word", [5, 5 | 13 << 8, 5 | 6 << 8 | 2 << 24, 5 | 26 << 8 | 2 << 24, 5 | 13 << 8 | 65 << 24, 5 | 13 << 8 | 1 << 16 | 2 << 24])
def test_chunk_whose_first_word_no_sender_writes_is_dropped(word: int) -> None:
    one, two = sessions()
    receiver = Receiver(two)
    receiver.take(_forge(one, word, PATTERN[:100] + _trailer(tcp(PATTERN[:100]), 52, 100)))
    assert (receiver.writes, receiver.events, receiver.inbound.dropped) == ([], [], 1)


def _as_forged(datagram: bytes, counter: int, length: int) -> bytes:
    """What somebody on the way can make of a chunk: its head with another counter, and anything behind."""
    return datagram[:8] + counter.to_bytes(8, "little") + bytes(length - 16)


@pytest.mark.parametrize("where", ["before", "behind", "far behind", "short behind", "same again"])
def test_forged_datagram_in_a_batch_costs_no_genuine_chunk(where: str) -> None:
    packet = tcp(PATTERN[:20_000])
    batches, two = _send(packet, 1000)
    datagrams, size = _datagrams(batches), batches[0][1]
    forged = {
        "before": [_as_forged(datagrams[0], 2**64 - 1, size), *datagrams],
        "behind": [*datagrams, _as_forged(datagrams[0], 20, size)],
        "far behind": [*datagrams, _as_forged(datagrams[0], 999, size)],
        "short behind": [*datagrams[:19], _as_forged(datagrams[0], 19, 40)],
        "same again": [*datagrams[:3], _as_forged(datagrams[0], 2, size), *datagrams[3:]],
    }[where]
    receiver = Receiver(two)
    receiver.take(b"".join(forged), size)
    expected = cut(packet, 1000)
    assert receiver.packets() == (expected[:19] if where == "short behind" else expected)
    assert receiver.inbound.dropped == 1


@pytest.mark.parametrize("known", [False, True])
def test_changed_chunk_is_dropped_whatever_else_is_wrong_with_its_batch(known: bool) -> None:
    """A forged head makes more chunks of a super-packet than it has, so that each is looked at by itself."""
    one, two = sessions()
    sender, receiver = Sender(1420, chunks=True), Receiver(two)
    if known:
        sender.take(one, as_kernel_gives(tcp(PATTERN[:5000]), 1000))
        ((_, run, size),) = sender.runs
        receiver.take(run, size)
        receiver.writes.clear()
        sender.runs.clear()
    packet = tcp(PATTERN[:20_000])
    sender.take(one, as_kernel_gives(packet, 1000))
    datagrams = sender.datagrams()
    size, expected = len(datagrams[0]), cut(packet, 1000)
    changed = bytearray(datagrams[5])
    changed[400] ^= 1
    behind_them = _as_forged(datagrams[0], int.from_bytes(datagrams[-1][8:16], "little") + 1, size)
    receiver.take(b"".join([*datagrams[:5], bytes(changed), *datagrams[6:], behind_them]), size)
    assert receiver.packets() == [*expected[:5], *expected[6:]]
    assert receiver.inbound.dropped == 2


def test_longest_super_packet_is_taken_whatever_its_last_chunk_is() -> None:
    """As a sender with larger sends than ours may make it."""
    one, two = sessions()
    receiver, size, length = Receiver(two), 8916, 7 * 8916 + 2400
    packet = tcp(PATTERN[:length])
    trailer = bytes(_trailer(packet, 52, size))
    word = first_word(52, 0, 8)
    run = b"".join(_forge(one, word, packet[52:][at : at + size] + trailer) for at in range(0, length, size))
    receiver.inbound.buffer[: len(run)] = run
    receiver.inbound.receive(len(run), size + 84)
    assert receiver.packets() == cut(packet, size)


def test_session_without_counters_seals_nothing_and_sends_nothing_of_it() -> None:
    one, _ = sessions()
    one.send_counter = one.reject_after - 5
    sender = Sender(1420, chunks=True)
    sender.take(one, as_kernel_gives(tcp(PATTERN[:20_000]), 1000))
    assert sender.datagrams() == []
    assert sender.outbound.dropped == 20
    sender.take(one, as_kernel_gives(tcp(PATTERN[:3000]), 1000))
    assert len(sender.datagrams()) == 3


def test_views_that_are_kept_do_not_grow_with_the_shapes_that_peers_choose() -> None:
    one, two = sessions()
    sender, receiver = Sender(1420, chunks=True), Receiver(two)
    for step in range(1, 200):
        sender.take(one, as_kernel_gives(udp(PATTERN[: 3 * step + 1]), step))
    for run in sender.runs:
        receiver.take(run[1], run[2])
    outbound, inbound = sender.outbound, receiver.inbound._chunks
    views: list[list[Any]] = [*outbound._payloads.values(), *inbound._payloads.values()]
    assert max(len(kept) for kept in views) <= 128
    assert len(views) <= 64 + 32
    assert max(places.most for places in (*outbound._places.values(), *inbound._places.values())) <= 128
    assert len(outbound._places) <= 64
    assert len(inbound._places) <= 32


def test_chunk_and_packet_under_one_counter_cannot_be_taken_for_each_other() -> None:
    packet = tcp(PATTERN[:2000])
    batches, two = _send(packet, 1000)
    chunk = _datagrams(batches)[0]
    receiver = Receiver(two)
    receiver.take(b"\x04\0\0\0" + chunk[4:])
    one, two = sessions()
    plain = one.seal(tcp(PATTERN[:1000]))
    receiver.take(first_word(52, 0, 2).to_bytes(4, "little") + plain[4:])
    assert receiver.writes == []
    assert receiver.inbound.dropped == 2
    assert nonce_of(0)[:4] == bytes(4)


def test_packet_that_the_filter_refuses_is_not_written() -> None:
    packet = tcp(PATTERN[:5000])
    batches, two = _send(packet, 1000)
    receiver = Receiver(two)
    asked: list[bytes] = []
    receiver.accepts = lambda inner: asked.append(inner) is not None
    receiver.take(*batches[0])
    assert [len(inner) for inner in asked] == [1052], "the filter is asked once, about the first packet"
    assert receiver.writes == []
    assert receiver.inbound.dropped == 5


def test_chunks_are_only_made_of_headers_without_ip_options() -> None:
    def can(packet: bytes) -> bool:
        read = as_kernel_gives(packet, 100)
        return can_be_chunks(parse_super(memoryview(read)[10:], parse_virtio(read)))

    assert can(tcp(PATTERN[:1000]))
    assert can(tcp(PATTERN[:1000], V6))
    assert not can(tcp(PATTERN[:1000], ip_options=b"\x01" * 4))


@given(st.integers(28, MAX_HEADER).map(lambda header: header // 4 * 4), st.integers(0, 1 << 62), st.integers(1, MAX_CHUNKS), st.data())
def test_what_a_first_word_announces_is_what_was_put_in(header: int, first: int, count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, count - 1))
    assert announced(first_word(header, first, count), first + number) == (header, number, count)
    assert announced(first_word(header, first, count), first + count) is None


@given(st.binary(min_size=28, max_size=MAX_HEADER))
def test_no_trailer_makes_shape_of_raise(trailer: bytes) -> None:
    shape = shape_of(bytearray(trailer))
    assert shape is None or shape.ip_header < len(trailer)
