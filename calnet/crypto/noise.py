"""The Noise Protocol Framework (revision 34): pattern IK, plain or with the psk2 modifier, with 25519, ChaChaPoly or AESGCM, and BLAKE2s.

Theory of operation. A `Handshake` runs one handshake of two messages. The initiator calls `write_message` and then `read_message`; the responder
`read_message` and then `write_message`; then both call `split`. Ephemeral keys are arguments, so a recorded transcript can be replayed.

Error contract. `read_message` computes on a copy of the symmetric state and commits only after all tags hold: an AuthenticationError (forged or
corrupt message, small-order key) leaves the machine as it was, ready for the genuine message. Calls out of turn raise StateMisuseError.

The pattern (sections 7.5 and 9):
    IK:  <- s  ...  -> e, es, s, ss   <- e, ee, se[, psk]
With a PSK modifier, an `e` token also mixes the ephemeral's public key into the chaining key (section 9.2). WireGuard's handshake is IKpsk2 with
its identifier as prologue, the TAI64N timestamp as first payload and an empty second one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from calnet.crypto.aead import TAG_SIZE, Aead, nonce_of, open_sealed, seal
from calnet.crypto.hash import blake2s, hkdf
from calnet.crypto.keys import KEY_SIZE, PrivateKey
from calnet.errors import AuthenticationError, StateMisuseError

_CIPHER_NAMES: Final = {Aead.CHACHA20_POLY1305: "ChaChaPoly", Aead.AES_256_GCM: "AESGCM"}
MAX_MESSAGE_SIZE: Final = 65_535
"""Noise section 3: no message is longer."""
ZERO_PSK: Final = bytes(32)


def protocol_name(aead: Aead, *, psk: bool) -> bytes:
    """The whole name (section 8): it goes into every hash, so two sides that don't mean the same protocol never agree."""
    return f"Noise_IK{'psk2' if psk else ''}_25519_{_CIPHER_NAMES[aead]}_BLAKE2s".encode()


@dataclass(slots=True)
class SymmetricState:
    """Noise section 5.2, with the CipherState (5.1) folded in: key and its counter reset at each MixKey."""

    chaining_key: bytes
    hash: bytes
    key: bytes | None = None
    counter: int = 0
    aead: Aead = Aead.CHACHA20_POLY1305

    @classmethod
    def initialize(cls, name: bytes, aead: Aead = Aead.CHACHA20_POLY1305) -> SymmetricState:
        """InitializeSymmetric: names up to 32 bytes are padded, longer ones hashed."""
        start = name.ljust(32, b"\0") if len(name) <= 32 else blake2s(name)
        return cls(start, start, aead=aead)

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, self.key = hkdf(self.chaining_key, material, 2)
        self.counter = 0

    def mix_hash(self, data: bytes) -> None:
        self.hash = blake2s(self.hash, data)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, hashed, self.key = hkdf(self.chaining_key, material, 3)
        self.mix_hash(hashed)
        self.counter = 0

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        if self.key is None:
            sealed = plaintext
        else:
            sealed = seal(self.key, nonce_of(self.counter, self.aead), plaintext, self.hash, self.aead)
            self.counter += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        if self.key is None:
            plaintext = sealed
        else:
            plaintext = open_sealed(self.key, nonce_of(self.counter, self.aead), sealed, self.hash, self.aead)
            self.counter += 1
        self.mix_hash(sealed)
        return plaintext


class Handshake:
    """One IK or IKpsk2 handshake, either side. After the second message `remote_static`, `hash` and `split` are final."""

    def __init__(
        self,
        *,
        initiator: bool,
        static: PrivateKey,
        ephemeral: PrivateKey,
        remote_static: bytes | None = None,
        psk: bytes | None = None,
        prologue: bytes = b"",
        aead: Aead = Aead.CHACHA20_POLY1305,
    ) -> None:
        """The initiator names the responder's static key. `psk` of 32 bytes chooses IKpsk2 (all zeros where none is set), None plain IK.

        The responder learns `remote_static` from the first message, and may replace a PSK until it writes the second (`set_psk`).
        """
        if initiator and remote_static is None:
            raise StateMisuseError("an IK initiator needs the responder's static key")
        self.initiator = initiator
        self.remote_static: bytes | None = remote_static
        self._static = static
        self._ephemeral = ephemeral
        self._remote_ephemeral = b""
        self._psk = psk
        self._turn = 0
        self.aead = aead
        state = SymmetricState.initialize(protocol_name(aead, psk=psk is not None), aead)
        state.mix_hash(prologue)
        state.mix_hash(remote_static if initiator and remote_static is not None else static.public)
        self._state = state

    @property
    def hash(self) -> bytes:
        """The handshake hash so far (section 11.2): after the second message, a value both sides can bind other proofs to."""
        return self._state.hash

    @property
    def complete(self) -> bool:
        """Whether both messages are done."""
        return self._turn == 2

    def set_psk(self, psk: bytes) -> None:
        """The responder's choice of PSK once it knows who initiates; only for a machine made with a PSK, before its second message."""
        if self._psk is None or self._turn == 2:
            raise StateMisuseError("no PSK can be set now")
        self._psk = psk

    def write_message(self, payload: bytes) -> bytes:
        """The next message of this side, with `payload` sealed in it. StateMisuseError out of turn."""
        if self._turn != (0 if self.initiator else 1):
            raise StateMisuseError("it is the other side's turn")
        state = replace(self._state)
        message = self._write_first(state, payload) if self.initiator else self._write_second(state, payload)
        self._state = state
        self._turn += 1
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the other side's next message. AuthenticationError changes nothing."""
        if self._turn != (1 if self.initiator else 0):
            raise StateMisuseError("it is this side's turn")
        state = replace(self._state)
        payload = self._read_second(state, message) if self.initiator else self._read_first(state, message)
        self._state = state
        self._turn += 1
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """(sending key, receiving key) of this side, 32 bytes each (section 5.2, Split)."""
        if not self.complete:
            raise StateMisuseError("the handshake is not complete")
        first, second = hkdf(self._state.chaining_key, b"", 2)
        return (first, second) if self.initiator else (second, first)

    def _mix_ephemeral(self, state: SymmetricState, public: bytes) -> None:
        state.mix_hash(public)
        if self._psk is not None:
            state.mix_key(public)

    def _write_first(self, state: SymmetricState, payload: bytes) -> bytes:
        assert self.remote_static is not None
        self._mix_ephemeral(state, self._ephemeral.public)
        state.mix_key(self._ephemeral.exchange(self.remote_static))
        static = state.encrypt_and_hash(self._static.public)
        state.mix_key(self._static.exchange(self.remote_static))
        return self._ephemeral.public + static + state.encrypt_and_hash(payload)

    def _read_first(self, state: SymmetricState, message: bytes) -> bytes:
        split = KEY_SIZE + KEY_SIZE + TAG_SIZE
        if len(message) < split + TAG_SIZE:
            raise AuthenticationError("the first handshake message is too short")
        ephemeral = message[:KEY_SIZE]
        self._mix_ephemeral(state, ephemeral)
        state.mix_key(self._static.exchange(ephemeral))
        remote_static = state.decrypt_and_hash(message[KEY_SIZE:split])
        state.mix_key(self._static.exchange(remote_static))
        payload = state.decrypt_and_hash(message[split:])
        self._remote_ephemeral = ephemeral
        self.remote_static = remote_static
        return payload

    def _write_second(self, state: SymmetricState, payload: bytes) -> bytes:
        assert self.remote_static is not None
        self._mix_ephemeral(state, self._ephemeral.public)
        state.mix_key(self._ephemeral.exchange(self._remote_ephemeral))
        state.mix_key(self._ephemeral.exchange(self.remote_static))
        if self._psk is not None:
            state.mix_key_and_hash(self._psk)
        return self._ephemeral.public + state.encrypt_and_hash(payload)

    def _read_second(self, state: SymmetricState, message: bytes) -> bytes:
        if len(message) < KEY_SIZE + TAG_SIZE:
            raise AuthenticationError("the second handshake message is too short")
        ephemeral = message[:KEY_SIZE]
        self._mix_ephemeral(state, ephemeral)
        state.mix_key(self._ephemeral.exchange(ephemeral))
        state.mix_key(self._static.exchange(ephemeral))
        if self._psk is not None:
            state.mix_key_and_hash(self._psk)
        return state.decrypt_and_hash(message[KEY_SIZE:])
