"""Many numbers at once: each in a lane of so many bits of one large integer. Pure.

Hot paths compute columns of headers and nonces so: Python adds, multiplies and masks all lanes by one operation, where a number each costs a step of the
interpreter. Nobody looks for carries: what is put into lanes has to stay in them.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=512)
def ones_and_ramp(count: int, bits: int, *, first_high: bool = False) -> tuple[int, int]:
    """`count` lanes of `bits` each: 1, 1, 1, … and 0, 1, 2, … The first one is the lowest, or with `first_high` the highest: written out in the order of bytes
    that bears the same name, little or big, the lanes stand one behind the other."""
    shifts = [bits * (count - 1 - k if first_high else k) for k in range(count)]
    return sum(1 << shift for shift in shifts), sum(k << shift for k, shift in enumerate(shifts))
