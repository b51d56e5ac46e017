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
from calnet.wire.discovery import Candidates, DiscoveryMessage, Ping, Pong
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


def test_pong_is_as_long_as_ping() -> None:
    assert {len(sealed(message)) for message in MESSAGES[:4]} == {discovery.PROBE_SIZE} == {140}


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
    [b"", discovery.MAGIC, discovery.MAGIC + bytes(104), b"\xca\x17\x02\x00" + bytes(140), discovery.MAGIC + bytes(1_400)],
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
    ],
)
def test_payload_malformed_raises_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        discovery.parse_payload(payload)


def test_payload_of_candidates_without_count_raises_wire_error() -> None:
    with pytest.raises(WireError):
        discovery.parse_payload(b"\x03" + NODE)


@given(st.binary(max_size=300), st.integers(0, 4))
def test_fuzzed_bytes_raise_their_errors_alone(data: bytes, kind: int) -> None:
    for parse in (discovery.parse_sealed, discovery.parse_payload, opened):
        for whole in (data, discovery.MAGIC + data, bytes((kind,)) + NODE + data):
            with contextlib.suppress(RemoteError):
                parse(whole)
