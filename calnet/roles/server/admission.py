"""Who may knock, and how often: pure bounds on connections that have not authenticated yet, by where they come from.

A source is an IPv4 address or an IPv6 /64, packed (endpoints.source_network).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_UNAUTHENTICATED: Final = 2048
"""Connections at a time that have not proved a key."""
MAX_UNAUTHENTICATED_PER_SOURCE: Final = 256


def site_of(source: bytes) -> bytes:
    """Where a crowd comes from: a source's IPv6 /48, which one customer may hold whole, or its IPv4 address."""
    return source[:6]


class Place:
    """One connection's place at the gate. `cut` ends the connection; it is called at most once, and never after `Gate.leave`."""

    __slots__ = ("cut", "source")

    def __init__(self, source: bytes, cut: Callable[[], object]) -> None:
        self.source = source
        self.cut = cut


class Gate:
    """Holds a place for each connection that has not authenticated. Where all are taken, the oldest of the most crowded site is cut off for a new one."""

    def __init__(self, limit: int = MAX_UNAUTHENTICATED, per_source: int = MAX_UNAUTHENTICATED_PER_SOURCE) -> None:
        self._limit = limit
        self._per_source = per_source
        self._by_source: dict[bytes, int] = {}
        self._by_site: dict[bytes, dict[Place, None]] = {}
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def enter(self, source: bytes, cut: Callable[[], object], *, trusted: bool = False) -> Place | None:
        """A place for one more from `source`; None where too many of that source have one, which does not hold for a trusted one (a proxy)."""
        if not trusted and self._by_source.get(source, 0) >= self._per_source:
            return None
        if self._total >= self._limit:
            self._make_room()
        place = Place(source, cut)
        self._by_source[source] = self._by_source.get(source, 0) + 1
        self._by_site.setdefault(site_of(source), {})[place] = None
        self._total += 1
        return place

    def leave(self, place: Place) -> None:
        """It has authenticated, or is gone. Nothing happens where it was cut off."""
        site = self._by_site.get(site_of(place.source), {})
        if place not in site:
            return
        del site[place]
        if not site:
            del self._by_site[site_of(place.source)]
        self._by_source[place.source] -= 1
        if not self._by_source[place.source]:
            del self._by_source[place.source]
        self._total -= 1

    def _make_room(self) -> None:
        oldest = next(iter(self._by_site[max(self._by_site, key=lambda site: len(self._by_site[site]))]))
        self.leave(oldest)
        oldest.cut()
