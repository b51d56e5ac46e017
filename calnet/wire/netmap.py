"""Netmaps between the model's values and the control session's structs: conversion, deltas, and the form a node keeps on disk.

Texts that do not parse raise WireError, and nothing else does.
"""

from __future__ import annotations

import ipaddress
from typing import cast

import msgspec

from calnet.errors import WireError
from calnet.model import Address, DiscoveryKey, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, PortRange, Prefix, Relay, SelfNode
from calnet.wire import control
from calnet.wire.endpoints import parse_endpoints


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise WireError("not an IP address") from error


def _prefix(text: str) -> Prefix:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise WireError("not an IP prefix, or one with bits set behind its length") from error


def _prefixes(texts: tuple[str, ...]) -> tuple[Prefix, ...]:
    return tuple(_prefix(text) for text in texts)


def _texts(values: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def wire_peer(peer: Peer) -> control.WirePeer:
    """model.Peer → control.WirePeer."""
    return control.WirePeer(
        id=peer.id,
        name=peer.name,
        node_key=peer.node_key,
        addresses=_texts(peer.addresses),
        previous_node_key=peer.previous_node_key,
        discovery_key=peer.discovery_key,
        user=peer.user,
        tags=peer.tags,
        os=peer.os,
        routes=_texts(peer.routes),
        backup_routes=_texts(peer.backup_routes),
        endpoints=_texts(peer.endpoints),
        online=peer.online,
        last_seen_at=peer.last_seen_at,
        key_expires=peer.key_expires,
        preshared_key=peer.preshared_key,
        keepalive_s=peer.keepalive_s,
        kind=peer.kind.value,
        capabilities=peer.capabilities,
    )


def peer_bytes(peer: Peer) -> bytes:
    """The peer as messages carry it."""
    return msgspec.msgpack.encode(wire_peer(peer))


def encoded_peer(peer: Peer) -> control.WirePeer:
    """`peer_bytes` in a form that messages take and copy, so that it is made once for all who are told: its fields can't be read."""
    return cast(control.WirePeer, msgspec.Raw(peer_bytes(peer)))


def model_peer(peer: control.WirePeer) -> Peer:
    """control.WirePeer → model.Peer; WireError where a text does not parse."""
    return Peer(
        id=NodeId(peer.id),
        name=peer.name,
        node_key=NodeKey(peer.node_key),
        addresses=tuple(_address(text) for text in peer.addresses),
        previous_node_key=None if peer.previous_node_key is None else NodeKey(peer.previous_node_key),
        discovery_key=None if peer.discovery_key is None else DiscoveryKey(peer.discovery_key),
        user=peer.user,
        tags=peer.tags,
        os=peer.os,
        routes=_prefixes(peer.routes),
        backup_routes=_prefixes(peer.backup_routes),
        endpoints=parse_endpoints(peer.endpoints),
        online=peer.online,
        last_seen_at=peer.last_seen_at,
        key_expires=peer.key_expires,
        preshared_key=peer.preshared_key,
        keepalive_s=peer.keepalive_s,
        kind=_kind(peer.kind),
        capabilities=peer.capabilities,
    )


def _kind(text: str) -> PeerKind:
    try:
        return PeerKind(text)
    except ValueError as error:
        raise WireError("a peer of an unknown kind") from error


def wire_self(node: SelfNode) -> control.WireSelf:
    """model.SelfNode → control.WireSelf."""
    return control.WireSelf(
        id=node.id,
        name=node.name,
        addresses=_texts(node.addresses),
        user=node.user,
        tags=node.tags,
        routes=_texts(node.routes),
        advertised_routes=_texts(node.advertised_routes),
        key_expires=node.key_expires,
    )


def _model_self(node: control.WireSelf) -> SelfNode:
    return SelfNode(
        id=NodeId(node.id),
        name=node.name,
        addresses=tuple(_address(text) for text in node.addresses),
        user=node.user,
        tags=node.tags,
        routes=_prefixes(node.routes),
        advertised_routes=_prefixes(node.advertised_routes),
        key_expires=node.key_expires,
    )


def wire_rule(rule: FilterRule) -> control.WireRule:
    """model.FilterRule → control.WireRule."""
    ports = tuple((ports.first, ports.last) for ports in rule.ports)
    return control.WireRule(_texts(rule.sources), _texts(rule.destinations), rule.protocols, ports)


def _model_rule(rule: control.WireRule) -> FilterRule:
    ports = tuple(PortRange(first, last) for first, last in rule.ports)
    return FilterRule(_prefixes(rule.sources), _prefixes(rule.destinations), rule.protocols, ports)


def wire_netmap(netmap: Netmap) -> control.NetmapFull:
    """model.Netmap → control.NetmapFull."""
    return full(netmap, netmap.version, tuple(wire_peer(peer) for peer in netmap.peers))


def full(netmap: Netmap, version: int, peers: tuple[control.WirePeer, ...]) -> control.NetmapFull:
    """The whole netmap of that version, with these peers instead of the value's own."""
    return control.NetmapFull(
        version=version,
        self=wire_self(netmap.self),
        prefixes=_texts(netmap.prefixes),
        peers=peers,
        filter=tuple(wire_rule(rule) for rule in netmap.filter),
        reject=netmap.reject,
        relays=tuple(relay.url for relay in netmap.relays),
        stun=netmap.stun,
    )


def model_netmap(message: control.NetmapFull) -> Netmap:
    """control.NetmapFull → model.Netmap; WireError where a text does not parse."""
    return Netmap(
        version=message.version,
        self=_model_self(message.self),
        prefixes=_prefixes(message.prefixes),
        peers=tuple(model_peer(peer) for peer in message.peers),
        filter=tuple(_model_rule(rule) for rule in message.filter),
        reject=message.reject,
        relays=tuple(Relay(url) for url in message.relays),
        stun=message.stun,
    )


def delta(
    old: Netmap | None, new: Netmap, *, since: int, version: int, put: tuple[control.WirePeer, ...] = (), removed: tuple[int, ...] = ()
) -> control.NetmapDelta:
    """The delta by which `apply` gets from `old` (None: unknown) to `new`, but for the peers: those to put and to remove are given."""
    return control.NetmapDelta(
        since=since,
        version=version,
        put=put,
        removed=removed,
        self=wire_self(new.self) if old is None or new.self != old.self else None,
        prefixes=_texts(new.prefixes) if old is None or new.prefixes != old.prefixes else None,
        filter=tuple(wire_rule(rule) for rule in new.filter) if old is None or new.filter != old.filter else None,
        reject=new.reject if old is None or new.reject != old.reject else None,
        relays=tuple(relay.url for relay in new.relays) if old is None or new.relays != old.relays else None,
        stun=new.stun if old is None or new.stun != old.stun else None,
    )


def apply(netmap: Netmap, delta: control.NetmapDelta) -> Netmap:
    """`netmap` with `delta` applied, peers in order of id; WireError if it does not start from this version (subscribe again with version 0)."""
    if delta.since != netmap.version:
        raise WireError(f"a delta from version {delta.since} does not fit a netmap of version {netmap.version}")
    peers = {peer.id: peer for peer in netmap.peers}
    for number in delta.removed:
        peers.pop(NodeId(number), None)
    for put in delta.put:
        peers[NodeId(put.id)] = model_peer(put)
    return Netmap(
        version=delta.version,
        self=netmap.self if delta.self is None else _model_self(delta.self),
        prefixes=netmap.prefixes if delta.prefixes is None else _prefixes(delta.prefixes),
        peers=tuple(peers[number] for number in sorted(peers)),
        filter=netmap.filter if delta.filter is None else tuple(_model_rule(rule) for rule in delta.filter),
        reject=netmap.reject if delta.reject is None else delta.reject,
        relays=netmap.relays if delta.relays is None else tuple(Relay(url) for url in delta.relays),
        stun=netmap.stun if delta.stun is None else delta.stun,
    )


def encode_netmap(netmap: Netmap) -> bytes:
    """The netmap as a node keeps it on disk."""
    return control.encode(wire_netmap(netmap))


def decode_netmap(data: bytes) -> Netmap:
    """The netmap behind `encode_netmap`'s bytes; WireError for anything else."""
    return model_netmap(control.decode_stored_netmap(data))
