"""What only this server reads again: the state of a sign-in in the browser's cookie, refresh tokens in the store."""

from __future__ import annotations

import json
from typing import Any

from calnet.crypto.box import BOX_NONCE_SIZE, xopen, xseal
from calnet.crypto.hash import hkdf
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import AuthenticationError


class Sealer:
    """Seals under a key derived from the server's control key, so that all servers on one store read each other's."""

    def __init__(self, control_key: PrivateKey, random: RandomBytes) -> None:
        (self._key,) = hkdf(b"calnet sign-in v1", control_key.secret_bytes(), 1)
        self._random = random

    def seal(self, value: Any, purpose: bytes) -> bytes:
        """JSON of `value`; opens for the same purpose alone."""
        nonce = self._random(BOX_NONCE_SIZE)
        return nonce + xseal(self._key, nonce, json.dumps(value).encode(), purpose)

    def open(self, sealed: bytes, purpose: bytes) -> Any:
        """AuthenticationError for what was not sealed here."""
        if len(sealed) <= BOX_NONCE_SIZE:
            raise AuthenticationError("that was not sealed here")
        return json.loads(xopen(self._key, sealed[:BOX_NONCE_SIZE], sealed[BOX_NONCE_SIZE:], purpose))
