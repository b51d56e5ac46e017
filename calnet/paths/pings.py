"""Our pings that await an answer, by token: a bounded number, each for a short time."""

from __future__ import annotations

from typing import NamedTuple

from calnet.crypto.keys import RandomBytes
from calnet.model import Endpoint, NodeId
from calnet.paths import constants as c
from calnet.wire.discovery import TOKEN_SIZE


class Pending(NamedTuple):
    """To whom a ping went and when; `endpoint` None if by relay alone. `explicit`: somebody waits for this one. `guess`: `endpoint` is no candidate yet.
    `size`: of a packet inside the tunnel whose datagram is as long as this ping's (mtu.py), 0 for an ordinary one."""

    peer: NodeId
    endpoint: Endpoint | None
    sent_at: float
    explicit: bool
    guess: bool = False
    size: int = 0


class Pings:
    """The table. The oldest goes when there are 4,096; a ping is forgotten after 5 s, or 60 s where somebody waits for it."""

    __slots__ = ("_pending", "_random")

    def __init__(self, random: RandomBytes) -> None:
        self._random = random
        self._pending: dict[bytes, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def new(self, peer: NodeId, endpoint: Endpoint | None, now: float, *, explicit: bool = False, guess: bool = False, size: int = 0) -> bytes:
        """The token of a ping that is sent now."""
        while self._pending:
            oldest = next(iter(self._pending))
            if len(self._pending) < c.MAX_PENDING and not _late(self._pending[oldest], now):
                break
            del self._pending[oldest]
        token = self._random(TOKEN_SIZE)
        self._pending[token] = Pending(peer, endpoint, now, explicit, guess, size)
        return token

    def answered(self, token: bytes, peer: NodeId, now: float) -> Pending | None:
        """The ping that `peer` answers with `token`, once; None for a wrong peer, a late answer or a second one."""
        pending = self._pending.get(token)
        if pending is None or pending.peer != peer:
            return None
        del self._pending[token]
        return None if _late(pending, now) else pending


def _late(pending: Pending, now: float) -> bool:
    return now - pending.sent_at > (c.EXPLICIT_TIMEOUT if pending.explicit else c.PROBE_TIMEOUT)
