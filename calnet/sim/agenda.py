"""Virtual time: what happens when, in an order that a run repeats exactly."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Agenda:
    """The clock. Actions of one moment happen in the order in which they were asked for."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self._queue: list[tuple[float, int, Action]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Action) -> None:
        """Do it then, or now where that is past."""
        heapq.heappush(self._queue, (max(when, self.now), next(self._order), action))

    def after(self, seconds: float, action: Action) -> None:
        """Do it so much later."""
        self.at(self.now + seconds, action)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, _, action = heapq.heappop(queue)
            action()
        self.now = end
