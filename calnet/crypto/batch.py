"""Many messages sealed or opened at once, each where it lies.

`Places` says where: message k of a batch has its text at `start + k * step` of a buffer, its tag behind it, and its nonce in another buffer. The hot path
makes one for each size of datagram and keeps it; a `BatchCipher` then does the first, or any consecutive, messages of it under its key.

`PortableBatch` calls the AEAD of aead.py for each message. What it costs beyond the cipher, some half of the time for a packet's worth, the library behind
ipsec_mb.py spares, where it is to be had.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from calnet.crypto.aead import NONCE_SIZE, TAG_SIZE, Aead, BadTag, Cipher, new_cipher
from calnet.lanes import ones_and_ramp

NONCE_STEP: Final = 16
NONCE_START: Final = NONCE_STEP - NONCE_SIZE
"""So that a counter, a nonce's last 8 bytes, is aligned."""


_HALF: Final = 1 << 32


def lower_halves(first: int, count: int) -> memoryview:
    """The lower 32 bits of the counters from `first` on, little-endian: faster by multiplying once than by counting."""
    lower = first & _HALF - 1
    if lower + count > _HALF:
        return _words([number & _HALF - 1 for number in range(first, first + count)])
    ones, ramp = ones_and_ramp(count, 32)
    return memoryview((lower * ones + ramp).to_bytes(4 * count, "little")).cast("I")


def _words(numbers: Sequence[int]) -> memoryview:
    return memoryview(struct.pack(f"<{len(numbers)}I", *numbers)).cast("I")


class Nonces:
    """Room for the nonces of `most` messages: 4 bytes that begin each, and a counter of 8."""

    __slots__ = ("_begins", "_lower", "_upper", "_uppers", "buffer")

    def __init__(self, most: int) -> None:
        self.buffer = memoryview(bytearray(NONCE_STEP * most))
        words = self.buffer.cast("I")
        self._begins, self._lower, self._uppers = words[1::4], words[2::4], words[3::4]
        self._upper = 0
        """The upper half of all counters that are there; -1 where they differ."""

    def count_on(self, at: int, begin: int, first: int, lower: memoryview) -> None:
        """Nonces from number `at` on: `begin` as 4 little-endian bytes, and the counters from `first` on, whose lower halves are given."""
        count = len(lower)
        end = at + count
        self._begins[at:end] = memoryview(begin.to_bytes(4, "little") * count).cast("I")
        self._lower[at:end] = lower
        if (first & _HALF - 1) + count > _HALF:
            self._uppers[at:end], self._upper = _words([number >> 32 for number in range(first, first + count)]), -1
        elif first >> 32 != self._upper:
            self._upper = first >> 32
            self._uppers[:] = _words([self._upper] * len(self._uppers))

    def copy(self, words: memoryview, step: int, count: int) -> None:
        """Nonces as they stand in `words`, of 32 bits, one every `step`: what begins it, a word that is none of it, and the counter."""
        end = (count - 1) * step + 1
        self._begins[:count] = words[:end:step]
        self._lower[:count] = words[2 : end + 2 : step]
        self._uppers[:count], self._upper = words[3 : end + 3 : step], -1

    def set(self, counters: Sequence[int], begins: Sequence[int] | None = None) -> None:
        """Nonces of these counters, whatever they are; each begins with its own of `begins`, or with zeros."""
        end = len(counters)
        self._begins[:end] = memoryview(bytes(4 * end)).cast("I") if begins is None else _words(begins)
        self._lower[:end] = _words([number & _HALF - 1 for number in counters])
        self._uppers[:end], self._upper = _words([number >> 32 for number in counters]), -1


class Places:
    """Where messages lie in `buffer`: texts of `length` bytes from `start` on, one every `step` bytes, a tag of 16 bytes behind each; nonce k in `nonces` at
    NONCE_STEP * k + NONCE_START. There are `most` of them, and one more that is shorter, where it fits. ValueError where one of the `most` would not fit.
    `buffer` and `nonces` are writable."""

    __slots__ = ("_parts", "_tags", "buffer", "kept", "length", "most", "nonces", "start", "step")

    def __init__(self, buffer: memoryview, nonces: memoryview, *, start: int, step: int, length: int, most: int) -> None:
        if min(start, length) < 0 or most < 1 or step < length + TAG_SIZE:
            raise ValueError("messages that overlap, or none")
        if start + (most - 1) * step + length + TAG_SIZE > len(buffer) or most * NONCE_STEP > len(nonces) or buffer.readonly or nonces.readonly:
            raise ValueError("messages outside their buffer")
        self.buffer, self.nonces = buffer, nonces
        self.start, self.step, self.length, self.most = start, step, length, most
        self.kept: object = None
        """What a library has made of it."""
        self._parts: list[tuple[memoryview, memoryview, memoryview]] | None = None
        self._tags: list[memoryview] | None = None

    @property
    def parts(self) -> list[tuple[memoryview, memoryview, memoryview]]:
        """(nonce, text, text and tag) of each message."""
        if self._parts is None:
            self._parts = [self.part(k, self.length) for k in range(self.most)]
        return self._parts

    def tags_of(self, first: int, count: int, last: int) -> bytes:
        """The tags of messages `first` to `first + count` in a row; the last one's text is `last` bytes."""
        if self._tags is None:
            self._tags = [sealed[self.length :] for _, _, sealed in self.parts]
        end = first + count - 1
        at = self.start + end * self.step + last
        return b"".join([*self._tags[first:end], self.buffer[at : at + TAG_SIZE]])

    def part(self, k: int, length: int) -> tuple[memoryview, memoryview, memoryview]:
        """The same of message `k`, its text `length` bytes."""
        start, nonce = self.start + k * self.step, k * NONCE_STEP
        return self.nonces[nonce + NONCE_START : nonce + NONCE_STEP], self.buffer[start : start + length], self.buffer[start : start + length + TAG_SIZE]

    def check(self, first: int, count: int, last: int) -> None:
        """ValueError unless messages `first` to `first + count` are there, the last one's text `last` bytes."""
        end = first + count - 1
        if not (0 <= first <= end <= self.most and 0 <= last <= self.length):
            raise ValueError("no such messages")
        if end == self.most and (self.start + end * self.step + last + TAG_SIZE > len(self.buffer) or (end + 1) * NONCE_STEP > len(self.nonces)):
            raise ValueError("the last message is outside its buffer")


class BatchCipher(Protocol):
    """An AEAD under one key. Texts are `places.length` bytes each, the last one's `last`; ValueError where `places` has no such messages."""

    def seal_all(self, places: Places, first: int, count: int, last: int) -> None:
        """Seal `count` messages from number `first` on, each in place."""

    def open_all(self, places: Places, first: int, count: int, last: int) -> list[int]:
        """Open them in place. Returns the numbers of those that don't authenticate, counted from `first`; what stands in their places is not to be used."""


class PortableBatch:
    """`BatchCipher` by a cipher that does one message a call."""

    __slots__ = ("_open_into", "_seal_into")

    def __init__(self, cipher: Cipher) -> None:
        self._seal_into, self._open_into = cipher.seal_into, cipher.open_into

    def seal_all(self, places: Places, first: int, count: int, last: int) -> None:
        places.check(first, count, last)
        seal_into, end = self._seal_into, first + count - 1
        for nonce, text, sealed in places.parts[first:end]:
            seal_into(nonce, text, None, sealed)
        nonce, text, sealed = places.part(end, last)
        seal_into(nonce, text, None, sealed)

    def open_all(self, places: Places, first: int, count: int, last: int) -> list[int]:
        places.check(first, count, last)
        open_into, end = self._open_into, first + count - 1
        bad: list[int] = []
        parts = iter(enumerate([*places.parts[first:end], places.part(end, last)]))
        k = -1
        while k < count - 1:
            try:
                for k, (nonce, text, sealed) in parts:  # noqa: B007  the loop goes on after a failure, with the same iterator
                    open_into(nonce, sealed, None, text)
            except BadTag:
                bad.append(k)
        return bad


NewBatch = Callable[[bytes, Aead], BatchCipher]
"""The AEAD under a 32-byte key."""


def portable_batch(key: bytes, aead: Aead) -> PortableBatch:
    """`NewBatch` by aead.py."""
    return PortableBatch(new_cipher(key, aead))
