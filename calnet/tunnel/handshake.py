"""One handshake of the tunnel: Noise IKpsk2 in WireGuard's messages (WireGuard paper, section 5.4).

Functions without state of their own. Whether a message may be answered at all (mac1, load, who the peer is, its last timestamp) is `tunnel.py`'s to
decide; whether it is genuine is decided here. All raise AuthenticationError, and nothing else, for what another party sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from calnet.crypto.aead import Aead, has_aead
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.crypto.noise import ZERO_PSK, Handshake
from calnet.errors import AuthenticationError
from calnet.tunnel.constants import IDENTIFIER
from calnet.wire.tunnel import Initiation, Response, initiation_body, response_body


@dataclass(frozen=True, slots=True)
class Pending:
    """An initiation we sent and that waits for its response."""

    handshake: Handshake
    local_index: int
    remote_static: bytes


def begin(
    identity: PrivateKey,
    remote_static: bytes,
    psk: bytes | None,
    timestamp: bytes,
    local_index: int,
    random: RandomBytes,
    aead: Aead = Aead.CHACHA20_POLY1305,
) -> tuple[Pending, bytes]:
    """A new initiation to `remote_static`: what to keep, and the message up to mac1."""
    handshake = Handshake(
        initiator=True,
        static=identity,
        ephemeral=PrivateKey.generate(random),
        remote_static=remote_static,
        psk=psk or ZERO_PSK,
        prologue=IDENTIFIER,
        aead=aead,
    )
    noise = handshake.write_message(timestamp)
    return Pending(handshake, local_index, remote_static), initiation_body(local_index, noise, aead)


def read_initiation(identity: PrivateKey, message: Initiation, random: RandomBytes) -> tuple[Handshake, bytes, bytes]:
    """(handshake, initiator's static key, timestamp) of a genuine initiation to `identity`. Two Diffie-Hellmans."""
    if not has_aead(message.aead):
        raise AuthenticationError(f"no library here has {message.aead.value}")
    handshake = Handshake(initiator=False, static=identity, ephemeral=PrivateKey.generate(random), psk=ZERO_PSK, prologue=IDENTIFIER, aead=message.aead)
    timestamp = handshake.read_message(message.noise)
    remote_static = handshake.remote_static
    assert remote_static is not None
    return handshake, remote_static, timestamp


def respond(handshake: Handshake, psk: bytes | None, local_index: int, remote_index: int) -> tuple[bytes, tuple[bytes, bytes]]:
    """The response up to mac1, and the session's (sending, receiving) keys."""
    handshake.set_psk(psk or ZERO_PSK)
    noise = handshake.write_message(b"")
    return response_body(local_index, remote_index, noise, handshake.aead), handshake.split()


def finish(pending: Pending, message: Response) -> tuple[bytes, bytes]:
    """The session's (sending, receiving) keys from a genuine response. After an AuthenticationError the genuine one can still come."""
    if message.aead is not pending.handshake.aead:
        raise AuthenticationError("a response to another handshake than ours")
    pending.handshake.read_message(message.noise)
    return pending.handshake.split()
