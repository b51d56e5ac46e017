"""TAI64N timestamps of initiations: what makes a replayed initiation worthless (WireGuard paper, section 5.1).

A responder keeps the greatest stamp it accepted from each static key, an initiator the last it sent to each; both outlive a restart. 12 bytes,
big-endian, so that bytes compare as times do: seconds u64, nanoseconds u32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from calnet.tunnel.constants import MAX_CLOCK_AHEAD, TIMESTAMP_STEP_NS

TIMESTAMP_SIZE: Final = 12
_TAI64_BASE: Final = 0x4000_0000_0000_000A
"""TAI64's 2^62, and the 10 s that TAI was ahead of UTC in 1970; later leap seconds are left out, as WireGuard does."""
_NS: Final = 1_000_000_000


def timestamp_of(wall: float) -> bytes:
    """TAI64N of Unix seconds, cut down to a multiple of 16.7 ms within the second."""
    seconds, nanoseconds = divmod(int(wall * _NS), _NS)
    return (_TAI64_BASE + seconds).to_bytes(8, "big") + (nanoseconds - nanoseconds % TIMESTAMP_STEP_NS).to_bytes(4, "big")


def step_after(timestamp: bytes) -> bytes:
    """The next stamp after this one."""
    seconds = int.from_bytes(timestamp[:8], "big")
    nanoseconds = int.from_bytes(timestamp[8:], "big") + TIMESTAMP_STEP_NS
    if nanoseconds >= _NS:
        seconds, nanoseconds = seconds + 1, 0
    return seconds.to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")


def seconds_of(timestamp: bytes) -> float:
    """Unix seconds of a stamp; far out of any range for a nonsensical one, never an error."""
    return int.from_bytes(timestamp[:8], "big") - _TAI64_BASE + int.from_bytes(timestamp[8:], "big") / _NS


def clock_ahead(timestamp: bytes, wall: float) -> float:
    """How many seconds in the future a stamp lies that is too far ahead to be accepted (MAX_CLOCK_AHEAD); 0.0 for an acceptable one."""
    ahead = seconds_of(timestamp) - wall
    return ahead if ahead > MAX_CLOCK_AHEAD else 0.0


class TimestampLog:
    """The greatest stamps by static key, accepted and sent."""

    def __init__(self) -> None:
        self._accepted: dict[bytes, bytes] = {}
        self._sent: dict[bytes, bytes] = {}

    def load(self, accepted: Mapping[bytes, bytes], sent: Mapping[bytes, bytes]) -> None:
        """What was persisted, by static key. A greater one known already stays; one that is not 12 bytes long is left out."""
        for known, loaded in ((self._accepted, accepted), (self._sent, sent)):
            known.update({key: stamp for key, stamp in loaded.items() if len(stamp) == TIMESTAMP_SIZE and stamp > known.get(key, b"")})

    def is_new(self, static: bytes, timestamp: bytes) -> bool:
        """Whether a stamp is later than all accepted from this key."""
        return timestamp > self._accepted.get(static, b"")

    def accept(self, static: bytes, timestamp: bytes) -> None:
        """Notes a stamp for which `is_new` holds."""
        self._accepted[static] = timestamp

    def next(self, static: bytes, wall: float, *, may_go_back: bool) -> bytes:
        """The stamp for an initiation sent now, and notes it: the present, or one step after the last sent if that is later.

        `may_go_back`: the peer drops stamps from the future, so one that our clock made while it was far ahead was never accepted there, and going on
        from it would shut us out until that time comes. A stock WireGuard peer has accepted it.
        """
        stamp = timestamp_of(wall)
        last = self._sent.get(static)
        if last is not None and last >= stamp and not (may_go_back and clock_ahead(last, wall)):
            stamp = step_after(last)
        self._sent[static] = stamp
        return stamp
