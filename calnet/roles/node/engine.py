"""What the daemon needs of the node's data path, and what it gives it. The real one is datapath.py, opened by opening.py; own_process/ has one that stands for
it in another process; tests have one in memory.

What is asked of an engine is awaited, as it may be out of this process: UnreachableError where it ends before it answers. What it is told is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from calnet.crypto.keys import PrivateKey
from calnet.errors import HostError
from calnet.model import Buffer, Endpoint, Netmap, NodeId, Prefix
from calnet.paths.explain import View
from calnet.paths.way import Way

NO_WAYS: Final[Mapping[NodeId, Way]] = {}


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

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None:
        """For the log and for whoever waits. `endpoint` is the direct path's, if there is one."""

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None:
        """Packets for a prefix with several routers go to another one; for the log."""

    def mtu_raised(self, mtu: int) -> None:
        """The interface should take packets so long from now on."""

    def health(self, code: str, text: str | None) -> None:
        """Set or (None) clear a health line."""


class NoHost:
    """A `DataPathHost` that has nobody to tell: for a data path without daemon, relay and disk."""

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None: ...

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None: ...

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None: ...

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None: ...

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None: ...

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None: ...

    def mtu_raised(self, mtu: int) -> None: ...

    def health(self, code: str, text: str | None) -> None: ...


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """`path` is `direct`, `relay` or `none`; `last_handshake_at` Unix seconds; bytes are those of datagrams. `carries` are the prefixes behind the peer that
    this node sends to it now, `mtu` the longest packet that goes directly (None: no direct path), `left` why a direct path that answers is not used,
    `cipher` the AEAD of the session that sends (empty without one)."""

    path: str
    endpoint: Endpoint | None
    rtt_s: float | None
    last_handshake_at: float | None
    rx_bytes: int
    tx_bytes: int
    carries: tuple[Prefix, ...] = ()
    mtu: int | None = None
    left: str = ""
    cipher: str = ""


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
    hairpin: bool | None = None
    """Whether the NAT leads back in what its own hosts send to its outside; None where that is not known, or there is no NAT."""


class EngineHost(DataPathHost, Protocol):
    """What the daemon gives the engine: the data path's host, and an ear for its end."""

    def engine_ended(self, why: str) -> None:
        """It ended by itself, with all that it held: `close` it, and open another. `why` goes on after "the data path's process"."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The keys that a data path works with; `previous` as in state.Keys."""

    node: PrivateKey
    discovery: PrivateKey
    previous: PrivateKey | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Counted since the data path was opened. `path_changes` by what they changed to: direct, relay, both, none."""

    dropped: int = 0
    path_changes: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """A running data path: TUN, UDP port, tunnel and paths."""

    @property
    def port(self) -> int:
        """The UDP port in use."""

    @property
    def mtu(self) -> int:
        """What the interface's should be now: it grows with what paths are found to take."""

    @property
    def gso_max_size(self) -> int | None:
        """What the interface's should be with that MTU; None leaves it."""

    def apply(self, netmap: Netmap, *, accept_routes: bool, guess_ports: bool = True, ways: Mapping[NodeId, Way] = NO_WAYS) -> None:
        """Take a new netmap, or other preferences."""

    def set_clock(self, offset: float) -> None:
        """Server time minus this machine's, in seconds; 0 until told."""

    def set_identity(self, identity: Identity) -> None:
        """Renewed keys: both node keys answer, the new one initiates. Sessions stand."""

    def relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        """Datagrams of the peer that came by relay, in order."""

    def relay_connected(self, connected: bool) -> None: ...

    def candidates(self, peer: NodeId, endpoints: Iterable[Endpoint]) -> None: ...

    def network_changed(self, endpoints: Iterable[Endpoint], *, moved: bool = False) -> None:
        """`endpoints` are the local ones now. `moved`: packets leave from elsewhere."""

    async def change_port(self) -> None:
        """Another UDP port is in use from now on, if one can be had: `port` says which."""

    def stun_servers(self, servers: Iterable[Endpoint]) -> None: ...

    def mapped_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Endpoints of routers that lead to our port, because they were asked to."""

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        """TimedOutError without an answer, UnreachableError where `close` comes first; NotFoundError or InvalidError for a peer that can't be probed."""

    async def why(self, peer: NodeId, timeout_s: float) -> tuple[View, View | None]:
        """How both ends see the path; the other's None where it does not answer. Errors as `ping`."""

    async def statuses(self, peers: Sequence[NodeId]) -> Mapping[NodeId, PeerStatus]:
        """Of each of these peers; zeros and `none` for an unknown one."""

    async def netcheck(self, timeout_s: float) -> Netcheck:
        """What the network lets through, as far as it is known; hairpinning is tried out now, for so long at most."""

    async def figures(self) -> Figures: ...

    def close(self) -> None:
        """Stop and give TUN and port back."""


class NotStartedError(HostError):
    """The data path's process could not be started: the port has no part in it."""


class OpenEngine(Protocol):
    """Opens TUN and UDP port and starts the data path. HostError where this machine refuses; nothing is left then."""

    def __call__(self, port: int, host: EngineHost) -> Engine: ...
