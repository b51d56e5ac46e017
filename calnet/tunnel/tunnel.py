"""The tunnel: the table of peers, their sessions, and what is to be done about each datagram and each deadline.

Theory of operation. `configure` names the peers. To send, the data path asks `lookup` for the peer and `session_to_send` for a session; if there is none
yet, a handshake has begun and the packet waits until `SessionReady`. Handshake datagrams go to `receive`; data is opened by the data path itself, under
`session_by_index(index, now)`, in the order: AEAD, replay window, `owns` for the inner source; `data_received` hears the sum of it. After each call the shell
performs the effects in order and sleeps until `next_deadline()`, then calls `on_timer`.

Both sides may initiate at the same moment: each answers the other and keeps its own handshake, so two sessions stand; both receive, and each side sends
under the one it initiated. The side with the smaller key then leaves the next rekey to the other for a while, which leaves one session.

Error contract. Nothing raises for what another party sent: a datagram that is not genuine, new and addressed to us gives no effect and changes no state
(under load: gives a cookie reply), and the genuine one that follows still works. `now` is monotonic seconds (a clock that goes on while the machine
sleeps, so that keys die in time), `wall` Unix seconds in server time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, ValuesView

from calnet.crypto.batch import NewBatch, portable_batch
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import AuthenticationError, WireError
from calnet.model import Buffer, NodeId, PeerKind, Prefix, Source
from calnet.tunnel import handshake
from calnet.tunnel.constants import (
    HANDSHAKE_INITIATION_RATE,
    KEEPALIVE_TIMEOUT,
    MAX_HANDSHAKE_ATTEMPTS,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    REKEY_WHEN_RECEIVING_AFTER,
)
from calnet.tunnel.effects import (
    ClockAhead,
    EndpointAuthenticated,
    HandshakeFailed,
    PersistTimestamp,
    ResponseRejected,
    SendHandshake,
    SendKeepalive,
    SessionReady,
    SessionsDropped,
    TunnelEffect,
)
from calnet.tunnel.gate import Gate, Refused
from calnet.tunnel.peer import LONG_AGO, TunnelPeer, TunnelPeerConfig
from calnet.tunnel.prefixes import PrefixTable
from calnet.tunnel.session import Session
from calnet.tunnel.timers import NEVER
from calnet.tunnel.timestamps import TimestampLog, clock_ahead
from calnet.wire.tunnel import CookieReply, Initiation, Response, parse_handshake


class Tunnel:
    """See the module's docstring. `previous` is our key before the last renewal: it answers, and never initiates. `new_batch` makes what sessions seal and
    open batches with."""

    def __init__(self, identity: PrivateKey, *, random: RandomBytes, previous: PrivateKey | None = None, new_batch: NewBatch = portable_batch) -> None:
        self._random, self._new_batch = random, new_batch
        self._gate = Gate(random)
        self._stamps = TimestampLog()
        self._peers: dict[NodeId, TunnelPeer] = {}
        self._by_key: dict[bytes, TunnelPeer] = {}
        self._table: PrefixTable[TunnelPeer] = PrefixTable(())
        self._backups: dict[NodeId, PrefixTable[Prefix]] = {}
        self._prefixes: PrefixTable[Prefix] = PrefixTable(())
        self._sessions: dict[int, Session] = {}
        self._pending: dict[int, TunnelPeer] = {}
        self._deadline = NEVER
        """Not later than any peer's deadline; it may be earlier."""
        self.set_identity(identity, previous)

    # --- Configuration ---

    def set_identity(self, identity: PrivateKey, previous: PrivateKey | None) -> None:
        """Key renewal: both answer, only `identity` initiates. Sessions stand as they are."""
        self._identity = identity
        self._gate.set_identities([identity] if previous is None else [identity, previous])

    def load_timestamps(self, received: Mapping[bytes, bytes], sent: Mapping[bytes, bytes]) -> None:
        """The stamps that `PersistTimestamp` effects stored in an earlier run, by static key."""
        self._stamps.load(received, sent)

    def configure(self, peers: Iterable[TunnelPeerConfig], now: float, wall: float) -> list[TunnelEffect]:
        """The whole table of peers. One whose keys are the same keeps its sessions; one that is gone or expired loses them at once."""
        effects: list[TunnelEffect] = []
        wanted = {config.id: config for config in peers if not config.expired(wall)}
        for peer in [peer for peer in self._peers.values() if peer.id not in wanted]:
            effects += self._remove(peer)
        for config in wanted.values():
            known = self._peers.get(config.id)
            if known is None:
                self._peers[config.id] = known = TunnelPeer(config)
            else:
                effects += self._reconfigure(known, config)
            known.timers.set_persistent(config.keepalive_s, now)
        self._index_peers()
        self._deadline = self._earliest(now, wall)
        return effects

    @property
    def peers(self) -> ValuesView[TunnelPeer]:
        """All peers configured and not expired."""
        return self._peers.values()

    def peer(self, node: NodeId) -> TunnelPeer | None:
        """The peer with this id."""
        return self._peers.get(node)

    def lookup(self, address: bytes) -> TunnelPeer | None:
        """Whose a packed 4- or 16-byte address is, by longest prefix."""
        return self._table.lookup(address)

    def owns(self, peer: TunnelPeer, source_address: bytes) -> bool:
        """Cryptokey routing: whether a packet from this inner source may come from this peer. An address routed to a longer prefix's owner may not."""
        return self._table.lookup(source_address) is peer or (bool(peer.config.also_from) and self._may_bring(peer, source_address))

    def _may_bring(self, peer: TunnelPeer, source_address: bytes) -> bool:
        """Whether a backup router may: the longest prefix that holds the address is one of those that it may route."""
        backups = self._backups.get(peer.id)
        prefix = None if backups is None else backups.lookup(source_address)
        return prefix is not None and prefix == self._prefixes.lookup(source_address)

    # --- The data path ---

    def session_to_send(self, peer: TunnelPeer, now: float, wall: float) -> tuple[Session | None, list[TunnelEffect]]:
        """The session to send with, and perhaps a rekey to begin; None while a handshake is under way (begun now if need be): the packet waits."""
        session = peer.current
        if session is None or now >= session.expires_at or session.send_counter >= session.reject_after:
            return None, self._initiate(peer, now, wall)
        if now > session.rekey_at or session.send_counter > session.rekey_after:
            return session, self._initiate(peer, now, wall)
        return session, []

    def session_by_index(self, index: int, now: float = 0.0) -> Session | None:
        """The session whose receiver index this is, unless it has expired by `now`."""
        session = self._sessions.get(index)
        return session if session is not None and now < session.expires_at else None

    def data_sent(self, session: Session, now: float, bytes_: int, data: bool) -> None:
        """So many bytes of packets were sealed and sent; `data` is False for a keepalive."""
        peer = session.peer
        peer.tx_bytes += bytes_
        peer.timers.sent(now, data=data)
        self._wake_for(peer)

    def data_received(self, session: Session, source: Source, now: float, wall: float, bytes_: int, data: bool) -> list[TunnelEffect]:
        """So many bytes of packets from one source were opened and their counters accepted; `data` is False if all were keepalives."""
        peer = session.peer
        if self._sessions.get(session.local_index) is not session:
            return []
        peer.rx_bytes += bytes_
        effects = self._moved(peer, source)
        if session is peer.next:
            self._forget_sessions(peer.confirm_next())
            peer.timers.completed()
            peer.last_handshake_at = wall
            effects.append(SessionReady(peer.id))
        peer.timers.received(now, data=data)
        self._wake_for(peer)
        if session.initiator and session is peer.current and now - session.created_at > REKEY_WHEN_RECEIVING_AFTER:
            effects += self._initiate(peer, now, wall)
        return effects

    # --- Handshakes ---

    def receive(self, datagram: Buffer, source: Source, now: float, wall: float) -> list[TunnelEffect]:
        """A datagram of type 1, 2, 3, 6 or 7."""
        try:
            message = parse_handshake(datagram)
        except WireError:
            return []
        if isinstance(message, CookieReply):
            self._receive_cookie(message, now)
            return []
        identity = self._gate.admit(bytes(datagram), message, source, now)
        if isinstance(identity, Refused):
            return [] if identity.cookie is None else [identity.cookie]
        if isinstance(message, Response):
            return self._receive_response(message, source, now, wall)
        try:
            return self._receive_initiation(identity, message, source, now, wall)
        except AuthenticationError:
            return []

    def _receive_cookie(self, message: CookieReply, now: float) -> None:
        peer = self._pending.get(message.receiver)
        if peer is not None and peer.pending is not None:
            peer.cookies(peer.pending.remote_static).receive(message, now)
            return
        session = self._sessions.get(message.receiver)
        if session is not None:
            session.peer.cookies(session.remote_static).receive(message, now)

    def _receive_initiation(self, identity: PrivateKey, message: Initiation, source: Source, now: float, wall: float) -> list[TunnelEffect]:
        started, static, timestamp = handshake.read_initiation(identity, message, self._random)
        peer = self._by_key.get(static)
        if peer is None or peer.config.expired(wall) or not self._stamps.is_new(static, timestamp):
            return []
        if now - peer.initiation_received_at < HANDSHAKE_INITIATION_RATE:
            return []
        if ahead := clock_ahead(timestamp, wall):
            return [ClockAhead(peer.id, ahead)]
        index = self._new_index()
        body, keys = handshake.respond(started, peer.config.psk, index, message.sender)
        # Everything holds: from here on state changes.
        self._stamps.accept(static, timestamp)
        peer.initiation_received_at = now
        session = Session(
            peer,
            local_index=index,
            remote_index=message.sender,
            initiator=False,
            remote_static=static,
            keys=keys,
            now=now,
            aead=message.aead,
            new_batch=self._new_batch,
        )
        self._sessions[index] = session
        self._forget_sessions(peer.add_responded(session))
        self._derived(peer, now)
        peer.handshake_sent_at = now
        datagram = peer.cookies(static).finish(body, now)
        return [PersistTimestamp(static, timestamp, sent=False), *self._moved(peer, source), SendHandshake(peer.id, datagram, source)]

    def _receive_response(self, message: Response, source: Source, now: float, wall: float) -> list[TunnelEffect]:
        peer = self._pending.get(message.receiver)
        if peer is None or peer.pending is None:
            return []
        pending = peer.pending
        try:
            keys = handshake.finish(pending, message)
        except AuthenticationError:
            return [ResponseRejected(peer.id)]
        self._forget_pending(peer)
        session = Session(
            peer,
            local_index=pending.local_index,
            remote_index=message.sender,
            initiator=True,
            remote_static=pending.remote_static,
            keys=keys,
            now=now,
            aead=message.aead,
            new_batch=self._new_batch,
        )
        crossed = any(now - other.created_at < REKEY_TIMEOUT for other in peer.sessions())
        self._sessions[session.local_index] = session
        self._forget_sessions(peer.add_initiated(session))
        peer.timers.completed()
        self._derived(peer, now)
        session.rekey_at = now + REKEY_AFTER_TIME + peer.timers.jitter
        if crossed and self._identity.public < pending.remote_static:
            session.rekey_at += KEEPALIVE_TIMEOUT
        peer.last_handshake_at = wall
        return [*self._moved(peer, source), SessionReady(peer.id), SendKeepalive(session, confirms=True)]

    def _derived(self, peer: TunnelPeer, now: float) -> None:
        self._draw_jitter(peer)
        peer.timers.received(now, data=False)
        peer.timers.derived(now)
        self._wake_for(peer)

    def _initiate(self, peer: TunnelPeer, now: float, wall: float) -> list[TunnelEffect]:
        """An initiation, unless a handshake message went to the peer within REKEY_TIMEOUT: then the timer is left to try again."""
        too_soon = peer.handshake_sent_at + REKEY_TIMEOUT
        if now < too_soon:
            if peer.timers.retry_at == NEVER:
                peer.timers.retry_at = too_soon + peer.timers.jitter
                self._wake_for(peer)
            return []
        peer.handshake_sent_at = now
        static = peer.config.node_key
        stamp = self._stamps.next(static, wall, may_go_back=peer.kind is PeerKind.CALNET)
        self._forget_pending(peer)
        try:
            pending, body = handshake.begin(self._identity, static, peer.config.psk, stamp, self._new_index(), self._random, peer.config.aead)
        except AuthenticationError:  # a small-order key: no handshake with it can ever succeed
            peer.timers.abandon_handshake()
            return [HandshakeFailed(peer.id)]
        peer.pending = pending
        self._pending[pending.local_index] = peer
        self._draw_jitter(peer)
        peer.timers.initiated(now)
        self._wake_for(peer)
        return [PersistTimestamp(static, stamp, sent=True), SendHandshake(peer.id, peer.cookies(static).finish(body, now), None)]

    # --- Timers ---

    def next_deadline(self) -> float | None:
        """When to call `on_timer` (monotonic), None for never. Cheap. It may turn out too early; then nothing happens but a new deadline."""
        return None if self._deadline == NEVER else self._deadline

    def on_timer(self, now: float, wall: float) -> list[TunnelEffect]:
        """Does what is due."""
        effects: list[TunnelEffect] = []
        expired = [peer for peer in self._peers.values() if peer.config.expired(wall)]
        for peer in expired:
            effects += self._remove(peer)
        if expired:
            self._index_peers()
        for peer in self._peers.values():
            effects += self._run_timers(peer, now, wall)
        self._deadline = self._earliest(now, wall)
        return effects

    def _run_timers(self, peer: TunnelPeer, now: float, wall: float) -> list[TunnelEffect]:
        timers = peer.timers
        for session in peer.sessions():
            if now >= session.expires_at:
                peer.remove(session)
                self._forget_sessions([session])
        if now < timers.earliest():
            return []
        effects: list[TunnelEffect] = []
        if now >= timers.forget_at:
            timers.forget_at = NEVER
            effects += self._forget_keys(peer)
        if now >= timers.retry_at:
            effects += self._retry(peer, now, wall)
        if now >= timers.new_handshake_at:
            timers.new_handshake_at = NEVER
            effects += self._initiate(peer, now, wall)
        if now >= timers.keepalive_at:
            timers.keepalive_at = NEVER
            effects += self._keepalive(peer, now, wall)
        if now >= timers.persistent_at:
            timers.persistent_at = now + timers.persistent_s
            effects += self._keepalive(peer, now, wall)
        return effects

    def _retry(self, peer: TunnelPeer, now: float, wall: float) -> list[TunnelEffect]:
        peer.timers.retry_at = NEVER
        if peer.timers.attempts < MAX_HANDSHAKE_ATTEMPTS:
            return self._initiate(peer, now, wall)
        peer.timers.abandon_handshake()
        self._forget_pending(peer)
        return [HandshakeFailed(peer.id)]

    def _keepalive(self, peer: TunnelPeer, now: float, wall: float) -> list[TunnelEffect]:
        session, effects = self.session_to_send(peer, now, wall)
        return effects if session is None else [*effects, SendKeepalive(session)]

    def _earliest(self, now: float, wall: float) -> float:
        deadline = NEVER
        for peer in self._peers.values():
            expires = peer.config.key_expires
            deadline = min(
                deadline,
                peer.timers.earliest(),
                NEVER if expires is None else now + max(0.0, expires - wall),
                *(session.expires_at for session in peer.sessions()),
            )
        return deadline

    def _wake_for(self, peer: TunnelPeer) -> None:
        earliest = peer.timers.earliest()
        if earliest < self._deadline:
            self._deadline = earliest

    # --- The tables ---

    def _reconfigure(self, peer: TunnelPeer, config: TunnelPeerConfig) -> list[TunnelEffect]:
        """Takes a peer's new configuration; sessions made with a key or PSK that is not the peer's any more go."""
        rekeyed = config.psk != peer.config.psk or config.kind is not peer.kind
        moved = config.node_key != peer.config.node_key
        peer.config = config
        peer.kind = config.kind
        if rekeyed:
            return self._forget_keys(peer)
        stale = [session for session in peer.sessions() if session.remote_static not in config.keys]
        for session in stale:
            peer.remove(session)
        self._forget_sessions(stale)
        if moved:
            self._forget_pending(peer)
            peer.timers.completed()
            peer.handshake_sent_at = LONG_AGO
        return [SessionsDropped(peer.id)] if stale and not peer.sessions() else []

    def _index_peers(self) -> None:
        self._by_key = {key: peer for peer in self._peers.values() for key in reversed(peer.config.keys)}
        self._table = PrefixTable((prefix, peer) for peer in self._peers.values() for prefix in peer.config.allowed)
        routers = [peer for peer in self._peers.values() if peer.config.also_from]
        self._backups = {peer.id: PrefixTable((prefix, prefix) for prefix in peer.config.also_from) for peer in routers}
        everything = (prefix for peer in self._peers.values() for prefix in (*peer.config.allowed, *peer.config.also_from))
        self._prefixes = PrefixTable((prefix, prefix) for prefix in everything) if routers else PrefixTable(())

    def _remove(self, peer: TunnelPeer) -> list[TunnelEffect]:
        del self._peers[peer.id]
        return self._forget_keys(peer)

    def _forget_keys(self, peer: TunnelPeer) -> list[TunnelEffect]:
        self._forget_pending(peer)
        self._forget_sessions(peer.forget_keys())
        peer.timers.abandon_handshake()
        peer.handshake_sent_at = LONG_AGO
        return [SessionsDropped(peer.id)]

    def _forget_sessions(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self._sessions.pop(session.local_index, None)

    def _forget_pending(self, peer: TunnelPeer) -> None:
        if peer.pending is not None:
            self._pending.pop(peer.pending.local_index, None)
            peer.pending = None

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index not in self._sessions and index not in self._pending:
                return index

    def _draw_jitter(self, peer: TunnelPeer) -> None:
        peer.timers.jitter = int.from_bytes(self._random(2), "little") / 65536 * REKEY_TIMEOUT_JITTER

    # --- Endpoints ---

    def _moved(self, peer: TunnelPeer, source: Source) -> list[TunnelEffect]:
        endpoint = source.endpoint
        if endpoint is None or endpoint == peer.endpoint:
            return []
        peer.endpoint = endpoint
        return [EndpointAuthenticated(peer.id, source)]
