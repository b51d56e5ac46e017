"""The choices of path finding, each a small pure function."""

from __future__ import annotations

from calnet.model import Endpoint
from calnet.paths import constants as c
from calnet.wire.endpoints import is_private

_PUBLIC_COST = 0.010
_HYSTERESIS_SHARE = 0.8
_HYSTERESIS_S = 0.002
_IPV6_SHARE = 0.9


def order_key(endpoint: Endpoint) -> tuple[bool, bool]:
    """Sorts candidates: private before public, and of these IPv6 before IPv4."""
    return (not is_private(endpoint), ":" not in endpoint.host)


def path_cost(endpoint: Endpoint, rtt_s: float) -> float:
    """What a proven path costs, in seconds: its round trip, a tenth less for IPv6, 10 ms more for a public address."""
    share = _IPV6_SHARE if ":" in endpoint.host else 1.0
    return rtt_s * share + (0.0 if is_private(endpoint) else _PUBLIC_COST)


def is_better(new: tuple[Endpoint, float], old: tuple[Endpoint, float]) -> bool:
    """Whether to move from the (endpoint, round trip) `old` to `new`: a fifth and 2 ms cheaper, so that two equal paths don't alternate."""
    new_cost, old_cost = path_cost(*new), path_cost(*old)
    return new_cost < old_cost * _HYSTERESIS_SHARE and new_cost < old_cost - _HYSTERESIS_S


def smooth(old: float | None, sample: float) -> float:
    """The smoothed round trip (RFC 6298 section 2: 7/8 old, 1/8 new)."""
    return sample if old is None else old + (sample - old) / 8


def doubt_after(rtt_s: float | None) -> float:
    """How long a sending path may stay without an authenticated packet: 0.8 s, more where a round trip alone takes long."""
    return max(c.DOUBT_AFTER, c.ANSWER_DUE + 1.5 * (rtt_s or 0.0))


def check_time(rtt_s: float | None) -> float:
    """How long an answer may take where the peer seems not to hear us: 0.3 s, in which two probes go, more where a round trip alone takes long."""
    return max(c.CHECK_FOR, 1.5 * (rtt_s or 0.0))


def probe_offset(step: int) -> float:
    """When, from an attempt's start, its probe round number `step` (from 0) is due."""
    last = len(c.PROBE_OFFSETS) - 1
    return c.PROBE_OFFSETS[step] if step <= last else c.PROBE_OFFSETS[last] + c.PROBE_INTERVAL * (step - last)


def hold_time(times: int) -> float:
    """How long a path is not used after it was left for the `times`-th time (from 1) because it carried no data."""
    return min(c.HOLD_FIRST * 2.0 ** min(times - 1, 10), c.HOLD_LONGEST)
