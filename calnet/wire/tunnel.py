"""Tunnel datagrams: the four messages of WireGuard (WireGuard paper, section 5.4) and Calnet's own, bytes ↔ values; and what kind a datagram is.

All integers are little-endian. `tag` is an AEAD's 16 bytes.

    1 initiation, 148 bytes    type u8, 3 zero bytes, sender u32, ephemeral 32, static 32 + tag, timestamp 12 + tag, mac1 16, mac2 16
    2 response, 92 bytes       type u8, 3 zero bytes, sender u32, receiver u32, ephemeral 32, nothing + tag, mac1 16, mac2 16
    3 cookie reply, 64 bytes   type u8, 3 zero bytes, receiver u32, nonce 24, cookie 16 + tag
    4 transport, 32 or more    type u8, 3 zero bytes, receiver u32, counter u64, packet + tag
    5 chunk, 61 or more        type u8, 3 bytes of tunnel/chunks.py, receiver u32, counter u64, chunk and trailer + tag
    6 and 7                    as 1 and 2, of a handshake with AES-256-GCM: its session's types 4 and 5 are under that AEAD too

Of an initiation and a response, everything between the indices and mac1 is one Noise message. mac1 covers all before it, mac2 all before it, mac1
included. Parsers take the whole datagram, raise WireError for anything that is not exactly such a message, and check no cryptography.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from calnet.crypto.aead import Aead
from calnet.errors import WireError
from calnet.model import Buffer
from calnet.wire import stun


class MessageType(enum.IntEnum):
    """The first byte. 1 to 4 are WireGuard's; the others are for peers that announce them."""

    INITIATION = 1
    RESPONSE = 2
    COOKIE_REPLY = 3
    TRANSPORT = 4
    CHUNK = 5
    INITIATION_AES = 6
    RESPONSE_AES = 7


class DatagramKind(enum.Enum):
    """Who looks at a datagram next."""

    TUNNEL_HANDSHAKE = "tunnel handshake"
    TUNNEL_DATA = "tunnel data"
    DISCOVERY = "discovery"
    STUN = "STUN"
    UNKNOWN = "unknown"


INITIATION_SIZE: Final = 148
RESPONSE_SIZE: Final = 92
COOKIE_REPLY_SIZE: Final = 64
TRANSPORT_HEADER_SIZE: Final = 16
TRANSPORT_OVERHEAD: Final = 32
"""Header and tag: a keepalive is exactly this long."""
MAC_SIZE: Final = 16
COOKIE_NONCE_SIZE: Final = 24

_INITIATION = struct.Struct("<II108s16s16s")
_RESPONSE = struct.Struct("<III48s16s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")
_TRANSPORT_HEADER = struct.Struct("<IIQ")

DISCOVERY_MAGIC: Final = b"\xca\x17"
"""A discovery message's first bytes. As a tunnel type 0xca is unused, and STUN's first two bits are zero."""

_HANDSHAKE_SIZES: Final = {
    MessageType.INITIATION: INITIATION_SIZE,
    MessageType.RESPONSE: RESPONSE_SIZE,
    MessageType.COOKIE_REPLY: COOKIE_REPLY_SIZE,
    MessageType.INITIATION_AES: INITIATION_SIZE,
    MessageType.RESPONSE_AES: RESPONSE_SIZE,
}
_INITIATIONS: Final = {Aead.CHACHA20_POLY1305: MessageType.INITIATION, Aead.AES_256_GCM: MessageType.INITIATION_AES}
_RESPONSES: Final = {Aead.CHACHA20_POLY1305: MessageType.RESPONSE, Aead.AES_256_GCM: MessageType.RESPONSE_AES}
_AEAD_OF: Final = {int(kind): aead for kinds in (_INITIATIONS, _RESPONSES) for aead, kind in kinds.items()}
_TRANSPORT_START: Final = b"\4\0\0\0"


@dataclass(frozen=True, slots=True)
class Initiation:
    """Type 1, or 6. `noise` is the first Noise message, 108 bytes."""

    sender: int
    noise: bytes
    mac1: bytes
    mac2: bytes
    aead: Aead = Aead.CHACHA20_POLY1305


@dataclass(frozen=True, slots=True)
class Response:
    """Type 2, or 7. `noise` is the second Noise message, 48 bytes; `receiver` the initiation's `sender`."""

    sender: int
    receiver: int
    noise: bytes
    mac1: bytes
    mac2: bytes
    aead: Aead = Aead.CHACHA20_POLY1305


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Type 3. `receiver` is the `sender` of the message it answers; `sealed` the cookie under XChaCha20-Poly1305, 32 bytes."""

    receiver: int
    nonce: bytes
    sealed: bytes


HandshakeMessage = Initiation | Response | CookieReply


def classify(datagram: Buffer) -> DatagramKind:
    """What a datagram on the one UDP socket is, by its first bytes and size. Never raises; no promise that it parses."""
    size = len(datagram)
    if size >= TRANSPORT_OVERHEAD and datagram[:4] == _TRANSPORT_START:
        return DatagramKind.TUNNEL_DATA
    if size < 4:
        return DatagramKind.UNKNOWN
    first = datagram[0]
    if size == _HANDSHAKE_SIZES.get(first) and datagram[1:4] == b"\0\0\0":  # type: ignore[call-overload]
        return DatagramKind.TUNNEL_HANDSHAKE
    if datagram[:2] == DISCOVERY_MAGIC:
        return DatagramKind.DISCOVERY
    if size >= stun.HEADER_SIZE and first < 0x40 and datagram[4:8] == stun.MAGIC_COOKIE:
        return DatagramKind.STUN
    return DatagramKind.UNKNOWN


def parse_handshake(datagram: Buffer) -> HandshakeMessage:
    """The message of type 1, 2, 3, 6 or 7 that the whole datagram is; WireError if it is none."""
    if len(datagram) == INITIATION_SIZE:
        kind, sender, noise, mac1, mac2 = _INITIATION.unpack(datagram)
        if kind in _INITIATIONS.values():
            return Initiation(sender, noise, mac1, mac2, _AEAD_OF[kind])
    elif len(datagram) == RESPONSE_SIZE:
        kind, sender, receiver, noise, mac1, mac2 = _RESPONSE.unpack(datagram)
        if kind in _RESPONSES.values():
            return Response(sender, receiver, noise, mac1, mac2, _AEAD_OF[kind])
    elif len(datagram) == COOKIE_REPLY_SIZE:
        kind, receiver, nonce, sealed = _COOKIE_REPLY.unpack(datagram)
        if kind == MessageType.COOKIE_REPLY:
            return CookieReply(receiver, nonce, sealed)
    raise WireError("not a handshake message of the tunnel")


def initiation_body(sender: int, noise: bytes, aead: Aead = Aead.CHACHA20_POLY1305) -> bytes:
    """An initiation up to mac1."""
    return _INITIATION.pack(_INITIATIONS[aead], sender, noise, b"", b"")[: -2 * MAC_SIZE]


def response_body(sender: int, receiver: int, noise: bytes, aead: Aead = Aead.CHACHA20_POLY1305) -> bytes:
    """A response up to mac1."""
    return _RESPONSE.pack(_RESPONSES[aead], sender, receiver, noise, b"", b"")[: -2 * MAC_SIZE]


def build_handshake(message: HandshakeMessage) -> bytes:
    """The datagram that `parse_handshake` turns into `message`."""
    match message:
        case Initiation():
            return _INITIATION.pack(_INITIATIONS[message.aead], message.sender, message.noise, message.mac1, message.mac2)
        case Response():
            return _RESPONSE.pack(_RESPONSES[message.aead], message.sender, message.receiver, message.noise, message.mac1, message.mac2)
        case CookieReply():
            return _COOKIE_REPLY.pack(MessageType.COOKIE_REPLY, message.receiver, message.nonce, message.sealed)


def transport_header(receiver: int, counter: int) -> bytes:
    """The 16 bytes before a transport message's ciphertext."""
    return _TRANSPORT_HEADER.pack(MessageType.TRANSPORT, receiver, counter)


def parse_transport_header(datagram: Buffer) -> tuple[int, int]:
    """(receiver index, counter) of a transport message; WireError if it is none or is shorter than an empty one."""
    if len(datagram) < TRANSPORT_OVERHEAD or datagram[:4] != _TRANSPORT_START:
        raise WireError("not a transport message of the tunnel")
    _, receiver, counter = _TRANSPORT_HEADER.unpack_from(datagram)
    return receiver, counter
