"""Path finding for all peers: the one machine that the data path speaks to.

Theory of operation. `Paths` composes pure parts: a `PeerPath` a peer (peer.py) decides, `StunClient` learns our reflexive endpoints, `Sealer` opens and seals
messages, `Pings` remembers ours, `ProbeLimiter` bounds what others can make us send. Events come in with the time, effects go out for the data path to perform
in order; afterwards it asks `next_deadline` and calls `on_timer` then. A stock WireGuard peer has no machine: its endpoint is the configured one,
moved by authenticated packets.

Error contract: nothing that arrives from outside raises. Only `ping` raises, NotFoundError or InvalidError, where there is nobody to ping.
"""

from __future__ import annotations

from collections.abc import Iterable

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import InvalidError, NotFoundError
from calnet.model import Endpoint, NodeId, NodeKey, Peer, PeerKind, Prefix, Source
from calnet.paths import constants as c
from calnet.paths.candidates import own_candidates
from calnet.paths.effects import (
    NOWHERE,
    PathChanged,
    PathEffect,
    PathReport,
    PongReceived,
    PublishEndpoints,
    Route,
    SendCandidates,
    SendDatagram,
    SendRelayed,
)
from calnet.paths.limiter import ProbeLimiter
from calnet.paths.peer import PeerAction, PeerPath, Probe
from calnet.paths.pings import Pings
from calnet.paths.schedule import Schedule
from calnet.paths.sealing import Identity, Opened, Sealer
from calnet.paths.stun_client import StunClient
from calnet.wire.discovery import Candidates, Ping, Pong


class Paths:
    """See the module. One object for the life of the daemon."""

    def __init__(self, *, node_key: bytes, discovery: PrivateKey, random: RandomBytes) -> None:
        self._sealer = Sealer(Identity(discovery, NodeKey(node_key)), random)
        self._pings = Pings(random)
        self._limiter = ProbeLimiter()
        self._stun = StunClient(random)
        self._schedule = Schedule()
        self._peers: dict[NodeId, PeerPath] = {}
        self._fixed: dict[NodeId, Endpoint | None] = {}
        """Stock WireGuard peers: the configured endpoint."""
        self._routes: dict[NodeId, Route] = {}
        self._endpoints: dict[NodeId, tuple[Endpoint, ...]] = {}
        self._seen: dict[NodeId, Endpoint] = {}
        self._overlay: tuple[Prefix, ...] = ()
        self._local: tuple[Endpoint, ...] = ()
        self._own: tuple[Endpoint, ...] = ()
        self._relay = False
        self._data_at = c.LONG_AGO

    # --- configuration ---

    def set_identity(self, node_key: bytes, discovery: PrivateKey) -> None:
        """Renewed keys. What is sealed to the old ones is still opened and answered; paths stand."""
        self._sealer.set_identity(Identity(discovery, NodeKey(node_key)))

    def set_overlay(self, prefixes: Iterable[Prefix]) -> None:
        """The overlay's own prefixes: nothing inside is ever a candidate. Call before `set_peers`."""
        self._overlay = tuple(prefixes)
        for path in self._peers.values():
            path.set_overlay(self._overlay)

    def set_peers(self, peers: Iterable[Peer], now: float) -> list[PathEffect]:
        """The whole table. Paths of peers that stay stand, also over a change of keys; new endpoints of theirs are candidates."""
        table = list(peers)
        calnet = {peer.id: peer for peer in table if peer.kind is PeerKind.CALNET}
        self._sealer.set_peers(calnet.values())
        self._set_fixed({peer.id: peer for peer in table if peer.kind is PeerKind.WIREGUARD})
        for gone in self._peers.keys() - calnet.keys():
            del self._peers[gone]
            self._forget(gone)
        effects: list[PathEffect] = []
        for number, peer in calnet.items():
            path = self._peers.get(number)
            if path is None:
                path = self._peers[number] = PeerPath(number, relay=self._relay, overlay=self._overlay)
                self._routes[number] = path.route
            if self._endpoints.get(number) != peer.endpoints:
                self._endpoints[number] = peer.endpoints
                effects += self._perform(path, path.told(peer.endpoints, now, wake=False), now)
        return effects

    def set_local_endpoints(self, endpoints: Iterable[Endpoint], now: float) -> list[PathEffect]:
        """Addresses of this machine's interfaces with our port."""
        self._local = tuple(endpoints)
        return self._own_changed(now)

    def set_stun_servers(self, servers: Iterable[Endpoint], now: float) -> list[PathEffect]:
        """STUN servers, names resolved. A new set is asked at once."""
        if not self._stun.set_servers(servers):
            return []
        return self._stun_round(now)

    def relay_connected(self, connected: bool, now: float) -> list[PathEffect]:
        """The relay can be used, or no more."""
        if connected == self._relay:
            return []
        self._relay = connected
        return [effect for path in self._peers.values() for effect in self._perform(path, path.relay_connected(connected, now), now)]

    def network_changed(self, now: float) -> list[PathEffect]:
        """An address changed, or the machine slept: all is looked at anew. Tell the local endpoints first."""
        self._stun.forget()
        effects = self._own_changed(now) + self._stun_round(now)
        for path in self._peers.values():
            effects += self._perform(path, path.network_changed(now), now)
        return effects

    # --- what arrives ---

    def peer_candidates(self, peer: NodeId, candidates: tuple[Endpoint, ...], now: float) -> list[PathEffect]:
        """The peer's candidates, from the control session: probe them now."""
        path = self._peers.get(peer)
        return [] if path is None else self._told(path, candidates, now)

    def receive_stun(self, datagram: bytes, source: Endpoint, now: float) -> list[PathEffect]:
        """A STUN datagram on our socket."""
        return self._own_changed(now) if self._stun.receive(datagram, source, now) else []

    def receive_probe(self, datagram: bytes, source: Source, now: float) -> list[PathEffect]:
        """A discovery datagram, by UDP or by relay."""
        opened = self._sealer.open(datagram)
        if opened is None or (source.relay_peer is not None and source.relay_peer != opened.peer):
            return []
        path = self._peers[opened.peer]
        match opened.message:
            case Ping():
                return self._answer(path, opened, opened.message, source, now)
            case Pong():
                return self._pong(path, opened.message, source, now)
            case Candidates():
                return self._told(path, opened.message.endpoints, now)

    def data_received(self, peer: NodeId, source: Source, now: float) -> list[PathEffect]:
        """An authenticated tunnel packet of the peer."""
        path = self._peers.get(peer)
        if path is None:
            return self._roam(peer, source)
        effects = [] if self._active(now) else self._wake(now)
        self._data_at = now
        actions = path.data_received(source.endpoint, now)
        if actions or self._schedule.due(peer) > now + c.HEARTBEAT_RETRY:
            effects += self._perform(path, actions, now)
        return effects

    # --- what we send ---

    def data_sent(self, peer: NodeId, now: float) -> list[PathEffect]:
        """Data (or a handshake) was sent to the peer by `route`, or waits for one. Call once a batch."""
        path = self._peers.get(peer)
        if path is None:
            return []
        effects = [] if self._active(now) else self._wake(now)
        self._data_at = now
        actions = path.data_sent(now)
        if actions or self._schedule.due(peer) > now + c.ANSWER_DUE:
            effects += self._perform(path, actions, now)
        return effects

    def route(self, peer: NodeId) -> Route:
        """Where to send now."""
        return self._routes.get(peer, NOWHERE)

    def handshake_targets(self, peer: NodeId) -> tuple[Endpoint, ...]:
        """Where else to send a handshake when `route` is nowhere: at most 8 last known endpoints, so that the handshake is the probe. Never data."""
        path = self._peers.get(peer)
        if path is None or path.route != NOWHERE:
            return ()
        return tuple(known.endpoint for known in path.candidates.ordered())[: c.MAX_HANDSHAKE_TARGETS]

    def ping(self, peer: NodeId, now: float) -> tuple[int, list[PathEffect]]:
        """Probe the present path (and find one, as data would): the number that PongReceived will carry, and effects."""
        path = self._peers.get(peer)
        if path is None:
            if peer in self._fixed:
                raise InvalidError("a stock WireGuard peer answers no path probes; ping its overlay address")
            raise NotFoundError("no such peer")
        effects = [] if self._active(now) else self._wake(now)
        self._data_at = now
        effects += self._perform(path, path.wake(now), now)
        endpoint, relay = path.route
        token = self._pings.new(peer, endpoint, now, explicit=True)
        sealed = self._sealer.seal(peer, Ping(self._sealer.identity.node_key, token))
        if sealed is not None and endpoint is not None:
            effects.append(SendDatagram(endpoint, sealed))
        if sealed is not None and relay:
            effects.append(SendRelayed(peer, sealed))
        return int.from_bytes(token, "big"), effects

    # --- time ---

    def next_deadline(self) -> float | None:
        """When `on_timer` wants to be called."""
        return min((when for when in (self._schedule.next(), self._stun.next_deadline()) if when is not None), default=None)

    def on_timer(self, now: float) -> list[PathEffect]:
        """Do what is due; calling early is harmless."""
        effects: list[PathEffect] = []
        requests, changed = self._stun.on_timer(now, active=self._active(now))
        effects += [SendDatagram(server, request) for server, request in requests]
        if changed:
            effects += self._own_changed(now)
        for number in self._schedule.take(now):
            path = self._peers[number]
            effects += self._perform(path, path.on_timer(now), now)
        return effects

    # --- reports ---

    def report(self, peer: NodeId) -> PathReport:
        """What `status` shows."""
        path = self._peers.get(peer)
        endpoint, relay = self.route(peer)
        if path is None:
            return PathReport("direct" if endpoint is not None else "none", endpoint, None, ())
        name = "direct" if endpoint is not None else "relay" if relay and path.awake else "none"
        rtt = path.best.rtt_s if path.best is not None and endpoint is not None else None
        return PathReport(name, endpoint, rtt, tuple(known.endpoint for known in path.candidates.ordered()), self._seen.get(peer))

    def reflexive(self) -> tuple[Endpoint, ...]:
        """Our endpoints as STUN servers see them."""
        return self._stun.reflexive()

    def mapping(self) -> str:
        """The NAT's mapping behaviour, in netcheck's words."""
        return self._stun.mapping().value

    # --- inside ---

    def _active(self, now: float) -> bool:
        return now - self._data_at < c.IDLE_AFTER

    def _wake(self, now: float) -> list[PathEffect]:
        """Data flows after an idle time: our reflexive endpoints have to be learned again."""
        self._data_at = now
        if now - self._stun.last_round_at < c.STUN_INTERVAL_MIN:
            self._stun.keep_going(now, active=True)
            return []
        return self._stun_round(now)

    def _stun_round(self, now: float) -> list[PathEffect]:
        return [SendDatagram(server, request) for server, request in self._stun.start(now, again=self._active(now))]

    def _own_changed(self, now: float) -> list[PathEffect]:
        own = own_candidates(self._local, self._stun.reflexive(), self._overlay)
        if own == self._own:
            return []
        self._own = own
        effects: list[PathEffect] = [PublishEndpoints(own)]
        for path in self._peers.values():
            effects += self._perform(path, path.own_candidates_changed(now), now)
        return effects

    def _told(self, path: PeerPath, endpoints: tuple[Endpoint, ...], now: float) -> list[PathEffect]:
        if not self._limiter.hears(path.peer, now):
            return []
        return self._perform(path, path.told(endpoints, now, wake=True), now)

    def _answer(self, path: PeerPath, opened: Opened, ping: Ping, source: Source, now: float) -> list[PathEffect]:
        effects: list[PathEffect] = []
        sealed = self._sealer.answer(opened, Pong(opened.own.node_key, ping.token, source.endpoint))
        if source.endpoint is None:
            return [SendRelayed(path.peer, sealed)] if sealed is not None else []
        if sealed is not None:
            effects.append(SendDatagram(source.endpoint, sealed))
        return effects + self._perform(path, path.ping_received(source.endpoint, now), now)

    def _pong(self, path: PeerPath, pong: Pong, source: Source, now: float) -> list[PathEffect]:
        pending = self._pings.answered(pong.token, path.peer, now)
        if pending is None:
            return []
        effects: list[PathEffect] = []
        rtt = now - pending.sent_at
        if pending.endpoint is not None and source.endpoint is not None:
            if pong.seen is not None:
                self._seen[path.peer] = pong.seen
            effects += self._perform(path, path.pong_received(pending.endpoint, rtt, now), now)
        if pending.explicit:
            via = Source(pending.endpoint, None) if source.endpoint is not None else source
            effects.append(PongReceived(path.peer, int.from_bytes(pong.token, "big"), via, rtt))
        return effects

    def _perform(self, path: PeerPath, actions: list[PeerAction], now: float) -> list[PathEffect]:
        """Effects of a peer's actions; its route and its next deadline are taken in."""
        effects: list[PathEffect] = []
        for action in actions:
            match action:
                case Probe():
                    effects += self._probe(path.peer, action, now)
                case PathChanged():
                    effects += self._changed(path, action, now)
                case _:
                    effects += self._exchange(path.peer)
        self._routes[path.peer] = path.route
        deadline = path.deadline(now)
        if deadline is not None:
            self._schedule.no_later_than(path.peer, deadline)
        return effects

    def _changed(self, path: PeerPath, change: PathChanged, now: float) -> list[PathEffect]:
        """Nobody hears of an idle peer's relay. A direct path in trouble may mean that the NAT maps us anew: ask."""
        if not path.active(now):
            return [change] if change.old.endpoint != change.new.endpoint else []
        troubled = change.old.endpoint is not None and (change.new.relay or change.new.endpoint is None)
        if troubled and now >= self._stun.last_round_at + c.STUN_GAP:
            return [change, *self._stun_round(now)]
        return [change]

    def _probe(self, peer: NodeId, probe: Probe, now: float) -> list[PathEffect]:
        if not probe.proven and not self._limiter.allows(peer, probe.endpoint.host, now):
            return []
        token = self._pings.new(peer, probe.endpoint, now)
        sealed = self._sealer.seal(peer, Ping(self._sealer.identity.node_key, token))
        return [] if sealed is None else [SendDatagram(probe.endpoint, sealed)]

    def _exchange(self, peer: NodeId) -> list[PathEffect]:
        effects: list[PathEffect] = [SendCandidates(peer, self._own)]
        sealed = self._sealer.seal(peer, Candidates(self._sealer.identity.node_key, self._own)) if self._relay else None
        if sealed is not None:
            effects.append(SendRelayed(peer, sealed))
        return effects

    def _set_fixed(self, peers: dict[NodeId, Peer]) -> None:
        for gone in self._fixed.keys() - peers.keys():
            del self._fixed[gone]
            self._forget(gone)
        for number, peer in peers.items():
            endpoint = peer.endpoints[0] if peer.endpoints else None
            if number not in self._fixed or self._fixed[number] != endpoint:
                self._fixed[number] = endpoint
                self._routes[number] = Route(endpoint, False)

    def _roam(self, peer: NodeId, source: Source) -> list[PathEffect]:
        """A stock WireGuard peer is where its last authenticated packet came from (WireGuard paper, section 2.1)."""
        old = self._routes.get(peer)
        if peer not in self._fixed or old is None or source.endpoint is None or source.endpoint == old.endpoint:
            return []
        self._routes[peer] = new = Route(source.endpoint, False)
        return [PathChanged(peer, old, new, "the peer moved")]

    def _forget(self, peer: NodeId) -> None:
        self._routes.pop(peer, None)
        self._endpoints.pop(peer, None)
        self._seen.pop(peer, None)
        self._schedule.drop(peer)
