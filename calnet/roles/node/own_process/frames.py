"""How daemon and data path share one stream: frames, each with its length and kind before it. Pure.

    length  u32   of what follows, kind included
    kind    u8    1 a message (messages.py), 2 relayed datagrams

Relayed datagrams, which are bulk, have a layout of their own: `peer u64 | count u16 | length u16, count times | the datagrams one after the other`.
All big-endian. Whatever does not parse raises WireError, and the stream is of no use from then on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from calnet.errors import WireError
from calnet.model import Buffer, NodeId

MESSAGE: Final = 1
RELAYED: Final = 2
MAX_FRAME: Final = 1 << 28
"""Far above the netmap of any network that is; beyond it a length is garbage."""
BUFFER: Final = 1 << 18
"""Bytes that are read at once, as a rule."""
MAX_DATAGRAMS: Final = 1000
"""In one frame: what one `sendmsg` takes (IOV_MAX), less its header."""

_HEAD: Final = struct.Struct(">IB")
_BATCH: Final = struct.Struct(">QH")


def message_frame(body: bytes) -> bytes:
    """The frame of one message."""
    return _HEAD.pack(len(body) + 1, MESSAGE) + body


def relayed_head(peer: NodeId, datagrams: Sequence[Buffer]) -> bytes:
    """What stands before the datagrams of one frame: at most MAX_DATAGRAMS, each of 65,535 bytes at most."""
    sizes = [len(datagram) for datagram in datagrams]
    rest = struct.pack(f">QH{len(sizes)}H", peer, len(sizes), *sizes)
    return _HEAD.pack(1 + len(rest) + sum(sizes), RELAYED) + rest


def parse_relayed(body: memoryview) -> tuple[NodeId, list[memoryview]]:
    """The peer, and views of its datagrams."""
    try:
        peer, count = _BATCH.unpack_from(body)
        sizes = struct.unpack_from(f">{count}H", body, _BATCH.size)
    except struct.error as error:
        raise WireError(f"relayed datagrams that are cut off: {error}") from None
    at = _BATCH.size + 2 * count
    if at + sum(sizes) != len(body):
        raise WireError("relayed datagrams that are not as long as they say")
    datagrams = []
    for size in sizes:
        datagrams.append(body[at : at + size])
        at += size
    return NodeId(peer), datagrams


class FrameReader:
    """Read into `room()`, say how much by `filled`, and take the frames: their bodies are views that hold until the next `room()`."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0

    def room(self) -> memoryview:
        """Where to read to: never empty."""
        rest = self._end - self._start
        needed = max(BUFFER, self._wanted() + 1)
        if len(self._buffer) != needed:
            larger = memoryview(bytearray(needed))
            larger[:rest] = self._buffer[self._start : self._end]
            self._buffer = larger
        elif self._start:
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, rest
        return self._buffer[rest:]

    def filled(self, count: int) -> None:
        """So many bytes were read to `room()`."""
        self._end += count

    def frames(self) -> Iterator[tuple[int, memoryview]]:
        """(kind, body) of each frame that is whole. WireError for what is no frame."""
        while (size := self._wanted()) and self._end - self._start >= size:
            body = self._buffer[self._start + _HEAD.size : self._start + size]
            kind = self._buffer[self._start + 4]
            self._start += size
            if kind not in (MESSAGE, RELAYED):
                raise WireError(f"a frame of the unknown kind {kind}")
            yield kind, body

    def _wanted(self) -> int:
        """Bytes of the frame at the start, its head included; 0 where that is not known yet."""
        if self._end - self._start < _HEAD.size:
            return 0
        length: int = _HEAD.unpack_from(self._buffer, self._start)[0]
        if not 1 <= length <= MAX_FRAME:
            raise WireError(f"a frame of {length} bytes")
        return 4 + length
