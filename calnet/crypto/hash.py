"""BLAKE2s (RFC 7693) as Noise and WireGuard use it: the hash, HMAC over it, HKDF, and the keyed 128-bit MAC of WireGuard's mac1, mac2 and cookies."""

from __future__ import annotations

import hashlib
import hmac

MAC_SIZE = 16


def blake2s(*parts: bytes) -> bytes:
    """BLAKE2s-256 of the parts joined."""
    state = hashlib.blake2s()
    for part in parts:
        state.update(part)
    return state.digest()


def hmac_blake2s(key: bytes, *parts: bytes) -> bytes:
    """HMAC-BLAKE2s-256 (RFC 2104 over BLAKE2s, 64-byte blocks): not BLAKE2s's own keyed mode."""
    return hmac.digest(key, b"".join(parts), "blake2s")


def hkdf(chaining_key: bytes, material: bytes, outputs: int) -> tuple[bytes, ...]:
    """Noise's HKDF (section 4.3), WireGuard's KDF_n: `outputs` (1 to 3) keys of 32 bytes."""
    secret = hmac_blake2s(chaining_key, material)
    keys: list[bytes] = []
    last = b""
    for number in range(1, outputs + 1):
        last = hmac_blake2s(secret, last, bytes((number,)))
        keys.append(last)
    return tuple(keys)


def mac(key: bytes, *parts: bytes) -> bytes:
    """WireGuard's MAC(key, input): BLAKE2s in keyed mode, 16 bytes."""
    state = hashlib.blake2s(key=key, digest_size=MAC_SIZE)
    for part in parts:
        state.update(part)
    return state.digest()


def equal(left: bytes, right: bytes) -> bool:
    """Comparison in constant time (for equal lengths)."""
    return hmac.compare_digest(left, right)
