"""Discovery messages: probes for direct paths, their answers, and candidates. Integers are big-endian.

    message     magic `ca 17 01 00` | sender's discovery public key 32 | nonce 24 | NaCl box (crypto_box) of a payload, 16 bytes longer than it
    payload     kind u8 | sender's node key 32 | body
    1 ping      token 12 | zeros up to 64 bytes of payload (longer is allowed)
    2 pong      token 12 | packed endpoint 19: where the ping came from; all zeros: by relay
    3 candidates   count u8, at most 32 | packed endpoints 19 each

Ping and pong are equally long (140 bytes), so that an answer never amplifies. The box binds both discovery keys; the receiver checks that the node key
inside is one that its netmap gives to the owner of the sender's discovery key. Bytes after a body are ignored: a later version may use them.

Error contract: parsers raise WireError and nothing else; `open_message` raises AuthenticationError where the box does not open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from calnet.crypto.box import BOX_NONCE_SIZE, BOX_OVERHEAD, SharedBox
from calnet.crypto.keys import KEY_SIZE
from calnet.errors import WireError
from calnet.model import DiscoveryKey, Endpoint, NodeKey
from calnet.wire.endpoints import PACKED_SIZE, pack_endpoint, unpack_endpoint
from calnet.wire.tunnel import DISCOVERY_MAGIC

MAGIC: Final = DISCOVERY_MAGIC + b"\x01\x00"
"""DISCOVERY_MAGIC, version 1, and a zero."""
TOKEN_SIZE: Final = 12
MAX_CANDIDATES: Final = 32
HEADER_SIZE: Final = len(MAGIC) + KEY_SIZE + BOX_NONCE_SIZE
MAX_MESSAGE_SIZE: Final = 1_280
"""Longer ones are dropped unopened (implementation)."""
_PROBE_PAYLOAD_SIZE: Final = 64
_BODY: Final = 1 + KEY_SIZE
PROBE_SIZE: Final = HEADER_SIZE + BOX_OVERHEAD + _PROBE_PAYLOAD_SIZE

_PING: Final = 1
_PONG: Final = 2
_CANDIDATES: Final = 3
_UNSEEN: Final = bytes(PACKED_SIZE)


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong. `token` is 12 random bytes."""

    node_key: NodeKey
    token: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping. `seen` is the address that the ping came from, None if a relay brought it."""

    node_key: NodeKey
    token: bytes
    seen: Endpoint | None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Endpoints where the sender may be reached; the receiver should probe them now."""

    node_key: NodeKey
    endpoints: tuple[Endpoint, ...]


DiscoveryMessage = Ping | Pong | Candidates


@dataclass(frozen=True, slots=True)
class Sealed:
    """A discovery message unopened. `sender` is only claimed until the box opens."""

    sender: DiscoveryKey
    nonce: bytes
    box: bytes


def parse_sealed(datagram: bytes) -> Sealed:
    """The outer layout; WireError for anything else."""
    if not HEADER_SIZE + BOX_OVERHEAD + _BODY <= len(datagram) <= MAX_MESSAGE_SIZE or datagram[: len(MAGIC)] != MAGIC:
        raise WireError("not a discovery message")
    nonce_at = len(MAGIC) + KEY_SIZE
    return Sealed(DiscoveryKey(datagram[len(MAGIC) : nonce_at]), datagram[nonce_at:HEADER_SIZE], datagram[HEADER_SIZE:])


def open_message(box: SharedBox, sealed: Sealed) -> DiscoveryMessage:
    """The message inside. AuthenticationError if `box` does not open it, WireError if its payload is none."""
    return parse_payload(box.open(sealed.nonce, sealed.box))


def seal_message(box: SharedBox, sender: bytes, nonce: bytes, message: DiscoveryMessage) -> bytes:
    """The datagram. `sender` is our discovery public key, `nonce` 24 random bytes, never used twice."""
    return MAGIC + sender + nonce + box.seal(nonce, build_payload(message))


def build_payload(message: DiscoveryMessage) -> bytes:
    """What goes into the box. At most 32 candidates are written."""
    match message:
        case Ping():
            return (bytes((_PING,)) + message.node_key + message.token).ljust(_PROBE_PAYLOAD_SIZE, b"\0")
        case Pong():
            return bytes((_PONG,)) + message.node_key + message.token + (_UNSEEN if message.seen is None else pack_endpoint(message.seen))
        case Candidates():
            endpoints = message.endpoints[:MAX_CANDIDATES]
            return bytes((_CANDIDATES,)) + message.node_key + bytes((len(endpoints),)) + b"".join(map(pack_endpoint, endpoints))


def parse_payload(payload: bytes) -> DiscoveryMessage:
    """The opened box's content; WireError for anything that is no message."""
    if len(payload) < _BODY:
        raise WireError("a discovery payload is too short")
    kind, node_key, body = payload[0], NodeKey(payload[1:_BODY]), payload[_BODY:]
    if kind == _CANDIDATES:
        return Candidates(node_key, _parse_candidates(body))
    if kind not in (_PING, _PONG) or len(payload) < _PROBE_PAYLOAD_SIZE:
        raise WireError("a discovery payload of no known kind, or too short")
    token = body[:TOKEN_SIZE]
    if kind == _PING:
        return Ping(node_key, token)
    seen = body[TOKEN_SIZE : TOKEN_SIZE + PACKED_SIZE]
    return Pong(node_key, token, None if seen == _UNSEEN else unpack_endpoint(seen))


def _parse_candidates(body: bytes) -> tuple[Endpoint, ...]:
    count = body[0] if body else 0
    if count > MAX_CANDIDATES or len(body) < 1 + count * PACKED_SIZE:
        raise WireError("too many candidates, or fewer than announced")
    return tuple(unpack_endpoint(body[at : at + PACKED_SIZE]) for at in range(1, 1 + count * PACKED_SIZE, PACKED_SIZE))
