"""What path finding wants done and says: performed by the data path, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from calnet.model import Endpoint, NodeId, Source


class Route(NamedTuple):
    """Where data for a peer goes now: to `endpoint`, to the relay, to both; (None, False) is nowhere."""

    endpoint: Endpoint | None
    relay: bool


NOWHERE = Route(None, False)


@dataclass(frozen=True, slots=True)
class SendDatagram:
    endpoint: Endpoint
    data: bytes


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


PathEffect = SendDatagram | SendRelayed | SendCandidates | PublishEndpoints | PathChanged | PongReceived


@dataclass(frozen=True, slots=True)
class PathReport:
    """`path` is `direct`, `relay` or `none` (idle, or no way there); `endpoint` that of a direct path; `seen` our own address as the peer sees it."""

    path: str
    endpoint: Endpoint | None
    rtt_s: float | None
    candidates: tuple[Endpoint, ...]
    seen: Endpoint | None = None
