"""STUN binding over UDP (RFC 8489): the client's request, the answer to one, and its parsing. Old clients without the magic cookie (RFC 3489) are answered.

    header      type u16, length u16 of what follows the header (a multiple of 4), magic cookie 21 12 a4 42, transaction id 12 bytes
    attribute   type u16, length u16, value, zeros up to a multiple of 4

A client without the magic cookie has a transaction id of 16 bytes in its place, and gets MAPPED-ADDRESS where others get XOR-MAPPED-ADDRESS.
FINGERPRINT (section 14.7) is checked where present, and an answer has one where the request has. Requests alone are answered, so that two servers
never loop. An answer is at most 1.6 times its request over IPv4, 2.2 times over IPv6; our own requests are larger than any answer to them.

Error contract. `parse_response` raises WireError for anything but a binding response and changes nothing; `answer` never raises for bad bytes.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from calnet.errors import WireError
from calnet.model import Endpoint
from calnet.wire.endpoints import address_of

MAGIC_COOKIE: Final = b"\x21\x12\xa4\x42"
TRANSACTION_SIZE: Final = 12
HEADER_SIZE: Final = 20
MAX_MESSAGE_SIZE: Final = 1_280
"""No binding message of ours or of a sane client is longer; longer ones are dropped."""

_HEADER: Final = struct.Struct("!HH16s")
_ATTRIBUTE: Final = struct.Struct("!HH")
_FINGERPRINT_XOR: Final = 0x5354554E
_FAMILY_4: Final = 1
_FAMILY_6: Final = 2
_SOFTWARE: Final = b"Calnet".ljust(24)
"""Long enough that a request (56 bytes) is larger than the largest answer (52)."""


class MessageType(enum.IntEnum):
    """Binding's messages (section 5): method 0x001 with each class that we look at."""

    REQUEST = 0x0001
    SUCCESS = 0x0101
    ERROR = 0x0111


class Attribute(enum.IntEnum):
    """Attributes we read or write (section 18.3). Below 0x8000 an unknown one may not be ignored."""

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REALM = 0x0014
    NONCE = 0x0015
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024
    SOFTWARE = 0x8022
    FINGERPRINT = 0x8028


_UNDERSTOOD: Final = frozenset(Attribute)
_UNKNOWN_ATTRIBUTE: Final = 420


@dataclass(frozen=True, slots=True)
class Message:
    """A STUN message whose layout and fingerprint hold. `transaction` is 16 bytes: cookie and id, or an old client's id."""

    type: int
    transaction: bytes
    attributes: tuple[tuple[int, bytes], ...]

    def first(self, kind: Attribute) -> bytes | None:
        """The value of the first attribute of this kind (section 14: later ones are ignored)."""
        return next((value for number, value in self.attributes if number == kind), None)


@dataclass(frozen=True, slots=True)
class BindingResponse:
    """What a server answered. `mapped` is this client's address as the server saw it, None in an error response, which has `error_code`."""

    transaction: bytes
    mapped: Endpoint | None
    error_code: int = 0


def build_request(transaction: bytes) -> bytes:
    """A binding request of 56 bytes; `transaction` is 12 random bytes that the answer repeats."""
    if len(transaction) != TRANSACTION_SIZE:
        raise WireError("a transaction id is 12 bytes")
    return _build(MessageType.REQUEST, MAGIC_COOKIE + transaction, [(Attribute.SOFTWARE, _SOFTWARE)], fingerprint=True)


def parse_response(datagram: bytes) -> BindingResponse:
    """The answer to a request of ours: `transaction` (12 bytes) says to which. WireError for anything else, a success without an address included."""
    message = parse_message(datagram)
    if message.transaction[:4] != MAGIC_COOKIE or message.type not in (MessageType.SUCCESS, MessageType.ERROR):
        raise WireError("not a binding response")
    transaction = message.transaction[4:]
    if message.type == MessageType.ERROR:
        return BindingResponse(transaction, None, _error_code(message))
    mapped = message.first(Attribute.XOR_MAPPED_ADDRESS)
    if mapped is not None:
        return BindingResponse(transaction, _parse_address(mapped, message.transaction))
    mapped = message.first(Attribute.MAPPED_ADDRESS)
    if mapped is None:
        raise WireError("a binding response names no address")
    return BindingResponse(transaction, _parse_address(mapped, None))


def answer(request: bytes, source: Endpoint) -> bytes | None:
    """The answer to a binding request that came from `source`; None for whatever is not one (never a response or an indication)."""
    try:
        message = parse_message(request)
    except WireError:
        return None
    if message.type != MessageType.REQUEST:
        return None
    fingerprint = message.first(Attribute.FINGERPRINT) is not None
    unknown = _not_understood(message)
    if unknown:
        attributes = [
            (Attribute.ERROR_CODE, struct.pack("!HBB", 0, *divmod(_UNKNOWN_ATTRIBUTE, 100))),
            (Attribute.UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(unknown)}H", *unknown)),
        ]
        return _build(MessageType.ERROR, message.transaction, attributes, fingerprint=fingerprint)
    if message.transaction[:4] == MAGIC_COOKIE:
        mapped = (Attribute.XOR_MAPPED_ADDRESS, _build_address(source, message.transaction))
    else:
        mapped = (Attribute.MAPPED_ADDRESS, _build_address(source, None))
    return _build(MessageType.SUCCESS, message.transaction, [mapped], fingerprint=fingerprint)


def parse_message(datagram: bytes) -> Message:
    """Any STUN message's header and attributes; WireError where the layout or the fingerprint does not hold."""
    if not HEADER_SIZE <= len(datagram) <= MAX_MESSAGE_SIZE:
        raise WireError("a STUN message is 20 to 1,280 bytes")
    kind, length, transaction = _HEADER.unpack_from(datagram)
    if kind & 0xC000 or length % 4 or length != len(datagram) - HEADER_SIZE:
        raise WireError("not a STUN message")
    attributes = []
    offset = HEADER_SIZE
    while offset < len(datagram):
        number, size = _ATTRIBUTE.unpack_from(datagram, offset)
        start = offset + _ATTRIBUTE.size
        end = start + size
        if end > len(datagram):
            raise WireError("a STUN attribute runs past the end")
        if number == Attribute.FINGERPRINT:
            _check_fingerprint(datagram, offset, datagram[start:end])
        attributes.append((number, bytes(datagram[start:end])))
        offset = end + -size % 4
    return Message(kind, transaction, tuple(attributes))


def _check_fingerprint(datagram: bytes, offset: int, value: bytes) -> None:
    expected = zlib.crc32(datagram[:offset]) ^ _FINGERPRINT_XOR
    if offset + 8 != len(datagram) or value != struct.pack("!I", expected):
        raise WireError("a STUN fingerprint does not hold")


def _not_understood(message: Message) -> list[int]:
    """Attributes that we may not ignore and can't honour, each once: unknown ones below 0x8000 (section 6.3.1), a request to answer from elsewhere."""
    found = [
        number
        for number, value in message.attributes
        if number < 0x8000 and (number not in _UNDERSTOOD or (number == Attribute.CHANGE_REQUEST and value != bytes(4)))
    ]
    return list(dict.fromkeys(found))


def _build(kind: MessageType, transaction: bytes, attributes: list[tuple[Attribute, bytes]], *, fingerprint: bool) -> bytes:
    body = b"".join(_ATTRIBUTE.pack(number, len(value)) + value + bytes(-len(value) % 4) for number, value in attributes)
    if not fingerprint:
        return _HEADER.pack(kind, len(body), transaction) + body
    message = _HEADER.pack(kind, len(body) + 8, transaction) + body
    return message + _ATTRIBUTE.pack(Attribute.FINGERPRINT, 4) + struct.pack("!I", zlib.crc32(message) ^ _FINGERPRINT_XOR)


def _build_address(endpoint: Endpoint, mask: bytes | None) -> bytes:
    """MAPPED-ADDRESS's value, or with a mask (cookie and transaction id) XOR-MAPPED-ADDRESS's (sections 14.1, 14.2)."""
    address = ip_address(endpoint.host)
    address = getattr(address, "ipv4_mapped", None) or address
    packed, port = address.packed, endpoint.port
    if mask is not None:
        packed, port = _xor(packed, mask), port ^ int.from_bytes(mask[:2], "big")
    return struct.pack("!BBH", 0, _FAMILY_4 if address.version == 4 else _FAMILY_6, port) + packed


def _parse_address(value: bytes, mask: bytes | None) -> Endpoint:
    if len(value) < 8:
        raise WireError("a STUN address is 8 or 20 bytes")
    family, port = struct.unpack_from("!xBH", value)
    packed = value[4:]
    if (family, len(packed)) not in ((_FAMILY_4, 4), (_FAMILY_6, 16)):
        raise WireError("a STUN address is of another family or length")
    if mask is not None:
        packed, port = _xor(packed, mask), port ^ int.from_bytes(mask[:2], "big")
    if port == 0:
        raise WireError("a STUN address has no port")
    return Endpoint(str(address_of(packed)), port)


def _xor(data: bytes, mask: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, mask, strict=False))


def _error_code(message: Message) -> int:
    value = message.first(Attribute.ERROR_CODE)
    if value is None or len(value) < 4:
        raise WireError("an error response names no error")
    return (value[2] & 7) * 100 + value[3] % 100
