"""X25519 keys: vectors, small-order keys, and that secrets hide."""

from __future__ import annotations

import copy
import pickle

import pytest

from calnet.crypto.keys import PrivateKey, decode_key, encode_key, is_small_order
from calnet.errors import AuthenticationError, InvalidError
from tests import shared_vectors

EIGHT = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
"""Points of order 8."""


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


P = 2**255 - 19
NEAR = [number for small in (0, 1, P - 1, *EIGHT) for number in (small - 1, small, small + 1, small + P) if 0 <= number < 2**255]


@pytest.mark.parametrize("high_bit", [0, 1 << 255])
@pytest.mark.parametrize("number", NEAR)
def test_keys_of_small_order_are_those_that_libsodium_refuses(number: int, high_bit: int) -> None:
    public = (number | high_bit).to_bytes(32, "little")
    try:
        PrivateKey(b"a" * 32).exchange(public)
    except AuthenticationError:
        assert is_small_order(public)
    else:
        assert not is_small_order(public)


def test_all_points_of_small_order_are_known() -> None:
    assert sum(is_small_order(number.to_bytes(32, "little")) for number in set(NEAR)) == 7  # five, of which 0 and 1 are written in two ways
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
