"""Chunks from the wire: opened straight into their place in a super-packet, which is written to the TUN whole.

Hot path: plainer and longer than elsewhere. A full super-packet of 45 chunks costs 76 µs: 59 are the AEAD's. Nothing is copied but a header.

The order, for each chunk: AEAD, replay window, `opened`, `accept`, `write`, as in inbound.py. What is missing splits a super-packet in two; a chunk that is
not genuine or not new is dropped alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from calnet.crypto.aead import BadTag
from calnet.model import Buffer
from calnet.tunnel.chunks import MAX_CHUNKS, MAX_HEADER, Announced, Shape, announced, move_on, shape_of
from calnet.tunnel.coalesce import complete
from calnet.tunnel.segment import finish_checksum
from calnet.tunnel.session import Session
from calnet.wire.ip import VIRTIO_HEADER_SIZE, parse_virtio
from calnet.wire.tunnel import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD

BUFFER_SIZE: Final = 65536
_START: Final = VIRTIO_HEADER_SIZE + MAX_HEADER
"""Where a super-packet's payload begins in the buffer it is put together in; its headers stand right before."""
_MAX_PACKET: Final = 65535
_MAX_SHAPES: Final = 32
_MAX_KEPT: Final = 128
"""Datagrams that a batch holds at most (inbound.py gives no longer one)."""

Accept = Callable[[Session, memoryview], bool]
"""`accept(session, packet)`: may this inner packet come from this session's peer to us?"""
Write = Callable[[list[Buffer]], object]
"""Write one packet to the TUN, made of these parts."""
Opened = Callable[[Session, int, bool], None]
"""`opened(session, bytes, data)`: a batch was opened and its counters accepted; `data` is False if all were keepalives."""


class ChunkInbound:
    """See the module's docstring. `buffer` holds what was received; `vnet`: the TUN takes virtio headers, and super-packets of the protocols `joined`."""

    def __init__(self, buffer: memoryview, vnet: bool, joined: set[int], opened: Opened, accept: Accept, write: Write) -> None:
        self._buffer, self._vnet, self._joined = buffer, vnet, joined
        self._opened, self._accept, self._write = opened, accept, write
        self._packet = memoryview(bytearray(_START + _MAX_PACKET + MAX_HEADER))
        nonces = memoryview(bytearray(16 * MAX_CHUNKS))
        self._nonce_words, self._nonce_halves = nonces.cast("Q"), nonces.cast("I")
        self._nonces = [nonces[16 * k + 4 : 16 * k + 16] for k in range(MAX_CHUNKS)]
        self._sealed: dict[int, list[memoryview]] = {}
        self._places: dict[tuple[int, int], list[memoryview]] = {}

    def receive(self, session: Session, start: int, end: int, size: int, word: int, counters: list[int]) -> int:
        """Take the chunks in `buffer[start:end]`, `size` bytes each, the last perhaps shorter; `word` begins each of them, `counters` follow one another.
        Returns how many were dropped."""
        count = len(counters)
        if count == 1:
            size = end - start  # the last of a batch of longer datagrams may be any chunk
        said = announced(word, counters[0])
        around = TRANSPORT_OVERHEAD + (0 if said is None else said.header)
        chunk, rest = size - around, (end - start) % size
        if said is None or said.number + count > said.chunks or chunk <= 0 or 0 < rest <= around or said.header + end - start - count * around > _MAX_PACKET:
            # one of them is no chunk that a sender made: it costs none of the others
            return 1 if count == 1 else self._one_by_one(session, start, end, size, word, counters)
        self._nonce_words[1 : 2 * count : 2] = memoryview(array("Q", counters))
        self._nonce_halves[1 : 4 * count : 4] = memoryview(array("I", (word,)) * count)
        stop = self._open(session, start, end, size, said.header, count)
        if stop is None or not session.replay.commit_run(counters[0], count):
            return 1 if count == 1 else self._one_by_one(session, start, end, size, word, counters)
        self._opened(session, end - start, True)
        trailer = bytearray(self._packet[stop : stop + said.header])
        return 0 if self._deliver(session, trailer, said, count, chunk, stop) else count

    def _open(self, session: Session, start: int, end: int, size: int, header: int, count: int) -> int | None:
        """Open `count` chunks into their places; returns where the last one's payload ends, None if one doesn't authenticate."""
        chunk = size - TRANSPORT_OVERHEAD - header
        open_into, nonces = session.open_into, self._nonces
        last = start + (count - 1) * size
        place = _START + (count - 1) * chunk
        stop = place + end - last - TRANSPORT_OVERHEAD
        try:
            if count > 1:  # then `start` is a multiple of `size`
                number = start // size
                sealed = self._sealed_for(size)[number : number + count - 1]
                for nonce, ciphertext, plain in zip(nonces, sealed, self._places_for(header, chunk), strict=False):
                    open_into(nonce, ciphertext, None, plain)
            open_into(nonces[count - 1], self._buffer[last + TRANSPORT_HEADER_SIZE : end], None, self._packet[place:stop])
        except BadTag:
            return None
        return stop - header

    def _one_by_one(self, session: Session, start: int, end: int, size: int, word: int, counters: list[int]) -> int:
        dropped = 0
        for counter, at in zip(counters, range(start, end, size), strict=True):
            stop = min(at + size, end)
            dropped += self.receive(session, at, stop, stop - at, word, [counter])
        return dropped

    def _deliver(self, session: Session, header: bytearray, said: Announced, count: int, chunk: int, stop: int) -> bool:
        """Write chunks `said.number` to `said.number + count`, whose payload is `packet[_START:stop]`; False if they are not allowed."""
        shape, last = shape_of(header), said.number + count == said.chunks
        shorter = stop < _START + count * chunk if count > 1 else shape is not None and chunk < shape.size
        if shape is None or (shorter and not last) or (shape.size != chunk and not (count == 1 and shorter)):
            return False
        if count > 1 and shape.protocol not in self._joined:
            return self._deliver_each(session, header, said, shape, stop)
        move_on(header, shape, said.number, last=last)
        return self._write_packet(session, header, shape, _START, stop)

    def _deliver_each(self, session: Session, header: bytearray, said: Announced, shape: Shape, stop: int) -> bool:
        """Without offload each chunk is a packet of its own, whose header is written over the end of the one before it."""
        for number, start in enumerate(range(_START, stop, shape.size), said.number):
            one = bytearray(header)
            move_on(one, shape, number, last=number + 1 == said.chunks)
            if not self._write_packet(session, one, shape, start, min(start + shape.size, stop)):
                return False
        return True

    def _write_packet(self, session: Session, header: bytearray, shape: Shape, start: int, stop: int) -> bool:
        begin = start - len(header)
        whole = complete(header, shape.version, shape.protocol, shape.ip_header, shape.size, stop - begin)
        self._packet[begin - VIRTIO_HEADER_SIZE : start] = whole
        if not self._accept(session, self._packet[begin:stop]):
            return False
        if self._vnet:
            self._write([self._packet[begin - VIRTIO_HEADER_SIZE : stop]])
        else:
            finish_checksum(self._packet[begin:stop], parse_virtio(whole))
            self._write([self._packet[begin:stop]])
        return True

    def _sealed_for(self, size: int) -> list[memoryview]:
        """Where the ciphertext of each datagram of this size lies in a batch."""
        sealed = self._sealed.get(size)
        if sealed is None:
            if len(self._sealed) >= _MAX_SHAPES:
                self._sealed.clear()
            starts = range(0, min(_MAX_KEPT, BUFFER_SIZE // size) * size, size)
            sealed = self._sealed[size] = [self._buffer[start + TRANSPORT_HEADER_SIZE : start + size] for start in starts]
        return sealed

    def _places_for(self, header: int, chunk: int) -> list[memoryview]:
        """Where each chunk of this size goes, with its trailer."""
        places = self._places.get((header, chunk))
        if places is None:
            if len(self._places) >= _MAX_SHAPES:
                self._places.clear()
            starts = range(_START, _START + min(MAX_CHUNKS * chunk, _MAX_PACKET - chunk), chunk)
            places = self._places[header, chunk] = [self._packet[start : start + chunk + header] for start in starts]
        return places
