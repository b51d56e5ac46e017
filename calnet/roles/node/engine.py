"""What the daemon needs of the node's data path, and what it gives it. The real one is datapath.py, opened by opening.py; tests have one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from calnet.model import Buffer, Endpoint, Netmap, NodeId
from calnet.roles.node.state import Keys


class DataPathHost(Protocol):
    """What the daemon gives the data path."""

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        """Queue datagrams to the relay; they are copied before this returns."""

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """Tell the peer our candidates through the control session."""

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Tell the server."""

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None:
        """Durable on return; StateError where it can't be."""

    def path_changed(self, peer: NodeId, description: str) -> None:
        """For the log and for whoever waits."""

    def health(self, code: str, text: str | None) -> None:
        """Set or (None) clear a health line."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """`path` is `direct`, `relay` or `none`; `last_handshake_at` Unix seconds; bytes are those of datagrams."""

    path: str
    endpoint: Endpoint | None
    rtt_s: float | None
    last_handshake_at: float | None
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """`via` is `direct` or `relay`; `endpoint` None for the relay."""

    via: str
    endpoint: Endpoint | None
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Netcheck:
    """What is known of the way out: reflexive endpoints by STUN, and how the NAT maps (RFC 4787)."""

    ipv4: Endpoint | None = None
    ipv6: Endpoint | None = None
    mapping: str = "unknown"


class EngineHost(DataPathHost, Protocol):
    """What the daemon gives the engine: the data path's host, and the time."""

    def now(self) -> float:
        """Unix seconds in server time."""


class Engine(Protocol):
    """A running data path: TUN, UDP port, tunnel and paths."""

    port: int
    gso_max_size: int | None
    """What the interface's gso_max_size should be; None leaves it."""

    def apply(self, netmap: Netmap, *, accept_routes: bool) -> None: ...

    def set_identity(self, keys: Keys) -> None:
        """Renewed keys: both node keys answer, the new one initiates. Sessions stand."""

    def relayed(self, peer: NodeId, datagram: Buffer) -> None: ...

    def relay_connected(self, connected: bool) -> None: ...

    def candidates(self, peer: NodeId, endpoints: Iterable[Endpoint]) -> None: ...

    def network_changed(self, endpoints: Iterable[Endpoint]) -> None: ...

    def stun_servers(self, servers: Iterable[Endpoint]) -> None: ...

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        """TimedOutError without an answer, UnreachableError where `close` comes first; NotFoundError or InvalidError for a peer that can't be probed."""

    def peer_status(self, peer: NodeId) -> PeerStatus: ...

    def netcheck(self) -> Netcheck: ...

    def close(self) -> None:
        """Stop and give TUN and port back."""


class OpenEngine(Protocol):
    """Opens TUN and UDP port and starts the data path. HostError where this machine refuses; nothing is left then."""

    def __call__(self, port: int, host: EngineHost) -> Engine: ...
