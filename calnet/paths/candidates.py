"""A peer's candidates: what it told, what its packets came from, what is known of each. Bounded and filtered, whatever a peer claims."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from calnet.model import Endpoint, Prefix
from calnet.paths import constants as c
from calnet.paths.choice import order_key
from calnet.wire.endpoints import is_candidate


@dataclass(slots=True)
class Candidate:
    """One endpoint. `told` in netmap or message, else seen as a source. Times are monotonic seconds."""

    endpoint: Endpoint
    told: bool
    named_at: float
    probed_at: float = c.LONG_AGO
    opened_at: float = c.LONG_AGO
    """Last probe that was to end on its way."""
    answered_at: float = c.LONG_AGO
    rtt_s: float | None = None
    held_until: float = c.LONG_AGO
    held_times: int = 0
    slow: bool = False
    """It was left because the relay carries more: without the relay it is as good as any."""

    def proven(self, now: float) -> bool:
        """Whether it answered a probe so lately that data may go there."""
        return now < self.answered_at + c.TRUST

    def held(self, now: float) -> bool:
        """Whether it was left because it carried no data, or too little."""
        return now < self.held_until


class CandidateTable:
    """At most 32 told and 8 seen candidates, 4 of one address; the one named longest ago goes first, but never `keep`, the path in use."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Endpoint, Candidate] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._known.values())

    def get(self, endpoint: Endpoint) -> Candidate | None:
        """What is known of `endpoint`, None where it is no candidate."""
        return self._known.get(endpoint)

    def tell(self, endpoints: Iterable[Endpoint], now: float, overlay: tuple[Prefix, ...], keep: Endpoint | None = None) -> bool:
        """Take what the peer says of itself; whether anything was new. What may not be probed is left out, and all beyond the first 32 usable ones."""
        usable = list(itertools.islice((endpoint for endpoint in dict.fromkeys(endpoints) if is_candidate(endpoint, overlay)), c.MAX_TOLD))
        for endpoint in usable:  # what is named again is no older than what is new
            if (known := self._known.get(endpoint)) is not None:
                known.named_at = now
        new = [endpoint for endpoint in usable if self._add(endpoint, now, told=True, keep=keep)]
        return bool(new)

    def see(self, endpoint: Endpoint, now: float, overlay: tuple[Prefix, ...], keep: Endpoint | None = None) -> Candidate | None:
        """An authenticated packet came from `endpoint`: its candidate, None where it may not be one."""
        if endpoint not in self._known:
            if not is_candidate(endpoint, overlay):
                return None
            self._add(endpoint, now, told=False, keep=keep)
        return self._known.get(endpoint)

    def ordered(self) -> list[Candidate]:
        """Private before public, IPv6 before IPv4, what answered lately first among equals."""
        return sorted(self._known.values(), key=lambda known: (*order_key(known.endpoint), -known.answered_at))

    def drop_overlay(self, overlay: tuple[Prefix, ...]) -> None:
        """The overlay's prefixes changed: forget what lies inside."""
        self._known = {endpoint: known for endpoint, known in self._known.items() if is_candidate(endpoint, overlay)}

    def _add(self, endpoint: Endpoint, now: float, *, told: bool, keep: Endpoint | None) -> bool:
        known = self._known.get(endpoint)
        if known is None:
            self._known[endpoint] = Candidate(endpoint, told, now)
        elif told and not known.told:
            known.told = True  # it counts among the others now
        else:
            return False
        self._evict(endpoint, told, keep)
        return known is None

    def _evict(self, added: Endpoint, told: bool, keep: Endpoint | None) -> None:
        self._bound([known for known in self if known.endpoint.host == added.host], c.MAX_PER_HOST, added, keep)
        self._bound([known for known in self if known.told == told], c.MAX_TOLD if told else c.MAX_SEEN, added, keep)

    def _bound(self, group: list[Candidate], limit: int, added: Endpoint, keep: Endpoint | None) -> None:
        if len(group) > limit:
            goes = (known for known in group if known.endpoint not in (added, keep))
            del self._known[min(goes, key=lambda known: (known.answered_at, known.named_at)).endpoint]


def own_candidates(local: Iterable[Endpoint], reflexive: Iterable[Endpoint], overlay: tuple[Prefix, ...]) -> tuple[Endpoint, ...]:
    """What we tell others of ourselves: usable ones, each once, best first, at most 16. Reflexive ones are never crowded out by many interfaces."""
    outside = [endpoint for endpoint in dict.fromkeys(reflexive) if is_candidate(endpoint, overlay)]
    inside = [endpoint for endpoint in dict.fromkeys(local) if is_candidate(endpoint, overlay) and endpoint not in outside]
    inside.sort(key=order_key)
    kept = inside[: max(0, c.MAX_OWN - len(outside))] + outside[: c.MAX_OWN]
    return tuple(sorted(kept, key=order_key))
