"""What others can make us do: probes to places that never answered, and candidates taken in. Token buckets, a bounded number of them."""

from __future__ import annotations

from collections import OrderedDict

from calnet.model import NodeId
from calnet.paths import constants as c


class Buckets:
    """A token bucket for each key: `burst` at once, `rate` a second. Beyond `limit` keys the one used longest ago is forgotten."""

    __slots__ = ("_burst", "_levels", "_limit", "_rate")

    def __init__(self, rate: float, burst: float, limit: int) -> None:
        self._rate, self._burst, self._limit = rate, burst, limit
        self._levels: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: object, now: float) -> bool:
        """Take one token of `key`; False if there is none."""
        level, at = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        allowed = level >= 1.0
        self._levels[key] = (level - 1.0 if allowed else level, now)
        if len(self._levels) > self._limit:
            self._levels.popitem(last=False)
        return allowed


class ProbeLimiter:
    """Probes to unproven endpoints: bounded for the peer that named them, and for the address, whoever named it. Candidates: bounded for the peer."""

    __slots__ = ("_hosts", "_peers", "_told")

    def __init__(self) -> None:
        self._peers = Buckets(c.PEER_PROBES_PER_S, c.PEER_PROBES_BURST, c.MAX_HOSTS)
        self._hosts = Buckets(c.HOST_PROBES_PER_S, c.HOST_PROBES_BURST, c.MAX_HOSTS)
        self._told = Buckets(c.TOLD_PER_S, c.TOLD_BURST, c.MAX_HOSTS)

    def allows(self, peer: NodeId, host: str, now: float) -> bool:
        """Whether one more probe may go to `host` for `peer`; it is counted."""
        return self._peers.take(peer, now) and self._hosts.take(host, now)

    def hears(self, peer: NodeId, now: float) -> bool:
        """Whether the peer may tell its candidates once more; it is counted."""
        return self._told.take(peer, now)
