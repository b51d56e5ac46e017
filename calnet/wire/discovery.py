"""Discovery messages: probes for direct paths, their answers, and candidates. Integers are big-endian.

    message     magic `ca 17 01 00` | sender's discovery public key 32 | nonce 24 | NaCl box (crypto_box) of a payload, 16 bytes longer than it
    payload     kind u8 | sender's node key 32 | body
    1 ping      token 12 | zeros up to 64 bytes of payload (longer is allowed)
    2 pong      token 12 | packed endpoint 19: where the ping came from; all zeros: by relay
    3 candidates   count u8, at most 32 | packed endpoints 19 each
    4 ask       packed endpoint 19: where servers see the sender | first port u16, 0 for none: probe many ports of that address, those around `first` first
    5 grant     packed endpoint 19: where servers see the sender, who does what was asked
    6 question  token 12: why is the path to me what it is? | zeros up to 576 bytes of payload: as long as the longest view
    7 view      token 12 | flags u8 (ViewFlag) | mapping u8 (0 unknown, 1 to 3 as RFC 4787 orders them) |
                count u8, at most 24 | for each candidate tried: packed endpoint 19 | outcome u8 | round trip u16 in tenths of ms (65,535: none)
    8 mark      number u32: how much had come when this did? | zeros up to 64 bytes of payload
    9 tally     number u32: the mark's | bytes of the receiver's transport datagrams that came: directly u64, by relay u64 | zeros up to 64 bytes of payload

Ping and pong are equally long (140 bytes), and so are mark and tally; a view by UDP is cut to the length of its question: an answer never amplifies. A longer
ping asks whether so long a datagram gets through. Candidates, ask and grant come by relay alone. The box binds both discovery keys; the receiver checks that
the node key inside is one that its netmap gives to the owner of the sender's discovery key. Bytes after a body are ignored: a later version may use them.

Error contract: parsers raise WireError and nothing else; `open_message` raises AuthenticationError where the box does not open.
"""

from __future__ import annotations

import enum
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
MAX_MESSAGE_SIZE: Final = 9_216
"""Longer ones are dropped unopened (implementation); more than a ping that asks for the longest MTU needs."""
_PROBE_PAYLOAD_SIZE: Final = 64
_BODY: Final = 1 + KEY_SIZE
PROBE_SIZE: Final = HEADER_SIZE + BOX_OVERHEAD + _PROBE_PAYLOAD_SIZE

_PING: Final = 1
_PONG: Final = 2
_CANDIDATES: Final = 3
_ASK: Final = 4
_GRANT: Final = 5
_QUESTION: Final = 6
_VIEW: Final = 7
_MARK: Final = 8
_TALLY: Final = 9
_NUMBER_SIZE: Final = 4
_COUNT_SIZE: Final = 8
MAX_TRIED: Final = 24
_TRIED_SIZE: Final = PACKED_SIZE + 3
_VIEW_HEAD: Final = _BODY + TOKEN_SIZE + 3
_QUESTION_PAYLOAD_SIZE: Final = _VIEW_HEAD + MAX_TRIED * _TRIED_SIZE
_NO_RTT: Final = 65_535
_UNSEEN: Final = bytes(PACKED_SIZE)


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong. `token` is 12 random bytes."""

    node_key: NodeKey
    token: bytes
    size: int = 0
    """Of the whole datagram, at least (implementation: to ask whether so long a one gets through)."""


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


@dataclass(frozen=True, slots=True)
class Ask:
    """The sender's NAT shows each destination another port: probe many of `host`'s, those around `first` (0: none in particular) before others."""

    node_key: NodeKey
    host: Endpoint
    first: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The sender does what it was asked, and `endpoint` is where to meet it."""

    node_key: NodeKey
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Question:
    """Asks for the receiver's view of the path between the two. `token` is 12 random bytes."""

    node_key: NodeKey
    token: bytes


class ViewFlag(enum.IntFlag):
    """What a view says in a bit each; others are kept, and mean nothing yet."""

    UDP = 1
    """Some STUN server answers."""
    RELAY = 2
    """It is connected."""
    GUESSES = 4
    """It may guess ports."""
    DIRECT = 8
    """The path is direct…"""
    RELAYED = 16
    """…or by relay."""
    RELAY_ALONE = 32
    """Its user wants the relay alone…"""
    DIRECT_ALONE = 64
    """…or a direct path alone."""


@dataclass(frozen=True, slots=True)
class View:
    """Answers a question. `mapping` and outcomes are numbers, to be understood above; round trips are tenths of milliseconds, None for none."""

    node_key: NodeKey
    token: bytes
    flags: ViewFlag
    mapping: int
    tried: tuple[tuple[Endpoint, int, int | None], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Goes the way of the sender's data, among it: asks how much of it had come when this came. `number` is 32 bits."""

    node_key: NodeKey
    number: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers a mark. Bytes of transport datagrams that were opened since its sender began, 64 bits each: directly, and by relay."""

    node_key: NodeKey
    number: int
    direct: int
    relayed: int


DiscoveryMessage = Ping | Pong | Candidates | Ask | Grant | Question | View | Mark | Tally


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


def tried_that_fit(length: int) -> int:
    """How many candidates a view tells whose datagram is no longer than `length` bytes; negative where not even an empty one fits."""
    return min((length - HEADER_SIZE - BOX_OVERHEAD - _VIEW_HEAD) // _TRIED_SIZE, MAX_TRIED)


def build_payload(message: DiscoveryMessage) -> bytes:
    """What goes into the box. At most 32 candidates are written."""
    match message:
        case Question():
            return (bytes((_QUESTION,)) + message.node_key + message.token).ljust(_QUESTION_PAYLOAD_SIZE, b"\0")
        case View():
            tried = message.tried[:MAX_TRIED]
            head = bytes((_VIEW,)) + message.node_key + message.token + bytes((message.flags, message.mapping, len(tried)))
            return head + b"".join(map(_pack_tried, tried))
        case Grant():
            return bytes((_GRANT,)) + message.node_key + pack_endpoint(message.endpoint)
        case Ping():
            length = max(_PROBE_PAYLOAD_SIZE, min(message.size, MAX_MESSAGE_SIZE) - HEADER_SIZE - BOX_OVERHEAD)
            return (bytes((_PING,)) + message.node_key + message.token).ljust(length, b"\0")
        case Pong():
            return bytes((_PONG,)) + message.node_key + message.token + (_UNSEEN if message.seen is None else pack_endpoint(message.seen))
        case Candidates():
            endpoints = message.endpoints[:MAX_CANDIDATES]
            return bytes((_CANDIDATES,)) + message.node_key + bytes((len(endpoints),)) + b"".join(map(pack_endpoint, endpoints))
        case Ask():
            return bytes((_ASK,)) + message.node_key + pack_endpoint(message.host) + message.first.to_bytes(2, "big")
        case Mark():
            return (bytes((_MARK,)) + message.node_key + message.number.to_bytes(_NUMBER_SIZE, "big")).ljust(_PROBE_PAYLOAD_SIZE, b"\0")
        case Tally():
            counts = b"".join(count.to_bytes(_COUNT_SIZE, "big") for count in (message.direct, message.relayed))
            return (bytes((_TALLY,)) + message.node_key + message.number.to_bytes(_NUMBER_SIZE, "big") + counts).ljust(_PROBE_PAYLOAD_SIZE, b"\0")


def parse_payload(payload: bytes) -> DiscoveryMessage:
    """The opened box's content; WireError for anything that is no message."""
    if len(payload) < _BODY:
        raise WireError("a discovery payload is too short")
    kind, node_key, body = payload[0], NodeKey(payload[1:_BODY]), payload[_BODY:]
    if kind == _CANDIDATES:
        return Candidates(node_key, _parse_candidates(body))
    if kind == _ASK:
        if len(body) < PACKED_SIZE + 2:
            raise WireError("a request for probes is too short")
        return Ask(node_key, unpack_endpoint(body[:PACKED_SIZE]), int.from_bytes(body[PACKED_SIZE : PACKED_SIZE + 2], "big"))
    if kind in (_QUESTION, _VIEW) and len(body) >= TOKEN_SIZE:
        return Question(node_key, body[:TOKEN_SIZE]) if kind == _QUESTION else _parse_view(node_key, body)
    if kind == _GRANT:
        return Grant(node_key, unpack_endpoint(body[:PACKED_SIZE]))
    if kind not in (_PING, _PONG, _MARK, _TALLY) or len(payload) < _PROBE_PAYLOAD_SIZE:
        raise WireError("a discovery payload of no known kind, or too short")
    if kind in (_MARK, _TALLY):
        return _parse_count(kind, node_key, body)
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


def _parse_count(kind: int, node_key: NodeKey, body: bytes) -> Mark | Tally:
    number = int.from_bytes(body[:_NUMBER_SIZE], "big")
    if kind == _MARK:
        return Mark(node_key, number)
    middle, end = _NUMBER_SIZE + _COUNT_SIZE, _NUMBER_SIZE + 2 * _COUNT_SIZE
    return Tally(node_key, number, int.from_bytes(body[_NUMBER_SIZE:middle], "big"), int.from_bytes(body[middle:end], "big"))


def _pack_tried(tried: tuple[Endpoint, int, int | None]) -> bytes:
    endpoint, outcome, rtt = tried
    return pack_endpoint(endpoint) + bytes((outcome,)) + (_NO_RTT if rtt is None else min(rtt, _NO_RTT - 1)).to_bytes(2, "big")


def _parse_view(node_key: NodeKey, body: bytes) -> View:
    head, rest = body[TOKEN_SIZE : TOKEN_SIZE + 3], body[TOKEN_SIZE + 3 :]
    if len(head) < 3 or head[2] > MAX_TRIED or len(rest) < head[2] * _TRIED_SIZE:
        raise WireError("a view is too short, or names too many candidates")
    rows = [rest[at : at + _TRIED_SIZE] for at in range(0, head[2] * _TRIED_SIZE, _TRIED_SIZE)]
    rtts = [int.from_bytes(row[PACKED_SIZE + 1 :], "big") for row in rows]
    tried = tuple((unpack_endpoint(row[:PACKED_SIZE]), row[PACKED_SIZE], None if rtt == _NO_RTT else rtt) for row, rtt in zip(rows, rtts, strict=True))
    return View(node_key, body[:TOKEN_SIZE], ViewFlag(head[0]), head[1], tried)
