"""Control messages: what is built is parsed, and nothing but WireError is raised."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError, WireError
from calnet.wire import control

KEY = bytes(range(32))

NODE_MESSAGES: list[control.NodeMessage] = [
    control.Register(1, KEY, KEY, KEY, "host", "linux", "0.1", "calnet-x", ("10.0.0.0/8",)),
    control.Subscribe(7),
    control.Update(2, hostname="new", routes=()),
    control.Publish(("192.0.2.1:5",)),
    control.Candidates(3, ("[2001:db8::1]:5",)),
    control.Logout(4),
    control.Ping(5),
    control.Pong(6),
]
SERVER_MESSAGES: list[control.ServerMessage] = [
    control.Welcome(1.5, "0.1", 2, "pending", "ABCD"),
    control.State("active"),
    control.Registered(1, 2, None),
    control.Done(1),
    control.Refused(1, "conflict", "taken"),
    control.Ping(1),
    control.Pong(1, 2.5),
    control.Bye("replaced"),
    control.NetmapUnchanged(4),
    control.Candidates(3, ()),
]


@pytest.mark.parametrize("message", NODE_MESSAGES, ids=lambda message: type(message).__name__)
def test_node_message_encoded_is_decoded_to_itself(message: control.NodeMessage) -> None:
    assert control.decode_from_node(control.encode(message)) == message


@pytest.mark.parametrize("message", SERVER_MESSAGES, ids=lambda message: type(message).__name__)
def test_server_message_encoded_is_decoded_to_itself(message: control.ServerMessage) -> None:
    assert control.decode_from_server(control.encode(message)) == message


@pytest.mark.parametrize("message", [*NODE_MESSAGES, *SERVER_MESSAGES], ids=lambda message: type(message).__name__)
def test_message_truncated_or_with_bytes_behind_raises_wire_error(message: control.Message) -> None:
    data = control.encode(message)
    for decode in (control.decode_from_node, control.decode_from_server):
        for size in range(len(data)):
            with pytest.raises(WireError):
                decode(data[:size])
        with pytest.raises(WireError):
            decode(data + b"\0")


@given(st.binary(max_size=300))
def test_random_bytes_raise_wire_error_or_parse(data: bytes) -> None:
    for decode in (control.decode_from_node, control.decode_from_server, control.decode_stored_netmap):
        try:
            decode(data)
        except WireError:
            continue


def test_unknown_field_is_ignored() -> None:
    assert control.decode_from_node(msgspec.msgpack.encode({"t": "Ping", "number": 1, "new": [1]})) == control.Ping(1)


@pytest.mark.parametrize(
    "fields",
    [
        {"t": "Nonsense"},
        {"t": "Register", "request": 1, "node_key": b"short", "discovery_key": KEY, "proof": KEY, "hostname": "h"},
        {"t": "Update", "request": 1, "hostname": "h" * 256},
        {"t": "Publish", "endpoints": ["x"] * (control.MAX_ENDPOINTS + 1)},
        {"t": "Welcome", "server_time": 1.0, "version": ""},
    ],
)
def test_message_out_of_bounds_or_unknown_raises_wire_error(fields: dict[str, object]) -> None:
    with pytest.raises(WireError):
        control.decode_from_node(msgspec.msgpack.encode(fields))


def test_deeply_nested_value_raises_wire_error() -> None:
    with pytest.raises(WireError):
        control.decode_from_node(b"\x81\xa1x" * 100_000 + b"\xc0")


def test_registration_proof_is_the_same_on_both_sides_and_bound_to_the_session() -> None:
    node, server = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)
    by_node = control.registration_proof(node, server.public, KEY, node.public, KEY)
    assert control.proof_holds(by_node, control.registration_proof(server, node.public, KEY, node.public, KEY))
    assert not control.proof_holds(by_node, control.registration_proof(server, node.public, bytes(32), node.public, KEY))
    assert not control.proof_holds(by_node, control.registration_proof(server, node.public, KEY, node.public, bytes(32)))


def test_registration_proof_with_a_small_order_key_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        control.registration_proof(PrivateKey(b"\x01" * 32), bytes(32), KEY, KEY, KEY)
