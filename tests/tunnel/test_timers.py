"""One peer's timers, event by event."""

from __future__ import annotations

import pytest

from calnet.tunnel.constants import FORGET_AFTER, KEEPALIVE_TIMEOUT, NEW_HANDSHAKE_TIMEOUT, REKEY_TIMEOUT
from calnet.tunnel.timers import NEVER, PeerTimers


def test_new_timers_have_no_deadline() -> None:
    assert PeerTimers().earliest() == NEVER


def test_data_sent_waits_for_an_answer_from_the_first_packet_on() -> None:
    timers = PeerTimers()
    timers.jitter = 0.25
    timers.sent(10.0, data=True)
    timers.sent(12.0, data=True)
    assert timers.new_handshake_at == 10.0 + NEW_HANDSHAKE_TIMEOUT + 0.25
    timers.received(13.0, data=False)
    assert timers.new_handshake_at == NEVER


def test_keepalive_sent_waits_for_no_answer() -> None:
    timers = PeerTimers()
    timers.sent(10.0, data=False)
    assert timers.earliest() == NEVER


def test_data_received_asks_for_a_keepalive_until_something_is_sent() -> None:
    timers = PeerTimers()
    timers.received(10.0, data=True)
    timers.received(12.0, data=True)
    assert timers.earliest() == timers.keepalive_at == 10.0 + KEEPALIVE_TIMEOUT
    timers.sent(13.0, data=True)
    assert timers.keepalive_at == NEVER


def test_keepalive_received_asks_for_none() -> None:
    timers = PeerTimers()
    timers.received(10.0, data=False)
    assert timers.earliest() == NEVER


@pytest.mark.parametrize("event", ["sent", "received"])
def test_persistent_keepalive_counts_from_any_packet(event: str) -> None:
    timers = PeerTimers()
    timers.set_persistent(25, 10.0)
    assert timers.persistent_at == 10.0
    getattr(timers, event)(20.0, data=False)
    assert timers.persistent_at == 45.0
    timers.set_persistent(25, 30.0)
    assert timers.persistent_at == 45.0
    timers.set_persistent(0, 30.0)
    assert timers.persistent_at == NEVER


def test_handshake_retries_until_completed() -> None:
    timers = PeerTimers()
    timers.jitter = 0.125
    timers.initiated(10.0)
    assert (timers.attempts, timers.retry_at) == (1, 10.0 + REKEY_TIMEOUT + 0.125)
    timers.initiated(15.5)
    assert timers.attempts == 2
    timers.completed()
    assert (timers.attempts, timers.retry_at) == (0, NEVER)


def test_abandoned_handshake_leaves_only_forgetting() -> None:
    timers = PeerTimers()
    timers.derived(10.0)
    timers.initiated(10.0)
    timers.received(10.0, data=True)
    timers.new_handshake_at = 11.0
    timers.abandon_handshake()
    assert timers.earliest() == timers.forget_at == 10.0 + FORGET_AFTER
