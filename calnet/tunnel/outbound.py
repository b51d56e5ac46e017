"""From the TUN to the wire: packets are sealed into one buffer, equal-sized ones of one session side by side, so that one system call sends them.

Hot path: plainer and longer than elsewhere. A TUN read lies in `plain`; what it stands for is sealed from there into the send buffer, without a copy between.
Counters and nonces of a batch are written by one strided assignment. A full super-packet of 45 packets of 1,420 bytes costs 141 µs here: 59 are the AEAD's,
most of the rest the headers and checksums of segment.py.

A run is what one send carries: datagrams of one size, the last perhaps shorter, of one session. It ends when something that doesn't fit comes, when it is
full, or by `flush`, which the data path calls when the TUN has nothing more to read: a packet never waits for another.

A peer that announces the segment extension gets a super-packet as chunks (chunks.py, `seal_chunks`), without headers and checksums of its packets: 75 µs.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import Final

from calnet.tunnel.chunks import MAX_HEADER, Shape, first_word, move_on, set_size
from calnet.tunnel.segment import Super, Thirds, payload_sums, segment_headers, sum_thirds, thirds_of
from calnet.tunnel.session import Session
from calnet.wire.ip import VIRTIO_HEADER_SIZE, ones_sum
from calnet.wire.tunnel import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD, MessageType

START: Final = VIRTIO_HEADER_SIZE
"""Where a packet begins in `plain`."""
PADDING: Final = 16
MAX_PACKET: Final = 65535
MAX_RUN: Final = 64
"""Datagrams of a run at most (UDP_MAX_SEGMENTS of older kernels)."""
MAX_RUN_BYTES: Final = 65507
_MAX_SHAPES: Final = 64
_HEADER: Final = struct.Struct("<IIQ")
_NONCE: Final = struct.Struct("<4xQ")
_ZEROS: Final = bytes(PADDING)

Send = Callable[[Session, memoryview, int], None]
"""`send(session, datagrams, size)`: the datagrams lie side by side, `size` bytes each, the last perhaps shorter. The buffer is used again afterwards."""


class Outbound:
    """See the module's docstring. `mtu` is the tunnel interface's: padding never makes a packet longer than it (as WireGuard has it)."""

    def __init__(self, mtu: int, send: Send) -> None:
        self.mtu = mtu
        self.plain = memoryview(bytearray(START + MAX_PACKET + 1 + MAX_HEADER))
        self._send = send
        self._wire = memoryview(bytearray(MAX_RUN_BYTES + 1 + TRANSPORT_OVERHEAD + MAX_PACKET + PADDING))
        self._words = self._wire[: len(self._wire) // 4 * 4].cast("I")
        nonces = memoryview(bytearray(16 * MAX_RUN))
        self._nonce_words = nonces.cast("Q")
        self._nonces = [nonces[16 * k + 4 : 16 * k + 16] for k in range(MAX_RUN)]
        nonces = memoryview(bytearray(16 * MAX_RUN))
        self._chunk_nonce_words, self._chunk_nonce_halves = nonces.cast("Q"), nonces.cast("I")
        self._chunk_nonces = [nonces[16 * k + 4 : 16 * k + 16] for k in range(MAX_RUN)]
        self._places: dict[tuple[int, int], list[tuple[slice, memoryview, slice]]] = {}
        self._thirds: dict[tuple[int, int], list[Thirds]] = {}
        self._outs: dict[int, list[memoryview]] = {}
        self._pieces: dict[tuple[int, int, int], list[tuple[slice, memoryview, memoryview, memoryview]]] = {}
        self._session: Session | None = None
        self._size = self._count = self._limit = self._end = 0

    def seal_packet(self, session: Session, length: int, start: int = START) -> None:
        """Seal the packet of `length` bytes at `plain[start:]`; the bytes after it become its padding."""
        padded = self._padded(length)
        size = padded + TRANSPORT_OVERHEAD
        if session is not self._session or size > self._size or self._count >= self._limit:
            self._begin(session, size)
        if padded != length:
            self.plain[start + length : start + padded] = _ZEROS[: padded - length]
        counter = session.take_counters(1)
        end = self._end
        _HEADER.pack_into(self._wire, end, MessageType.TRANSPORT, session.remote_index, counter)
        session.seal_into(_NONCE.pack(counter), self.plain[start : start + padded], None, self._wire[end + TRANSPORT_HEADER_SIZE : end + size])
        self._end = end + size
        self._count += 1
        if size < self._size:
            self._limit = 0

    def seal_super(self, session: Session, shape: Super) -> None:
        """Seal the super-packet at `plain[START:]` as the packets it stands for. Its bytes in `plain` are spent afterwards."""
        headers = segment_headers(self.plain[START : START + shape.length], shape, self._sums(shape))
        header, step = shape.header, shape.segment
        full = header + step
        size = self._padded(full) + TRANSPORT_OVERHEAD
        rest = shape.length - header - step * (len(headers) - 1)
        whole = len(headers) if rest == step else len(headers) - 1
        if len(headers) > self._limit - self._count:
            self.flush()  # so that the receiver has the super-packet in one batch, if one can hold it
        done = 0
        while done < whole:
            if session is not self._session or size != self._size or self._count >= self._limit:
                self._begin(session, size)
            take = min(self._limit - self._count, whole - done)
            self._seal_full(session, shape, headers, done, take)
            done += take
        if whole < len(headers):
            start = START + step * whole
            self.plain[start : start + header] = headers[whole]
            self.seal_packet(session, header + rest, start)

    def seal_chunks(self, session: Session, shape: Super) -> None:
        """Seal the super-packet at `plain[START:]` as chunks; `chunks.can_be_chunks(shape)`. Its bytes in `plain` are spent afterwards."""
        header, step, count = shape.header, shape.segment, -(-(shape.length - shape.header) // shape.segment)
        size = header + step + TRANSPORT_OVERHEAD
        most = max(1, min(MAX_RUN, MAX_RUN_BYTES // size))
        first = bytearray(self.plain[START : START + header])
        trailer = Shape(shape.version, shape.protocol, shape.ip_header, step)
        for begin in range(0, count, most):
            end = min(begin + most, count)
            part = bytearray(first)
            move_on(part, trailer, begin, last=end == count)
            set_size(part, shape.version, step)
            stop = START + header + (shape.length - header if end == count else end * step)
            following = bytes(self.plain[stop : stop + header])
            self.flush()
            self._size, self._count, self._end = size, 0, 0
            self._seal_run(session, part, begin, end - begin, stop)
            self._session = session  # not before: what could not be sealed is not sent
            self.flush()
            self.plain[stop : stop + header] = following

    def _seal_run(self, session: Session, trailer: bytearray, begin: int, count: int, stop: int) -> None:
        """One run of chunks, from the last to the first: number `begin` of the super-packet to that which ends at `plain[stop]`."""
        header, size, plain = len(trailer), self._size, self.plain
        step = size - header - TRANSPORT_OVERHEAD
        word = first_word(header, session.send_counter, count)
        counters = self._write_counters(session, count, word)
        self._chunk_nonce_words[1 : 2 * count : 2] = counters
        self._chunk_nonce_halves[1 : 4 * count : 4] = memoryview(array("I", (word,)) * count)
        seal = session.seal_into
        start = START + header + (begin + count - 1) * step
        plain[stop : stop + header] = trailer
        last = (count - 1) * size
        self._end = last + stop + header - start + TRANSPORT_OVERHEAD
        seal(self._chunk_nonces[count - 1], plain[start : stop + header], None, self._wire[last + TRANSPORT_HEADER_SIZE : self._end])
        for where, nonce, piece, out in self._pieces_for(header, step, begin, count - 1):
            plain[where] = trailer
            seal(nonce, piece, None, out)

    def flush(self) -> None:
        """Send the run under way."""
        session = self._session
        if session is not None:
            self._session = None
            self._send(session, self._wire[: self._end], self._size)

    def _begin(self, session: Session, size: int) -> None:
        self.flush()
        self._session = session
        self._size = size
        self._limit = max(1, min(MAX_RUN, MAX_RUN_BYTES // size))
        self._count = self._end = 0

    def _padded(self, length: int) -> int:
        return min(-(-length // PADDING) * PADDING, max(self.mtu, length))

    def _seal_full(self, session: Session, shape: Super, headers: list[bytes], done: int, take: int) -> None:
        """Packets `done` to `done + take`, all of full size. A packet's header is written over the end of the payload before it, which is sealed already."""
        size, count = self._size, self._count
        self._nonce_words[1 : 2 * take : 2] = self._write_counters(session, take, MessageType.TRANSPORT)
        places = self._places_for(shape.header, shape.segment, done + take)
        outs = self._outs_for(size)[count : count + take]
        plain, seal = self.plain, session.seal_into
        if size == shape.header + shape.segment + TRANSPORT_OVERHEAD:
            for one, (where, packet, _), nonce, out in zip(headers[done : done + take], places[done : done + take], self._nonces, outs, strict=False):
                plain[where] = one
                seal(nonce, packet, None, out)
        else:
            zeros = _ZEROS[: size - TRANSPORT_OVERHEAD - shape.header - shape.segment]
            for one, (where, packet, padding), nonce, out in zip(headers[done : done + take], places[done : done + take], self._nonces, outs, strict=False):
                plain[where] = one
                following = bytes(plain[padding])
                plain[padding] = zeros
                seal(nonce, packet, None, out)
                plain[padding] = following
        self._count = count + take
        self._end = self._count * size

    def _write_counters(self, session: Session, take: int, word: int) -> memoryview:
        """Write the headers of the next `take` datagrams of the run, `word` their first 4 bytes; their counters, 8 bytes each."""
        first = session.take_counters(take)
        counters = array("Q", range(first, first + take))
        size, begin = self._size, self._end
        if size % 4 == 0:
            words, begin, step = self._words, begin // 4, size // 4
            end = begin + take * step
            halves = memoryview(counters).cast("B").cast("I")
            words[begin:end:step] = memoryview(array("I", (word,)) * take)
            words[begin + 1 : end : step] = memoryview(array("I", (session.remote_index,)) * take)
            words[begin + 2 : end : step] = halves[::2]
            words[begin + 3 : end : step] = halves[1::2]
        else:
            for k in range(take):
                _HEADER.pack_into(self._wire, begin + k * size, word, session.remote_index, first + k)
        return memoryview(counters)

    def _sums(self, shape: Super) -> list[int]:
        """The sums of the payloads of the super-packet's packets."""
        header, step = shape.header, shape.segment
        payload = self.plain[START + header : START + shape.length]
        whole = len(payload) // step
        if step % 2 or whole < 2:
            return payload_sums(payload, step)
        thirds = self._thirds.get((header, step))
        if thirds is None or len(thirds) < whole:
            if len(self._thirds) >= _MAX_SHAPES:
                self._thirds.clear()
            begin = START + header
            thirds = [thirds_of(self.plain[at : at + step]) for at in range(begin, begin + step * max(whole, min(MAX_RUN, MAX_PACKET // step)), step)]
            self._thirds[header, step] = thirds
        sums = sum_thirds(thirds[:whole])
        if whole * step < len(payload):
            sums.append(ones_sum(payload[whole * step :]))
        return sums

    def _places_for(self, header: int, step: int, count: int) -> list[tuple[slice, memoryview, slice]]:
        """For each packet of such a super-packet: where its header goes in `plain`, the padded packet, where its padding goes. Kept for a few shapes."""
        places = self._places.get((header, step))
        if places is None or len(places) < count:
            if len(self._places) >= _MAX_SHAPES:
                self._places.clear()
            full, padded = header + step, self._padded(header + step)
            places = []
            for start in range(START, START + step * max(count, min(MAX_RUN, (MAX_PACKET - header) // step)), step):
                places.append((slice(start, start + header), self.plain[start : start + padded], slice(start + full, start + padded)))
            self._places[header, step] = places
        return places

    def _pieces_for(self, header: int, step: int, begin: int, count: int) -> list[tuple[slice, memoryview, memoryview, memoryview]]:
        """For each of `count` chunks of such a super-packet from number `begin` on, the last one first: where its trailer goes in `plain`, its nonce, chunk and
        trailer, and where its ciphertext goes. Kept for a few shapes."""
        pieces = self._pieces.get((header, step, begin))
        if pieces is None or len(pieces) < count:
            if len(self._pieces) >= _MAX_SHAPES:
                self._pieces.clear()
            outs, first = self._outs_for(header + step + TRANSPORT_OVERHEAD), START + header + begin * step
            starts = range(first, first + step * max(count, min(len(outs), (MAX_PACKET - first) // step)), step)
            pieces = self._pieces[header, step, begin] = [
                (slice(start + step, start + step + header), nonce, self.plain[start : start + step + header], out)
                for start, nonce, out in zip(starts, self._chunk_nonces, outs, strict=False)
            ][::-1]
        return pieces[len(pieces) - count :]

    def _outs_for(self, size: int) -> list[memoryview]:
        """Where the ciphertext of each datagram of a run goes."""
        outs = self._outs.get(size)
        if outs is None:
            if len(self._outs) >= _MAX_SHAPES:
                self._outs.clear()
            starts = range(0, size * max(1, min(MAX_RUN, MAX_RUN_BYTES // size)), size)
            outs = self._outs[size] = [self._wire[start + TRANSPORT_HEADER_SIZE : start + size] for start in starts]
        return outs
