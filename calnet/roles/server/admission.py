"""Who may knock, and how often: pure bounds on connections that have not authenticated yet, and on datagrams, by where they come from.

A source is an IPv4 address (or its /24 for datagrams, whose source can be forged) or an IPv6 /64, packed. Time is an argument.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from typing import Final

MAX_UNAUTHENTICATED: Final = 2048
"""Connections at a time that have not proved a key."""
MAX_UNAUTHENTICATED_PER_SOURCE: Final = 256
MAX_BUCKETS: Final = 65_536


def source_of(host: str, *, v4_bits: int = 32) -> bytes:
    """The source that an address text belongs to; an IPv4-mapped address counts as IPv4. What is no address (a Unix socket, say) is a source of its own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.encode()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return address.packed[:8]
    packed = (address.ipv4_mapped or address).packed if isinstance(address, ipaddress.IPv6Address) else address.packed
    return packed[: v4_bits // 8]


class Gate:
    """Counts connections that have not authenticated, in all and by source."""

    def __init__(self, limit: int = MAX_UNAUTHENTICATED, per_source: int = MAX_UNAUTHENTICATED_PER_SOURCE) -> None:
        self._limit = limit
        self._per_source = per_source
        self._inside: Counter[bytes] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def enter(self, source: bytes, *, trusted: bool = False) -> bool:
        """Whether one more may come from `source`; True counts it. The bound by source does not hold for a trusted one (a proxy)."""
        if self._total >= self._limit or (not trusted and self._inside[source] >= self._per_source):
            return False
        self._inside[source] += 1
        self._total += 1
        return True

    def leave(self, source: bytes) -> None:
        """One that entered has authenticated, or has gone."""
        self._total -= 1
        self._inside[source] -= 1
        if self._inside[source] <= 0:
            del self._inside[source]


class RateLimiter:
    """A token bucket for each key: `rate` a second, `burst` at once. At most `capacity` buckets are kept, the longest unused forgotten first."""

    def __init__(self, rate: float, burst: float, capacity: int = MAX_BUCKETS) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def allow(self, key: bytes, now: float) -> bool:
        """Whether one more is allowed for `key` at `now`; True takes a token."""
        tokens, at = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return allowed
