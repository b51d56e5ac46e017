"""The gate: identities, load and limits, in this order."""

from __future__ import annotations

from calnet.model import Source
from calnet.tunnel.constants import HANDSHAKE_BURST, SOURCE_BURST
from calnet.tunnel.cookie import CookieMemory
from calnet.tunnel.effects import SendCookie
from calnet.tunnel.gate import Gate, Refused
from calnet.wire.tunnel import COOKIE_REPLY_SIZE, CookieReply, Initiation, initiation_body, parse_handshake
from tests.tunnel.world import endpoint, private_key, seeded

NEW, OLD, OTHER = private_key("new"), private_key("old"), private_key("other")
HERE = Source(endpoint(1))


def _gate() -> Gate:
    gate = Gate(seeded("gate"))
    gate.set_identities([NEW, OLD])
    return gate


def _message(memory: CookieMemory, now: float = 0.0) -> tuple[bytes, Initiation]:
    datagram = memory.finish(initiation_body(9, bytes(108)), now)
    parsed = parse_handshake(datagram)
    assert isinstance(parsed, Initiation)
    return datagram, parsed


def _loaded(now: float = 0.0) -> Gate:
    gate = _gate()
    datagram, message = _message(CookieMemory(NEW.public))
    for _ in range(int(HANDSHAKE_BURST)):
        assert gate.admit(datagram, message, HERE, now) is NEW
    return gate


def test_admit_finds_the_identity_a_message_is_for() -> None:
    gate = _gate()
    assert gate.admit(*_message(CookieMemory(NEW.public)), HERE, 0.0) is NEW
    assert gate.admit(*_message(CookieMemory(OLD.public)), HERE, 0.0) is OLD
    assert gate.admit(*_message(CookieMemory(OTHER.public)), HERE, 0.0) == Refused()


def test_admit_under_load_gives_a_cookie_reply_and_then_lets_its_holder_in() -> None:
    gate = _loaded()
    memory = CookieMemory(NEW.public)
    refused = gate.admit(*_message(memory), HERE, 0.0)
    assert isinstance(refused, Refused)
    assert isinstance(refused.cookie, SendCookie)
    assert refused.cookie.reply_to == HERE
    assert len(refused.cookie.datagram) == COOKIE_REPLY_SIZE
    reply = parse_handshake(refused.cookie.datagram)
    assert isinstance(reply, CookieReply)
    assert reply.receiver == 9
    assert memory.receive(reply, 0.0)
    answers = [gate.admit(*_message(memory), HERE, 0.0) for _ in range(int(SOURCE_BURST) + 2)]
    assert answers == [NEW] * int(SOURCE_BURST) + [Refused()] * 2


def test_admit_under_load_a_bad_mac1_gets_not_even_a_cookie() -> None:
    gate = _loaded()
    assert gate.admit(*_message(CookieMemory(OTHER.public)), HERE, 0.0) == Refused()


def test_set_identities_keeps_cookies_given_for_a_key_that_stays() -> None:
    gate = _loaded()
    memory = CookieMemory(NEW.public)
    refused = gate.admit(*_message(memory), HERE, 0.0)
    assert isinstance(refused, Refused)
    assert refused.cookie is not None
    reply = parse_handshake(refused.cookie.datagram)
    assert isinstance(reply, CookieReply)
    memory.receive(reply, 0.0)
    gate.set_identities([OTHER, NEW])
    assert gate.admit(*_message(memory), HERE, 0.0) is NEW
