"""X25519 keys: vectors, small-order keys, and that secrets hide."""

from __future__ import annotations

import copy
import pickle

import pytest

from calnet.crypto.keys import PrivateKey, decode_key, encode_key, is_small_order
from calnet.errors import AuthenticationError, InvalidError
from tests import shared_vectors


def test_exchange_wycheproof_vectors_match_and_zero_secrets_are_refused() -> None:
    cases = [case for group in shared_vectors.load("wycheproof/x25519_test.json")["testGroups"] for case in group["tests"]]
    assert len(cases) == 518
    for case in cases:
        private, public = PrivateKey(bytes.fromhex(case["private"])), bytes.fromhex(case["public"])
        if "ZeroSharedSecret" in case["flags"]:
            with pytest.raises(AuthenticationError):
                private.exchange(public)
        else:
            assert private.exchange(public).hex() == case["shared"], case["tcId"]


def test_exchange_rfc_7748_vectors_match() -> None:
    cases = shared_vectors.records(shared_vectors.load("rfc/X25519-rfc7748.txt"))
    assert len(cases) == 3
    for case in cases:
        scalar, point = bytes.fromhex(case["INPUT_SCALAR"]), bytes.fromhex(case["INPUT_U"])
        assert PrivateKey(scalar).exchange(point).hex() == case["OUTPUT_U"].lower()


def test_exchange_both_ways_agrees() -> None:
    alice, bob = PrivateKey(b"a" * 32), PrivateKey(b"b" * 32)
    assert alice.exchange(bob.public) == bob.exchange(alice.public)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(InvalidError):
        PrivateKey(bytes(size))
    with pytest.raises(AuthenticationError):
        PrivateKey(b"a" * 32).exchange(b"\x09" * size)
    assert is_small_order(b"\x09" * size)


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31)])
def test_is_small_order_names_the_small_points(public: bytes) -> None:
    assert is_small_order(public)
    assert not is_small_order(PrivateKey(b"a" * 32).public)


def test_generate_takes_its_secret_from_the_source() -> None:
    assert PrivateKey.generate(lambda size: b"r" * size).secret_bytes() == b"r" * 32


def test_private_key_shows_only_its_public_half() -> None:
    key = PrivateKey(b"s" * 32)
    assert encode_key(key.public) in repr(key)
    assert encode_key(b"s" * 32) not in repr(key)
    assert "ssss" not in repr(key)


def test_private_key_is_neither_pickled_nor_copied() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(PrivateKey(b"s" * 32))
    with pytest.raises(TypeError):
        copy.copy(PrivateKey(b"s" * 32))


def test_encode_then_decode_gives_the_key() -> None:
    key = bytes(range(32))
    assert decode_key(encode_key(key)) == key
    assert len(encode_key(key)) == 44


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", encode_key(bytes(33)), encode_key(bytes(32))[:-1], "é" * 44])
def test_decode_of_anything_else_raises_invalid(text: str) -> None:
    with pytest.raises(InvalidError):
        decode_key(text)
