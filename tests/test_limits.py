from __future__ import annotations

from calnet.limits import RateLimiter


def test_rate_limiter_allows_the_burst_and_then_the_rate() -> None:
    limiter = RateLimiter(rate=2.0, burst=3.0)
    assert [limiter.allow(b"a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [limiter.allow(b"a", 1.0) for _ in range(3)] == [True, True, False]
    assert limiter.allow(b"b", 1.0)


def test_rate_limiter_gives_its_burst_then_its_rate_and_never_more() -> None:
    limiter = RateLimiter(rate=8.0, burst=5.0, capacity=8)
    assert sum(limiter.allow("a", 0.0) for _ in range(20)) == 5
    assert sum(limiter.allow("a", eighth / 8) for eighth in range(1, 33)) == 32
    assert sum(limiter.allow("a", 1_000.0) for _ in range(20)) == 5
    assert limiter.allow("b", 1_000.0)


def test_rate_limiter_beyond_its_capacity_forgets_the_longest_unused() -> None:
    limiter = RateLimiter(rate=0.0, burst=1.0, capacity=2)
    assert limiter.allow(b"a", 0.0)
    assert limiter.allow(b"b", 0.0)
    assert not limiter.allow(b"a", 1.0)
    assert limiter.allow(b"c", 2.0)
    assert limiter.allow(b"b", 3.0)


def test_rate_limiter_is_bounded() -> None:
    limiter = RateLimiter(rate=1.0, burst=1.0, capacity=3)
    assert all(limiter.allow(key, 0.0) for key in "abc")
    assert not limiter.allow("a", 0.0)
    assert limiter.allow("d", 0.0)
    assert len(limiter) == 3
    assert not limiter.allow("a", 0.0)
    assert limiter.allow("b", 0.0)
