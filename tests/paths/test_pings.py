from __future__ import annotations

import random

from calnet.model import Endpoint, NodeId
from calnet.paths import constants as c
from calnet.paths.pings import Pings

ONE, OTHER = NodeId(1), NodeId(2)
WHERE = Endpoint("203.0.113.9", 9)


def test_ping_is_answered_once_and_by_its_peer() -> None:
    pings = Pings(random.Random(1).randbytes)
    token = pings.new(ONE, WHERE, 10.0)
    assert pings.answered(token, OTHER, 10.1) is None
    assert pings.answered(bytes(12), ONE, 10.1) is None
    found = pings.answered(token, ONE, 10.1)
    assert found is not None
    assert (found.endpoint, found.sent_at, found.explicit) == (WHERE, 10.0, False)
    assert pings.answered(token, ONE, 10.1) is None


def test_late_answer_counts_for_nothing_unless_somebody_waits() -> None:
    pings = Pings(random.Random(1).randbytes)
    token, explicit = pings.new(ONE, WHERE, 0.0), pings.new(ONE, None, 0.0, explicit=True)
    assert pings.answered(token, ONE, c.PROBE_TIMEOUT + 0.1) is None
    assert pings.answered(explicit, ONE, c.PROBE_TIMEOUT + 0.1) is not None


def test_pings_unanswered_are_bounded_in_number_and_age() -> None:
    pings = Pings(random.Random(1).randbytes)
    first = pings.new(ONE, WHERE, 0.0)
    for _ in range(c.MAX_PENDING):
        pings.new(ONE, WHERE, 1.0)
    assert len(pings) == c.MAX_PENDING
    assert pings.answered(first, ONE, 1.0) is None
    pings.new(ONE, WHERE, 100.0)
    assert len(pings) == 1
