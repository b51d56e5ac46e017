"""When a data path that ended by itself is opened again: at once, then after pauses that grow while none lasts. Pure: the caller has the clock."""

from __future__ import annotations

from typing import Final

from calnet.roles.node.underlay import backoff

LASTING_S: Final = 30.0
"""One that ran for so long starts the backoff anew."""


class Restarts:
    """Tell it what happens (`opened`, `failed`, `ended`, `unwanted`), and ask `may_open`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._attempt = 0
        self._opened_at: float | None = None
        self._not_before = float("-inf")

    def may_open(self, now: float) -> bool:
        """Whether its time has come."""
        return now >= self._not_before

    def opened(self, now: float) -> None:
        """It runs."""
        self._opened_at = now

    def unwanted(self) -> None:
        """It is not to run: the next start is a first one."""
        self._attempt, self._opened_at, self._not_before = 0, None, float("-inf")

    def ended(self, now: float, fraction: float) -> float:
        """It ended by itself: seconds until it may be opened again, 0 the first time. `fraction` in [0, 1) is the jitter's."""
        if self._opened_at is not None and now - self._opened_at > LASTING_S:
            self._attempt = 0
        return self._pause(now, fraction)

    def failed(self, now: float, fraction: float) -> float | None:
        """It could not be opened: as `ended`; None where none had run before, as then whoever wanted it is told."""
        return self._pause(now, fraction) if self._attempt else None

    def _pause(self, now: float, fraction: float) -> float:
        seconds = backoff(self._attempt - 1, fraction) if self._attempt else 0.0
        self._attempt, self._opened_at, self._not_before = self._attempt + 1, None, now + seconds
        return seconds


def soon(pause: float) -> str:
    """When it is tried again, in words."""
    return f"in {pause:.0f} s" if pause >= 1.0 else "now"
