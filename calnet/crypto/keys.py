"""X25519 keys (RFC 7748). Secret keys hide themselves; a shared secret of all zeros (a small-order public key) is refused."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Final

from nacl import bindings, exceptions

from calnet.errors import AuthenticationError, InvalidError

KEY_SIZE = 32
RandomBytes = Callable[[int], bytes]
"""`random(n)` gives n bytes from a cryptographically secure source; tests pass a seeded one."""


_PRIME: Final = 2**255 - 19
_COORDINATE: Final = 2**255 - 1
"""X25519 ignores the highest bit (RFC 7748 section 5)."""
_SMALL_ORDER: Final = frozenset(
    (
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
)
"""The u-coordinates of the points of order 1, 2, 4 and 8 of Curve25519 and its twist."""


class PrivateKey:
    """An X25519 private key with its public key. Never printed, pickled or compared by value."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes) -> None:
        """`secret` is 32 bytes, clamped on use as RFC 7748 section 5 says. InvalidError for another length."""
        if len(secret) != KEY_SIZE:
            raise InvalidError("a private key is 32 bytes")
        self._secret = bytes(secret)
        self.public: bytes = bindings.crypto_scalarmult_base(self._secret)

    @classmethod
    def generate(cls, random: RandomBytes) -> PrivateKey:
        """A new key from 32 bytes of `random`."""
        return cls(random(KEY_SIZE))

    def exchange(self, public: bytes) -> bytes:
        """The 32-byte X25519 shared secret with `public`; AuthenticationError if it is all zeros or `public` is not 32 bytes."""
        if len(public) != KEY_SIZE:
            raise AuthenticationError("a public key is 32 bytes")
        try:
            shared: bytes = bindings.crypto_scalarmult(self._secret, public)
        except exceptions.RuntimeError as error:
            raise AuthenticationError("the public key is of small order") from error
        return shared

    def secret_bytes(self) -> bytes:
        """The 32 secret bytes, for the state file that keeps them."""
        return self._secret

    def __repr__(self) -> str:
        return f"PrivateKey(public={encode_key(self.public)})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


def is_small_order(public: bytes) -> bool:
    """Whether X25519 with `public` gives all zeros for every private key, or `public` has the wrong length. Such a key is refused at registration."""
    return len(public) != KEY_SIZE or (int.from_bytes(public, "little") & _COORDINATE) % _PRIME in _SMALL_ORDER


def encode_key(key: bytes) -> str:
    """Base64 of a key, as people and JSON see it."""
    return base64.b64encode(key).decode("ascii")


def decode_key(text: str) -> bytes:
    """The 32 bytes behind `encode_key`'s text; InvalidError for anything else."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidError("a key is 44 characters of base64") from error
    if len(key) != KEY_SIZE:
        raise InvalidError("a key is 44 characters of base64")
    return key
