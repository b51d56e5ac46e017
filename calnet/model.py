"""The words every part of Calnet shares: keys, endpoints, prefixes, peers, the netmap. Frozen values, no behaviour beyond parsing.

Times named `…_at` or `expires` are Unix seconds (UTC, float); monotonic times never appear in a value. Keys are 32 raw bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, NewType

NodeId = NewType("NodeId", int)
UserId = NewType("UserId", int)

NodeKey = NewType("NodeKey", bytes)
"""Public X25519 key: the Noise static key between nodes."""
DiscoveryKey = NewType("DiscoveryKey", bytes)
"""Public X25519 key that seals discovery probes."""
ControlKey = NewType("ControlKey", bytes)
"""Public X25519 key by which a machine and the server know each other."""

Buffer = bytes | bytearray | memoryview
"""Bytes to read, wherever they lie."""

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class Endpoint(NamedTuple):
    """A UDP address on the underlay. `host` is a canonical IP address text (no zone, IPv4-mapped IPv6 written as IPv4); usable as a socket address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Source(NamedTuple):
    """Where a datagram came from: exactly one of the two is set."""

    endpoint: Endpoint | None
    """Its UDP source address."""
    relay_peer: NodeId | None = None
    """Or the peer from which a relay brought it."""
    socket: int = 0
    """By UDP: to which of our sockets it came; 0 is the port that we tell others of."""


class PeerKind(enum.Enum):
    """`WIREGUARD` peers are stock WireGuard: a fixed endpoint, no relay, no discovery."""

    CALNET = "calnet"
    WIREGUARD = "wireguard"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, as a node sees it in its netmap."""

    id: NodeId
    name: str
    node_key: NodeKey
    addresses: tuple[Address, ...]
    """Overlay addresses, IPv4 first."""
    previous_node_key: NodeKey | None = None
    """The key before the last renewal, while it may still be in use."""
    discovery_key: DiscoveryKey | None = None
    user: str = ""
    """Owner's name; empty for a tagged node."""
    tags: tuple[str, ...] = ()
    os: str = ""
    routes: tuple[Prefix, ...] = ()
    """Prefixes behind this peer that an admin approved and that it is the router of now."""
    backup_routes: tuple[Prefix, ...] = ()
    """Approved prefixes that it would route if the present router went away: it may speak for them all the same."""
    endpoints: tuple[Endpoint, ...] = ()
    """Candidates last published by the peer; for a WIREGUARD peer its one fixed endpoint."""
    online: bool = False
    """Has a control session now."""
    last_seen_at: float | None = None
    key_expires: float | None = None
    preshared_key: bytes | None = None
    keepalive_s: int = 0
    """Persistent keepalive (WIREGUARD peers); 0 is off."""
    kind: PeerKind = PeerKind.CALNET
    capabilities: tuple[str, ...] = ()
    """Protocol extensions that the peer announces (docs/protocol.md, section 3)."""


@dataclass(frozen=True, slots=True)
class SelfNode:
    """This node, as the server knows it."""

    id: NodeId
    name: str
    addresses: tuple[Address, ...]
    user: str = ""
    tags: tuple[str, ...] = ()
    routes: tuple[Prefix, ...] = ()
    """Approved prefixes this node routes for others."""
    advertised_routes: tuple[Prefix, ...] = ()
    key_expires: float | None = None


@dataclass(frozen=True, slots=True)
class PortRange:
    """Inclusive destination ports."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class FilterRule:
    """Accept what comes from any of `sources` to any of `destinations`. Everything without a rule is dropped; replies are allowed by state.

    `protocols` are IP protocol numbers, empty for any; `ports` are destination ports, empty for any.
    """

    sources: tuple[Prefix, ...]
    destinations: tuple[Prefix, ...]
    protocols: tuple[int, ...] = ()
    ports: tuple[PortRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay to use: its WebSocket URL (`ws://` or `wss://`)."""

    url: str


@dataclass(frozen=True, slots=True)
class Netmap:
    """All a node needs to know to take part. `version` grows with each change the server sends to this node."""

    version: int
    self: SelfNode
    prefixes: tuple[Prefix, ...]
    """The overlay's own prefixes (IPv4, then the ULA /64)."""
    peers: tuple[Peer, ...] = ()
    filter: tuple[FilterRule, ...] = ()
    reject: bool = False
    """What the filter refuses is answered (TCP reset, ICMP prohibited) instead of dropped without a word."""
    relays: tuple[Relay, ...] = ()
    stun: tuple[str, ...] = ()
    """STUN servers as `host:port`, `[v6]:port`; a host name is allowed."""
