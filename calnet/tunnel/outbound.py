"""From the TUN to the wire: packets are put into one buffer, equal-sized ones of one session side by side, sealed there by one call and sent by one.

Hot path: plainer and longer than elsewhere. A TUN read lies in `plain`; what it stands for is put together where it is sealed: headers, payload and the room
for tags by one join, counters and nonces of a batch by one strided assignment each.

A run is what one send carries: datagrams of one size, the last perhaps shorter, of one session. It ends when something that doesn't fit comes, when it is
full, or by `flush`, which the data path calls when the TUN has nothing more to read: a packet never waits for another. Counters are taken when it ends.

A peer that announces the segment extension gets a super-packet as chunks (chunks.py, `send_chunks`), without headers and checksums of its packets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from calnet.crypto.aead import TAG_SIZE
from calnet.crypto.batch import Nonces, Places, lower_halves
from calnet.tunnel.chunks import MAX_HEADER, Shape, first_word, move_on, set_size
from calnet.tunnel.segment import Super, headers_of
from calnet.tunnel.session import Session, SessionExhausted
from calnet.tunnel.sums import SumAll, little_sum, payload_sums, sums_of
from calnet.wire.ip import VIRTIO_HEADER_SIZE
from calnet.wire.tunnel import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD, MessageType

START: Final = VIRTIO_HEADER_SIZE
"""Where a packet begins in `plain`."""
_SHIFT: Final = 2
"""So that payloads begin at a multiple of 4, and behind IPv4 of 8 bytes: their sums take two thirds of the time then."""
PADDING: Final = 16
MAX_PACKET: Final = 65535
MAX_RUN: Final = 64
"""Datagrams of a run at most (UDP_MAX_SEGMENTS of older kernels)."""
MAX_RUN_BYTES: Final = 65507
_MAX_SHAPES: Final = 64
_HEADER: Final = struct.Struct("<IIQ")
_NONCE: Final = struct.Struct("<IQ")
_TRANSPORT: Final = int(MessageType.TRANSPORT)
_ZEROS: Final = bytes(PADDING)
_COUNTER: Final = struct.Struct("<Q")
_COUNTER_AT: Final = 8
_UPPER: Final = 1 << 32
"""Counters beyond have an upper half that is not zero."""
_TAG: Final = bytes(TAG_SIZE)

Send = Callable[[Session, memoryview, int], None]
"""`send(session, datagrams, size)`: the datagrams lie side by side, `size` bytes each, the last perhaps shorter. The buffer is used again afterwards."""


class _Run(NamedTuple):
    """Chunks of a super-packet that one send carries, from number `begin` on; `ends`: the last of all is among them. `last` is the length of its last text."""

    begin: int
    chunks: int
    ends: bool
    trailer: Shape
    payloads: list[memoryview]
    last: int


class Outbound:
    """See the module's docstring. `mtu` is the tunnel interface's: padding never makes a packet longer than it (as WireGuard has it)."""

    def __init__(self, mtu: int, send: Send) -> None:
        self.mtu = mtu
        self.plain = memoryview(bytearray(_SHIFT + START + MAX_PACKET + 1 + MAX_HEADER))[_SHIFT:]
        self.dropped = 0
        """Packets of runs whose session had no counters left for them."""
        self._send = send
        self._wire = memoryview(bytearray(MAX_RUN_BYTES + 1 + TRANSPORT_OVERHEAD + MAX_PACKET + PADDING))
        self._words, self._halves = (self._wire[: len(self._wire) // 4 * 4].cast(kind) for kind in ("I", "H"))
        self._nonces = Nonces(MAX_RUN)
        self._places: dict[int, Places] = {}
        self._payloads: dict[tuple[int, int], list[memoryview]] = {}
        self._sums: dict[tuple[int, int], tuple[list[memoryview], SumAll]] = {}
        self._runs: dict[Super, list[_Run]] = {}
        self._session: Session | None = None
        self._head = b""
        self._size = self._count = self._limit = self._last = 0
        """Of the run under way: bytes of a datagram, how many there are, how many there may be, bytes of the last one's text."""

    def add_packet(self, session: Session, length: int, start: int = START) -> None:
        """Add the packet of `length` bytes at `plain[start:]`."""
        padded = self._padded(length)
        size = padded + TRANSPORT_OVERHEAD
        if session is not self._session or size > self._size or self._count >= self._limit:
            self._begin(session, size)
        at = self._count * self._size + TRANSPORT_HEADER_SIZE
        self._wire[at - TRANSPORT_HEADER_SIZE : at] = self._head
        self._wire[at : at + length] = self.plain[start : start + length]
        if padded != length:
            self._wire[at + length : at + padded] = _ZEROS[: padded - length]
        self._count += 1
        self._last = padded
        if size < self._size:
            self._limit = 0

    def seal_packet(self, session: Session, length: int) -> memoryview | None:
        """Seal the packet of `length` bytes at `plain[START:]`, which came alone; its datagram, in a buffer that is used again, or None where the session has
        no counter left. `add_packet` and `flush` in few steps, as all of them find cold caches then."""
        if self._session is not None:
            self.flush()
        padded, wire = self._padded(length), self._wire
        try:
            counter = session.take_counters(1)
        except SessionExhausted:
            self.dropped += 1
            return None
        end = TRANSPORT_OVERHEAD + padded
        wire[:TRANSPORT_HEADER_SIZE] = _HEADER.pack(_TRANSPORT, session.remote_index, counter)
        text = wire[TRANSPORT_HEADER_SIZE : end - TAG_SIZE]
        text[:length] = self.plain[START : START + length]
        if padded != length:
            text[length:] = _ZEROS[: padded - length]
        session.seal_into(_NONCE.pack(0, counter), text, None, wire[TRANSPORT_HEADER_SIZE:end])
        return wire[:end]

    def send_packet(self, session: Session, length: int) -> None:
        """`seal_packet`, and send it."""
        datagram = self.seal_packet(session, length)
        if datagram is not None:
            self._send(session, datagram, len(datagram))

    def add_super(self, session: Session, shape: Super) -> None:
        """Add the super-packet at `plain[START:]` as the packets it stands for. Its bytes in `plain` are spent afterwards."""
        header, step = shape.header, shape.segment
        full = header + step
        padded = self._padded(full)
        sums = self._sums_of(shape)
        template, columns, first, last = headers_of(self.plain[START : START + shape.length], shape, sums)
        size, count = padded + TRANSPORT_OVERHEAD, len(sums)
        rest = shape.length - header - step * (count - 1)
        whole = count if rest == step else count - 1
        if count > self._limit - self._count:
            self.flush()  # so that the receiver has the super-packet in one batch, if one can hold it
        head = _begin_of(session)
        begin, between = head + template, bytes(padded - full + TAG_SIZE) + head + template
        payloads = self._payloads_for(header, step, whole)
        wire, done = self._wire, 0
        while done < whole:
            if session is not self._session or size != self._size or self._count >= self._limit:
                self._begin(session, size)
            take = min(self._limit - self._count, whole - done)
            at = self._count * size + TRANSPORT_HEADER_SIZE
            end = at + (take - 1) * size + padded
            wire[at - TRANSPORT_HEADER_SIZE : at + header] = begin
            wire[at + header : end] = between.join(payloads[done : done + take]) + _ZEROS[: padded - full]
            for offset, numbers in columns:
                self._write_column(at + offset, size, numbers[done : done + take])
            if first and not done:
                wire[at : at + header] = first
            self._count += take
            self._last = padded
            done += take
        if whole == count:
            wire[end - padded : end - padded + header] = last
        else:
            start = START + step * whole
            self.plain[start : start + header] = last
            self.add_packet(session, header + rest, start)

    def send_chunks(self, session: Session, shape: Super) -> None:
        """Seal and send the super-packet at `plain[START:]` as chunks; `chunks.can_be_chunks(shape)`."""
        self.flush()
        header, size, wire = shape.header, shape.header + shape.segment + TRANSPORT_OVERHEAD, self._wire
        for run in self._runs_of(shape):
            part = bytearray(self.plain[START : START + header])
            if run.begin or not run.ends:
                move_on(part, run.trailer, run.begin, last=run.ends)
            set_size(part, shape.version, shape.segment)
            try:
                first = session.take_counters(run.chunks)
            except SessionExhausted:
                self.dropped += -(-(shape.length - header) // shape.segment) - run.begin
                return
            word = first_word(header, first, run.chunks)
            head = _HEADER.pack(word, session.remote_index, 0)
            joined = (part + _TAG + head).join(run.payloads)
            at = TRANSPORT_HEADER_SIZE + len(joined)
            wire[:TRANSPORT_HEADER_SIZE] = head
            wire[TRANSPORT_HEADER_SIZE:at] = joined
            wire[at : at + header] = part
            self._seal(session, first, word, run.chunks, size, run.last)

    def _runs_of(self, shape: Super) -> list[_Run]:
        """How a super-packet of this shape is sent as chunks. Kept for a few: a stream's are mostly of one length."""
        runs = self._runs.get(shape)
        if runs is None:
            if len(self._runs) >= _MAX_SHAPES:
                self._runs.clear()
            header, step, count = shape.header, shape.segment, -(-(shape.length - shape.header) // shape.segment)
            most = max(1, min(MAX_RUN, MAX_RUN_BYTES // (header + step + TRANSPORT_OVERHEAD)))
            trailer, payloads = Shape(shape.version, shape.protocol, shape.ip_header, step), self._payloads_for(header, step, count - 1)
            runs = self._runs[shape] = []
            for begin in range(0, count, most):
                end = min(begin + most, count)
                last = self.plain[START + header + (end - 1) * step : START + (shape.length if end == count else header + end * step)]
                runs.append(_Run(begin, end - begin, end == count, trailer, [*payloads[begin : end - 1], last], len(last) + header))
        return runs

    def flush(self) -> None:
        """Seal the run under way and send it."""
        session = self._session
        if session is None:
            return
        self._session = None
        count, size = self._count, self._size
        try:
            first = session.take_counters(count)
        except SessionExhausted:
            self.dropped += count
            return
        self._seal(session, first, 0, count, size, self._last)

    def _seal(self, session: Session, first: int, word: int, count: int, size: int, last: int) -> None:
        """Seal and send the run in the buffer, whose headers lack their counters yet. `word` begins their nonces; the last one's text is `last` bytes."""
        wire, end = self._wire, (count - 1) * size + last + TRANSPORT_OVERHEAD
        if count == 1:
            _COUNTER.pack_into(wire, _COUNTER_AT, first)
            text = wire[TRANSPORT_HEADER_SIZE : TRANSPORT_HEADER_SIZE + last]
            session.seal_into(_NONCE.pack(word, first), text, None, wire[TRANSPORT_HEADER_SIZE:end])
        else:
            lower = lower_halves(first, count)
            self._nonces.count_on(0, word, first, lower)
            if size % 4 == 0 and first + count <= _UPPER:
                step = size // 4
                self._words[2 : count * step : step] = lower
            else:
                for k in range(count):
                    _COUNTER.pack_into(wire, k * size + _COUNTER_AT, first + k)
            session.seal_all(self._places_for(size), 0, count, last)
        self._send(session, wire[:end], size)

    def _write_column(self, at: int, step: int, numbers: memoryview) -> None:
        """Write a number every `step` bytes."""
        width, count = numbers.itemsize, len(numbers)
        if at % width or step % width:
            raw = numbers.tobytes()  # a column may be every fourth number of a view
            for k in range(count):
                self._wire[at + k * step : at + k * step + width] = raw[k * width : (k + 1) * width]
        else:
            view = self._words if width == 4 else self._halves
            view[at // width : (at + (count - 1) * step) // width + 1 : step // width] = numbers

    def _begin(self, session: Session, size: int) -> None:
        self.flush()
        self._session, self._head = session, _begin_of(session)
        self._size = size
        self._limit = max(1, min(MAX_RUN, MAX_RUN_BYTES // size))
        self._count = 0

    def _padded(self, length: int) -> int:
        return min(-(-length // PADDING) * PADDING, max(self.mtu, length))

    def _sums_of(self, shape: Super) -> list[int]:
        """The sums of the payloads of the super-packet's packets."""
        header, step = shape.header, shape.segment
        payload = self.plain[START + header : START + shape.length]
        whole = len(payload) // step
        if step % 2 or whole < 2:
            return payload_sums(payload, step)
        pieces = self._payloads_for(header, step, whole)
        known = self._sums.get((header, step))
        if known is None or known[0] is not pieces:
            if len(self._sums) >= _MAX_SHAPES:
                self._sums.clear()
            known = self._sums[header, step] = pieces, sums_of(pieces)
        sums = known[1](whole)
        if whole * step < len(payload):
            sums.append(little_sum(payload[whole * step :]))
        return sums

    def _payloads_for(self, header: int, step: int, count: int) -> list[memoryview]:
        """Where the payloads of at least `count` packets of such a super-packet lie in `plain`, all but a short last one. Kept for a few shapes."""
        payloads = self._payloads.get((header, step))
        if payloads is None or len(payloads) < count:
            if len(self._payloads) >= _MAX_SHAPES:
                self._payloads.clear()
            first = START + header
            starts = range(first, first + step * max(count, min(MAX_RUN, (MAX_PACKET - header) // step)), step)
            payloads = self._payloads[header, step] = [self.plain[start : start + step] for start in starts]
        return payloads

    def _places_for(self, size: int) -> Places:
        """Where the texts of a run of datagrams of this size lie. Kept for a few sizes."""
        places = self._places.get(size)
        if places is None:
            if len(self._places) >= _MAX_SHAPES:
                self._places.clear()
            most = min(MAX_RUN, MAX_RUN_BYTES // size)
            places = Places(self._wire, self._nonces.buffer, start=TRANSPORT_HEADER_SIZE, step=size, length=size - TRANSPORT_OVERHEAD, most=most)
            self._places[size] = places
        return places


def _begin_of(session: Session) -> bytes:
    """The header of the session's packets, its counter zero as long as it isn't known."""
    return _HEADER.pack(_TRANSPORT, session.remote_index, 0)
