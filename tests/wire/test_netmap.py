"""Netmaps: what is encoded is decoded, deltas carry one netmap to another, and nothing but WireError is raised."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from calnet.errors import WireError
from calnet.model import DiscoveryKey, Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, PortRange, Relay, SelfNode
from calnet.wire import control
from calnet.wire import netmap as netmaps
from tests.deltas import difference

KEY = bytes(range(32))


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


def test_netmap_encoded_is_decoded_to_itself() -> None:
    original = netmap(3, peer(2), peer(3, kind=PeerKind.WIREGUARD, preshared_key=KEY, keepalive_s=25, previous_node_key=NodeKey(KEY), online=False))
    assert netmaps.decode_netmap(netmaps.encode_netmap(original)) == original


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
    delta = control.decode_from_server(control.encode(difference(old, target)))
    assert isinstance(delta, control.NetmapDelta)
    assert netmaps.apply(old, delta) == target


def test_delta_from_another_version_raises_wire_error() -> None:
    with pytest.raises(WireError, match="version 5"):
        netmaps.apply(netmap(1), control.NetmapDelta(since=5, version=6))


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
        netmaps.model_peer(msgspec.structs.replace(netmaps.wire_peer(peer(2)), **broken))
