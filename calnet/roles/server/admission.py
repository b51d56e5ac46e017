"""Who may knock, and how often: pure bounds on connections that have not authenticated yet, and on datagrams, by where they come from.

A source is an IPv4 address (or its /24 for datagrams, whose source can be forged) or an IPv6 /64, packed. Time is an argument.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

MAX_UNAUTHENTICATED: Final = 2048
"""Connections at a time that have not proved a key."""
MAX_UNAUTHENTICATED_PER_SOURCE: Final = 256


def site_of(source: bytes) -> bytes:
    """Where a crowd comes from: a source's IPv6 /48, which one customer may hold whole, or its IPv4 address."""
    return source[:6]


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
