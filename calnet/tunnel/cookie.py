"""Denial of service (WireGuard paper, section 5.4.4 and 5.4.7): mac1, mac2, cookies, and the judgement whether we are under load.

mac1 proves that the sender knows our public key, at the cost of a hash. Under load mac2 proves as well that it receives at the address it sends from:
it is keyed with a cookie, which is a MAC of that address under a secret of ours that changes every two minutes, so nothing is stored for it. A cookie
reply is 64 bytes, shorter than either message it answers.
"""

from __future__ import annotations

from calnet.crypto.box import xopen, xseal
from calnet.crypto.hash import blake2s, equal, mac
from calnet.crypto.keys import RandomBytes
from calnet.errors import AuthenticationError
from calnet.model import Source
from calnet.tunnel.constants import (
    COOKIE_REFRESH_TIME,
    HANDSHAKE_BURST,
    HANDSHAKES_PER_SECOND,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAX_SOURCES,
    SOURCE_BURST,
    SOURCE_HANDSHAKES_PER_SECOND,
    UNDER_LOAD_FOR,
)
from calnet.wire.endpoints import source_network
from calnet.wire.tunnel import COOKIE_NONCE_SIZE, MAC_SIZE, CookieReply, build_handshake

NO_MAC2 = bytes(MAC_SIZE)
_SECRET_SIZE = 32


def source_bytes(source: Source) -> bytes:
    """What a cookie is bound to: the UDP address and port, or the relayed peer."""
    return f"udp {source.endpoint}".encode() if source.endpoint is not None else f"relay {source.relay_peer}".encode()


def source_group(source: Source) -> bytes:
    """What shares one limit under load: an address, an IPv6 /64, a relayed peer."""
    return f"relay {source.relay_peer}".encode() if source.endpoint is None else source_network(source.endpoint.host)


class CookieChecker:
    """The side that is asked: checks the MACs of messages addressed to one static key, and makes cookie replies."""

    def __init__(self, public: bytes, random: RandomBytes) -> None:
        self._mac1_key = blake2s(LABEL_MAC1, public)
        self._cookie_key = blake2s(LABEL_COOKIE, public)
        self._random = random
        self._secret = b""
        self._secret_until = float("-inf")

    def mac1_holds(self, datagram: bytes) -> bool:
        """Whether mac1 of a whole initiation or response is right: the sender knows this static key."""
        return equal(mac(self._mac1_key, datagram[: -2 * MAC_SIZE]), datagram[-2 * MAC_SIZE : -MAC_SIZE])

    def mac2_holds(self, datagram: bytes, source: Source, now: float) -> bool:
        """Whether mac2 was made with a cookie that we gave to this source in the last two minutes."""
        if now >= self._secret_until:
            return False
        return equal(mac(self._cookie(source), datagram[:-MAC_SIZE]), datagram[-MAC_SIZE:])

    def reply(self, datagram: bytes, sender: int, source: Source, now: float) -> bytes:
        """The cookie reply to a message with a valid mac1 whose sender index is `sender`."""
        if now >= self._secret_until:
            self._secret = self._random(_SECRET_SIZE)
            self._secret_until = now + COOKIE_REFRESH_TIME
        nonce = self._random(COOKIE_NONCE_SIZE)
        sealed = xseal(self._cookie_key, nonce, self._cookie(source), datagram[-2 * MAC_SIZE : -MAC_SIZE])
        return build_handshake(CookieReply(sender, nonce, sealed))

    def _cookie(self, source: Source) -> bytes:
        return mac(self._secret, source_bytes(source))


class CookieMemory:
    """The side that asks: puts the MACs on what we send to one static key of a peer, and keeps the cookie it gave us."""

    def __init__(self, remote_static: bytes) -> None:
        self.remote_static = remote_static
        self._mac1_key = blake2s(LABEL_MAC1, remote_static)
        self._cookie_key = blake2s(LABEL_COOKIE, remote_static)
        self._last_mac1 = b""
        self._cookie = b""
        self._cookie_until = float("-inf")

    def finish(self, body: bytes, now: float) -> bytes:
        """A message with its mac1, and its mac2 where a fresh cookie is known; `body` is all before mac1."""
        self._last_mac1 = mac(self._mac1_key, body)
        with_mac1 = body + self._last_mac1
        return with_mac1 + (mac(self._cookie, with_mac1) if now < self._cookie_until else NO_MAC2)

    def receive(self, reply: CookieReply, now: float) -> bool:
        """Keeps the cookie of a reply to our last message, for the next one. False, and nothing changed, if it does not authenticate."""
        if not self._last_mac1:
            return False
        try:
            cookie = xopen(self._cookie_key, reply.nonce, reply.sealed, self._last_mac1)
        except AuthenticationError:
            return False
        self._cookie = cookie
        self._cookie_until = now + COOKIE_REFRESH_TIME
        self._last_mac1 = b""
        return True


class LoadMeter:
    """Whether so many handshake messages arrive that a cookie is asked for: a token bucket that ran dry within the last second."""

    def __init__(self) -> None:
        self._tokens = HANDSHAKE_BURST
        self._at = float("-inf")
        self._loaded_until = float("-inf")

    def under_load(self, now: float) -> bool:
        """Counts one message with a valid mac1 and tells whether we are under load."""
        self._tokens = min(HANDSHAKE_BURST, self._tokens + (now - self._at) * HANDSHAKES_PER_SECOND)
        self._at = now
        if self._tokens < 1.0:
            self._loaded_until = now + UNDER_LOAD_FOR
        else:
            self._tokens -= 1.0
        return now < self._loaded_until


class SourceLimiter:
    """Under load, at most so many proven messages per source: a token bucket each, the table bounded by forgetting all that are full again."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, tuple[float, float]] = {}

    def allows(self, source: Source, now: float) -> bool:
        """Counts one message of this source; whether it is to be looked at."""
        group = source_group(source)
        tokens, at = self._buckets.get(group, (SOURCE_BURST, now))
        tokens = min(SOURCE_BURST, tokens + (now - at) * SOURCE_HANDSHAKES_PER_SECOND)
        allowed = tokens >= 1.0
        if group not in self._buckets and len(self._buckets) >= MAX_SOURCES:
            self._forget(now)
            if len(self._buckets) >= MAX_SOURCES:
                return False
        self._buckets[group] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def _forget(self, now: float) -> None:
        refill = SOURCE_BURST / SOURCE_HANDSHAKES_PER_SECOND
        self._buckets = {group: bucket for group, bucket in self._buckets.items() if now - bucket[1] < refill}
