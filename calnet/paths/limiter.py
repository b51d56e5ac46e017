"""What others can make us do: probes to places that never answered, and candidates taken in. Token buckets, a bounded number of them."""

from __future__ import annotations

from calnet.limits import RateLimiter
from calnet.model import NodeId
from calnet.paths import constants as c


class ProbeLimiter:
    """Probes to unproven endpoints: bounded for the peer that named them, and for the address, whoever named it. Candidates: bounded for the peer."""

    __slots__ = ("_hosts", "_peers", "_told")

    def __init__(self) -> None:
        self._peers = RateLimiter(c.PEER_PROBES_PER_S, c.PEER_PROBES_BURST, c.MAX_HOSTS)
        self._hosts = RateLimiter(c.HOST_PROBES_PER_S, c.HOST_PROBES_BURST, c.MAX_HOSTS)
        self._told = RateLimiter(c.TOLD_PER_S, c.TOLD_BURST, c.MAX_HOSTS)

    def allows(self, peer: NodeId, host: str, now: float) -> bool:
        """Whether one more probe may go to `host` for `peer`; it is counted."""
        return self._peers.allow(peer, now) and self._hosts.allow(host, now)

    def hears(self, peer: NodeId, now: float) -> bool:
        """Whether the peer may tell its candidates once more; it is counted."""
        return self._told.allow(peer, now)
