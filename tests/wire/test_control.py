"""Control messages: what is built is parsed, deltas carry one netmap to another, and nothing but WireError is raised."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError, WireError
from calnet.model import DiscoveryKey, Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, PortRange, Relay, SelfNode
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


def peer(number: int, **changes: object) -> Peer:
    base = Peer(
        id=NodeId(number),
        name=f"node-{number}",
        node_key=NodeKey(bytes((number,)) * 32),
        addresses=(ip_address(f"100.70.0.{number}"), ip_address(f"fd00::{number}")),
        discovery_key=DiscoveryKey(KEY),
        user="admin",
        routes=(ip_network("10.1.0.0/16"),),
        endpoints=(Endpoint("192.0.2.1", 5), Endpoint("2001:db8::1", 6)),
        online=True,
        key_expires=5.0,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def netmap(version: int = 1, *peers: Peer, **changes: object) -> Netmap:
    base = Netmap(
        version=version,
        self=SelfNode(NodeId(1), "me", (ip_address("100.70.0.1"),), "admin", (), (), (ip_network("10.0.0.0/8"),), 9.0),
        prefixes=(ip_network("100.70.0.0/24"), ip_network("fd00::/64")),
        peers=peers,
        filter=(FilterRule((ip_network("100.70.0.0/24"),), (ip_network("0.0.0.0/0"),), (6, 17), (PortRange(22, 22),)),),
        relays=(Relay("wss://relay.example/relay"),),
        stun=("relay.example:3478",),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


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
    for decode in (control.decode_from_node, control.decode_from_server, control.decode_netmap):
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


def test_netmap_encoded_is_decoded_to_itself() -> None:
    original = netmap(3, peer(2), peer(3, kind=PeerKind.WIREGUARD, preshared_key=KEY, keepalive_s=25, previous_node_key=NodeKey(KEY), online=False))
    assert control.decode_netmap(control.encode_netmap(original)) == original


@pytest.mark.parametrize(
    "target",
    [
        netmap(2, peer(2), peer(3)),
        netmap(2),
        netmap(2, peer(3, online=False), peer(4)),
        netmap(2, peer(2), filter=(), relays=(), stun=(), prefixes=(ip_network("100.70.0.0/16"),)),
        netmap(2, peer(2), self=SelfNode(NodeId(1), "renamed", ())),
    ],
)
def test_difference_applied_gives_the_new_netmap(target: Netmap) -> None:
    old = netmap(1, peer(2), peer(3))
    delta = control.decode_from_server(control.encode(control.difference(old, target)))
    assert isinstance(delta, control.NetmapDelta)
    assert control.apply(old, delta) == target


def test_delta_from_another_version_raises_wire_error() -> None:
    with pytest.raises(WireError, match="version 5"):
        control.apply(netmap(1), control.NetmapDelta(since=5, version=6))


@pytest.mark.parametrize(
    "broken",
    [
        {"addresses": ("nonsense",)},
        {"routes": ("10.0.0.1/8",)},
        {"endpoints": ("10.0.0.1",)},
        {"kind": "martian"},
    ],
)
def test_peer_with_a_text_that_does_not_parse_raises_wire_error(broken: dict[str, object]) -> None:
    with pytest.raises(WireError):
        control.model_peer(msgspec.structs.replace(control.wire_peer(peer(2)), **broken))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:1", Endpoint("192.0.2.1", 1)),
        ("[2001:DB8:0::1]:65535", Endpoint("2001:db8::1", 65_535)),
        ("[::ffff:192.0.2.1]:9", Endpoint("192.0.2.1", 9)),
    ],
)
def test_endpoint_text_is_parsed_canonically(text: str, endpoint: Endpoint) -> None:
    assert control.parse_endpoint(text) == endpoint
    assert control.parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", ":1", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:x", "1.2.3.4:²", "::1:5", "[fe80::1%eth0]:5", "host:5", "01.2.3.4:5"]
)
def test_endpoint_text_that_is_none_raises_wire_error(text: str) -> None:
    with pytest.raises(WireError):
        control.parse_endpoint(text)


def test_registration_proof_is_the_same_on_both_sides_and_bound_to_the_session() -> None:
    node, server = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)
    by_node = control.registration_proof(node, server.public, KEY, node.public, KEY)
    assert control.proof_holds(by_node, control.registration_proof(server, node.public, KEY, node.public, KEY))
    assert not control.proof_holds(by_node, control.registration_proof(server, node.public, bytes(32), node.public, KEY))
    assert not control.proof_holds(by_node, control.registration_proof(server, node.public, KEY, node.public, bytes(32)))


def test_registration_proof_with_a_small_order_key_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        control.registration_proof(PrivateKey(b"\x01" * 32), bytes(32), KEY, KEY, KEY)
