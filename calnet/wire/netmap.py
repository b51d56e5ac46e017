"""Netmaps between the model's values and the control session's structs: conversion, deltas, and the form a node keeps on disk.

Texts that do not parse raise WireError, and nothing else does.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from calnet.errors import WireError
from calnet.model import Address, DiscoveryKey, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, PortRange, Prefix, Relay, SelfNode
from calnet.wire import control
from calnet.wire.endpoints import parse_endpoints

MAX_KEPT: Final = 8192
"""Wire forms of peers that are kept. About a kilobyte each."""
_kept: dict[int, tuple[Peer, control.WirePeer]] = {}
"""By the identity of the value, which the entry holds, so that no other gets it: hashing a peer takes longer than all the rest of sending it."""


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
    """model.Peer → WirePeer. Kept, as a server tells each of its nodes of the very same peers."""
    kept = _kept.get(id(peer))
    if kept is None:
        if len(_kept) >= MAX_KEPT:
            _kept.clear()
        kept = _kept[id(peer)] = peer, _wire_peer(peer)
    return kept[1]


def _wire_peer(peer: Peer) -> control.WirePeer:
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
    return control.NetmapFull(
        version=netmap.version,
        self=wire_self(netmap.self),
        prefixes=_texts(netmap.prefixes),
        peers=tuple(wire_peer(peer) for peer in netmap.peers),
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


def difference(old: Netmap, new: Netmap) -> control.NetmapDelta:
    """The delta that `apply` turns `old` into `new` with."""
    put, removed = _changed(old.peers, new.peers)
    return control.NetmapDelta(
        since=old.version,
        version=new.version,
        put=tuple(wire_peer(peer) for peer in put),
        removed=removed,
        self=wire_self(new.self) if new.self != old.self else None,
        prefixes=_texts(new.prefixes) if new.prefixes != old.prefixes else None,
        filter=tuple(wire_rule(rule) for rule in new.filter) if new.filter != old.filter else None,
        reject=new.reject if new.reject != old.reject else None,
        relays=tuple(relay.url for relay in new.relays) if new.relays != old.relays else None,
        stun=new.stun if new.stun != old.stun else None,
    )


def _changed(old: tuple[Peer, ...], new: tuple[Peer, ...]) -> tuple[list[Peer], tuple[int, ...]]:
    """(peers that are new or other than before, ids that are gone). Where the same peers stand on both sides, which is the rule, one walk tells."""
    if len(old) == len(new) and all(before is after or before.id == after.id for before, after in zip(old, new, strict=True)):
        return [after for before, after in zip(old, new, strict=True) if before is not after and before != after], ()
    held = {peer.id: peer for peer in old}
    put = [peer for peer in new if (before := held.get(peer.id)) is not peer and before != peer]
    return put, tuple(sorted(held.keys() - {peer.id for peer in new}))


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
