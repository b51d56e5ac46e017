"""The gate before the handshake: which of our identities a message is for, and whether it may cost us a Diffie-Hellman."""

from __future__ import annotations

from dataclasses import dataclass

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.model import Source
from calnet.tunnel.cookie import CookieChecker, LoadMeter, SourceLimiter
from calnet.tunnel.effects import SendCookie
from calnet.wire.tunnel import Initiation, Response


@dataclass(frozen=True, slots=True)
class Refused:
    """The message is not to be looked at; `cookie` asks the sender to prove its address."""

    cookie: SendCookie | None = None


class Gate:
    """mac1 under the present and the previous identity, then, under load, mac2 and a limit per source. Keeps nothing of a message it refuses."""

    def __init__(self, random: RandomBytes) -> None:
        self._random = random
        self._doors: list[tuple[PrivateKey, CookieChecker]] = []
        self._load = LoadMeter()
        self._limiter = SourceLimiter()

    def set_identities(self, identities: list[PrivateKey]) -> None:
        """The static keys that answer, the present one first."""
        kept = {key.public: checker for key, checker in self._doors}
        self._doors = [(key, kept.get(key.public) or CookieChecker(key.public, self._random)) for key in identities]

    def admit(self, datagram: bytes, message: Initiation | Response, source: Source, now: float) -> PrivateKey | Refused:
        """The identity that the message is for, if it may go on."""
        door = next((door for door in self._doors if door[1].mac1_holds(datagram)), None)
        if door is None:
            return Refused()
        identity, checker = door
        if not self._load.under_load(now):
            return identity
        if not checker.mac2_holds(datagram, source, now):
            return Refused(SendCookie(source, checker.reply(datagram, message.sender, source, now)))
        return identity if self._limiter.allows(source, now) else Refused()
