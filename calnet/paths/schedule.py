"""Which peer's timer is due next: a heap with lazy deletion, so that the earliest of thousands costs nothing to name."""

from __future__ import annotations

import heapq

from calnet.model import NodeId


class Schedule:
    """One due time a peer. It may go off earlier than needed, never later: a later time is only kept when the earlier one is taken."""

    __slots__ = ("_due", "_heap")

    def __init__(self) -> None:
        self._due: dict[NodeId, float] = {}
        self._heap: list[tuple[float, NodeId]] = []

    def due(self, peer: NodeId) -> float:
        """When `peer` is due; infinite if it isn't."""
        return self._due.get(peer, float("inf"))

    def no_later_than(self, peer: NodeId, when: float) -> None:
        """`peer` is due at `when`, or before if it was."""
        if when < self.due(peer):
            self._due[peer] = when
            heapq.heappush(self._heap, (when, peer))

    def drop(self, peer: NodeId) -> None:
        """`peer` is due no more."""
        self._due.pop(peer, None)

    def next(self) -> float | None:
        """The earliest due time."""
        heap = self._heap
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float) -> list[NodeId]:
        """The peers due by `now`; they are due no more."""
        taken: list[NodeId] = []
        while (when := self.next()) is not None and when <= now:
            _, peer = heapq.heappop(self._heap)
            del self._due[peer]
            taken.append(peer)
        return taken
