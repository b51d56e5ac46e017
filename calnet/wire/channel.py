"""A secure channel of whole messages over WebSocket, sans I/O: Noise IK between control keys, whatever TLS stands in front.

Each WebSocket binary message is one of ours:
    handshake   version u8 = 1 | Noise IK message (sections 7.5, 5.3), payload empty: a request never rides in a message that could be replayed
    transport   Noise transport message ≤ 65,535 bytes of: more u8 (1: the message goes on in the next one, 0: it ends here) | chunk

Theory of operation. The shell makes `Channel.client(...)` or `Channel.server(...)`, sends what `opening()` or `receive_handshake` returns, and once
`established` passes each message that arrives to `receive` and sends each of `send`'s. Nothing is accepted from a peer before its second Noise
message (client side) or its first transport message (server side) proves its key: the server learns `remote_static` from the first message, but
acts on it only after `receive` has returned once.

Error contract. Every error ends the channel: the shell closes the connection. WireError for malformed input, AuthenticationError for what does not
hold, ProtocolError where a message is longer than the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from calnet.crypto.aead import TAG_SIZE, BadTag, Cipher, new_cipher, nonce_of
from calnet.crypto.keys import PrivateKey
from calnet.crypto.noise import MAX_MESSAGE_SIZE, Handshake
from calnet.errors import AuthenticationError, ProtocolError, StateMisuseError, WireError

VERSION: Final = 1
CONTROL_PROLOGUE: Final = b"calnet control v1"
CHUNK_SIZE: Final = MAX_MESSAGE_SIZE - TAG_SIZE - 1
MAX_CLIENT_MESSAGE: Final = 1 << 20
"""Bytes of a whole message that a server accepts (1 MiB)."""
MAX_SERVER_MESSAGE: Final = 64 << 20
"""Bytes of a whole message that a client accepts (64 MiB: the netmap of a very large network)."""


class Channel:
    """One side of a channel. `remote_static` is the other side's control key once known, `hash` the handshake hash that proofs are bound to."""

    def __init__(self, handshake: Handshake, *, max_message: int) -> None:
        self._handshake = handshake
        self._max_message = max_message
        self._sending: Cipher | None = None
        self._receiving: Cipher | None = None
        self._sent = 0
        self._received = 0
        self._parts: list[bytes] = []
        self._gathered = 0

    @classmethod
    def client(cls, static: PrivateKey, server: bytes, ephemeral: PrivateKey, prologue: bytes = CONTROL_PROLOGUE) -> Channel:
        """The initiator's side, towards the server whose control key is `server`."""
        handshake = Handshake(initiator=True, static=static, ephemeral=ephemeral, remote_static=server, prologue=prologue)
        return cls(handshake, max_message=MAX_SERVER_MESSAGE)

    @classmethod
    def server(cls, static: PrivateKey, ephemeral: PrivateKey, prologue: bytes = CONTROL_PROLOGUE) -> Channel:
        """The responder's side."""
        return cls(Handshake(initiator=False, static=static, ephemeral=ephemeral, prologue=prologue), max_message=MAX_CLIENT_MESSAGE)

    @property
    def established(self) -> bool:
        """Whether both handshake messages are done."""
        return self._handshake.complete

    @property
    def remote_static(self) -> bytes:
        """The other side's static public key; StateMisuseError before it is known."""
        if self._handshake.remote_static is None:
            raise StateMisuseError("the handshake has not begun")
        return self._handshake.remote_static

    @property
    def hash(self) -> bytes:
        """The handshake hash: the same 32 bytes on both sides of this one channel, and of no other."""
        return self._handshake.hash

    def opening(self) -> bytes:
        """The client's first message."""
        return bytes((VERSION,)) + self._handshake.write_message(b"")

    def receive_handshake(self, message: bytes) -> bytes | None:
        """Take the other side's handshake message; the server's answer to send, or None on the client's side."""
        if not message or message[0] != VERSION:
            raise WireError(f"the other side does not speak version {VERSION} of Calnet's protocol")
        if self._handshake.read_message(message[1:]):
            raise ProtocolError("a handshake message carried a payload")
        answer = None
        if not self._handshake.initiator:
            answer = bytes((VERSION,)) + self._handshake.write_message(b"")
        sending, receiving = self._handshake.split()
        self._sending, self._receiving = new_cipher(sending), new_cipher(receiving)
        return answer

    def send(self, message: bytes) -> Iterator[bytes]:
        """The WebSocket messages that carry `message`, to be sent in order; consume all of them."""
        if self._sending is None:
            raise StateMisuseError("the channel is not established")
        for start in range(0, max(len(message), 1), CHUNK_SIZE):
            chunk = message[start : start + CHUNK_SIZE]
            more = start + CHUNK_SIZE < len(message)
            out = bytearray(1 + len(chunk) + TAG_SIZE)
            self._sending.seal_into(nonce_of(self._sent), bytes((more,)) + chunk, None, out)
            self._sent += 1
            yield bytes(out)

    def receive(self, sealed: bytes) -> bytes | None:
        """The whole message that `sealed` ends, or None if it goes on."""
        if self._receiving is None:
            raise StateMisuseError("the channel is not established")
        if not TAG_SIZE < len(sealed) <= MAX_MESSAGE_SIZE:
            raise WireError("a transport message is 17 to 65,535 bytes")
        plain = bytearray(len(sealed) - TAG_SIZE)
        try:
            self._receiving.open_into(nonce_of(self._received), sealed, None, plain)
        except BadTag as error:
            raise AuthenticationError("a transport message does not authenticate") from error
        self._received += 1
        if plain[0] > 1:
            raise WireError("a transport message begins with 0 or 1")
        return self._gather(bytes(plain[1:]), more=plain[0] == 1)

    def _gather(self, chunk: bytes, *, more: bool) -> bytes | None:
        self._gathered += len(chunk)
        if self._gathered > self._max_message or (more and not chunk):
            raise ProtocolError(f"a message is longer than {self._max_message} bytes, or has an empty part")
        self._parts.append(chunk)
        if more:
            return None
        whole = b"".join(self._parts)
        self._parts, self._gathered = [], 0
        return whole
