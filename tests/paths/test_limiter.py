from __future__ import annotations

from calnet.model import NodeId
from calnet.paths import constants as c
from calnet.paths.limiter import ProbeLimiter


def test_limiter_bounds_one_address_over_all_peers() -> None:
    limiter = ProbeLimiter()
    sent = sum(limiter.allows(NodeId(peer), "203.0.113.9", second / 10) for second in range(100) for peer in range(50))
    assert sent <= c.HOST_PROBES_BURST + 10 * c.HOST_PROBES_PER_S


def test_limiter_bounds_one_peer_over_all_addresses() -> None:
    limiter = ProbeLimiter()
    sent = sum(limiter.allows(NodeId(1), f"198.51.100.{host}", second / 10) for second in range(100) for host in range(100))
    assert sent <= c.PEER_PROBES_BURST + 10 * c.PEER_PROBES_PER_S
    assert limiter.allows(NodeId(2), "192.0.2.1", 10.0)
