"""Sealed boxes."""

from __future__ import annotations

import pytest

from calnet.crypto.box import BOX_NONCE_SIZE, BOX_OVERHEAD, SharedBox, xopen, xseal
from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError
from tests import shared_vectors

ALICE, BOB = PrivateKey(b"a" * 32), PrivateKey(b"b" * 32)
NONCE = bytes(range(BOX_NONCE_SIZE))


def test_shared_box_opens_what_the_other_side_sealed() -> None:
    sealed = SharedBox(ALICE, BOB.public).seal(NONCE, b"probe")
    assert len(sealed) == 5 + BOX_OVERHEAD
    assert SharedBox(BOB, ALICE.public).open(NONCE, sealed) == b"probe"


def test_shared_box_flipped_truncated_or_foreign_does_not_open() -> None:
    sealed = SharedBox(ALICE, BOB.public).seal(NONCE, b"probe")
    box = SharedBox(BOB, ALICE.public)
    for bad in [bytes([sealed[0] ^ 1]) + sealed[1:], *(sealed[:size] for size in range(len(sealed))), sealed + b"\0"]:
        with pytest.raises(AuthenticationError):
            box.open(NONCE, bad)
    with pytest.raises(AuthenticationError):
        box.open(NONCE[:-1] + b"\xff", sealed)
    with pytest.raises(AuthenticationError):
        box.open(NONCE[:-1], sealed)


def test_xseal_wycheproof_vectors_match() -> None:
    checked = 0
    for group in shared_vectors.load("wycheproof/xchacha20_poly1305_test.json")["testGroups"]:
        for case in group["tests"]:
            key, nonce, extra, message = (bytes.fromhex(case[field]) for field in ("key", "iv", "aad", "msg"))
            sealed = bytes.fromhex(case["ct"] + case["tag"])
            if case["result"] == "valid":
                assert xseal(key, nonce, message, extra) == sealed
                assert xopen(key, nonce, sealed, extra) == message
            elif len(nonce) == BOX_NONCE_SIZE:
                with pytest.raises(AuthenticationError):
                    xopen(key, nonce, sealed, extra)
            checked += 1
    assert checked > 200
