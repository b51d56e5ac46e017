"""Pre-auth keys as people carry them: `calnet-` and 96 letters of base32 (lower case) of id (8 bytes), secret (20) and the server's control key (32).

The server's key inside lets a first login do without trust on first use: the node pins it before it says anything.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple

from calnet.errors import InvalidError
from calnet.model import ControlKey

PREFIX: Final = "calnet-"
ID_SIZE: Final = 8
SECRET_SIZE: Final = 20
_SERVER_KEY_SIZE: Final = 32
_SIZE: Final = ID_SIZE + SECRET_SIZE + _SERVER_KEY_SIZE


class AuthKey(NamedTuple):
    """A whole pre-auth key. Whoever has it may log in: it hides its secret when printed."""

    id: bytes
    secret: bytes
    server_key: ControlKey

    def __repr__(self) -> str:
        return f"AuthKey({self.id.hex()}, …)"


def format_auth_key(key: AuthKey) -> str:
    """The printable key."""
    return PREFIX + base64.b32encode(key.id + key.secret + key.server_key).decode("ascii").lower()


def parse_auth_key(text: str) -> AuthKey:
    """The key behind `format_auth_key`'s text, in either case and with white space around it; InvalidError for anything else."""
    text = text.strip().lower()
    try:
        data = base64.b32decode(text.removeprefix(PREFIX).upper().encode("ascii")) if text.startswith(PREFIX) else b""
    except (binascii.Error, ValueError) as error:
        raise InvalidError("that is not a pre-auth key: it is `calnet-` and 96 letters and digits") from error
    if len(data) != _SIZE:
        raise InvalidError("that is not a pre-auth key: it is `calnet-` and 96 letters and digits")
    return AuthKey(data[:ID_SIZE], data[ID_SIZE : ID_SIZE + SECRET_SIZE], ControlKey(data[ID_SIZE + SECRET_SIZE :]))
