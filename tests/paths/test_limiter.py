from __future__ import annotations

from calnet.model import NodeId
from calnet.paths import constants as c
from calnet.paths.limiter import Buckets, ProbeLimiter


def test_bucket_gives_its_burst_then_its_rate() -> None:
    buckets = Buckets(rate=8.0, burst=5.0, limit=8)
    assert sum(buckets.take("a", 0.0) for _ in range(20)) == 5
    assert sum(buckets.take("a", eighth / 8) for eighth in range(1, 33)) == 32
    assert sum(buckets.take("a", 1_000.0) for _ in range(20)) == 5
    assert buckets.take("b", 1_000.0)


def test_buckets_are_bounded_and_forget_the_one_used_longest_ago() -> None:
    buckets = Buckets(rate=1.0, burst=1.0, limit=3)
    assert all(buckets.take(key, 0.0) for key in "abc")
    assert not buckets.take("a", 0.0)
    assert buckets.take("d", 0.0)
    assert len(buckets) == 3
    assert not buckets.take("a", 0.0)
    assert buckets.take("b", 0.0)


def test_limiter_bounds_one_address_over_all_peers() -> None:
    limiter = ProbeLimiter()
    sent = sum(limiter.allows(NodeId(peer), "203.0.113.9", second / 10) for second in range(100) for peer in range(50))
    assert sent <= c.HOST_PROBES_BURST + 10 * c.HOST_PROBES_PER_S


def test_limiter_bounds_one_peer_over_all_addresses() -> None:
    limiter = ProbeLimiter()
    sent = sum(limiter.allows(NodeId(1), f"198.51.100.{host}", second / 10) for second in range(100) for host in range(100))
    assert sent <= c.PEER_PROBES_BURST + 10 * c.PEER_PROBES_PER_S
    assert limiter.allows(NodeId(2), "192.0.2.1", 10.0)
