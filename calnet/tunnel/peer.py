"""One peer of the tunnel: its configuration, its keypairs and their rotation (as WireGuard's), its counters.

`current` sends; `next` is a session that we, as responder, may use once the initiator has confirmed it by a first packet; `previous` still receives what
was under way when `current` replaced it. All three receive. Rotation returns the sessions that fall out, for the index table to forget.
"""

from __future__ import annotations

from dataclasses import dataclass

from calnet.crypto.aead import Aead
from calnet.model import Endpoint, NodeId, PeerKind, Prefix
from calnet.tunnel.cookie import CookieMemory
from calnet.tunnel.handshake import Pending
from calnet.tunnel.session import Session
from calnet.tunnel.timers import PeerTimers

LONG_AGO = float("-inf")


@dataclass(frozen=True, slots=True)
class TunnelPeerConfig:
    """A peer as the netmap (or a test) wants it. `allowed` are its addresses and accepted routes; `key_expires` is Unix seconds."""

    id: NodeId
    node_key: bytes
    previous_node_key: bytes | None = None
    kind: PeerKind = PeerKind.CALNET
    psk: bytes | None = None
    allowed: tuple[Prefix, ...] = ()
    also_from: tuple[Prefix, ...] = ()
    """Prefixes that another peer carries now (routers.py), and that this one may route: packets from there are its to bring, none are sent there."""
    keepalive_s: int = 0
    aead: Aead = Aead.CHACHA20_POLY1305
    """Of the handshakes that we begin; it may begin others."""
    chunks: bool = False
    """It takes super-packets as chunks (chunks.py)."""
    key_expires: float | None = None

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The static keys that are this peer's: the present one first."""
        return (self.node_key,) if self.previous_node_key is None else (self.node_key, self.previous_node_key)

    def expired(self, wall: float) -> bool:
        """Whether the peer's key has run out."""
        return self.key_expires is not None and self.key_expires <= wall


class TunnelPeer:
    """Bytes are whole datagrams' or payload's, as the data path counts them; `last_handshake_at` is Unix seconds, None before the first."""

    __slots__ = (
        "_cookies",
        "config",
        "current",
        "endpoint",
        "handshake_sent_at",
        "id",
        "initiation_received_at",
        "kind",
        "last_handshake_at",
        "next",
        "pending",
        "previous",
        "rx_bytes",
        "timers",
        "tx_bytes",
    )

    def __init__(self, config: TunnelPeerConfig) -> None:
        self.config = config
        self.id = config.id
        self.kind = config.kind
        self.current: Session | None = None
        self.next: Session | None = None
        self.previous: Session | None = None
        self.pending: Pending | None = None
        self.timers = PeerTimers()
        self.tx_bytes = 0
        self.rx_bytes = 0
        self.last_handshake_at: float | None = None
        self.endpoint: Endpoint | None = None
        """The UDP source of the last authenticated message that did not come by relay."""
        self.handshake_sent_at = LONG_AGO
        """An initiation or response was sent (monotonic)."""
        self.initiation_received_at = LONG_AGO
        self._cookies: CookieMemory | None = None

    def cookies(self, remote_static: bytes) -> CookieMemory:
        """The MACs and cookie towards one of the peer's keys; the last key asked for is remembered."""
        if self._cookies is None or self._cookies.remote_static != remote_static:
            self._cookies = CookieMemory(remote_static)
        return self._cookies

    def sessions(self) -> list[Session]:
        """All that receive."""
        return [session for session in (self.current, self.next, self.previous) if session is not None]

    def add_initiated(self, session: Session) -> list[Session]:
        """We initiated, the response came: the session sends at once."""
        dropped = [self.previous]
        if self.next is not None:
            dropped.append(self.current)
            self.previous, self.next = self.next, None
        else:
            self.previous = self.current
        self.current = session
        return [old for old in dropped if old is not None]

    def add_responded(self, session: Session) -> list[Session]:
        """The peer initiated, we respond: the session waits for its confirmation."""
        dropped = [self.next, self.previous]
        self.next, self.previous = session, None
        return [old for old in dropped if old is not None]

    def confirm_next(self) -> list[Session]:
        """The first packet came under `next`: it sends from now on."""
        dropped = [self.previous]
        self.previous, self.current, self.next = self.current, self.next, None
        return [old for old in dropped if old is not None]

    def remove(self, session: Session) -> None:
        """Takes one session away."""
        if self.current is session:
            self.current = None
        elif self.next is session:
            self.next = None
        elif self.previous is session:
            self.previous = None

    def forget_keys(self) -> list[Session]:
        """Takes all sessions, the handshake under way and the cookie away. Python can't wipe memory; nothing refers to the keys any more."""
        dropped = self.sessions()
        self.current = self.next = self.previous = None
        self.pending = None
        self._cookies = None
        return dropped
