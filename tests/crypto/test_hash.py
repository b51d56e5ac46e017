"""BLAKE2s and what is built on it."""

from __future__ import annotations

import hashlib

import pytest

from calnet.crypto import hash as subject
from tests import shared_vectors


def test_blake2s_known_answers_match() -> None:
    cases = [case for case in shared_vectors.load("blake2/blake2s-kat.json") if not case["key"]]
    assert len(cases) == 256
    for case in cases:
        data = bytes.fromhex(case["in"])
        assert subject.blake2s(data).hex() == case["out"]
        assert subject.blake2s(data[:3], data[3:]).hex() == case["out"]


def test_mac_is_keyed_blake2s_of_16_bytes() -> None:
    keyed = [case for case in shared_vectors.load("blake2/blake2s-kat.json") if case["key"]]
    assert len(keyed) == 256
    for case in keyed:
        key, data = bytes.fromhex(case["key"]), bytes.fromhex(case["in"])
        assert hashlib.blake2s(data, key=key).hexdigest() == case["out"]
        assert subject.mac(key, data[:7], data[7:]) == hashlib.blake2s(data, key=key, digest_size=16).digest()


def _slow_hmac(key: bytes, data: bytes) -> bytes:
    """RFC 2104, written out."""
    padded = (hashlib.blake2s(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.blake2s(bytes(byte ^ 0x36 for byte in padded) + data).digest()
    return hashlib.blake2s(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


@pytest.mark.parametrize("key", [b"", b"k", bytes(64), bytes(65)])
def test_hmac_equals_the_definition(key: bytes) -> None:
    assert subject.hmac_blake2s(key, b"some ", b"data") == _slow_hmac(key, b"some data")


def test_hkdf_outputs_chain_as_noise_says() -> None:
    secret = _slow_hmac(b"c" * 32, b"material")
    first = _slow_hmac(secret, b"\1")
    second = _slow_hmac(secret, first + b"\2")
    third = _slow_hmac(secret, second + b"\3")
    assert subject.hkdf(b"c" * 32, b"material", 3) == (first, second, third)
    assert subject.hkdf(b"c" * 32, b"material", 1) == (first,)


def test_equal_tells_equal_from_different() -> None:
    assert subject.equal(b"ab", b"ab")
    assert not subject.equal(b"ab", b"ac")
    assert not subject.equal(b"ab", b"abc")
