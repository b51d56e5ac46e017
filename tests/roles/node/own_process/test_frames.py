"""Frames: read as they were written, however the bytes come; garbage and cut input raise WireError and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.model import NodeId
from calnet.roles.node.own_process.frames import BUFFER, MAX_FRAME, MESSAGE, RELAYED, FrameReader, message_frame, parse_relayed, relayed_head

Found = list[tuple[int, bytes]]


def read(data: bytes, step: int = 1 << 30) -> Found:
    """All frames of `data`, given `step` bytes at a time."""
    reader, found = FrameReader(), list[tuple[int, bytes]]()
    at = 0
    while at < len(data):
        room = reader.room()
        part = data[at : at + min(step, len(room))]
        room[: len(part)] = part
        reader.filled(len(part))
        at += len(part)
        found += [(kind, bytes(body)) for kind, body in reader.frames()]
    return found


def relayed_frame(peer: NodeId, datagrams: list[bytes]) -> bytes:
    return relayed_head(peer, datagrams) + b"".join(datagrams)


BODIES = st.lists(st.binary(max_size=40), max_size=6)
BATCHES = st.lists(st.binary(max_size=1500), max_size=20)


@given(BODIES, st.integers(1, 50))
def test_messages_come_out_as_they_went_in_whatever_the_steps(bodies: list[bytes], step: int) -> None:
    data = b"".join(message_frame(body) for body in bodies)
    assert read(data, step) == [(MESSAGE, body) for body in bodies]


@given(st.integers(0, (1 << 63) - 1), BATCHES)
def test_relayed_datagrams_come_out_as_they_went_in(peer: int, datagrams: list[bytes]) -> None:
    ((kind, body),) = read(relayed_frame(NodeId(peer), datagrams))
    assert kind == RELAYED
    found_peer, found = parse_relayed(memoryview(body))
    assert (found_peer, [bytes(datagram) for datagram in found]) == (peer, datagrams)


@pytest.mark.parametrize("size", [BUFFER - 6, BUFFER - 5, BUFFER, BUFFER + 1, 5 * BUFFER])
@pytest.mark.parametrize("step", [1 << 30, 70_001])
def test_frame_larger_than_the_buffer_is_read_and_those_around_it(size: int, step: int) -> None:
    bodies = [b"before", bytes(range(256)) * (size // 256) + bytes(size % 256), b"behind", b""]
    assert read(b"".join(message_frame(body) for body in bodies), step) == [(MESSAGE, body) for body in bodies]


def test_reader_has_its_usual_room_again_after_a_large_frame() -> None:
    reader = FrameReader()
    data = message_frame(bytes(3 * BUFFER))
    while data:
        room = reader.room()
        part = data[: len(room)]
        room[: len(part)] = part
        reader.filled(len(part))
        data = data[len(part) :]
        frames = [len(body) for _, body in reader.frames()]
    assert frames == [3 * BUFFER]
    assert len(reader.room()) == BUFFER


@given(st.integers(0, 100), BODIES)
def test_cut_frame_gives_nothing_and_waits(cut: int, bodies: list[bytes]) -> None:
    whole = b"".join(message_frame(body) for body in bodies)
    last = message_frame(b"x" * 100)
    assert read(whole + last[:cut]) == [(MESSAGE, body) for body in bodies]


@pytest.mark.parametrize("head", [(0).to_bytes(4, "big"), (MAX_FRAME + 1).to_bytes(4, "big"), b"\xff\xff\xff\xff"])
def test_length_that_no_frame_has_is_refused(head: bytes) -> None:
    with pytest.raises(WireError):
        read(head + b"\x01rest")


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_kind_that_no_frame_has_is_refused(kind: int) -> None:
    with pytest.raises(WireError):
        read(b"\0\0\0\1" + bytes((kind,)))


@given(st.binary(max_size=200))
def test_garbage_for_a_stream_raises_wire_error_alone(data: bytes) -> None:
    with contextlib.suppress(WireError):
        read(data, 7)


@given(st.binary(max_size=200))
def test_garbage_for_relayed_datagrams_raises_wire_error_alone(data: bytes) -> None:
    with contextlib.suppress(WireError):
        parse_relayed(memoryview(data))


@given(BATCHES, st.data())
def test_relayed_datagrams_cut_or_with_bytes_behind_are_refused(datagrams: list[bytes], data: st.DataObject) -> None:
    body = relayed_frame(NodeId(7), datagrams)[5:]
    cut = data.draw(st.integers(0, len(body) - 1))
    for bad in (body[:cut], body + b"x"):
        with pytest.raises(WireError):
            parse_relayed(memoryview(bad))
