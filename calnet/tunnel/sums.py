"""Sums of payloads for TCP's and UDP's checksum (RFC 1071), many at once.

Hot path. A sum of 16-bit words modulo 65535 is the whole payload, taken as one number, modulo 65535. Python can do that, at 1.9 µs for 1,228 bytes: a number
is made of them first. GMP (libgmp, on nearly every Linux system, since nftables and GnuTLS need it) reduces them where they lie, 0.2 µs: for 45 payloads 9 µs
instead of 85 and more. It is looked for with the first super-packet that is cut, and proves itself then; without it things are as they were.

Sums here are of little-endian words, as GMP's numbers begin with the least byte. Which end words are read from makes no difference but that the sum's two bytes
change places (RFC 1071 section 2 B): `SWAP` times one is the other, modulo 65535.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from itertools import repeat
from typing import Final

from calnet.model import Buffer
from calnet.wire.ip import ones_sum

LIBRARY: Final = "libgmp.so.10"
_FUNCTION: Final = "__gmpn_mod_34lsub1"
"""mpn_mod_34lsub1 (GMP's gmp-impl.h; internal, so it may be missing one day): a number of 64-bit limbs, the least first, modulo 2**48 - 1, of which 65535 is a
divisor; the result is one limb and not fully reduced. Half of what its modulo by any number takes."""
_LIMB: Final = 8
SWAP: Final = 256
"""2**16 is 1 modulo 65535, so 2**8 swaps the bytes of a sum."""
_MODULUS: Final = 65535

SumAll = Callable[[int], list[int]]
"""Of the first so many pieces, numbers congruent to the `little_sum` of each, below 2**64."""


def little_sum(data: Buffer) -> int:
    """The sum of the data's 16-bit little-endian words modulo 65535, a zero byte behind the last if that is odd."""
    return ones_sum(data) * SWAP % _MODULUS


def sums_of(pieces: list[memoryview]) -> SumAll:
    """Sums of these pieces of one buffer, equally long and each of an even number of bytes: to be asked again and again as its bytes change."""
    return _by_library(pieces) or _by_thirds(pieces)


def payload_sums(payload: memoryview, step: int) -> list[int]:
    """`little_sum` of each `step` bytes of `payload`; the last piece may be shorter."""
    return [little_sum(payload[start : start + step]) for start in range(0, len(payload), step)]


def _by_thirds(pieces: list[memoryview]) -> SumAll:
    """1.9 µs for 1,228 bytes: 1.0 to read them in the machine's byte order (1.2 in the other), the rest to add three numbers and for one division, whose cost
    is per digit. Halves take 2.1, sixths 2.1, one number folded twice 2.1."""
    number = int.from_bytes
    thirds = [(piece[: (part := len(piece) // 6 * 2)], piece[part : 2 * part], piece[2 * part :]) for piece in pieces]

    def sums(count: int) -> list[int]:
        return [(number(a, "little") + number(b, "little") + number(c, "little")) % _MODULUS for a, b, c in thirds[:count]]

    return sums


def _by_library(pieces: list[memoryview]) -> SumAll | None:
    """None where there is no library, or no use of it."""
    length = len(pieces[0]) if pieces else 0
    reduce = _library.function if length >= _LIMB and pieces[0].readonly is False else None
    if reduce is None:
        return None
    limbs, end = ctypes.c_long(length // _LIMB), length // _LIMB * _LIMB
    places = [ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(piece))) for piece in pieces]
    rests, number = [piece[end:] for piece in pieces], int.from_bytes

    def sums(count: int, _kept: list[memoryview] = rests) -> list[int]:  # the views keep the memory that the places are in
        return list(map(reduce, places[:count], repeat(limbs)))

    def sums_and_rests(count: int) -> list[int]:
        return [reduce(place, limbs) % _MODULUS + number(rest, "little") for place, rest in zip(places[:count], rests, strict=False)]

    return sums if end == length else sums_and_rests


class _Library:
    """GMP, loaded when it is first asked for."""

    def __init__(self) -> None:
        self._looked = False
        self._function: Callable[..., int] | None = None

    @property
    def function(self) -> Callable[..., int] | None:
        if not self._looked:
            self._looked = True
            self._function = _proven_function()
        return self._function


_library: Final = _Library()


def _proven_function() -> Callable[..., int] | None:
    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_ulong) != _LIMB:
        return None
    try:
        function = ctypes.PyDLL(LIBRARY)[_FUNCTION]  # so short a call need not let other threads run meanwhile
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_ulong
    for limbs in (1, 2, 3, 4, 5, 171, 183):
        for fill in (b"\0", b"\xff", bytes(range(1, 256))):
            data = bytearray((fill * limbs * _LIMB)[: limbs * _LIMB])
            place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(data)))
            if function(place, ctypes.c_long(limbs)) % _MODULUS != int.from_bytes(data, "little") % _MODULUS:
                return None
    return function
