"""The one way a JSON Web Token becomes claims: strict, and every failure the same error. Pure.

python-jose verifies signatures alone here; what to verify, and with which key, is decided before (RFC 8725): by itself it takes tokens without exp, aud or
sub, ignores `kid`, and lets errors of its own out. Sources: RFC 7515, RFC 7519, OpenID Connect Core section 3.1.3.7.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from calnet.crypto.hash import equal
from calnet.errors import UnauthorizedError

ALGORITHMS: Final[Mapping[str, tuple[str, str]]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
"""Algorithm → key type and curve. No HMAC, no `none`."""
MAX_SIZE: Final = 16_384
MAX_LIFETIME_S: Final = 86_400 + 3600
SKEW_S: Final = 60
MIN_RSA_BITS: Final = 2048
_TYPES: Final = (None, "JWT", "jwt", "at+jwt", "application/at+jwt")
_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_PARTS: Final = {"RSA": ("n", "e"), "EC": ("x", "y")}
_FOREIGN_KEYS: Final = ("jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc")


class TokenError(UnauthorizedError):
    """A token that does not hold; the text says why, for the log and whoever sets a provider up."""


def may_be_one(token: str) -> bool:
    """Whether the text has the shape of a signed token at all."""
    return _SHAPE.fullmatch(token) is not None


def said_audience(token: str) -> str:
    """What a token says that it is for, unverified: for messages alone."""
    named = _json(token.split(".")[1]).get("aud")
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named)


def header_of(token: str) -> tuple[str, str]:
    """(algorithm, key id) that the token names; TokenError."""
    if len(token) > MAX_SIZE or _SHAPE.fullmatch(token) is None:
        raise TokenError("that is no signed token")
    header = _json(token.split(".")[0])
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenError("the token's algorithm is none that is taken here")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= 255:
        raise TokenError("the token names no key")
    if header.get("typ") not in _TYPES or any(name in header for name in _FOREIGN_KEYS):
        raise TokenError("the token's header asks for what is not done here")
    return algorithm, key_id


def key_for(algorithm: str, key_id: str, keys: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The one key of a JWK set that fits; None where there is none, or no single one."""
    kind, curve = ALGORITHMS[algorithm]
    fitting = [
        key
        for key in keys
        if key.get("kid") == key_id
        and key.get("kty") == kind
        and key.get("use", "sig") == "sig"
        and _may_verify(key)
        and key.get("alg", algorithm) == algorithm
        and (not curve or key.get("crv") == curve)
        and all(isinstance(key.get(part), str) for part in _PARTS[kind])
        and (kind != "RSA" or _rsa_bits(key) >= MIN_RSA_BITS)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _may_verify(key: Mapping[str, Any]) -> bool:
    """RFC 7517 section 4.3: a key that says what it is for is for nothing else."""
    operations = key.get("key_ops", ["verify"])
    return isinstance(operations, list) and "verify" in operations


def verify(token: str, key: Mapping[str, Any], *, issuer: str, audience: str, client_id: str, now: float, nonce: str | None = None) -> dict[str, Any]:
    """The claims of a token signed by `key` (from `key_for`), issued by `issuer` for `audience`, valid at `now`. TokenError for anything else."""
    algorithm, _ = header_of(token)
    signed, _, signature = token.rpartition(".")
    if not _signature_holds(algorithm, key, signed.encode(), _decoded(signature)):
        raise TokenError("the token's signature does not hold")
    claims = _json(token.split(".")[1])
    _check_times(claims, now)
    if claims.get("iss") != issuer:
        raise TokenError("the token is another issuer's")
    _check_audience(claims, audience, client_id)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise TokenError("the token names no subject")
    if nonce is not None and not (isinstance(claims.get("nonce"), str) and equal(claims["nonce"].encode(), nonce.encode())):
        raise TokenError("the token answers another sign-in")
    return claims


def _signature_holds(algorithm: str, key: Mapping[str, Any], signed: bytes, signature: bytes) -> bool:
    from jose import jwk
    from jose.exceptions import JOSEError

    public = {name: key[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in key}
    try:
        return bool(jwk.construct(public, algorithm).verify(signed, signature))
    except (JOSEError, ValueError, TypeError, KeyError, OverflowError):
        return False


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires, issued, begins = claims.get("exp"), claims.get("iat"), claims.get("nbf", 0)
    for value in (expires, issued, begins):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise TokenError("the token's times are none")
    assert isinstance(expires, int)
    assert isinstance(issued, int)
    if expires <= now - SKEW_S:
        raise TokenError("the token has expired")
    if issued > now + SKEW_S or begins > now + SKEW_S:
        raise TokenError("the token is not valid yet: compare this machine's clock with the provider's")
    if expires - issued > MAX_LIFETIME_S:
        raise TokenError("the token would be valid for longer than any is taken")


def _check_audience(claims: Mapping[str, Any], audience: str, client_id: str) -> None:
    named = claims.get("aud")
    audiences = [named] if isinstance(named, str) else named
    if not isinstance(audiences, list) or audience not in audiences or not all(isinstance(one, str) for one in audiences):
        raise TokenError("the token is for another audience")
    if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != client_id:
        raise TokenError("the token was given to another client")


def _decoded(part: str) -> bytes:
    """Base64url without padding, in its one canonical form (RFC 7515 section 2): junk behind a signature does not pass."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        raise TokenError("that is no signed token") from error
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != part:
        raise TokenError("that is no signed token")
    return raw


def _json(part: str) -> dict[str, Any]:
    try:
        found = json.loads(_decoded(part).decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text: whoever compares or keeps it would fail
    except (ValueError, RecursionError) as error:
        raise TokenError("the token holds no JSON") from error
    if not isinstance(found, dict):
        raise TokenError("the token holds no JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _rsa_bits(key: Mapping[str, Any]) -> int:
    modulus = key.get("n")
    try:
        return int.from_bytes(_decoded(modulus), "big").bit_length() if isinstance(modulus, str) else 0
    except TokenError:
        return 0
