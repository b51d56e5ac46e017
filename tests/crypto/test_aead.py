"""ChaCha20-Poly1305 under both backends: vectors, writing in place, and refusals."""

from __future__ import annotations

import sys
import types

import pytest

from calnet.crypto import aead
from calnet.errors import AuthenticationError
from tests import shared_vectors

BACKENDS = ("cryptography", "sodium")
KEY = bytes(range(32))
NONCE = bytes(range(12))


def _backend(name: str) -> tuple[type, type[Exception]]:
    return aead.backend(name)  # type: ignore[return-value]


@pytest.mark.parametrize("name", BACKENDS)
def test_cipher_wycheproof_vectors_seal_and_open_exactly(name: str) -> None:
    new, bad_tag = _backend(name)
    checked = 0
    for group in shared_vectors.load("wycheproof/chacha20_poly1305_test.json")["testGroups"]:
        for case in group["tests"]:
            key, nonce, extra, message = (bytes.fromhex(case[field]) for field in ("key", "iv", "aad", "msg"))
            sealed = bytes.fromhex(case["ct"] + case["tag"])
            cipher = new(key)
            opened = bytearray(len(message))
            if len(nonce) != aead.NONCE_SIZE:
                with pytest.raises(ValueError, match=r"size|length|bytes|buffer"):
                    cipher.open_into(nonce, sealed, extra, opened)
            elif case["result"] == "valid":
                out = bytearray(len(sealed))
                cipher.seal_into(nonce, message, extra, out)
                assert out == sealed, case["tcId"]
                cipher.open_into(nonce, sealed, extra, opened)
                assert opened == message, case["tcId"]
            else:
                with pytest.raises(bad_tag):
                    cipher.open_into(nonce, sealed, extra, opened)
            checked += 1
    assert checked == 325


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("file", ["boringssl", "openssl"])
def test_cipher_rfc_vectors_seal_and_open_exactly(name: str, file: str) -> None:
    new, bad_tag = _backend(name)
    cases = shared_vectors.records(shared_vectors.load(f"rfc/ChaCha20Poly1305-{file}.txt"))
    assert len(cases) == {"boringssl": 66, "openssl": 5}[file]
    for case in cases:
        key, nonce = shared_vectors.value(case["KEY"]), shared_vectors.value(case.get("NONCE", case.get("IV", "")))
        message = shared_vectors.value(case.get("IN", case.get("PLAINTEXT", "")))
        extra = shared_vectors.value(case.get("AD", case.get("AAD", "")))
        sealed = shared_vectors.value(case.get("CT", case.get("CIPHERTEXT", ""))) + shared_vectors.value(case["TAG"])
        opened = bytearray(len(message))
        if "RESULT" in case:
            with pytest.raises(bad_tag):
                new(key).open_into(nonce, sealed, extra, opened)
            continue
        out = bytearray(len(sealed))
        new(key).seal_into(nonce, message, extra, out)
        assert out == sealed
        new(key).open_into(nonce, sealed, extra, opened)
        assert opened == message


@pytest.mark.parametrize("name", BACKENDS)
def test_cipher_in_place_gives_the_same_bytes(name: str) -> None:
    new, _ = _backend(name)
    message = bytes(range(256)) * 5
    apart = bytearray(len(message) + 16)
    new(KEY).seal_into(NONCE, message, None, apart)
    buffer = bytearray(message + bytes(16))
    view = memoryview(buffer)
    new(KEY).seal_into(NONCE, view[: len(message)], None, view)
    assert buffer == apart
    new(KEY).open_into(NONCE, view, None, view[: len(message)])
    assert buffer[: len(message)] == message


@pytest.mark.parametrize("name", BACKENDS)
def test_cipher_any_flipped_bit_does_not_open(name: str) -> None:
    new, bad_tag = _backend(name)
    sealed = bytearray(16 + 5)
    new(KEY).seal_into(NONCE, b"hello", b"extra", sealed)
    for bit in range(len(sealed) * 8):
        forged = bytearray(sealed)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(bad_tag):
            new(KEY).open_into(NONCE, forged, b"extra", bytearray(5))
    with pytest.raises(bad_tag):
        new(KEY).open_into(NONCE, sealed, b"other", bytearray(5))


@pytest.mark.parametrize("name", BACKENDS)
def test_cipher_truncated_at_every_length_does_not_open(name: str) -> None:
    new, bad_tag = _backend(name)
    sealed = bytearray(16 + 5)
    new(KEY).seal_into(NONCE, b"hello", None, sealed)
    for size in range(len(sealed)):
        with pytest.raises(bad_tag):
            new(KEY).open_into(NONCE, sealed[:size], None, bytearray(max(0, size - 16)))


@pytest.mark.parametrize("name", BACKENDS)
def test_cipher_wrong_sizes_are_refused_before_the_library_reads(name: str) -> None:
    new, _ = _backend(name)
    with pytest.raises(ValueError, match=r"size|length|bytes|buffer"):
        new(KEY[:31])
    with pytest.raises(ValueError, match=r"size|length|bytes|buffer"):
        new(KEY).seal_into(NONCE[:11], b"hello", None, bytearray(21))
    with pytest.raises(ValueError, match=r"size|length|bytes|buffer"):
        new(KEY).seal_into(NONCE, b"hello", None, bytearray(20))
    with pytest.raises(ValueError, match=r"size|length|bytes|buffer"):
        new(KEY).open_into(NONCE, bytes(21), None, bytearray(4))


def test_backends_give_each_other_readable_ciphertext() -> None:
    (fast, _), (sodium, _) = _backend("cryptography"), _backend("sodium")
    sealed, opened = bytearray(21), bytearray(5)
    fast(KEY).seal_into(NONCE, b"hello", b"x", sealed)
    sodium(KEY).open_into(NONCE, sealed, b"x", opened)
    assert opened == b"hello"


def test_backend_without_a_name_is_the_fast_one() -> None:
    assert aead.backend()[1].__module__.startswith("cryptography")


def test_backend_without_the_fast_library_falls_back_to_sodium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    assert aead.backend()[0].__name__ == "SodiumCipher"
    with pytest.raises(ImportError):
        aead.backend("cryptography")


def test_backend_of_an_old_library_without_in_place_calls_falls_back_to_sodium(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("aead")
    old.ChaCha20Poly1305 = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", old)
    assert aead.backend()[0].__name__ == "SodiumCipher"


def test_seal_then_open_sealed_gives_the_message() -> None:
    sealed = aead.seal(KEY, NONCE, b"hello", b"extra")
    assert aead.open_sealed(KEY, NONCE, sealed, b"extra") == b"hello"


@pytest.mark.parametrize("sealed", [b"", bytes(15), bytes(16), bytes(40)])
def test_open_sealed_of_nonsense_raises_authentication_error(sealed: bytes) -> None:
    with pytest.raises(AuthenticationError):
        aead.open_sealed(KEY, NONCE, sealed)


def test_nonce_of_counter_is_four_zeros_and_little_endian() -> None:
    assert aead.nonce_of(0x0102) == bytes(4) + b"\2\1" + bytes(6)
