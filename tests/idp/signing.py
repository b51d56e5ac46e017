"""Keys that sign tokens for tests, and tokens of any shape: any header, any claims, any bytes in place of either."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jose import jwk

CURVES: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
Json = dict[str, Any]


class TokenKey:
    """A key pair for one algorithm (RS256, ES256, …). `public` is its JWK as a provider publishes it."""

    def __init__(self, algorithm: str, key_id: str, *, bits: int = 2048) -> None:
        self.algorithm = algorithm
        self.key_id = key_id
        private = rsa.generate_private_key(65537, bits) if algorithm.startswith("RS") else ec.generate_private_key(CURVES[algorithm])
        self._key = jwk.construct(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), algorithm)
        self.public: Json = {**self._key.public_key().to_dict(), "kid": key_id, "use": "sig"}

    def pem(self, kind: str = "PKCS8") -> bytes:
        """The public key as PEM; of an RSA key `PKCS1` too."""
        public = self._key.public_key()
        found: bytes = public.to_pem(kind) if self.algorithm.startswith("RS") else public.to_pem()
        return found

    def signature(self, signed: bytes) -> bytes:
        """The signature of these bytes, as RFC 7518 has it."""
        found: bytes = self._key.sign(signed)
        return found

    def sign(self, claims: object, **header: object) -> str:
        """A token with this key's header; `header` adds to it or replaces, and None takes a name out."""
        whole = {"alg": self.algorithm, "kid": self.key_id} | header
        return compact({name: value for name, value in whole.items() if value is not None}, claims, self.signature)


def compact(header: object, claims: object, signature: Callable[[bytes], bytes]) -> str:
    """A token in compact form (RFC 7515 section 7.1) of values, or of bytes that stand for themselves."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{encoded(signature(signed.encode()))}"


def encoded(value: object) -> str:
    """Base64url without padding, of bytes or of a value's JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
