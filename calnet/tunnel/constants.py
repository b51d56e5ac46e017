"""The tunnel's numbers, named as WireGuard names them (paper, section 6.1, and its reference implementations). Times in seconds."""

from __future__ import annotations

from typing import Final

from calnet.crypto.aead import Aead

# --- Protocol: both sides rely on these. ---

IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
"""The Noise prologue."""
LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"

REKEY_AFTER_MESSAGES: Final = 2**60
"""After so many messages sent under a session, a new handshake begins."""
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1
"""No message is sent or accepted with this counter or a higher one."""
MESSAGE_LIMITS: Final = {Aead.CHACHA20_POLY1305: (REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES), Aead.AES_256_GCM: (2**31, 2**32)}
"""Messages sent under a session before a new handshake begins, and before no more are. AES-GCM's advantage for an attacker grows with the square of its
blocks: 2^32 messages of 96 blocks leave it below 2^-50 (after RFC 9001, appendix B). No session lives long enough to send as many."""
REKEY_AFTER_TIME: Final = 120.0
"""The initiator of a session this old begins a new handshake when it sends."""
REJECT_AFTER_TIME: Final = 180.0
"""A session this old neither sends nor receives."""
REKEY_ATTEMPT_TIME: Final = 90.0
"""A handshake that gets no answer is given up after this."""
REKEY_TIMEOUT: Final = 5.0
"""Between two initiations to one peer at least, and between the attempts of one handshake."""
REKEY_TIMEOUT_JITTER: Final = 0.334
"""At most so much is added to REKEY_TIMEOUT, REKEY_AFTER_TIME and the new-handshake timer."""
KEEPALIVE_TIMEOUT: Final = 10.0
"""Who received data and sent nothing for so long sends a keepalive."""
COOKIE_REFRESH_TIME: Final = 120.0
"""A cookie holds for so long, and so does the secret it was made with."""
HANDSHAKE_INITIATION_RATE: Final = 0.020
"""A peer's initiation this soon after its last one is dropped."""
TIMESTAMP_STEP_NS: Final = 2**24
"""Timestamps are cut to 16.7 ms, so that they give away little of the sender's clock; at least this lies between two of one sender."""

REPLAY_WINDOW: Final = 8192
"""Counters behind the greatest accepted that are still told apart; at least 8,192."""

# --- Implementation: each side may choose. ---

MAX_CLOCK_AHEAD: Final = 600.0
"""An initiation dated further ahead of server time is dropped: accepting it would shut out the sender's later ones (CVE-2021-46873)."""
MAX_HANDSHAKE_ATTEMPTS: Final = int(REKEY_ATTEMPT_TIME / REKEY_TIMEOUT)
NEW_HANDSHAKE_TIMEOUT: Final = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
"""Data was sent and nothing came back for so long: the session is taken for dead at the other end."""
REKEY_WHEN_RECEIVING_AFTER: Final = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
"""The initiator of a session this old begins a new handshake even if it only receives."""
FORGET_AFTER: Final = 3 * REJECT_AFTER_TIME
"""All key material of a peer is forgotten when no session was derived for so long."""

HANDSHAKES_PER_SECOND: Final = 100.0
"""More handshake messages with a valid mac1 than this, sustained, and we are under load: a handshake costs some 0.3 ms here."""
HANDSHAKE_BURST: Final = 200.0
UNDER_LOAD_FOR: Final = 1.0
"""Load is assumed for so long after the last sign of it."""
SOURCE_HANDSHAKES_PER_SECOND: Final = 20.0
"""Under load, so many handshake messages of one proven source address are looked at."""
SOURCE_BURST: Final = 5.0
MAX_SOURCES: Final = 8192
"""Sources remembered for that limit."""
