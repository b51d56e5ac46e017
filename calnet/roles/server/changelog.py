"""Which nodes changed since when, each once, in the order of its last change. Pure.

What a node has to be told since it was told last are the nodes at the end of the log: as many as changed, whatever the number of nodes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from calnet.model import NodeId

MAX_GONE: Final = 1024
"""Nodes that are gone and still known to have changed."""


class ChangeLog:
    """Changes have numbers that grow."""

    def __init__(self, first: int, changed: Mapping[NodeId, int] | None = None) -> None:
        """The next change has a number above `first`. `changed` are the last changes known already, with their numbers up to `first`."""
        self._last = first
        self._changed: OrderedDict[NodeId, int] = OrderedDict(sorted((changed or {}).items(), key=lambda item: item[1]))
        self._gone: OrderedDict[NodeId, None] = OrderedDict()
        self._forgotten = 0
        self._asked: tuple[int, int, frozenset[NodeId]] = (0, 0, frozenset())

    @property
    def last(self) -> int:
        """The number of the last change."""
        return self._last

    def changed(self, node: NodeId) -> int:
        """The number of the node's last change; 0 for one without any."""
        return self._changed.get(node, 0)

    def tick(self) -> int:
        """Something changed that is no node: the number of that change."""
        self._last += 1
        return self._last

    def add(self, node: NodeId, *, gone: bool = False) -> None:
        """The node changed (or is gone)."""
        self._changed[node] = self.tick()
        self._changed.move_to_end(node)
        self._gone.pop(node, None)
        if gone:
            self._gone[node] = None
            if len(self._gone) > MAX_GONE:
                oldest, _ = self._gone.popitem(last=False)
                self._forgotten = self._changed.pop(oldest)

    def since(self, number: int) -> frozenset[NodeId] | None:
        """The nodes that changed after the change of this number, gone ones too. None where some of those gone are forgotten."""
        if number < self._forgotten:
            return None
        if self._asked[:2] != (number, self._last):  # most who ask were told last at the same time
            self._asked = number, self._last, self._walk_back(number)
        return self._asked[2]

    def _walk_back(self, number: int) -> frozenset[NodeId]:
        found = []
        for node in reversed(self._changed):
            if self._changed[node] <= number:
                break
            found.append(node)
        return frozenset(found)
