from __future__ import annotations

import pytest

from calnet.model import NodeId
from calnet.paths import constants as c
from calnet.paths.limiter import DiscoveryLimiter

PEER, OTHER = NodeId(1), NodeId(2)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::{port:x}"])
def test_limiter_bounds_one_host_over_all_peers(host: str, told: bool) -> None:
    """Whoever has one IPv6 address has its /64."""
    limiter = DiscoveryLimiter()
    tries = [(NodeId(peer), host.format(port=peer), second / 10) for second in range(100) for peer in range(1, 50)]
    sent = sum(limiter.may_probe(peer, address, now, told=told) for peer, address, now in tries)
    assert sent <= c.HOST_PROBES_BURST + 10 * c.HOST_PROBES_PER_S


@pytest.mark.parametrize("told", [True, False])
def test_limiter_bounds_one_peer_over_all_hosts(told: bool) -> None:
    limiter = DiscoveryLimiter()
    sent = sum(limiter.may_probe(PEER, f"198.51.100.{host}", second / 10, told=told) for second in range(100) for host in range(100))
    assert sent <= c.PEER_PROBES_BURST + 10 * c.PEER_PROBES_PER_S
    assert limiter.may_probe(OTHER, "192.0.2.1", 10.0, told=told)


def test_probes_to_where_something_came_from_use_up_nothing_of_those_to_what_was_told() -> None:
    limiter = DiscoveryLimiter()
    for host in range(1, 255):
        for _ in range(50):
            limiter.may_probe(PEER, f"198.51.100.{host}", 0.0, told=False)
    assert limiter.may_probe(PEER, "198.51.100.1", 0.0, told=True)


def test_handshakes_and_probes_to_what_was_told_are_bounded_together() -> None:
    limiter = DiscoveryLimiter()
    sent = sum(limiter.may_shake_hands("203.0.113.9", 0.0) + limiter.may_probe(NodeId(peer), "203.0.113.9", 0.0, told=True) for peer in range(100))
    assert sent == c.HOST_PROBES_BURST


@pytest.mark.parametrize("relayed", [True, False])
def test_candidates_and_questions_are_counted_for_each_way(relayed: bool) -> None:
    limiter = DiscoveryLimiter()
    assert sum(limiter.takes_candidates(PEER, 0.0, relayed=relayed) for _ in range(100)) == c.TOLD_BURST
    assert sum(limiter.answers_question(PEER, 0.0, relayed=relayed) for _ in range(100)) == c.QUESTIONS_BURST
    assert sum(limiter.takes_candidates(PEER, 0.0, relayed=not relayed) for _ in range(100)) == c.TOLD_BURST
    assert sum(limiter.answers_question(PEER, 0.0, relayed=not relayed) for _ in range(100)) == c.QUESTIONS_BURST
    assert limiter.takes_candidates(OTHER, 0.0, relayed=relayed)
