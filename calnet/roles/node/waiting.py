"""Packets that wait for a session with their peer: a bounded queue for each, the oldest dropped first. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Final

from calnet.model import NodeId

QUEUE_PACKETS: Final = 128
QUEUE_BYTES: Final = 256 * 1024


class _Queue:
    __slots__ = ("packets", "size")

    def __init__(self) -> None:
        self.packets: deque[bytes] = deque()
        self.size = 0

    def add(self, packet: bytes) -> int:
        self.packets.append(packet)
        self.size += len(packet)
        dropped = 0
        while len(self.packets) > QUEUE_PACKETS or self.size > QUEUE_BYTES:
            self.size -= len(self.packets.popleft())
            dropped += 1
        return dropped


class WaitingPackets:
    """The queues, by peer."""

    def __init__(self) -> None:
        self._queues: dict[NodeId, _Queue] = {}

    def add(self, peer: NodeId, packet: bytes) -> int:
        """Put a packet at the end of the peer's queue; returns how many old ones had to go."""
        return self._queues.setdefault(peer, _Queue()).add(packet)

    def take(self, peer: NodeId) -> deque[bytes]:
        """What waits for the peer, the oldest first; it waits no more."""
        queue = self._queues.pop(peer, None)
        return deque() if queue is None else queue.packets

    def keep(self, peers: Container[NodeId]) -> None:
        """Forget what waits for anybody else."""
        self._queues = {peer: queue for peer, queue in self._queues.items() if peer in peers}
