"""From the wire to the TUN: a received batch is opened in place, its runs of one flow are written to the TUN as super-packets.

Hot path: plainer and longer than elsewhere. A batch lies in `buffer` as the kernel gave it (UDP_GRO: datagrams of one size side by side, the last perhaps
shorter). Each is opened where it lies; nothing is copied: a super-packet is one gathered write of a new header and the payloads. A batch of 49 packets of
1,280 bytes costs 120 µs: 90 are the AEAD's.

The order, for every datagram: AEAD, replay window, `opened` (timers, endpoint), `accept` (inner source and packet filter, once a run), `write`; for a packet
that is opened by itself `opened` is last, as somebody may wait for it. A datagram that fails any of them is dropped alone.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from calnet.crypto.aead import TAG_SIZE, BadTag
from calnet.crypto.batch import Nonces, Places, lower_halves
from calnet.errors import WireError
from calnet.model import Buffer
from calnet.tunnel.acks import LONGEST, BareAck, bare_ack
from calnet.tunnel.chunk_inbound import Accept, ChunkInbound, Opened, Write
from calnet.tunnel.coalesce import Flow, flow_of, joins_last, super_header
from calnet.tunnel.session import Session
from calnet.wire.ip import IPV4_HEADER_SIZE, NO_VIRTIO, Protocol, packet_length
from calnet.wire.tunnel import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD, MessageType

BUFFER_SIZE: Final = 65536
_MAX_SHAPES: Final = 32
_HEADER: Final = struct.Struct("<IIQ")
_NONCE: Final = struct.Struct("<4xQ")
_TRANSPORT, _CHUNK = int(MessageType.TRANSPORT), int(MessageType.CHUNK)
_ACK_SIZE: Final = TRANSPORT_OVERHEAD + -(-LONGEST // 16) * 16
"""Of a datagram with a bare acknowledgement, at most."""
_MAX_KEPT: Final = 128
"""Datagrams a batch may hold for its views to be kept."""
_MOST: Final = 1 << 63
"""No sender's counters go so far."""

FindSession = Callable[[int], Session | None]
Other = Callable[[memoryview], None]
"""`other(datagram)`: it is no transport message."""


class Inbound:
    """See the module's docstring. `vnet`: the TUN takes virtio headers; `tcp`, `udp`: and super-packets of these."""

    def __init__(self, *, vnet: bool, tcp: bool, udp: bool, session: FindSession, opened: Opened, accept: Accept, write: Write, other: Other) -> None:
        self.buffer = memoryview(bytearray(BUFFER_SIZE))
        self._words = self.buffer.cast("I")
        self._before: list[Buffer] = [NO_VIRTIO] if vnet else []
        self._joined = {int(protocol) for protocol, joined in ((Protocol.TCP, tcp), (Protocol.UDP, udp)) if joined and vnet}
        self._session = session
        self._opened = opened
        self._accept = accept
        self._write = write
        self._other = other
        self._nonces = Nonces(_MAX_KEPT)
        self._places: dict[int, tuple[Places, list[memoryview]]] = {}
        self._parts: dict[tuple[int, int, int], tuple[list[memoryview], list[memoryview]]] = {}
        self._chunks = ChunkInbound(self.buffer, vnet, self._joined, opened, accept, write)
        self.dropped = 0
        """Datagrams that were not genuine, not new, or not allowed."""

    def forget_streams(self) -> None:
        """What `accept` said is asked anew for each stream."""
        self._chunks.forget_streams()

    def receive(self, length: int, size: int) -> None:
        """Take the batch of datagrams in `buffer[:length]`, `size` bytes each, the last perhaps shorter."""
        if length == size:
            self._receive_one(0, length)
            return
        count = -(-length // size)
        if 1 < count <= _MAX_KEPT and size >= TRANSPORT_OVERHEAD:
            if length - (count - 1) * size < TRANSPORT_OVERHEAD:
                count, tail, length = count - 1, length - (count - 1) * size, (count - 1) * size
                self._receive_one(length, tail)
            alike = self._alike(size, count)
            if alike is not None and alike[0] == _TRANSPORT:
                _, index, first, lower = alike
                self._receive_batch(length, size, index, range(first, first + count), lower)
                return
            if alike is not None and alike[0] & 0xFF == _CHUNK:
                word, index, first, lower = alike
                session = self._session(index)
                self.dropped += count if session is None else self._chunks.receive(session, 0, length, size, word, first, count, lower)
                return
            words, indices, counters = self._heads(size, count)
            if indices.count(indices[0]) == count:
                if words.count(_TRANSPORT) == count:
                    follow = range(counters[0], counters[0] + count)
                    self._receive_batch(length, size, indices[0], follow if counters == list(follow) and counters[0] <= _MOST else counters)
                else:
                    self._receive_chunks(length, size, indices[0], words, counters)
                return
        for start in range(0, length, size):
            self._receive_one(start, min(size, length - start))

    def _receive_chunks(self, length: int, size: int, index: int, words: list[int], counters: list[int]) -> None:
        """A batch for one session, of chunks and perhaps other datagrams: chunks of one super-packet whose counters follow one another belong together."""
        session, position, count = self._session(index), 0, len(counters)
        if session is not None and all(word & 0xFF == _CHUNK for word in set(words)):
            self.dropped += self._chunks.receive_several(session, length, size, words, counters)
            return
        while position < count:
            end = position + 1
            word, counter = words[position], counters[position]
            if word & 0xFF != _CHUNK or session is None:
                self._receive_one(position * size, min(size, length - position * size))
            else:
                while end < count and words[end] == word and counters[end] == counter + end - position <= _MOST:
                    end += 1
                self.dropped += self._chunks.receive(session, position * size, min(end * size, length), size, word, counter, end - position)
            position = end

    def _receive_one(self, start: int, length: int) -> None:
        buffer, end = self.buffer, start + length
        word, index, counter = _HEADER.unpack_from(buffer, start) if length >= TRANSPORT_OVERHEAD else (0, 0, 0)
        if word & 0xFF == _CHUNK:
            session = self._session(index)
            self.dropped += 1 if session is None else self._chunks.receive(session, start, end, length, word, counter, 1)
            return
        if word != _TRANSPORT:
            self._other(buffer[start:end])
            return
        session = self._session(index)
        if session is None:
            self.dropped += 1
            return
        text = start + TRANSPORT_HEADER_SIZE
        plain = buffer[text : end - TAG_SIZE]
        try:
            session.open_into(_NONCE.pack(counter), buffer[text:end], None, plain)
        except BadTag:
            self.dropped += 1
            return
        if not session.replay.accept_run(counter, 1):
            self.dropped += 1
            return
        if plain:
            self._deliver_one(session, plain)  # first, as it may be what somebody waits for
        self._opened(session, length, bool(plain))

    def _alike(self, size: int, count: int) -> tuple[int, int, int, memoryview] | None:
        """What all datagrams begin with (4 bytes, as a number), their receiver index, and the first one's counter, if the others' go on from it, and the lower
        halves of all of them. None also where it is not found out that fast: sizes that 4 doesn't divide, counters that no sender reaches, or that aren't all
        in the same 2**32."""
        word, index, first = _HEADER.unpack_from(self.buffer)
        if size % 4 or first > _MOST or (first & 0xFFFFFFFF) + count > 1 << 32:
            return None
        step, words = size // 4, self._words
        end, lower = (count - 1) * step + 1, lower_halves(first, count)
        if words[2 : end + 2 : step] != lower or words[:end:step] != _times(words[0], count):
            return None
        if words[1 : end + 1 : step] != _times(words[1], count) or words[3 : end + 3 : step] != _times(words[3], count):
            return None
        return word, index, first, lower

    def _heads(self, size: int, count: int) -> tuple[list[int], list[int], list[int]]:
        """Of each datagram: its first 4 bytes as a number, receiver index, and counter."""
        if size % 4 or sys.byteorder != "little":
            heads = [_HEADER.unpack_from(self.buffer, at) for at in range(0, count * size, size)]
            return [word for word, _, _ in heads], [index for _, index, _ in heads], [counter for _, _, counter in heads]
        step = size // 4
        end, words = (count - 1) * step + 1, self._words
        lower, upper = words[2 : end + 2 : step].tolist(), words[3 : end + 3 : step].tolist()
        if upper.count(0) != count:
            lower = [high << 32 | low for low, high in zip(lower, upper, strict=True)]
        return words[:end:step].tolist(), words[1 : end + 1 : step].tolist(), lower

    def _receive_batch(self, length: int, size: int, index: int, counters: Sequence[int], lower: memoryview | None = None) -> None:
        """A batch of transport messages, all for the session with this receiver index. `counters` is a range where they follow one another, whose
        `lower_halves` may be given."""
        count = len(counters)
        session = self._session(index)
        if session is None:
            self.dropped += count
            return
        follow = isinstance(counters, range)
        if follow:
            self._nonces.count_on(0, 0, counters[0], lower_halves(counters[0], count) if lower is None else lower)
        else:
            self._nonces.set(counters)
        places, plains = self._places_for(size)
        end = (count - 1) * size + TRANSPORT_HEADER_SIZE
        if length != count * size:
            plains = plains[: count - 1]
            plains.append(self.buffer[end : length - TAG_SIZE])
        good: Sequence[int] = range(count)
        bad, genuine = session.open_all(places, 0, count, length - TAG_SIZE - end), length
        if bad or not follow or not session.replay.accept_run(counters[0], count):
            good = [k for k in good if k not in bad and session.replay.accept(counters[k])]
            self.dropped += count - len(good)
            if not good:
                return
            genuine = sum(min(size, length - k * size) for k in good)
        self._opened(session, genuine, size > TRANSPORT_OVERHEAD)
        self._deliver(session, plains, good, size)

    def _deliver(self, session: Session, plains: list[memoryview], good: Sequence[int], size: int) -> None:
        """Write the opened packets, runs of one flow as one."""
        if size <= _ACK_SIZE:
            good = self._without_needless(plains, good)
        position, end = 0, len(good)
        while position < end:
            first = good[position]
            plain = plains[first]
            flow = self._flow(plain, end - position)
            if flow is None:
                if plain:
                    self._deliver_one(session, plain)
                position += 1
                continue
            position += self._deliver_run(session, plains, good, position, size, flow)

    def _without_needless(self, plains: list[memoryview], good: Sequence[int]) -> Sequence[int]:
        """`good` without the acknowledgements that the next one makes needless (acks.py): a stock peer's come in numbers, and each costs a write."""
        kept: list[int] = []
        before: BareAck | None = None
        for k in good:
            plain = plains[k]
            if before is not None and before.replaced_by(plain):
                kept[-1] = k
            else:
                kept.append(k)
                before = bare_ack(plain[: _length_or_zero(plain)])
        return kept

    def _flow(self, plain: memoryview, left: int) -> Flow | None:
        if left < 2 or not self._joined or not plain:
            return None
        try:
            length = packet_length(plain)
        except WireError:
            return None
        flow = flow_of(plain, length)
        return flow if flow is not None and flow.protocol in self._joined else None

    def _deliver_run(self, session: Session, plains: list[memoryview], good: Sequence[int], position: int, size: int, flow: Flow) -> int:
        """Write the packet `good[position]` and those after it that join it; returns how many that are."""
        first = good[position]
        headers, payloads = self._parts_for(size, flow)
        number, mask, expected, step, room = int.from_bytes, flow.mask, flow.expected, flow.step, flow.header + flow.payload
        most = max(1, min(flow.limit, _consecutive(good, position)))
        # All datagrams of a batch have one size, but for the last.
        full = most if len(plains[first + most - 1]) >= room else most - 1
        joined = 1
        for header in headers[first + 1 : first + full]:
            expected += step
            if number(header, "big") & mask != expected:
                break
            joined += 1
        parts: list[Buffer] = [b"", *payloads[first : first + joined]]
        total, last_flags = flow.header + joined * flow.payload, 0
        if joined < most:
            tail = plains[first + joined]
            length = _length_or_zero(tail)
            if length and joins_last(flow, tail, length, joined):
                parts.append(tail[flow.header : length])
                total += length - flow.header
                last_flags = tail[flow.ip_header + 13] if flow.protocol == Protocol.TCP else 0
                joined += 1
        if joined == 1:
            self._deliver_one(session, plains[first])
        elif self._accept(session, plains[first][:room]):
            parts[0] = super_header(flow, plains[first], last_flags, total)
            self._write(parts)
        else:
            self.dropped += joined
        return joined

    def _deliver_one(self, session: Session, plain: memoryview) -> None:
        length = _length_or_zero(plain)
        if length and self._accept(session, plain[:length]):
            self._write([*self._before, plain[:length]])
        else:
            self.dropped += 1

    def _places_for(self, size: int) -> tuple[Places, list[memoryview]]:
        """Where ciphertext and plaintext of each datagram of this size lie in a batch."""
        kept = self._places.get(size)
        if kept is None:
            if len(self._places) >= _MAX_SHAPES:
                self._places.clear()
            most = min(_MAX_KEPT, BUFFER_SIZE // size)
            places = Places(self.buffer, self._nonces.buffer, start=TRANSPORT_HEADER_SIZE, step=size, length=size - TRANSPORT_OVERHEAD, most=most)
            kept = self._places[size] = places, [text for _, text, _ in places.parts]
        return kept

    def _parts_for(self, size: int, flow: Flow) -> tuple[list[memoryview], list[memoryview]]:
        """Where header and payload of each packet of such a flow lie in a batch of datagrams of this size."""
        key = (size, flow.header, flow.payload)
        parts = self._parts.get(key)
        if parts is None:
            if len(self._parts) >= _MAX_SHAPES:
                self._parts.clear()
            starts = range(TRANSPORT_HEADER_SIZE, min(_MAX_KEPT, BUFFER_SIZE // size) * size, size)
            middle = flow.header
            parts = self._parts[key] = (
                [self.buffer[start : start + middle] for start in starts],
                [self.buffer[start + middle : start + middle + flow.payload] for start in starts],
            )
        return parts


def _consecutive(good: Sequence[int], position: int) -> int:
    """How many entries from `position` on follow one another."""
    if isinstance(good, range):
        return len(good) - position
    end = position + 1
    while end < len(good) and good[end] == good[end - 1] + 1:
        end += 1
    return end - position


@lru_cache(maxsize=512)
def _times(word: int, count: int) -> memoryview:
    """The 32-bit word, as this machine has it, so many times."""
    return memoryview(array("I", [word]) * count)


def _length_or_zero(plain: memoryview) -> int:
    if len(plain) >= IPV4_HEADER_SIZE and plain[0] == 0x45 and IPV4_HEADER_SIZE <= (length := plain[2] << 8 | plain[3]) <= len(plain):
        return length
    try:
        return packet_length(plain)
    except WireError:
        return 0
