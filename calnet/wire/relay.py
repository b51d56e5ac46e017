"""The relay's WebSocket: how a client proves its node key, and the frames that carry batches of datagrams. Sans I/O, for both sides.

Opening. A `Channel` (channel.py) with the prologue RELAY_PROLOGUE, from the client's node key to the server's control key. Then one sealed message
each way: the client's proof, empty, which shows that its first message was no replay; the server's verdict, `reason u16 | text`, reason 0 for
welcome. Until the proof holds the server changes nothing for that key. After the verdict, frames go as they are, each one WebSocket binary message of at most
65,536 bytes. Integers are big-endian.

    1 DATA   one or more of: id u16 | length u16 | datagram
    2 BIND   one or more of: id u16 | node key 32
    3 PING   token 8 bytes       after 25 s without sending; answered at once by
    4 PONG   token 8 bytes
    5 CLOSE  reason u16 | text   last frame of a connection, either way
    6 GONE   one or more of: node key 32 (server to client: these peers are not connected here, what was sent to them is lost)

Each direction has its own ids. Client to server an id names the peer that a datagram is for, server to client the peer that it is from: neither can
name its own side, so nobody sends as someone else. The sender binds an id in a BIND frame before the first DATA frame that uses it; to bind it again replaces
the key. Frames of one direction are sent in the order in which the encoder gave them, and none is dropped once encoded: queue datagrams, and encode
what the socket takes.

Error contract. `RelayDecoder.decode` raises WireError (bytes that do not parse) or ProtocolError (an id that is unbound or out of bounds), delivers
nothing of such a frame, and the shell ends the connection. Unknown frame kinds are for the shell to ignore.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from calnet.crypto.keys import KEY_SIZE, PrivateKey
from calnet.errors import ProtocolError, StateMisuseError, WireError
from calnet.model import Buffer, NodeKey
from calnet.wire.channel import Channel

RELAY_PROLOGUE: Final = b"calnet relay v1"
KEEPALIVE_S: Final = 25.0
SILENCE_LIMIT_S: Final = 60.0
"""A connection that brought nothing for so long is dead (implementation)."""
MAX_FRAME_SIZE: Final = 65_536
TOKEN_SIZE: Final = 8
MAX_BINDINGS: Final = 4_096
"""Ids of one direction are below this, so that a binding table is bounded."""
MAX_DATAGRAM_SIZE: Final = 65_507
"""No UDP datagram is larger."""
MAX_TEXT_SIZE: Final = 255
_BIND_BATCH: Final = 1_024
"""Bindings gathered in one BIND frame (34 bytes each)."""

_RECORD: Final = struct.Struct("!HH")
_BINDING: Final = struct.Struct("!H32s")
_REASON: Final = struct.Struct("!H")


class FrameKind(enum.IntEnum):
    """A frame's first byte."""

    DATA = 1
    BIND = 2
    PING = 3
    PONG = 4
    CLOSE = 5
    GONE = 6


_DATA: Final = bytes((FrameKind.DATA,))


class Reason(enum.IntEnum):
    """Why a client is refused or a connection is closed. Numbers are stable; unknown ones are read as OTHER."""

    WELCOME = 0
    UNKNOWN_KEY = 1
    EXPIRED = 2
    DISABLED = 3
    REPLACED = 4
    """A newer connection of the same key took over."""
    MALFORMED = 5
    SHUTTING_DOWN = 6
    OVERLOADED = 7
    SILENT = 8
    OTHER = 9


@dataclass(frozen=True, slots=True)
class Data:
    """Datagrams with the peer each is for or from, in order. The views are of the frame that was decoded: copy what must outlive it."""

    datagrams: list[tuple[NodeKey, memoryview]]


@dataclass(frozen=True, slots=True)
class Bound:
    """A BIND frame was taken in; nothing to do."""


@dataclass(frozen=True, slots=True)
class Ping:
    token: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    token: bytes


@dataclass(frozen=True, slots=True)
class Close:
    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Gone:
    keys: tuple[NodeKey, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A frame of a kind that this version does not know; ignored."""

    kind: int


RelayFrame = Data | Bound | Ping | Pong | Close | Gone | Unknown


# --- opening ---


def client_channel(node_key: PrivateKey, server: bytes, ephemeral: PrivateKey) -> Channel:
    """The client's side: send `opening()`, pass the answer to `receive_handshake`, send `proof`, read the verdict."""
    return Channel.client(node_key, server, ephemeral, RELAY_PROLOGUE)


def server_channel(control_key: PrivateKey, ephemeral: PrivateKey) -> Channel:
    """The server's side: pass the first message to `receive_handshake`, send the answer, `check_proof` the next, send `verdict`."""
    return Channel.server(control_key, ephemeral, RELAY_PROLOGUE)


def proof(channel: Channel) -> bytes:
    """The client's one sealed message."""
    return b"".join(channel.send(b""))


def check_proof(channel: Channel, message: bytes) -> NodeKey:
    """The node key that the client has proven; AuthenticationError or WireError where it has not."""
    if channel.receive(message) != b"":
        raise WireError("a relay client's proof is empty")
    return NodeKey(channel.remote_static)


def verdict(channel: Channel, reason: Reason, text: str = "") -> bytes:
    """The server's one sealed message."""
    return b"".join(channel.send(_REASON.pack(reason) + _text(text)))


def read_verdict(channel: Channel, message: bytes) -> Close | None:
    """None for welcome, else why the server refuses."""
    plain = channel.receive(message)
    if plain is None:
        raise WireError("a relay's verdict is one message")
    found = _close(memoryview(plain))
    return None if found.reason is Reason.WELCOME else found


# --- frames without state ---


def ping_frame(token: bytes) -> bytes:
    """A PING with `token`, 8 bytes."""
    return bytes((FrameKind.PING,)) + token


def pong_frame(token: bytes) -> bytes:
    """The answer to a PING with this token."""
    return bytes((FrameKind.PONG,)) + token


def close_frame(reason: Reason, text: str = "") -> bytes:
    """The last frame of a connection; `text` is cut to 255 bytes."""
    return bytes((FrameKind.CLOSE,)) + _REASON.pack(reason) + _text(text)


def gone_frame(keys: Iterable[NodeKey]) -> bytes:
    """These peers are not connected; 1 to 2,047 keys."""
    return bytes((FrameKind.GONE,)) + b"".join(keys)


def _text(text: str) -> bytes:
    return text.encode()[:MAX_TEXT_SIZE].decode(errors="ignore").encode()


class RelayEncoder:
    """Packs datagrams into DATA frames and binds ids as they are needed: one a connection and direction.

    `add` each datagram, then `take` the frames. Ids are given in turn; when all are taken, the one bound longest ago is bound again.
    """

    __slots__ = ("_binds", "_frames", "_ids", "_keys", "_max_bindings", "_max_frame", "_next", "_parts", "_size")

    def __init__(self, *, max_frame: int = MAX_FRAME_SIZE, max_bindings: int = MAX_BINDINGS) -> None:
        self._max_frame = max_frame
        self._max_bindings = max_bindings
        self._ids: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._next = 0
        self._frames: list[bytes] = []
        self._binds: list[bytes] = []
        self._parts: list[Buffer] = []
        self._size = 1

    def add(self, key: bytes, datagram: Buffer) -> None:
        """Pack one datagram of or for the peer with node key `key`. StateMisuseError for an empty or too long one. The buffer is read by `take`, not here."""
        length = len(datagram)
        size = _RECORD.size + length
        if not length or length > MAX_DATAGRAM_SIZE or size >= self._max_frame:
            raise StateMisuseError("a relayed datagram is 1 to 65,507 bytes, and fits a frame")
        number = self._ids.get(key)
        if number is None:
            number = self._bind(key)
        if self._size + size > self._max_frame:
            self._finish()
        self._parts.append(_RECORD.pack(number, length))
        self._parts.append(datagram)
        self._size += size

    def take(self) -> list[bytes]:
        """The frames for all that was added since the last call, to be sent in this order."""
        self._finish()
        frames, self._frames = self._frames, []
        return frames

    def encode(self, datagrams: Iterable[tuple[bytes, Buffer]]) -> list[bytes]:
        """`add` each (key, datagram), then `take`."""
        for key, datagram in datagrams:
            self.add(key, datagram)
        return self.take()

    def _bind(self, key: bytes) -> int:
        number = self._next
        self._next = (number + 1) % self._max_bindings
        replaced = self._keys.get(number)
        if replaced is not None:
            # What is packed already means the old key: it has to be sent before the id changes its meaning.
            self._finish()
            del self._ids[replaced]
        if len(self._binds) == _BIND_BATCH:
            self._finish()
        self._ids[key] = number
        self._keys[number] = key
        self._binds.append(_BINDING.pack(number, key))
        return number

    def _finish(self) -> None:
        if self._binds:
            self._frames.append(bytes((FrameKind.BIND,)) + b"".join(self._binds))
            self._binds = []
        if self._parts:
            self._frames.append(b"".join((_DATA, *self._parts)))
            self._parts = []
            self._size = 1


class RelayDecoder:
    """Reads frames, one a connection and direction; holds the other side's bindings, at most 4,096."""

    __slots__ = ("_keys", "_max_bindings")

    def __init__(self, *, max_bindings: int = MAX_BINDINGS) -> None:
        self._keys: dict[int, NodeKey] = {}
        self._max_bindings = max_bindings

    def decode(self, frame: Buffer) -> RelayFrame:
        """What one WebSocket binary message says. WireError or ProtocolError: nothing of it counts, and the connection ends."""
        if not 0 < len(frame) <= MAX_FRAME_SIZE:
            raise WireError("a relay frame is 1 to 65,536 bytes")
        view = memoryview(frame)
        kind, body = view[0], view[1:]
        if kind == FrameKind.DATA:
            return Data(self._data(view))
        if kind == FrameKind.BIND:
            self._bind(body)
            return Bound()
        if kind == FrameKind.CLOSE:
            return _close(body)
        if kind == FrameKind.GONE:
            return Gone(tuple(NodeKey(bytes(body[at : at + KEY_SIZE])) for at in _steps(body, KEY_SIZE)))
        if kind in (FrameKind.PING, FrameKind.PONG):
            if len(body) != TOKEN_SIZE:
                raise WireError("a relay ping carries 8 bytes")
            return Ping(bytes(body)) if kind == FrameKind.PING else Pong(bytes(body))
        return Unknown(kind)

    def _data(self, view: memoryview) -> list[tuple[NodeKey, memoryview]]:
        found: list[tuple[NodeKey, memoryview]] = []
        keys, unpack, size = self._keys, _RECORD.unpack_from, len(view)
        offset = 1
        while offset < size:
            if offset + _RECORD.size > size:
                raise WireError("a relay frame ends in the middle of a record")
            number, length = unpack(view, offset)
            start = offset + _RECORD.size
            offset = start + length
            if offset > size or not length:
                raise WireError("a relayed datagram is empty or runs past its frame")
            key = keys.get(number)
            if key is None:
                raise ProtocolError("a relay frame uses an id that is not bound")
            found.append((key, view[start:offset]))
        if not found:
            raise WireError("a relay frame holds no datagram")
        return found

    def _bind(self, body: memoryview) -> None:
        bindings = [_BINDING.unpack_from(body, at) for at in _steps(body, _BINDING.size)]
        if any(number >= self._max_bindings for number, _ in bindings):
            raise ProtocolError(f"a relay id is below {self._max_bindings}")
        self._keys.update(bindings)


def _steps(body: memoryview, size: int) -> range:
    """Offsets of records of one size that fill `body`; WireError if they don't, or there are none."""
    if not body or len(body) % size:
        raise WireError("a relay frame does not hold whole records")
    return range(0, len(body), size)


def _close(body: memoryview) -> Close:
    if not _REASON.size <= len(body) <= _REASON.size + MAX_TEXT_SIZE:
        raise WireError("a reason is 2 bytes and a short text")
    (number,) = _REASON.unpack_from(body)
    try:
        text = str(body[_REASON.size :], "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a reason's text is UTF-8") from error
    known = Reason(number) if number in Reason._value2member_map_ else Reason.OTHER
    return Close(known, "".join(character if character.isprintable() else "?" for character in text))
