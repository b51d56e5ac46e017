from __future__ import annotations

import pytest

from calnet.model import Endpoint
from calnet.paths import choice

LAN4, LAN6 = Endpoint("192.168.1.2", 1), Endpoint("fd00::2", 1)
WAN4, WAN6 = Endpoint("203.0.113.9", 1), Endpoint("2001:db8::9", 1)


def test_order_is_private_before_public_and_ipv6_before_ipv4() -> None:
    assert sorted([WAN4, LAN4, WAN6, LAN6], key=choice.order_key) == [LAN6, LAN4, WAN6, WAN4]


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        pytest.param((WAN4, 0.010), (WAN4, 0.030), True, id="much quicker"),
        pytest.param((WAN4, 0.029), (WAN4, 0.030), False, id="hardly quicker"),
        pytest.param((WAN4, 0.030), (WAN4, 0.030), False, id="the same"),
        pytest.param((LAN4, 0.005), (WAN4, 0.005), True, id="private"),
        pytest.param((WAN4, 0.004), (LAN4, 0.005), False, id="public"),
        pytest.param((LAN4, 0.0001), (LAN4, 0.001), False, id="less than 2 ms"),
        pytest.param((WAN6, 0.030), (WAN4, 0.030), False, id="IPv6 alone"),
        pytest.param((WAN6, 0.025), (WAN4, 0.032), True, id="IPv6 tips it"),
        pytest.param((WAN4, 0.025), (WAN4, 0.032), False, id="without IPv6 it does not"),
    ],
)
def test_better_path_needs_a_margin(new: tuple[Endpoint, float], old: tuple[Endpoint, float], better: bool) -> None:
    assert choice.is_better(new, old) is better


def test_better_is_never_mutual() -> None:
    paths = [(endpoint, rtt) for endpoint in (LAN4, LAN6, WAN4, WAN6) for rtt in (0.0, 0.001, 0.01, 0.02, 0.1)]
    assert not [(one, other) for one in paths for other in paths if choice.is_better(one, other) and choice.is_better(other, one)]


def test_smoothed_round_trip_starts_with_the_sample_and_follows_by_an_eighth() -> None:
    assert choice.smooth(None, 0.080) == 0.080
    assert choice.smooth(0.080, 0.160) == pytest.approx(0.090)


@pytest.mark.parametrize(("rtt", "seconds"), [(None, 0.8), (0.02, 0.8), (0.2, 0.8), (0.6, 1.3)])
def test_doubt_waits_longer_where_a_round_trip_does(rtt: float | None, seconds: float) -> None:
    assert choice.doubt_after(rtt) == pytest.approx(seconds)


def test_probe_rounds_are_those_of_the_protocol() -> None:
    assert [choice.probe_offset(step) for step in range(7)] == [0.0, 0.2, 0.5, 1.0, 2.0, 7.0, 12.0]


def test_hold_doubles_up_to_ten_minutes() -> None:
    assert [choice.hold_time(times) for times in (1, 2, 3, 4, 5, 1_000)] == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
