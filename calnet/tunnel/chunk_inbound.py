"""Chunks from the wire: opened where they lie, and written to the TUN as the super-packet they are of.

Hot path: plainer and longer than elsewhere. Nothing is copied: a new header and the payloads are one gathered write.

The order, for each chunk: AEAD, replay window, `opened`, `accept`, `write`, as in inbound.py. What is missing splits a super-packet in two; a chunk that is
not genuine or not new is dropped alone.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import sub
from typing import Final

from calnet.crypto.aead import TAG_SIZE, BadTag
from calnet.crypto.batch import Nonces, Places, lower_halves
from calnet.model import Buffer
from calnet.tunnel.chunks import Announced, Shape, announced, move_on, shape_of
from calnet.tunnel.coalesce import complete
from calnet.tunnel.segment import finish_checksum
from calnet.tunnel.session import Session
from calnet.tunnel.streams import TCP_SIZE, Headers, mask_of
from calnet.wire.ip import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, VIRTIO_HEADER_SIZE, Protocol, parse_virtio
from calnet.wire.tunnel import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD

BUFFER_SIZE: Final = 65536
_MAX_PACKET: Final = 65535
_MAX_SHAPES: Final = 32
_MAX_STREAMS: Final = 256
_MASKS: Final = {ip_header + TCP_SIZE: mask_of(ip_header, length=True) for ip_header in (IPV4_HEADER_SIZE, IPV6_HEADER_SIZE)}
"""What trailers of one stream have in common, by their length."""
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
        self._nonces, self._words = Nonces(_MAX_KEPT), buffer.cast("I")
        self._places: dict[int, Places] = {}
        self._payloads: dict[tuple[int, int], list[memoryview]] = {}
        self._streams: dict[tuple[Session, int], tuple[Shape, Headers]] = {}
        """Streams that `accept` has allowed, by what their trailers have in common."""
        self._takes_tcp = Protocol.TCP in joined
        """The TUN takes super-packets of TCP."""

    def forget_streams(self) -> None:
        """`accept` is asked anew for each stream."""
        self._streams.clear()

    def receive(self, session: Session, start: int, end: int, size: int, word: int, counter: int, count: int, lower: memoryview | None = None) -> int:
        """Take the `count` chunks in `buffer[start:end]`, `size` bytes each, the last perhaps shorter; `word` begins each of them, their counters go on from
        `counter` (whose `lower_halves` may be given). Where there are several, `start` is a multiple of `size`. Returns how many were dropped."""
        if count == 1:
            bad = self._open_one(session, start, end, word, counter)
        else:
            first = start // size
            self._nonces.count_on(first, word, counter, lower_halves(counter, count) if lower is None else lower)
            bad = self._open(session, first, end, size, count)
        return self._take(session, start, end, size, word, counter, count, bad)

    def receive_several(self, session: Session, end: int, size: int, words: list[int], counters: list[int]) -> int:
        """Take a batch of chunks, as `receive` from the buffer's beginning on, of several super-packets or with some missing: they are opened together. What
        begins each of them, and their counters, are given."""
        count = len(words)
        if size % 4:
            self._nonces.set(counters, words)
        else:
            self._nonces.copy(self._words, size // 4, count)
        bad = self._open(session, 0, end, size, count)
        dropped = begin = 0
        steps = zip(map(sub, counters[1:], counters), words, words[1:], strict=False)
        for stop in [*(k for k, (step, before, after) in enumerate(steps, 1) if step != 1 or before != after), count]:
            among = [k - begin for k in bad if begin <= k < stop] if bad else bad
            dropped += self._take(session, begin * size, min(stop * size, end), size, words[begin], counters[begin], stop - begin, among)
            begin = stop
        return dropped

    def _open(self, session: Session, first: int, end: int, size: int, count: int) -> list[int]:
        """Open the `count` datagrams from number `first` of the buffer on; returns which don't authenticate."""
        return session.open_all(self._places_for(size), first, count, end - (first + count - 1) * size - TRANSPORT_OVERHEAD)

    def _open_one(self, session: Session, start: int, end: int, word: int, counter: int) -> list[int]:
        begin, nonce = start + TRANSPORT_HEADER_SIZE, word.to_bytes(4, "little") + counter.to_bytes(8, "little")
        try:
            session.open_into(nonce, self._buffer[begin:end], None, self._buffer[begin : end - TAG_SIZE])
        except BadTag:
            return [0]
        return []

    def _take(self, session: Session, start: int, end: int, size: int, word: int, counter: int, count: int, bad: list[int]) -> int:
        """Deliver opened chunks, all but the `bad` ones; the other arguments, and what it returns, as of `receive`."""
        if count == 1:
            size = end - start  # the last of a batch of longer datagrams may be any chunk
        said = announced(word, counter)
        around = TRANSPORT_OVERHEAD + (0 if said is None else said.header)
        chunk, rest = size - around, (end - start) % size
        if said is None or said.number + count > said.chunks or chunk <= 0 or 0 < rest <= around or said.header + end - start - count * around > _MAX_PACKET:
            # one of them is no chunk that a sender made: it costs none of the others
            return 1 if count == 1 else self._one_by_one(session, start, end, size, word, counter, bad)
        if not bad and session.replay.accept_run(counter, count):
            self._opened(session, end - start, True)
            return 0 if self._deliver(session, said, start, end, size, count) else count
        good = [k for k in range(count) if k not in bad and session.replay.accept(counter + k)]
        return self._deliver_good(session, said, start, end, size, good, count)

    def _one_by_one(self, session: Session, start: int, end: int, size: int, word: int, counter: int, bad: list[int]) -> int:
        """`_take` for each by itself; `bad` counts from `start`, as there."""
        dropped = 0
        for k, at in enumerate(range(start, end, size)):
            dropped += self._take(session, at, min(at + size, end), size, word, counter + k, 1, [0] if k in bad else [])
        return dropped

    def _deliver_good(self, session: Session, said: Announced, start: int, end: int, size: int, good: list[int], count: int) -> int:
        """Deliver those of a batch that are genuine and new, each run of them as one; returns how many of the batch were dropped."""
        delivered = position = 0
        while position < len(good):
            first = good[position]
            taken = 1
            while position + taken < len(good) and good[position + taken] == first + taken:
                taken += 1
            begin, stop = start + first * size, min(start + (first + taken) * size, end)
            self._opened(session, stop - begin, True)
            if self._deliver(session, said._replace(number=said.number + first), begin, stop, size if taken > 1 else stop - begin, taken):
                delivered += taken
            position += taken
        return count - delivered

    def _deliver(self, session: Session, said: Announced, start: int, end: int, size: int, count: int) -> bool:
        """Write the opened chunks from `said.number` on, which lie in `buffer[start:end]`; False if they are not allowed."""
        chunk = size - TRANSPORT_OVERHEAD - said.header
        begin, stop = start + (count - 1) * size + TRANSPORT_HEADER_SIZE, end - TAG_SIZE - said.header
        trailer = self._buffer[stop : stop + said.header]
        number, last = int.from_bytes(trailer, "big"), said.number + count == said.chunks
        stream = (session, number & mask) if (mask := _MASKS.get(said.header, 0)) else None
        known = self._streams.get(stream) if stream is not None else None
        if known is not None and count > 1 and (last or stop - begin == chunk) and 0 < stop - begin <= chunk == known[0].size and self._takes_tcp:
            if said.number or not last:
                header = bytearray(trailer)
                move_on(header, known[0], said.number, last=last)
                number = int.from_bytes(header, "big")
            first = start // size
            whole = known[1].whole(number, said.header + (count - 1) * chunk + stop - begin)
            self._write([whole, *self._payloads_for(size, chunk)[first : first + count - 1], self._buffer[begin:stop]])
            return True
        header = bytearray(trailer)
        shape = shape_of(header) if known is None else known[0]
        shorter = stop - begin < chunk if count > 1 else shape is not None and chunk < shape.size
        if shape is None or (shorter and not last) or (shape.size != chunk and not (count == 1 and shorter)):
            return False
        payloads: list[Buffer] = [self._buffer[begin:stop]]
        if count > 1:
            first = start // size
            payloads = [*self._payloads_for(size, chunk)[first : first + count - 1], *payloads]
            if shape.protocol not in self._joined:
                return self._deliver_each(session, header, said, shape, payloads)
        if said.number or not last:
            move_on(header, shape, said.number, last=last)
        if not self._write_packet(session, header, shape, payloads, (count - 1) * chunk + stop - begin, accepted=known is not None):
            return False
        if known is None and stream is not None and shape.protocol == Protocol.TCP and said.header == shape.ip_header + TCP_SIZE:
            if len(self._streams) >= _MAX_STREAMS:
                self._streams.clear()
            self._streams[stream] = shape, Headers(bytes(trailer), shape.version, shape.ip_header, shape.size)
        return True

    def _deliver_each(self, session: Session, header: bytearray, said: Announced, shape: Shape, payloads: list[Buffer]) -> bool:
        """Without offload each chunk is a packet of its own."""
        for number, payload in enumerate(payloads, said.number):
            one = bytearray(header)
            move_on(one, shape, number, last=number + 1 == said.chunks)
            if not self._write_packet(session, one, shape, [payload], len(payload)):
                return False
        return True

    def _write_packet(self, session: Session, header: bytearray, shape: Shape, payloads: list[Buffer], length: int, *, accepted: bool = False) -> bool:
        """Write the packet of this header and `length` bytes of payload."""
        whole = complete(header, shape.version, shape.protocol, shape.ip_header, shape.size, len(header) + length)
        if not accepted and not self._accept(session, _beginning(whole, shape, payloads[0])):
            return False
        if self._vnet:
            self._write([whole, *payloads])
        else:
            packet = memoryview(bytearray(b"".join([whole[VIRTIO_HEADER_SIZE:], *payloads])))
            finish_checksum(packet, parse_virtio(whole))
            self._write([packet])
        return True

    def _places_for(self, size: int) -> Places:
        """Where the texts of a batch of datagrams of this size lie."""
        places = self._places.get(size)
        if places is None:
            if len(self._places) >= _MAX_SHAPES:
                self._places.clear()
            most = min(_MAX_KEPT, BUFFER_SIZE // size)
            places = self._places[size] = Places(
                self._buffer, self._nonces.buffer, start=TRANSPORT_HEADER_SIZE, step=size, length=size - TRANSPORT_OVERHEAD, most=most
            )
        return places

    def _payloads_for(self, size: int, chunk: int) -> list[memoryview]:
        """Where the payload of each full chunk lies in a batch of datagrams of this size."""
        payloads = self._payloads.get((size, chunk))
        if payloads is None:
            if len(self._payloads) >= _MAX_SHAPES:
                self._payloads.clear()
            starts = range(TRANSPORT_HEADER_SIZE, min(_MAX_KEPT, BUFFER_SIZE // size) * size, size)
            payloads = self._payloads[size, chunk] = [self._buffer[start : start + chunk] for start in starts]
        return payloads


def _beginning(whole: bytes, shape: Shape, payload: Buffer) -> memoryview:
    """The packet that the first chunk stands for, which is what the filter looks at."""
    packet = bytearray(whole[VIRTIO_HEADER_SIZE:])
    packet += payload
    at, length = (2, len(packet)) if shape.version == 4 else (4, len(packet) - shape.ip_header)
    packet[at : at + 2] = length.to_bytes(2, "big")
    return memoryview(packet)
