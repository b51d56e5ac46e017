"""One handshake: the recorded transcript of another implementation, our own worked vector, and damaged messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import AuthenticationError
from calnet.model import NodeId
from calnet.tunnel import handshake
from calnet.tunnel.cookie import CookieChecker, CookieMemory
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.session import Session
from calnet.tunnel.timestamps import timestamp_of
from calnet.wire.tunnel import Initiation, Response, parse_handshake
from tests import shared_vectors
from tests.tunnel.world import private_key, seeded

OWN_VECTOR = Path(__file__).parents[1] / "vectors" / "tunnel.json"
ALICE, BOB = private_key("alice"), private_key("bob")
STAMP = timestamp_of(1_800_000_000.0)


def _fixed(*values: bytes) -> RandomBytes:
    """A source that gives these values, one a call."""
    waiting = list(values)
    return lambda size: waiting.pop(0)


def _session(pending: handshake.Pending, response: Response, keys: tuple[bytes, bytes], initiator: bool) -> Session:
    peer = TunnelPeer(TunnelPeerConfig(NodeId(1), pending.remote_static))
    local, remote = (pending.local_index, response.sender) if initiator else (response.sender, pending.local_index)
    return Session(peer, local_index=local, remote_index=remote, initiator=initiator, remote_static=pending.remote_static, keys=keys, now=0.0)


def _initiation(datagram: bytes) -> Initiation:
    message = parse_handshake(datagram)
    assert isinstance(message, Initiation)
    return message


def _response(datagram: bytes) -> Response:
    message = parse_handshake(datagram)
    assert isinstance(message, Response)
    return message


def test_recorded_transcript_of_wireguard_go_is_met_byte_for_byte() -> None:
    recorded = {name: value for name, value in shared_vectors.load("wireguard/wireguard-go-transcript.json").items() if name != "comment"}
    told = {name: bytes.fromhex(value) for name, value in recorded.items()}
    static, ephemeral = PrivateKey(told["initiator_static_private"]), told["initiator_ephemeral_private"]
    index = int.from_bytes(told["initiator_index"], "little")
    responder = told["responder_static_public"]
    pending, body = handshake.begin(static, responder, told["psk"], told["tai64n"], index, _fixed(ephemeral))
    assert CookieMemory(responder).finish(body, 0.0) == told["initiation"]
    assert CookieChecker(responder, seeded("x")).mac1_holds(told["initiation"])
    assert CookieChecker(static.public, seeded("x")).mac1_holds(told["response"])
    response = _response(told["response"])
    keys = handshake.finish(pending, response)
    assert keys == (told["send_key"], told["recv_key"])
    session = _session(pending, response, keys, initiator=True)
    padded = told["transport_out_plain"] + bytes(-len(told["transport_out_plain"]) % 16)
    assert session.seal(padded) == told["transport_out"]
    assert session.open(told["transport_in"]).rstrip(b"\0") == told["transport_in_plain"].rstrip(b"\0")


def test_recorded_initiation_is_read_by_our_responder() -> None:
    recorded = shared_vectors.load("wireguard/wireguard-go-transcript.json")
    responder = PrivateKey(bytes.fromhex(recorded["responder_static_private"]))
    message = _initiation(bytes.fromhex(recorded["initiation"]))
    _, static, timestamp = handshake.read_initiation(responder, message, seeded("x"))
    assert static.hex() == recorded["initiator_static_public"]
    assert timestamp.hex() == recorded["tai64n"]
    assert message.sender == int.from_bytes(bytes.fromhex(recorded["initiator_index"]), "little")


def test_own_worked_vector_is_met_byte_for_byte() -> None:
    """Generates every byte of tests/vectors/tunnel.json from its inputs, both sides."""
    vector = json.loads(OWN_VECTOR.read_text("utf-8"))
    given = {name: bytes.fromhex(value) for name, value in vector["inputs"].items()}
    alice, bob = PrivateKey(given["initiator_static"]), PrivateKey(given["responder_static"])
    alice_index, bob_index = (int.from_bytes(given[f"{side}_index"], "little") for side in ("initiator", "responder"))
    pending, body = handshake.begin(alice, bob.public, given["psk"], given["timestamp"], alice_index, _fixed(given["initiator_ephemeral"]))
    initiation = CookieMemory(bob.public).finish(body, 0.0)
    started, static, _ = handshake.read_initiation(bob, _initiation(initiation), _fixed(given["responder_ephemeral"]))
    answer, bob_keys = handshake.respond(started, given["psk"], bob_index, alice_index)
    response = CookieMemory(static).finish(answer, 0.0)
    keys = handshake.finish(pending, _response(response))
    there, back = (_session(pending, _response(response), pair, initiator) for pair, initiator in ((keys, True), (bob_keys, False)))
    made = {
        "initiator_public": alice.public,
        "responder_public": bob.public,
        "initiation": initiation,
        "response": response,
        "initiator_sending_key": keys[0],
        "responder_sending_key": keys[1],
        "keepalive": there.seal(b""),
        "data": there.seal(given["packet"]),
        "answer": back.seal(given["packet"]),
    }
    assert {name: value.hex() for name, value in made.items()} == vector["outputs"]
    assert back.open(made["data"]) == there.open(made["answer"]) == given["packet"]


def _begin() -> tuple[handshake.Pending, Initiation]:
    pending, body = handshake.begin(ALICE, BOB.public, None, STAMP, 1, seeded("begin"))
    return pending, _initiation(body + bytes(32))


def test_initiation_damaged_anywhere_raises() -> None:
    _, message = _begin()
    for at in range(len(message.noise)):
        noise = message.noise[:at] + bytes([message.noise[at] ^ 1]) + message.noise[at + 1 :]
        with pytest.raises(AuthenticationError):
            handshake.read_initiation(BOB, Initiation(1, noise, b"", b""), seeded("x"))
    assert handshake.read_initiation(BOB, message, seeded("x"))[1:] == (ALICE.public, STAMP)


def test_initiation_to_another_key_raises() -> None:
    with pytest.raises(AuthenticationError):
        handshake.read_initiation(private_key("carol"), _begin()[1], seeded("x"))


def test_response_damaged_anywhere_raises_and_the_genuine_one_still_finishes() -> None:
    pending, message = _begin()
    started, _, _ = handshake.read_initiation(BOB, message, seeded("y"))
    body, keys = handshake.respond(started, None, 2, 1)
    genuine = _response(body + bytes(32))
    for at in range(len(genuine.noise)):
        noise = genuine.noise[:at] + bytes([genuine.noise[at] ^ 1]) + genuine.noise[at + 1 :]
        with pytest.raises(AuthenticationError):
            handshake.finish(pending, Response(2, 1, noise, b"", b""))
    assert handshake.finish(pending, genuine) == keys[::-1]


@pytest.mark.parametrize(("ours", "theirs", "agree"), [(None, bytes(32), True), (b"p" * 32, b"p" * 32, True), (b"p" * 32, None, False)])
def test_psk_none_is_all_zeros_and_must_agree(ours: bytes | None, theirs: bytes | None, agree: bool) -> None:
    pending, body = handshake.begin(ALICE, BOB.public, ours, STAMP, 1, seeded("begin"))
    started, _, _ = handshake.read_initiation(BOB, _initiation(body + bytes(32)), seeded("y"))
    answer = _response(handshake.respond(started, theirs, 2, 1)[0] + bytes(32))
    if agree:
        handshake.finish(pending, answer)
    else:
        with pytest.raises(AuthenticationError):
            handshake.finish(pending, answer)
