"""The Noise machine against recorded vectors, against a slow twin, and against forgers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calnet.crypto.aead import Aead, nonce_of, open_sealed, seal
from calnet.crypto.hash import hkdf
from calnet.crypto.keys import PrivateKey
from calnet.crypto.noise import Handshake, SymmetricState
from calnet.errors import AuthenticationError, StateMisuseError
from tests import shared_vectors

INITIATOR, RESPONDER = PrivateKey(b"i" * 32), PrivateKey(b"r" * 32)
INITIATOR_EPHEMERAL, RESPONDER_EPHEMERAL = PrivateKey(b"e" * 32), PrivateKey(b"f" * 32)


def _vectors(name: str, *protocols: str) -> list[dict[str, Any]]:
    text = shared_vectors.load(name)
    parsed = json.loads(text) if isinstance(text, str) else text
    cases = parsed["vectors"] if isinstance(parsed, dict) else parsed
    found = [case for case in cases if case["protocol_name"] in protocols]
    assert found
    return found


def _key(case: dict[str, Any], name: str) -> PrivateKey:
    return PrivateKey(bytes.fromhex(case[name]))


def _machine(case: dict[str, Any], side: str) -> Handshake:
    psks = case.get(f"{side}_psks") or []
    return Handshake(
        initiator=side == "init",
        static=_key(case, f"{side}_static"),
        ephemeral=_key(case, f"{side}_ephemeral"),
        remote_static=bytes.fromhex(case["init_remote_static"]) if side == "init" else None,
        psk=bytes.fromhex(psks[0]) if psks else None,
        prologue=bytes.fromhex(case[f"{side}_prologue"]),
        aead=Aead.AES_256_GCM if "_AESGCM_" in case["protocol_name"] else Aead.CHACHA20_POLY1305,
    )


IK_NAMES = ("Noise_IK_25519_ChaChaPoly_BLAKE2s", "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
AES_NAMES = ("Noise_IK_25519_AESGCM_BLAKE2s", "Noise_IKpsk2_25519_AESGCM_BLAKE2s")


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("noise/cacophony.txt", IK_NAMES),
        ("noise/snow.txt", IK_NAMES),
        ("noise/ik-25519-chachapoly-blake2s.json", IK_NAMES),
        ("noise/cacophony.txt", AES_NAMES),
        ("noise/snow.txt", AES_NAMES),
    ],
)
def test_handshake_recorded_vectors_are_met_byte_for_byte(file: str, names: tuple[str, ...]) -> None:
    for case in _vectors(file, *names):
        initiator, responder = _machine(case, "init"), _machine(case, "resp")
        first, second, *transport = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in case["messages"]]
        assert initiator.write_message(first[0]) == first[1]
        assert responder.read_message(first[1]) == first[0]
        assert responder.remote_static == _key(case, "init_static").public
        assert responder.write_message(second[0]) == second[1]
        assert initiator.read_message(second[1]) == second[0]
        assert initiator.hash == responder.hash
        if "handshake_hash" in case:
            assert initiator.hash.hex() == case["handshake_hash"]
        assert initiator.split() == responder.split()[::-1]
        for number, (payload, sealed) in enumerate(transport):
            sender = (initiator, responder)[number % 2]
            assert seal(sender.split()[0], nonce_of(number // 2, sender.aead), payload, aead=sender.aead) == sealed


class _Twin:
    """Noise, section 5.3, token by token: slow, obvious, and able to run patterns that the machine leaves out. Uses SymmetricState alone."""

    def __init__(self, name: str, prologue: bytes, psks: list[bytes], keys: dict[str, PrivateKey]) -> None:
        self.state = SymmetricState.initialize(name.encode())
        self.psks, self.keys = list(psks), keys
        self.psk_mode = bool(psks)
        self.state.mix_hash(prologue)
        self.state.mix_hash(keys["S"].public)

    def message(self, tokens: list[str], payload: bytes) -> bytes:
        """Lower-case keys are the initiator's, upper-case the responder's; a single letter is sent, two are a Diffie-Hellman."""
        out = b""
        for token in tokens:
            if token == "psk":
                self.state.mix_key_and_hash(self.psks.pop(0))
            elif token in ("e", "E"):
                public = self.keys[token].public
                out += public
                self.state.mix_hash(public)
                if self.psk_mode:
                    self.state.mix_key(public)
            elif token == "s":
                out += self.state.encrypt_and_hash(self.keys[token].public)
            else:
                self.state.mix_key(self.keys[token[0]].exchange(self.keys[token[1]].public))
        return out + self.state.encrypt_and_hash(payload)


@pytest.mark.parametrize("file", ["noise/snow.txt", "noise/snow-multipsk.txt", "noise/cacophony.txt"])
def test_symmetric_state_recorded_vectors_of_psk_patterns_are_met(file: str) -> None:
    patterns = {
        "Noise_IK_25519_ChaChaPoly_BLAKE2s": (["e", "eS", "s", "sS"], ["E", "Ee", "Es"]),
        "Noise_IKpsk1_25519_ChaChaPoly_BLAKE2s": (["e", "eS", "s", "sS", "psk"], ["E", "Ee", "Es"]),
        "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s": (["e", "eS", "s", "sS"], ["E", "Ee", "Es", "psk"]),
        "Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s": (["psk", "e", "eS", "s", "sS"], ["E", "Ee", "Es", "psk"]),
    }
    for case in _vectors(file, *patterns):
        keys = {"s": _key(case, "init_static"), "e": _key(case, "init_ephemeral"), "S": _key(case, "resp_static"), "E": _key(case, "resp_ephemeral")}
        psks = [bytes.fromhex(psk) for psk in case.get("init_psks") or []]
        twin = _Twin(case["protocol_name"], bytes.fromhex(case["init_prologue"]), psks, keys)
        messages = case["messages"]
        for tokens, message in zip(patterns[case["protocol_name"]], messages, strict=False):
            assert twin.message(tokens, bytes.fromhex(message["payload"])).hex() == message["ciphertext"]
        sending = hkdf(twin.state.chaining_key, b"", 2)
        for number, message in enumerate(messages[2:]):
            assert seal(sending[number % 2], nonce_of(number // 2), bytes.fromhex(message["payload"])).hex() == message["ciphertext"]


def _pair(psk: bytes | None = None, responder_psk: bytes | None = None) -> tuple[Handshake, Handshake]:
    initiator = Handshake(initiator=True, static=INITIATOR, ephemeral=INITIATOR_EPHEMERAL, remote_static=RESPONDER.public, psk=psk)
    responder = Handshake(initiator=False, static=RESPONDER, ephemeral=RESPONDER_EPHEMERAL, psk=responder_psk or psk)
    return initiator, responder


def _damaged(message: bytes) -> list[bytes]:
    flipped = [message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :] for at in range(len(message))]
    return [*flipped, *(message[:size] for size in range(len(message))), message + b"\0"]


@pytest.mark.parametrize("psk", [None, b"p" * 32])
def test_read_message_damaged_anyhow_raises_and_the_genuine_one_still_works(psk: bytes | None) -> None:
    initiator, responder = _pair(psk)
    first = initiator.write_message(b"hello")
    for bad in _damaged(first):
        with pytest.raises(AuthenticationError):
            responder.read_message(bad)
        assert responder.remote_static is None
    assert responder.read_message(first) == b"hello"
    second = responder.write_message(b"world")
    for bad in _damaged(second):
        with pytest.raises(AuthenticationError):
            initiator.read_message(bad)
    assert initiator.read_message(second) == b"world"
    assert initiator.complete
    assert responder.complete
    assert initiator.split() == responder.split()[::-1]


@pytest.mark.parametrize("small", [bytes(32), b"\1" + bytes(31)])
def test_read_message_small_order_ephemeral_raises(small: bytes) -> None:
    initiator, responder = _pair()
    first = initiator.write_message(b"")
    with pytest.raises(AuthenticationError):
        responder.read_message(small + first[32:])
    responder.read_message(first)
    second = responder.write_message(b"")
    with pytest.raises(AuthenticationError):
        initiator.read_message(small + second[32:])


def test_handshake_different_psk_fails_at_the_second_message() -> None:
    initiator, responder = _pair(b"p" * 32, b"q" * 32)
    responder.read_message(initiator.write_message(b""))
    with pytest.raises(AuthenticationError):
        initiator.read_message(responder.write_message(b""))


def test_set_psk_after_the_first_message_counts() -> None:
    initiator, responder = _pair(b"p" * 32, b"q" * 32)
    responder.read_message(initiator.write_message(b""))
    responder.set_psk(b"p" * 32)
    initiator.read_message(responder.write_message(b""))
    assert initiator.split() == responder.split()[::-1]


def test_calls_out_of_turn_raise_misuse() -> None:
    initiator, responder = _pair()
    for misuse in (lambda: initiator.read_message(b""), lambda: responder.write_message(b""), initiator.split, lambda: initiator.set_psk(bytes(32))):
        with pytest.raises(StateMisuseError):
            misuse()
    with pytest.raises(StateMisuseError):
        Handshake(initiator=True, static=INITIATOR, ephemeral=INITIATOR_EPHEMERAL)


def test_set_psk_after_the_second_message_raises_misuse() -> None:
    initiator, responder = _pair(b"p" * 32)
    responder.read_message(initiator.write_message(b""))
    responder.write_message(b"")
    with pytest.raises(StateMisuseError):
        responder.set_psk(b"q" * 32)


def test_symmetric_state_without_a_key_passes_plaintext() -> None:
    state = SymmetricState.initialize(b"short")
    assert state.hash == b"short".ljust(32, b"\0")
    assert state.encrypt_and_hash(b"plain") == b"plain"
    assert SymmetricState.initialize(b"short").decrypt_and_hash(b"plain") == b"plain"


def test_transport_keys_open_what_the_other_side_sealed() -> None:
    initiator, responder = _pair()
    responder.read_message(initiator.write_message(b""))
    initiator.read_message(responder.write_message(b""))
    sealed = seal(initiator.split()[0], nonce_of(0), b"data")
    assert open_sealed(responder.split()[1], nonce_of(0), sealed) == b"data"
