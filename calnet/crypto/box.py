"""Sealed boxes: NaCl's crypto_box between two X25519 keys (discovery), and XChaCha20-Poly1305 (WireGuard's cookie reply)."""

from __future__ import annotations

from nacl import bindings, exceptions

from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError

BOX_NONCE_SIZE = 24
BOX_OVERHEAD = 16


class SharedBox:
    """crypto_box (X25519, XSalsa20-Poly1305) between our private key and one peer's public key, the shared key computed once."""

    __slots__ = ("_shared",)

    def __init__(self, private: PrivateKey, peer_public: bytes) -> None:
        """AuthenticationError if `peer_public` is not 32 bytes or of small order."""
        private.exchange(peer_public)
        self._shared: bytes = bindings.crypto_box_beforenm(peer_public, private.secret_bytes())

    def seal(self, nonce: bytes, data: bytes) -> bytes:
        """Ciphertext of len(data) + 16 bytes; `nonce` is 24 bytes, never used twice."""
        sealed: bytes = bindings.crypto_box_afternm(data, nonce, self._shared)
        return sealed

    def open(self, nonce: bytes, data: bytes) -> bytes:
        """The plaintext; AuthenticationError if it does not hold."""
        try:
            opened: bytes = bindings.crypto_box_open_afternm(data, nonce, self._shared)
        except (exceptions.CryptoError, ValueError) as error:
            raise AuthenticationError("the box does not open") from error
        return opened


def xseal(key: bytes, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    """XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) of `data` under a 32-byte key and 24-byte nonce: ciphertext and tag."""
    sealed: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(data, associated, nonce, key)
    return sealed


def xopen(key: bytes, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    """The plaintext of `xseal`'s output; AuthenticationError if it does not hold."""
    try:
        opened: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(data, associated, nonce, key)
    except (exceptions.CryptoError, ValueError) as error:
        raise AuthenticationError("the sealed cookie does not open") from error
    return opened
