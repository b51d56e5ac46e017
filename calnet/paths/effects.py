"""What path finding wants done and says: performed by the data path, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from calnet.model import Endpoint, NodeId, Source
from calnet.paths.explain import View


class Route(NamedTuple):
    """Where data for a peer goes now: to `endpoint`, to the relay, to both; (None, False) is nowhere."""

    endpoint: Endpoint | None
    relay: bool


NOWHERE = Route(None, False)


def describe_route(route: Route) -> str:
    """A route as a person reads it."""
    ways = [f"direct {route.endpoint}"] if route.endpoint is not None else []
    return " and ".join([*ways, "relay"] if route.relay else ways) or "none"


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """`socket`: from which of ours (Source.socket), opened where it is not yet; None from the one that UseSocket named for this endpoint, else the first.
    `hops`: its time to live; None is the usual one."""

    endpoint: Endpoint
    data: bytes
    socket: int | None = None
    whole: bool = False
    """Rather lost than in fragments."""
    hops: int | None = None


@dataclass(frozen=True, slots=True)
class UseSocket:
    """What goes to `endpoint` leaves from this socket from now on."""

    endpoint: Endpoint
    socket: int


@dataclass(frozen=True, slots=True)
class CloseSockets:
    """Close those beside the first, but for the ones that UseSocket named (`all_`: them too)."""

    all_: bool = False


@dataclass(frozen=True, slots=True)
class SendRelayed:
    peer: NodeId
    data: bytes


@dataclass(frozen=True, slots=True)
class SendCandidates:
    """Tell the peer our candidates through the control session."""

    peer: NodeId
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class MtuFound:
    """Packets of `mtu` bytes get to some peer directly, longer ones than to any before."""

    mtu: int


@dataclass(frozen=True, slots=True)
class PublishEndpoints:
    """Tell the server our candidates; they replace the last ones."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Data of the peer goes another way from now on; `why` is for the log."""

    peer: NodeId
    old: Route
    new: Route
    why: str


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The answer to an explicit `Paths.ping`."""

    peer: NodeId
    token: int
    via: Source
    rtt_s: float


@dataclass(frozen=True, slots=True)
class ViewReceived:
    """The peer's view of the path, asked for by `Paths.question`."""

    peer: NodeId
    token: int
    view: View


PathEffect = SendDatagram | UseSocket | CloseSockets | SendRelayed | SendCandidates | PublishEndpoints | MtuFound | PathChanged | PongReceived | ViewReceived


@dataclass(frozen=True, slots=True)
class PathReport:
    """`path` is `direct`, `relay` or `none` (idle, or no way there); `endpoint` that of a direct path."""

    path: str
    endpoint: Endpoint | None
    rtt_s: float | None
    candidates: tuple[Endpoint, ...]
    mtu: int | None = None
    """The longest packet that goes directly."""
    left: str = ""
    """Why a direct path that answers probes is not used."""
