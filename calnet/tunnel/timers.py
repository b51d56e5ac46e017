"""One peer's timers (WireGuard paper, section 6): deadlines as plain floats, infinite where a timer does not run.

The data path reports what was sent and received; `Tunnel` asks which deadlines have passed and acts. A deadline moved later or cancelled is not
announced: whoever sleeps until `earliest()` wakes once too early and asks again, which costs less than keeping a queue in order for each packet.
"""

from __future__ import annotations

from typing import Final

from calnet.tunnel.constants import FORGET_AFTER, KEEPALIVE_TIMEOUT, NEW_HANDSHAKE_TIMEOUT, REKEY_TIMEOUT

NEVER: Final = float("inf")


class PeerTimers:
    """Attributes ending in `_at` are deadlines in monotonic seconds. `jitter` (seconds) is drawn anew for each handshake; `persistent_s` 0 is off."""

    __slots__ = ("attempts", "forget_at", "jitter", "keepalive_at", "new_handshake_at", "persistent_at", "persistent_s", "retry_at")

    def __init__(self) -> None:
        self.attempts = 0
        """Initiations sent in a row without an answer."""
        self.jitter = 0.0
        self.persistent_s = 0
        self.retry_at = NEVER
        """The handshake under way is tried again."""
        self.keepalive_at = NEVER
        """Data came and nothing went: a passive keepalive is due."""
        self.new_handshake_at = NEVER
        """Data went and nothing came: the session is taken for dead."""
        self.persistent_at = NEVER
        self.forget_at = NEVER
        """No session was derived for so long that everything is forgotten."""

    def earliest(self) -> float:
        """The first deadline."""
        return min(self.retry_at, self.keepalive_at, self.new_handshake_at, self.persistent_at, self.forget_at)

    def sent(self, now: float, *, data: bool) -> None:
        """An authenticated packet went out."""
        self.keepalive_at = NEVER
        if data and self.new_handshake_at == NEVER:
            self.new_handshake_at = now + NEW_HANDSHAKE_TIMEOUT + self.jitter
        if self.persistent_s:
            self.persistent_at = now + self.persistent_s

    def received(self, now: float, *, data: bool) -> None:
        """An authenticated packet came in."""
        self.new_handshake_at = NEVER
        if data and self.keepalive_at == NEVER:
            self.keepalive_at = now + KEEPALIVE_TIMEOUT
        if self.persistent_s:
            self.persistent_at = now + self.persistent_s

    def initiated(self, now: float) -> None:
        """An initiation went out."""
        self.attempts += 1
        self.retry_at = now + REKEY_TIMEOUT + self.jitter
        self.sent(now, data=False)

    def derived(self, now: float) -> None:
        """A session was derived, confirmed or not."""
        self.forget_at = now + FORGET_AFTER

    def completed(self) -> None:
        """The handshake is over: both sides have the session."""
        self.attempts = 0
        self.retry_at = NEVER

    def abandon_handshake(self) -> None:
        """Given up, until something is sent again."""
        self.attempts = 0
        self.retry_at = NEVER
        self.keepalive_at = NEVER
        self.new_handshake_at = NEVER

    def set_persistent(self, seconds: int, now: float) -> None:
        """Persistent keepalive every `seconds`, the first at once; 0 turns it off."""
        if seconds != self.persistent_s:
            self.persistent_s = seconds
            self.persistent_at = now if seconds else NEVER
