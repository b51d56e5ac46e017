"""The replay window (RFC 6479's task, solved with one big integer).

Hot path: attributes and integers only. A window of 8,192 counters is one int of 1 KiB, bit i standing for the counter i below the greatest accepted.
Accepting a consecutive run of any length in order is one shift, one OR and one AND: 0.7 µs for 44 datagrams, where one by one they cost 30.

Call it after the AEAD: a forged counter must not move the window. A refused counter changes nothing.
"""

from __future__ import annotations

from calnet.tunnel.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW

_FULL = (1 << REPLAY_WINDOW) - 1


class ReplayWindow:
    """Which counters of one session were accepted. `greatest` is the highest of them, -1 before the first."""

    __slots__ = ("_seen", "greatest")

    def __init__(self) -> None:
        self.greatest = -1
        self._seen = 0

    def accept(self, counter: int) -> bool:
        """Accepts one; False, and nothing changed, if it was seen, is out of the window or not below REJECT_AFTER_MESSAGES."""
        return self.accept_run(counter, 1)

    def accept_run(self, first: int, count: int) -> bool:
        """Accepts the `count` (≥ 1) counters from `first` on, all or none: False if any was seen, is out of the window or too high; then go one by one."""
        last = first + count - 1
        gap = first - self.greatest
        if gap > 0:
            if last >= REJECT_AFTER_MESSAGES:
                return False
            shift = gap + count - 1
            self._seen = ((self._seen << shift) | ((1 << count) - 1)) & _FULL if shift < REPLAY_WINDOW else ((1 << count) - 1) & _FULL
            self.greatest = last
            return True
        if last > self.greatest or self.greatest - first >= REPLAY_WINDOW:
            return False
        bits = ((1 << count) - 1) << (self.greatest - last)
        if self._seen & bits:
            return False
        self._seen |= bits
        return True
