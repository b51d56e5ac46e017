"""What the tunnel wants done. The shell performs a list's effects in order. Where one fails, what rests on it is not done."""

from __future__ import annotations

from dataclasses import dataclass

from calnet.model import NodeId, Source
from calnet.tunnel.session import Session


@dataclass(frozen=True, slots=True)
class SendHandshake:
    """Send an initiation (`reply_to` None: on the peer's path) or a response (back to where the initiation came from)."""

    peer: NodeId
    datagram: bytes
    reply_to: Source | None


@dataclass(frozen=True, slots=True)
class SendCookie:
    """Send a cookie reply back to a source that is no peer yet."""

    reply_to: Source
    datagram: bytes


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """Seal an empty packet on the session's peer's path and report it with `data_sent(…, data=False)`.

    `confirms`: it is there to show the responder that the session stands; not needed if packets queued for the peer were just sent under it.
    """

    session: Session
    confirms: bool = False


@dataclass(frozen=True, slots=True)
class PersistTimestamp:
    """Make the greatest timestamp sent to (or accepted from, `sent` False) a static key outlive a crash, before the effects that follow."""

    node_key: bytes
    timestamp: bytes
    sent: bool


@dataclass(frozen=True, slots=True)
class SessionReady:
    """The peer has a session to send with: send what waits for it."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class EndpointAuthenticated:
    """An authenticated message of the peer came from here, and the last one didn't."""

    peer: NodeId
    source: Source


@dataclass(frozen=True, slots=True)
class ClockAhead:
    """A genuine initiation was dropped: its timestamp is so many seconds ahead of server time."""

    peer: NodeId
    seconds: float


@dataclass(frozen=True, slots=True)
class ResponseRejected:
    """The peer's response to our initiation does not authenticate. If it keeps on: the two pre-shared keys differ (or somebody forges responses)."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """No answer for REKEY_ATTEMPT_TIME: given up until something is sent again. What waits for the peer can be dropped."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class SessionsDropped:
    """All keys of the peer are gone: it was removed, its key changed or expired, or nothing was heard for long. What waits for it can be dropped."""

    peer: NodeId


TunnelEffect = (
    SendHandshake
    | SendCookie
    | SendKeepalive
    | PersistTimestamp
    | SessionReady
    | EndpointAuthenticated
    | ClockAhead
    | ResponseRejected
    | HandshakeFailed
    | SessionsDropped
)
