"""The sessions' times in seconds, one value so that tests can shorten them."""

from __future__ import annotations

from dataclasses import dataclass

from calnet.wire import relay
from calnet.wire.control import GATHER_S, KEEPALIVE_S, SILENCE_LIMIT_S


@dataclass(frozen=True, slots=True)
class Timing:
    """See the fields."""

    handshake_s: float = 10.0
    """From the connection to the handshake's first message."""
    confirm_s: float = 40.0
    """From the handshake to the first message that proves the key; a node with nothing to say sends a keepalive before that."""
    keepalive_s: float = KEEPALIVE_S
    silence_s: float = SILENCE_LIMIT_S
    gather_s: float = GATHER_S
    relay_keepalive_s: float = 0.9 * relay.KEEPALIVE_S
    """The server asks before the client does: then an idle client sends one packet, its answer, rather than two."""
    relay_silence_s: float = relay.SILENCE_LIMIT_S
    housekeeping_s: float = 30.0
    """The longest time between two runs, so that a clock set forward is noticed."""
    drain_s: float = 1.0
    """What an ended session may still take to send why."""
