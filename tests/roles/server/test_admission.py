"""Bounds on who may knock: the gate and the rate limiter."""

from __future__ import annotations

import pytest

from calnet.roles.server.admission import Gate, RateLimiter, source_of


@pytest.mark.parametrize(
    ("host", "bits", "expected"),
    [
        ("192.0.2.7", 32, b"\xc0\x00\x02\x07"),
        ("192.0.2.7", 24, b"\xc0\x00\x02"),
        ("::ffff:192.0.2.7", 24, b"\xc0\x00\x02"),
        ("2001:db8::1", 24, b"\x20\x01\x0d\xb8\0\0\0\0"),
        ("fe80::1%eth0", 32, b"\xfe\x80\0\0\0\0\0\0"),
        ("", 32, b""),
        ("testclient", 32, b"testclient"),
    ],
)
def test_source_of_an_address_is_its_network(host: str, bits: int, expected: bytes) -> None:
    assert source_of(host, v4_bits=bits) == expected


def test_gate_at_its_source_bound_refuses_that_source_alone() -> None:
    gate = Gate(limit=10, per_source=2)
    assert [gate.enter(b"a") for _ in range(3)] == [True, True, False]
    assert gate.enter(b"b")
    assert gate.enter(b"a", trusted=True)


def test_gate_at_its_whole_bound_refuses_everybody_until_one_leaves() -> None:
    gate = Gate(limit=2, per_source=2)
    assert gate.enter(b"a")
    assert gate.enter(b"b")
    assert not gate.enter(b"c", trusted=True)
    gate.leave(b"a")
    assert gate.enter(b"c")


def test_rate_limiter_allows_the_burst_and_then_the_rate() -> None:
    limiter = RateLimiter(rate=2.0, burst=3.0)
    assert [limiter.allow(b"a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [limiter.allow(b"a", 1.0) for _ in range(3)] == [True, True, False]
    assert limiter.allow(b"b", 1.0)


def test_rate_limiter_beyond_its_capacity_forgets_the_longest_unused() -> None:
    limiter = RateLimiter(rate=0.0, burst=1.0, capacity=2)
    assert limiter.allow(b"a", 0.0)
    assert limiter.allow(b"b", 0.0)
    assert not limiter.allow(b"a", 1.0)
    assert limiter.allow(b"c", 2.0)
    assert limiter.allow(b"b", 3.0)
