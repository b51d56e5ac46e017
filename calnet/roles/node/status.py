"""The documents that `status`, `whois` and `netcheck` print: pure, from what is known. Names of others are passed as they are: JSON escapes them,
and the CLI makes them harmless where it prints text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from calnet.crypto.keys import encode_key
from calnet.errors import InvalidError, LoginNeededError, NotFoundError
from calnet.model import Endpoint, Netmap, NodeId, Peer
from calnet.roles.node.engine import PeerStatus
from calnet.roles.node.health import HealthLine

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The control session as `status` shows it."""

    url: str
    connected: bool
    last_seen_s: float | None


@dataclass(frozen=True, slots=True)
class SelfFacts:
    """This node beside its netmap entry."""

    public_key: bytes
    os: str
    hostname: str
    udp_port: int | None
    endpoints: tuple[Endpoint, ...]


def timestamp(at: float | None) -> str | None:
    """Unix seconds as `2026-01-02T03:04:05Z`; None for None and for what no calendar holds."""
    if at is None:
        return None
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return None


def status_document(
    state: str,
    server: ServerFacts,
    own: SelfFacts,
    netmap: Netmap | None,
    peer_status: Callable[[NodeId], PeerStatus],
    health: Iterable[HealthLine],
    *,
    now: float,
    version: str,
) -> Json:
    """`status --json`. `now` is Unix seconds in server time."""
    return {
        "state": state,
        "server": {"url": server.url, "connected": server.connected, "last_seen_s": _rounded(server.last_seen_s, 1)},
        "self": self_document(own, netmap),
        "peers": [] if netmap is None else [peer_document(peer, peer_status(peer.id), now) for peer in netmap.peers],
        "health": [line.document() for line in health],
        "version": version,
    }


def self_document(own: SelfFacts, netmap: Netmap | None) -> Json:
    """The `self` part; before the first netmap id, addresses and prefix are null or empty."""
    node = None if netmap is None else netmap.self
    ips = [] if node is None else [str(address) for address in node.addresses]
    return {
        "id": None if node is None else node.id,
        "name": own.hostname if node is None else node.name,
        "user": None if node is None else node.user or None,
        "os": own.os,
        "ip": ips[0] if ips else None,
        "ips": ips,
        "prefix": str(netmap.prefixes[0]) if netmap is not None and netmap.prefixes else None,
        "public_key": encode_key(own.public_key),
        "udp_port": own.udp_port,
        "endpoints": [str(endpoint) for endpoint in own.endpoints],
        "tags": [] if node is None else list(node.tags),
        "routes": [] if node is None else [str(route) for route in node.routes],
        "advertised_routes": [] if node is None else [str(route) for route in node.advertised_routes],
        "key_expires": None if node is None else timestamp(node.key_expires),
    }


def peer_document(peer: Peer, standing: PeerStatus, now: float) -> Json:
    """One peer of `status --json`."""
    handshake = standing.last_handshake_at
    return {
        "id": peer.id,
        "name": peer.name,
        "user": peer.user or None,
        "os": peer.os,
        "ip": str(peer.addresses[0]) if peer.addresses else None,
        "ips": [str(address) for address in peer.addresses],
        "online": peer.online,
        "last_seen": timestamp(peer.last_seen_at),
        "path": standing.path,
        "endpoint": None if standing.endpoint is None else str(standing.endpoint),
        "path_note": standing.left or None,
        "mtu": standing.mtu,
        "rtt_ms": None if standing.rtt_s is None else _rounded(standing.rtt_s * 1000, 2),
        "cipher": standing.cipher or None,
        "last_handshake_s": None if handshake is None else _rounded(max(0.0, now - handshake), 1),
        "rx_bytes": standing.rx_bytes,
        "tx_bytes": standing.tx_bytes,
        "routes": [str(route) for route in peer.routes],
        "backup_routes": [str(route) for route in peer.backup_routes],
        "carries": [str(route) for route in standing.carries],
        "tags": list(peer.tags),
        "public_key": encode_key(peer.node_key),
        "key_expires": timestamp(peer.key_expires),
    }


def find_peer(netmap: Netmap | None, word: str) -> Peer:
    """The peer that `word` names: its name, an address, or its id. NotFoundError says which there are, LoginNeededError that none is known yet."""
    if netmap is None:
        raise LoginNeededError("this node knows no peers yet: `calnet up` first")
    peers = netmap.peers
    for peer in peers:
        if word == peer.name or word in (str(address) for address in peer.addresses):
            return peer
    for peer in peers:
        if word == str(peer.id) or word.rstrip(".").split(".")[0].lower() == peer.name:
            return peer
    names = ", ".join(peer.name for peer in peers[:8]) or "none"
    raise NotFoundError(f"no peer is called {word!r}; there are: {names}{' and more' if len(peers) > 8 else ''}")


def whois_document(netmap: Netmap | None, text: str) -> Json:
    """Who holds an overlay address, or routes it.

    InvalidError for what is no address, NotFoundError for one that nobody has, LoginNeededError without a netmap.
    """
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidError(f"{text!r} is not an IP address") from None
    if netmap is None:
        raise LoginNeededError("this node knows no addresses yet: `calnet up` first")
    node = netmap.self
    if address in node.addresses:
        return {
            "id": node.id,
            "name": node.name,
            "user": node.user or None,
            "tags": list(node.tags),
            "self": True,
            "ips": [str(a) for a in node.addresses],
            "route": None,
        }
    for peer in netmap.peers:
        if address in peer.addresses:
            return _who(peer, None)
    routed = [(route, peer) for peer in netmap.peers for route in peer.routes if route.version == address.version and address in route]
    if routed:
        route, peer = max(routed, key=lambda pair: pair[0].prefixlen)
        return _who(peer, str(route))
    raise NotFoundError(f"no node has the address {address}")


def _who(peer: Peer, route: str | None) -> Json:
    return {
        "id": peer.id,
        "name": peer.name,
        "user": peer.user or None,
        "tags": list(peer.tags),
        "self": False,
        "ips": [str(address) for address in peer.addresses],
        "route": route,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
