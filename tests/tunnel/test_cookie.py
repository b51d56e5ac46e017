"""MACs, cookies, the load judgement and the limit per source."""

from __future__ import annotations

import pytest

from calnet.crypto.hash import blake2s, mac
from calnet.model import Endpoint, NodeId, Source
from calnet.tunnel.constants import COOKIE_REFRESH_TIME, HANDSHAKE_BURST, HANDSHAKES_PER_SECOND, MAX_SOURCES, SOURCE_BURST, UNDER_LOAD_FOR
from calnet.tunnel.cookie import NO_MAC2, CookieChecker, CookieMemory, LoadMeter, SourceLimiter, source_group
from calnet.wire.tunnel import CookieReply, parse_handshake
from tests.tunnel.world import private_key, seeded

PUBLIC = private_key("responder").public
BODY = b"body of a message"
HERE = Source(Endpoint("192.0.2.1", 1000))
ELSEWHERE = [Source(Endpoint("192.0.2.1", 1001)), Source(Endpoint("192.0.2.2", 1000)), Source(None, NodeId(1))]


def _ends() -> tuple[CookieChecker, CookieMemory]:
    return CookieChecker(PUBLIC, seeded("cookie")), CookieMemory(PUBLIC)


def _reply(checker: CookieChecker, message: bytes, source: Source = HERE, now: float = 0.0) -> CookieReply:
    parsed = parse_handshake(checker.reply(message, 7, source, now))
    assert isinstance(parsed, CookieReply)
    return parsed


def test_mac1_is_keyed_by_the_receivers_public_key() -> None:
    checker, memory = _ends()
    message = memory.finish(BODY, 0.0)
    assert message == BODY + mac(blake2s(b"mac1----", PUBLIC), BODY) + NO_MAC2
    assert checker.mac1_holds(message)
    assert not CookieChecker(private_key("other").public, seeded("x")).mac1_holds(message)


def test_mac1_any_flipped_byte_before_mac2_does_not_hold() -> None:
    checker, memory = _ends()
    message = memory.finish(BODY, 0.0)
    for at in range(len(message) - 16):
        assert not checker.mac1_holds(message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :])


def test_cookie_reply_lets_the_next_message_prove_its_address() -> None:
    checker, memory = _ends()
    first = memory.finish(BODY, 0.0)
    assert not checker.mac2_holds(first, HERE, 0.0)
    reply = _reply(checker, first)
    assert reply.receiver == 7
    assert memory.receive(reply, 0.0)
    second = memory.finish(BODY, 1.0)
    assert checker.mac1_holds(second)
    assert checker.mac2_holds(second, HERE, 1.0)
    for source in ELSEWHERE:
        assert not checker.mac2_holds(second, source, 1.0)


def test_cookie_by_relay_is_bound_to_the_peer() -> None:
    checker, memory = _ends()
    relayed = Source(None, NodeId(5))
    memory.receive(_reply(checker, memory.finish(BODY, 0.0), relayed), 0.0)
    message = memory.finish(BODY, 0.0)
    assert checker.mac2_holds(message, relayed, 0.0)
    assert not checker.mac2_holds(message, Source(None, NodeId(6)), 0.0)


def test_cookie_holds_for_two_minutes_on_both_sides() -> None:
    checker, memory = _ends()
    memory.receive(_reply(checker, memory.finish(BODY, 0.0)), 0.0)
    late = COOKIE_REFRESH_TIME - 1
    message = memory.finish(BODY, late)
    assert checker.mac2_holds(message, HERE, late)
    assert not checker.mac2_holds(message, HERE, COOKIE_REFRESH_TIME)
    assert memory.finish(BODY, COOKIE_REFRESH_TIME)[-16:] == NO_MAC2


def test_cookie_secret_is_drawn_anew_after_two_minutes() -> None:
    checker, memory = _ends()
    memory.receive(_reply(checker, memory.finish(BODY, 0.0)), 0.0)
    message = memory.finish(BODY, 0.0)
    _reply(checker, message, now=COOKIE_REFRESH_TIME)
    assert not checker.mac2_holds(message, HERE, COOKIE_REFRESH_TIME)


def test_cookie_reply_forged_or_replayed_changes_nothing() -> None:
    checker, memory = _ends()
    assert not memory.receive(CookieReply(7, bytes(24), bytes(32)), 0.0)
    earlier = _reply(checker, memory.finish(b"earlier", 0.0))
    first = memory.finish(BODY, 0.0)
    assert not memory.receive(earlier, 0.0)
    genuine = _reply(checker, first)
    for forged in (CookieReply(7, genuine.nonce, genuine.sealed[:-1] + b"\0"), CookieReply(7, bytes(24), genuine.sealed)):
        assert not memory.receive(forged, 0.0)
    assert memory.receive(genuine, 0.0)
    assert not memory.receive(genuine, 0.0)


def test_load_meter_a_burst_is_no_load_but_more_is_and_it_passes() -> None:
    meter = LoadMeter()
    assert not any(meter.under_load(100.0) for _ in range(int(HANDSHAKE_BURST)))
    assert meter.under_load(100.0)
    assert meter.under_load(100.0 + UNDER_LOAD_FOR / 2)
    assert not meter.under_load(100.0 + 2 * UNDER_LOAD_FOR)


def test_load_meter_a_sustained_rate_below_the_limit_is_no_load() -> None:
    meter = LoadMeter()
    assert not any(meter.under_load(number / (HANDSHAKES_PER_SECOND * 0.9)) for number in range(2000))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Source(Endpoint("192.0.2.1", 1)), Source(Endpoint("192.0.2.1", 2)), True),
        (Source(Endpoint("192.0.2.1", 1)), Source(Endpoint("192.0.2.2", 1)), False),
        (Source(Endpoint("2001:db8::1", 1)), Source(Endpoint("2001:db8:0:0:ffff::2", 1)), True),
        (Source(Endpoint("2001:db8:0:1::1", 1)), Source(Endpoint("2001:db8::1", 1)), False),
        (Source(Endpoint("1:2:3:4:5:6:7:8", 1)), Source(Endpoint("1:2:3:4::", 1)), True),
        (Source(Endpoint("::1", 1)), Source(Endpoint("::2", 1)), True),
        (Source(None, NodeId(1)), Source(None, NodeId(2)), False),
    ],
)
def test_source_group_is_an_address_or_a_64(one: Source, other: Source, same: bool) -> None:
    assert (source_group(one) == source_group(other)) is same


def test_source_limiter_allows_a_burst_then_a_rate_and_each_source_its_own() -> None:
    limiter = SourceLimiter()
    assert [limiter.allows(HERE, 0.0) for _ in range(7)] == [True] * int(SOURCE_BURST) + [False] * 2
    assert limiter.allows(ELSEWHERE[1], 0.0)
    assert limiter.allows(HERE, 0.06)
    assert not limiter.allows(HERE, 0.06)


def test_source_limiter_is_bounded_and_forgets_what_has_refilled() -> None:
    limiter = SourceLimiter()
    for number in range(MAX_SOURCES):
        assert limiter.allows(Source(None, NodeId(number)), 0.0)
    assert not limiter.allows(HERE, 0.1)
    assert limiter.allows(Source(None, NodeId(3)), 0.1)
    assert limiter.allows(HERE, 10.0)
