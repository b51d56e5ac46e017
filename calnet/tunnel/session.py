"""A session: one keypair between us and a peer, from a finished handshake until it expires (WireGuard paper, section 5.4.6).

Hot path: plain attributes, which the data path reads and calls without a frame between. Whoever seals takes counters from `take_counters` alone, so
that no nonce is used twice; a session can be neither copied nor pickled, for the same reason. Whoever opens keeps this order: AEAD (`open_into`, or
`open_all` for a batch), then `replay`, then the packet's inner source (`Tunnel.owns`). `Tunnel.data_received` hears of it when the turn's packets are through.

The AEAD is the handshake's. Nonces are laid out alike for both: 4 zero bytes for type 4, a chunk's own first 4 bytes for type 5, then the counter,
little-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from calnet.crypto.aead import TAG_SIZE, Aead, BadTag, new_cipher, nonce_of
from calnet.crypto.batch import NewBatch, portable_batch
from calnet.errors import AuthenticationError, ProtocolError, StateMisuseError
from calnet.model import Buffer
from calnet.tunnel.constants import MESSAGE_LIMITS, REJECT_AFTER_TIME
from calnet.tunnel.replay import ReplayWindow
from calnet.tunnel.timers import NEVER
from calnet.wire.tunnel import TRANSPORT_HEADER_SIZE, parse_transport_header, transport_header

if TYPE_CHECKING:
    from calnet.tunnel.peer import TunnelPeer


class SessionExhausted(StateMisuseError):  # noqa: N818  named as the data path's contract has it
    """The session has no counters left; `Tunnel.session_to_send` would not have given it out."""


class Session:
    """One keypair. `local_index` is in what we receive, `remote_index` in what we send; times are monotonic seconds."""

    __slots__ = (
        "aead",
        "created_at",
        "expires_at",
        "initiator",
        "local_index",
        "open_all",
        "open_into",
        "peer",
        "reject_after",
        "rekey_after",
        "rekey_at",
        "remote_index",
        "remote_static",
        "replay",
        "seal_all",
        "seal_into",
        "send_counter",
    )

    def __init__(
        self,
        peer: TunnelPeer,
        *,
        local_index: int,
        remote_index: int,
        initiator: bool,
        remote_static: bytes,
        keys: tuple[bytes, bytes],
        now: float,
        aead: Aead = Aead.CHACHA20_POLY1305,
        new_batch: NewBatch = portable_batch,
    ) -> None:
        """`keys` are (sending, receiving), as `Handshake.split` gives them; `remote_static` is the peer's key in that handshake."""
        self.peer = peer
        self.local_index = local_index
        self.remote_index = remote_index
        self.initiator = initiator
        self.remote_static = remote_static
        self.created_at = now
        self.expires_at = now + REJECT_AFTER_TIME
        self.rekey_at = NEVER
        """When the initiator, sending, begins a new handshake; the responder doesn't."""
        self.send_counter = 0
        self.replay = ReplayWindow()
        self.aead = aead
        self.rekey_after, self.reject_after = MESSAGE_LIMITS[aead]
        self.seal_into = new_cipher(keys[0], aead).seal_into
        self.open_into = new_cipher(keys[1], aead).open_into
        self.seal_all = new_batch(keys[0], aead).seal_all
        self.open_all = new_batch(keys[1], aead).open_all

    def take_counters(self, count: int) -> int:
        """Reserves `count` consecutive counters and returns the first. SessionExhausted where they would pass `reject_after`."""
        first = self.send_counter
        after = first + count
        if after > self.reject_after:
            raise SessionExhausted("this session has no message counters left")
        self.send_counter = after
        return first

    def seal(self, plaintext: Buffer) -> bytes:
        """One whole transport datagram: for keepalives and wherever speed doesn't matter. Padding is the caller's."""
        counter = self.take_counters(1)
        out = bytearray(TRANSPORT_HEADER_SIZE + len(plaintext) + TAG_SIZE)
        out[:TRANSPORT_HEADER_SIZE] = transport_header(self.remote_index, counter)
        self.seal_into(nonce_of(counter), plaintext, None, memoryview(out)[TRANSPORT_HEADER_SIZE:])
        return bytes(out)

    def open(self, datagram: Buffer) -> bytes:
        """The plaintext of one whole transport datagram, its counter accepted. WireError, AuthenticationError, or ProtocolError for a replay; none
        of them changes anything."""
        _, counter = parse_transport_header(datagram)
        sealed = memoryview(datagram)[TRANSPORT_HEADER_SIZE:]
        out = bytearray(len(sealed) - TAG_SIZE)
        try:
            self.open_into(nonce_of(counter), sealed, None, out)
        except BadTag as error:
            raise AuthenticationError("the packet does not authenticate") from error
        if not self.replay.accept(counter):
            raise ProtocolError("the packet's counter was seen before or is too old")
        return bytes(out)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session is neither copied nor pickled: two of one key would use nonces twice")
