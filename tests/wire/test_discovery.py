from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.box import SharedBox
from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError, RemoteError, WireError
from calnet.model import Endpoint, NodeKey
from calnet.wire import discovery
from calnet.wire.discovery import Ask, Candidates, DiscoveryMessage, Grant, Mark, Ping, Pong, Question, Tally, View, ViewFlag
from calnet.wire.tunnel import DatagramKind, classify

RANDOM = random.Random(3)
ONE, OTHER = PrivateKey(RANDOM.randbytes(32)), PrivateKey(RANDOM.randbytes(32))
NODE = NodeKey(RANDOM.randbytes(32))
TOKEN = bytes(range(12))
NONCE = bytes(range(24))
V4, V6 = Endpoint("203.0.113.9", 41_641), Endpoint("2001:db8::9", 41_641)
VECTORS = Path(__file__).parents[1] / "vectors" / "discovery.json"

MESSAGES: list[DiscoveryMessage] = [
    Ping(NODE, TOKEN),
    Pong(NODE, TOKEN, V4),
    Pong(NODE, TOKEN, V6),
    Pong(NODE, TOKEN, None),
    Candidates(NODE, ()),
    Candidates(NODE, (V4, V6)),
    Ask(NODE, V4, 0),
    Ask(NODE, V6, 65_535),
    Grant(NODE, V4),
    Question(NODE, TOKEN),
    View(NODE, TOKEN, ViewFlag(0), 0, ()),
    View(NODE, TOKEN, ViewFlag(255), 3, ((V4, 0, None), (V6, 5, 65_534))),
    Mark(NODE, 0),
    Mark(NODE, 2**32 - 1),
    Tally(NODE, 7, 0, 0),
    Tally(NODE, 2**32 - 1, 2**64 - 1, 1),
]


def sealed(message: DiscoveryMessage) -> bytes:
    return discovery.seal_message(SharedBox(ONE, OTHER.public), ONE.public, NONCE, message)


def opened(datagram: bytes) -> DiscoveryMessage:
    return discovery.open_message(SharedBox(OTHER, ONE.public), discovery.parse_sealed(datagram))


@pytest.mark.parametrize("message", MESSAGES)
def test_message_sealed_and_opened_is_itself(message: DiscoveryMessage) -> None:
    datagram = sealed(message)
    assert discovery.parse_sealed(datagram).sender == ONE.public
    assert opened(datagram) == message
    assert classify(datagram) is DatagramKind.DISCOVERY


def test_answers_are_as_long_as_what_they_answer() -> None:
    answered = [message for message in MESSAGES if isinstance(message, Ping | Pong | Mark | Tally)]
    assert {len(sealed(message)) for message in answered} == {discovery.PROBE_SIZE} == {140}


def test_question_is_as_long_as_the_longest_view_and_a_view_can_be_cut_to_any_length() -> None:
    tried = tuple((V4, 0, None) for _ in range(discovery.MAX_TRIED + 1))
    question = sealed(Question(NODE, TOKEN))
    assert len(question) == len(sealed(View(NODE, TOKEN, ViewFlag(0), 0, tried))) == 652
    assert discovery.tried_that_fit(len(question)) == discovery.tried_that_fit(9_000) == discovery.MAX_TRIED
    for length in range(124, 653):
        count = discovery.tried_that_fit(length)
        assert len(sealed(View(NODE, TOKEN, ViewFlag(0), 0, tried[:count]))) <= length
        assert count == discovery.MAX_TRIED or len(sealed(View(NODE, TOKEN, ViewFlag(0), 0, tried[: count + 1]))) > length
    assert discovery.tried_that_fit(123) < 0


def test_question_without_padding_is_understood() -> None:
    assert discovery.parse_payload(b"\x06" + NODE + TOKEN) == Question(NODE, TOKEN)


def test_bits_of_a_view_lie_where_the_protocol_says() -> None:
    assert [(flag.name, flag.value) for flag in ViewFlag] == [
        ("UDP", 1),
        ("RELAY", 2),
        ("GUESSES", 4),
        ("DIRECT", 8),
        ("RELAYED", 16),
        ("RELAY_ALONE", 32),
        ("DIRECT_ALONE", 64),
    ]
    payload = discovery.build_payload(View(NODE, TOKEN, ViewFlag.UDP | ViewFlag.DIRECT, 1, ()))
    assert payload == b"\x07" + NODE + TOKEN + b"\x09\x01\x00"


def test_tally_lies_where_the_protocol_says() -> None:
    payload = discovery.build_payload(Tally(NODE, 0x01020304, 0x05060708, 0x090A0B0C))
    assert payload == b"\x09" + NODE + bytes.fromhex("01020304 0000000005060708 00000000090a0b0c") + bytes(11)
    assert discovery.build_payload(Mark(NODE, 0x01020304)) == b"\x08" + NODE + bytes.fromhex("01020304") + bytes(27)


def test_longer_ping_and_bytes_after_a_body_are_read() -> None:
    for message in MESSAGES:
        assert discovery.parse_payload(discovery.build_payload(message) + b"later") == message


def test_candidates_beyond_32_are_not_written() -> None:
    endpoints = tuple(Endpoint("192.0.2.1", port) for port in range(1, 60))
    assert discovery.parse_payload(discovery.build_payload(Candidates(NODE, endpoints))) == Candidates(NODE, endpoints[:32])
    assert len(sealed(Candidates(NODE, endpoints))) <= discovery.MAX_MESSAGE_SIZE


def test_vector_is_reproduced_byte_for_byte() -> None:
    vector = json.loads(VECTORS.read_text("utf-8"))
    sender, receiver = PrivateKey(bytes.fromhex(vector["sender_discovery"])), PrivateKey(bytes.fromhex(vector["receiver_discovery"]))
    node, token = NodeKey(bytes.fromhex(vector["node_key"])), bytes.fromhex(vector["token"])
    box = SharedBox(sender, receiver.public)
    messages: dict[str, DiscoveryMessage] = {
        "ping": Ping(node, token),
        "pong": Pong(node, token, V4),
        "candidates": Candidates(node, (V4, V6)),
    }
    for name, message in messages.items():
        assert discovery.build_payload(message).hex() == vector[name]["payload"]
        assert discovery.seal_message(box, sender.public, bytes.fromhex(vector["nonce"]), message).hex() == vector[name]["datagram"]


@pytest.mark.parametrize("position", [40, 100, 139])
def test_message_altered_does_not_open(position: int) -> None:
    datagram = bytearray(sealed(MESSAGES[0]))
    datagram[position] ^= 1
    with pytest.raises(AuthenticationError):
        opened(bytes(datagram))


@pytest.mark.parametrize(
    "datagram",
    [b"", discovery.MAGIC, discovery.MAGIC + bytes(104), b"\xca\x17\x02\x00" + bytes(140), discovery.MAGIC + bytes(discovery.MAX_MESSAGE_SIZE)],
)
def test_outer_layout_malformed_raises_wire_error(datagram: bytes) -> None:
    with pytest.raises(WireError):
        discovery.parse_sealed(datagram)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01" + NODE[:-1],
        b"\x01" + NODE + bytes(30),
        b"\x02" + NODE + bytes(30),
        b"\x00" + NODE + bytes(40),
        b"\x04" + NODE + bytes(40),
        b"\x02" + NODE + TOKEN + b"\x07" + bytes(18),
        b"\x03" + NODE + b"\x01",
        b"\x03" + NODE + b"\x21" + bytes(33 * 19),
        b"\x03" + NODE + b"\x01" + bytes(19),
        b"\x08" + NODE + bytes(30),
        b"\x09" + NODE + bytes(30),
        b"\x0a" + NODE + bytes(40),
    ],
)
def test_payload_malformed_raises_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        discovery.parse_payload(payload)


def test_payload_of_candidates_without_count_raises_wire_error() -> None:
    with pytest.raises(WireError):
        discovery.parse_payload(b"\x03" + NODE)


@given(st.binary(max_size=300), st.integers(0, 10))
def test_fuzzed_bytes_raise_their_errors_alone(data: bytes, kind: int) -> None:
    for parse in (discovery.parse_sealed, discovery.parse_payload, opened):
        for whole in (data, discovery.MAGIC + data, bytes((kind,)) + NODE + data):
            with contextlib.suppress(RemoteError):
                parse(whole)
