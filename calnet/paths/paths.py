"""Path finding for all peers: the one machine that the data path speaks to.

Theory of operation. `Paths` composes pure parts: a `PeerPath` a peer (peer.py) decides, `StunClient` learns our reflexive endpoints, `Sealer` opens and seals
messages, `Pings` remembers ours, `DiscoveryLimiter` bounds what others can make us do. Events come in with the time, effects go out for the data path to
perform in order; afterwards it asks `next_deadline` and calls `on_timer` then. A stock WireGuard peer has no machine: its endpoint is the configured one, moved
by authenticated packets.

Error contract: nothing that arrives from outside raises. Only `ping`, `question` and `view` do, NotFoundError or InvalidError, where there is nobody to ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, assert_never

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import InvalidError, NotFoundError
from calnet.model import Endpoint, NodeId, NodeKey, Peer, PeerKind, Prefix, Source
from calnet.paths import constants as c
from calnet.paths.candidates import own_candidates
from calnet.paths.delivery import Delivery, DeliveryAction, LeavePath, Phase, ReturnToPath, SendMark, TryRelay
from calnet.paths.effects import (
    NOWHERE,
    CloseSockets,
    MtuFound,
    PathChanged,
    PathEffect,
    PathReport,
    PongReceived,
    PublishEndpoints,
    Route,
    SendCandidates,
    SendDatagram,
    SendRelayed,
    UseSocket,
    ViewReceived,
)
from calnet.paths.explain import Outcome, Tried, View, outcome_of
from calnet.paths.limiter import DiscoveryLimiter
from calnet.paths.mtu import BASE, PathMtu
from calnet.paths.peer import Exchange, PathState, PeerAction, PeerPath, Probe
from calnet.paths.pings import Pings
from calnet.paths.schedule import Schedule
from calnet.paths.sealing import Identity, Opened, Sealer
from calnet.paths.spray import Ask, Grant, Spray, SprayAction, Try
from calnet.paths.stun_client import MappingBehaviour, StunClient
from calnet.paths.way import Way
from calnet.wire.discovery import Ask as AskMessage
from calnet.wire.discovery import Candidates, DiscoveryMessage, Mark, Ping, Pong, Question, Tally, ViewFlag, tried_that_fit
from calnet.wire.discovery import Grant as GrantMessage
from calnet.wire.discovery import View as ViewMessage
from calnet.wire.endpoints import is_candidate, is_private
from calnet.wire.tunnel import TRANSPORT_OVERHEAD

_MAPPINGS = (
    MappingBehaviour.UNKNOWN,
    MappingBehaviour.ENDPOINT_INDEPENDENT,
    MappingBehaviour.ADDRESS_DEPENDENT,
    MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT,
)
"""By their numbers on the wire."""
_OUTCOMES = frozenset(map(int, Outcome))
TRYING: Final = "much of what went directly was lost; for some seconds it is tried whether the relay carries more"


class Paths:
    """See the module. One object for the life of the daemon."""

    def __init__(self, *, node_key: bytes, discovery: PrivateKey, random: RandomBytes, mtu: int = BASE) -> None:
        """`mtu`: paths are probed for packets as long as this."""
        self._sealer = Sealer(Identity(discovery, NodeKey(node_key)), random)
        self._pings = Pings(random)
        self._limiter = DiscoveryLimiter()
        self._stun = StunClient(random)
        self._schedule = Schedule()
        self._spray = Spray(random)
        self._ways: dict[NodeId, Way] = {}
        self.may_guess = True
        """Whether ports may be guessed (spray.py), for ourselves and for peers that ask."""
        self._mtu, self._longest = mtu, BASE
        self._mtus: dict[NodeId, PathMtu] = {}
        self._deliveries: dict[NodeId, Delivery] = {}
        self._peers: dict[NodeId, PeerPath] = {}
        self._fixed: dict[NodeId, Endpoint | None] = {}
        """Stock WireGuard peers: the configured endpoint."""
        self._routes: dict[NodeId, Route] = {}
        self._endpoints: dict[NodeId, tuple[Endpoint, ...]] = {}
        self._overlay: tuple[Prefix, ...] = ()
        self._local: tuple[Endpoint, ...] = ()
        self._mapped: tuple[Endpoint, ...] = ()
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
        gone = self._peers.keys() - calnet.keys()
        effects = self._perform_spray(self._spray.forget(gone), now)
        for number in gone:
            del self._peers[number]
            self._forget(number)
        self._set_fixed({peer.id: peer for peer in table if peer.kind is PeerKind.WIREGUARD})
        for number, peer in calnet.items():
            path = self._peers.get(number)
            if path is None:
                path = self._peers[number] = PeerPath(number, relay=self._relay, overlay=self._overlay, way=self._ways.get(number, Way.AUTO))
                self._deliveries[number] = Delivery()
                self._routes[number] = self._route_of(path)
                self._mtus[number] = PathMtu(self._mtu)
            if self._endpoints.get(number) != peer.endpoints:
                self._endpoints[number] = peer.endpoints
                effects += self._perform(path, path.told(peer.endpoints, now, wake=False), now)
        return effects

    def set_ways(self, ways: Mapping[NodeId, Way], now: float) -> list[PathEffect]:
        """What the user wants of peers' paths; those that are not named are automatic."""
        self._ways = dict(ways)
        effects = self._perform_spray(self._spray.forget(peer for peer, way in ways.items() if way is Way.RELAY), now)
        for number, path in self._peers.items():
            effects += self._perform(path, path.set_way(ways.get(number, Way.AUTO), now), now)
        return effects

    def set_local_endpoints(self, endpoints: Iterable[Endpoint], now: float) -> list[PathEffect]:
        """Addresses of this machine's interfaces with our port."""
        self._local = tuple(endpoints)
        return self._own_changed(now)

    def set_mapped_endpoints(self, endpoints: Iterable[Endpoint], now: float) -> list[PathEffect]:
        """Endpoints of routers that lead to our port, because they were asked to."""
        self._mapped = tuple(endpoints)
        return self._own_changed(now)

    def set_stun_servers(self, servers: Iterable[Endpoint], now: float) -> list[PathEffect]:
        """STUN servers, names resolved. A new set is asked at once, or some seconds later where sets come thick."""
        return self._stun_round(now) if self._stun.set_servers(servers, now) else self._own_changed(now)

    def relay_connected(self, connected: bool, now: float) -> list[PathEffect]:
        """The relay can be used, each time by a new connection; or no more."""
        if not connected and not self._relay:
            return []
        self._relay = connected
        return [effect for path in self._peers.values() for effect in self._perform(path, path.relay_connected(connected, now), now)]

    def network_changed(self, now: float, *, local: Iterable[Endpoint] | None = None, moved: bool = False) -> list[PathEffect]:
        """An address changed, or the machine slept: all is looked at anew. `local`: addresses of this machine's interfaces with our port (None: as before).
        `moved`: our packets come from another endpoint. Nothing is probed before the peers' paths know that."""
        self._stun.forget()
        self._local = self._local if local is None else tuple(local)
        effects = self._perform_spray(self._spray.network_changed(), now) + self._publish_own() + self._stun_round(now)
        for number, path in self._peers.items():
            self._mtus[number].forget()
            self._deliveries[number].forget()
            effects += self._perform(path, path.network_changed(now, moved=moved), now)
        return effects

    # --- what arrives ---

    def peer_candidates(self, peer: NodeId, candidates: tuple[Endpoint, ...], now: float) -> list[PathEffect]:
        """The peer's candidates, from the control session: probe them now."""
        path = self._peers.get(peer)
        return [] if path is None else self._told(path, candidates, now, relayed=False)

    def receive_stun(self, datagram: bytes, source: Endpoint, now: float) -> list[PathEffect]:
        """A STUN datagram on our socket."""
        return self._own_changed(now) if self._stun.receive(datagram, source, now) else []

    def receive_probe(self, datagram: bytes, source: Source, now: float) -> list[PathEffect]:
        """A discovery datagram, by UDP or by relay. From port 0 nobody can be answered."""
        if source.endpoint is not None and source.endpoint.port == 0:
            return []
        opened = self._sealer.open(datagram)
        if opened is None or (source.relay_peer is not None and source.relay_peer != opened.peer):
            return []
        path = self._peers[opened.peer]
        effects = self._came_by(path, source)
        return effects + self._take_message(path, opened, source, now)

    def _take_message(self, path: PeerPath, opened: Opened, source: Source, now: float) -> list[PathEffect]:
        if isinstance(opened.message, Candidates | AskMessage | GrantMessage) and source.endpoint is not None:
            return []  # they come by relay, where no third party can replay them
        match opened.message:
            case Ping():
                return self._answer(path, opened, opened.message, source, now)
            case Pong():
                return self._pong(path, opened.message, source, now)
            case Candidates():
                return self._told(path, opened.message.endpoints, now, relayed=True)
            case AskMessage() | GrantMessage() if path.way is Way.RELAY:
                return []
            case AskMessage():
                return self._asked(path, opened.message, now)
            case GrantMessage():
                return self._granted(path, opened.message)
            case Question():
                return self._tell_view(path, opened, opened.message, source, now)
            case ViewMessage():
                return self._take_view(path, opened.message, now)
            case Mark():
                return self._tell_tally(path, opened, opened.message, source)
            case Tally():
                return self._take_tally(path, opened.message, source, now)
            case _:
                assert_never(opened.message)

    def data_received(self, peer: NodeId, source: Source, now: float, length: int = 0) -> list[PathEffect]:
        """An authenticated tunnel packet of the peer, or a batch. `length` is that of transport datagrams, in bytes; a handshake has none."""
        path = self._peers.get(peer)
        if path is None:
            return self._roam(peer, source)
        if length:
            self._deliveries[peer].got(length, direct=source.endpoint is not None)
        if path.way is Way.RELAY:
            return []
        effects = [] if self._active(now) else self._wake(now)
        self._data_at = now
        actions = path.data_received(source.endpoint, now)
        if actions or self._schedule.due(peer) > now + c.HEARTBEAT_RETRY:
            effects += self._perform(path, actions, now)
        return effects

    # --- what we send ---

    def data_sent(self, peer: NodeId, now: float, route: Route = NOWHERE, length: int = 0) -> list[PathEffect]:
        """Data (or a handshake, or a packet that waits for a session) goes to the peer; `length` bytes of transport datagrams went by `route`. Once a turn."""
        path = self._peers.get(peer)
        if path is None:
            return []
        if path.way is Way.RELAY:
            return []  # no path is looked for
        effects = [] if self._active(now) else self._wake(now)
        self._data_at = now
        delivery = self._deliveries[peer]
        actions = path.data_relayed(now) if delivery.phase is Phase.TRYING else path.data_sent(now)
        if actions or self._schedule.due(peer) > now + c.ANSWER_DUE:
            effects += self._perform(path, actions, now)
        if length:
            wishes = delivery.sent(length if route.endpoint is not None else 0, length if route.relay else 0, now)
            effects += self._perform_delivery(path, wishes, now)
        return effects

    def route(self, peer: NodeId) -> Route:
        """Where to send now."""
        return self._routes.get(peer, NOWHERE)

    def fits(self, peer: NodeId, length: int, now: float) -> bool:
        """Whether a packet of `length` bytes may go by the present route; if not, see `mtu_of`."""
        known = self._mtus.get(peer)
        if known is None or self.route(peer).endpoint is None:
            return True
        if length > BASE:
            known.used(now)
            if (path := self._peers[peer]).active(now) and self._schedule.due(peer) > now + c.ANSWER_DUE:
                self._plan(path, now)
        return length <= known.limit

    def mtu_of(self, peer: NodeId) -> tuple[int, bool]:
        """The longest packet that may go directly, and whether that is found out: until then, longer ones can go by relay."""
        known = self._mtus.get(peer)
        return (self._mtu, True) if known is None else (known.limit, known.settled)

    def may_detour(self, peer: NodeId) -> bool:
        """Whether single packets may go to the peer by relay."""
        path = self._peers.get(peer)
        return self._relay and path is not None and path.way is not Way.DIRECT

    def handshake_targets(self, peer: NodeId, now: float) -> tuple[Endpoint, ...]:
        """Where else to send a handshake when `route` is nowhere: at most 8 last known endpoints, so that the handshake is the probe. Never data. Each is
        counted as a probe to its host: send what was asked for."""
        path = self._peers.get(peer)
        if path is None or self.route(peer) != NOWHERE:
            return ()
        known = [known.endpoint for known in path.candidates.ordered()][: c.MAX_HANDSHAKE_TARGETS]
        return tuple(endpoint for endpoint in known if self._limiter.may_shake_hands(endpoint.host, now))

    def ping(self, peer: NodeId, now: float) -> tuple[int, list[PathEffect]]:
        """Probe the present path (and find one, as data would): the number that PongReceived will carry, and effects."""
        path = self._calnet_peer(peer)
        effects = [] if self._active(now) else self._wake(now)
        self._data_at = now
        effects += self._perform(path, path.wake(now), now)
        endpoint, relay = self.route(peer)
        token = self._pings.new(peer, endpoint, now, explicit=True)
        sealed = self._sealer.seal(peer, Ping(self._sealer.identity.node_key, token))
        if sealed is not None and endpoint is not None:
            effects.append(SendDatagram(endpoint, sealed))
        if sealed is not None and relay:
            effects.append(SendRelayed(peer, sealed))
        return int.from_bytes(token, "big"), effects

    def question(self, peer: NodeId, now: float) -> tuple[int, list[PathEffect]]:
        """Ask the peer how it sees the path, by the relay and by the path in use: the number that ViewReceived will carry, and effects. NotFoundError or
        InvalidError as `ping`."""
        self._calnet_peer(peer)
        token = self._pings.new(peer, None, now, explicit=True)
        sealed = self._sealer.seal(peer, Question(self._sealer.identity.node_key, token))
        effects: list[PathEffect] = [] if sealed is None else [SendRelayed(peer, sealed)]
        endpoint = self.route(peer).endpoint
        if sealed is not None and endpoint is not None:
            effects.append(SendDatagram(endpoint, sealed))
        return int.from_bytes(token, "big"), effects

    def view(self, peer: NodeId, now: float) -> View:
        """How this node sees the path to a peer. NotFoundError or InvalidError as `ping`."""
        path = self._calnet_peer(peer)
        used = self.route(peer).endpoint
        tried = tuple(Tried(one.endpoint, outcome_of(one, now, in_use=one.endpoint == used), one.rtt_s) for one in path.candidates.ordered())
        report = self.report(peer)
        return View(report.path, bool(self._stun.reflexive()), self._relay, self.may_guess, self._stun.mapping(), tried, path.way, report.left)

    def _calnet_peer(self, peer: NodeId) -> PeerPath:
        path = self._peers.get(peer)
        if path is None:
            if peer in self._fixed:
                raise InvalidError("a stock WireGuard peer answers no path probes; ping its overlay address")
            raise NotFoundError("no such peer")
        return path

    # --- time ---

    def next_deadline(self) -> float | None:
        """When `on_timer` wants to be called. Asked for after every event."""
        earliest = self._schedule.next()
        for when in (self._stun.next_deadline(), self._spray.next_deadline()):
            if when is not None and (earliest is None or when < earliest):
                earliest = when
        return earliest

    def on_timer(self, now: float) -> list[PathEffect]:
        """Do what is due; calling early is harmless."""
        effects: list[PathEffect] = []
        requests, changed = self._stun.on_timer(now, active=self._active(now))
        effects += [SendDatagram(server, request) for server, request in requests]
        if requests or changed:
            effects += self._own_changed(now)
        effects += self._perform_spray(self._spray.on_timer(now), now)
        for number in self._schedule.take(now):
            path = self._peers[number]
            effects += self._perform(path, path.on_timer(now), now)
            effects += self._probe_mtu(path, now)
            effects += self._perform_delivery(path, self._deliveries[number].on_timer(now), now)
            if path.is_stuck(now) and self._is_hard():
                effects += self._perform_spray(self._spray.begin(number, self._seen_by_servers(), now), now)
        return effects

    # --- reports ---

    def report(self, peer: NodeId) -> PathReport:
        """What `status` shows."""
        path = self._peers.get(peer)
        endpoint, relay = self.route(peer)
        if path is None:
            return PathReport("direct" if endpoint is not None else "none", endpoint, None, ())
        awake = path.awake or path.way is Way.RELAY
        name = "direct" if endpoint is not None else "relay" if relay and awake else "none"
        rtt = path.best.rtt_s if path.best is not None and endpoint is not None else None
        mtu = self._mtus[peer].limit if endpoint is not None else None
        left = TRYING if self._deliveries[peer].phase is Phase.TRYING else path.left
        return PathReport(name, endpoint, rtt, tuple(known.endpoint for known in path.candidates.ordered()), mtu, left)

    def reflexive(self) -> tuple[Endpoint, ...]:
        """Our endpoints as STUN servers see them."""
        return self._stun.reflexive()

    def is_local(self, endpoint: Endpoint) -> bool:
        """Whether it is an interface's address, with our port."""
        return endpoint in self._local

    def mapping(self) -> str:
        """The NAT's mapping behaviour, in netcheck's words."""
        return self._stun.mapping().value

    # --- inside ---

    def _route_of(self, path: PeerPath) -> Route:
        """The machine's route, but for a trial."""
        match self._deliveries[path.peer].phase:
            case Phase.WATCHING:
                return path.route
            case Phase.TRYING:
                return Route(None, True)
            case Phase.RETURNING:
                return Route(path.route.endpoint, True)

    def _choosable(self, path: PeerPath) -> Endpoint | None:
        """The direct path in use, where the relay could be used as well."""
        return path.route.endpoint if self._relay and path.in_use and path.way is Way.AUTO else None

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
        requests = self._stun.start(now, again=self._active(now))
        return [*(SendDatagram(server, request) for server, request in requests), *self._own_changed(now)]

    def _publish_own(self) -> list[PathEffect]:
        own = own_candidates(self._local, (*self._stun.reflexive(), *self._mapped), self._overlay)
        if own == self._own:
            return []
        self._own = own
        return [PublishEndpoints(own)]

    def _own_changed(self, now: float) -> list[PathEffect]:
        effects = self._publish_own()
        for path in self._peers.values() if effects else ():
            effects += self._perform(path, path.own_candidates_changed(now), now)
        return effects

    def _told(self, path: PeerPath, endpoints: tuple[Endpoint, ...], now: float, *, relayed: bool) -> list[PathEffect]:
        if not self._limiter.takes_candidates(path.peer, now, relayed=relayed):
            return []
        return self._perform(path, path.told(endpoints, now, wake=True), now)

    def _answer(self, path: PeerPath, opened: Opened, ping: Ping, source: Source, now: float) -> list[PathEffect]:
        effects = self._reply(opened, Pong(opened.own.node_key, ping.token, source.endpoint), source)
        if source.endpoint is None:
            return effects
        self._spray.heard(path.peer)
        return effects + self._perform(path, path.ping_received(source.endpoint, now), now, pinged=True)

    def _reply(self, opened: Opened, message: DiscoveryMessage, source: Source) -> list[PathEffect]:
        """The answer goes back the way that its question came; by UDP, where the source may be forged, only if it is no longer than that."""
        sealed = self._sealer.answer(opened, message)
        if sealed is None:
            return []
        if source.endpoint is None:
            return [SendRelayed(opened.peer, sealed)]
        return [SendDatagram(source.endpoint, sealed, source.socket)] if len(sealed) <= opened.length else []

    def _pong(self, path: PeerPath, pong: Pong, source: Source, now: float) -> list[PathEffect]:
        pending = self._pings.answered(pong.token, path.peer, now)
        if pending is None:
            return []
        effects: list[PathEffect] = []
        rtt = now - pending.sent_at
        if pending.endpoint is not None and source.endpoint is not None:
            if pending.size and pending.endpoint == self._mtus[path.peer].endpoint:
                self._mtus[path.peer].answered(pending.size, now)
            if pending.guess:
                path.guessed(pending.endpoint, now)
            effects += self._perform(path, path.pong_received(pending.endpoint, rtt, now), now)
        if pending.explicit:
            via = Source(pending.endpoint, None) if source.endpoint is not None else source
            effects.append(PongReceived(path.peer, int.from_bytes(pong.token, "big"), via, rtt))
        return effects

    # --- hard pairs

    def _is_hard(self) -> bool:
        """Whether nobody can tell from where our packets to a new place will come."""
        return self.may_guess and self._relay and self._stun.mapping() in (MappingBehaviour.ADDRESS_DEPENDENT, MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)

    def _seen_by_servers(self) -> tuple[Endpoint, ...]:
        return tuple(endpoint for endpoint in self._stun.reflexive() if ":" not in endpoint.host)

    def _may_guess_at(self, path: PeerPath, endpoint: Endpoint) -> bool:
        """Whether a peer's word is enough to send many probes there: a public IPv4 address, which it told as its own (what came from there may be forged)."""
        told = any(known.told and known.endpoint.host == endpoint.host for known in path.candidates)
        return told and ":" not in endpoint.host and is_candidate(endpoint, self._overlay) and not is_private(endpoint)

    def _asked(self, path: PeerPath, ask: AskMessage, now: float) -> list[PathEffect]:
        """A peer's wish is granted where it is of use."""
        useless = path.state is PathState.DIRECT or self._is_hard() or not self._seen_by_servers()
        if useless or not self.may_guess or not self._may_guess_at(path, ask.host):
            return []
        return self._perform_spray(self._spray.asked(path.peer, ask.host.host, ask.first, now), now)

    def _granted(self, path: PeerPath, grant: GrantMessage) -> list[PathEffect]:
        if self._may_guess_at(path, grant.endpoint):
            self._spray.granted(path.peer, grant.endpoint)
        return []

    def _tell_view(self, path: PeerPath, opened: Opened, question: Question, source: Source, now: float) -> list[PathEffect]:
        """A peer may know how this node sees the path between the two: it learns nothing else."""
        relayed = source.endpoint is None
        if not self._limiter.answers_question(path.peer, now, relayed=relayed):
            return []
        view = self.view(path.peer, now)
        tried = tuple((one.endpoint, int(one.outcome), None if one.rtt_s is None else round(one.rtt_s * 10_000)) for one in view.tried)
        told = tried if relayed else tried[: max(0, tried_that_fit(opened.length))]
        message = ViewMessage(opened.own.node_key, question.token, _flags_of(view), _MAPPINGS.index(view.mapping), told)
        return self._reply(opened, message, source)

    def _take_view(self, path: PeerPath, message: ViewMessage, now: float) -> list[PathEffect]:
        if self._pings.answered(message.token, path.peer, now) is None:
            return []
        tried = tuple(
            Tried(endpoint, Outcome(outcome), None if rtt is None else rtt / 10_000) for endpoint, outcome, rtt in message.tried if outcome in _OUTCOMES
        )
        flags = message.flags
        path_now = "direct" if ViewFlag.DIRECT in flags else "relay" if ViewFlag.RELAYED in flags else "none"
        way = Way.RELAY if ViewFlag.RELAY_ALONE in flags else Way.DIRECT if ViewFlag.DIRECT_ALONE in flags else Way.AUTO
        mapping = _MAPPINGS[message.mapping] if message.mapping < len(_MAPPINGS) else MappingBehaviour.UNKNOWN
        view = View(path_now, ViewFlag.UDP in flags, ViewFlag.RELAY in flags, ViewFlag.GUESSES in flags, mapping, tried, way)
        return [ViewReceived(path.peer, int.from_bytes(message.token, "big"), view)]

    def _tell_tally(self, path: PeerPath, opened: Opened, mark: Mark, source: Source) -> list[PathEffect]:
        """A peer may know how much of what it sent has come."""
        known = self._deliveries[path.peer]
        return self._reply(opened, Tally(opened.own.node_key, mark.number, known.got_direct, known.got_relayed), source)

    def _take_tally(self, path: PeerPath, tally: Tally, source: Source, now: float) -> list[PathEffect]:
        wishes = self._deliveries[path.peer].tally(tally.number, tally.direct, tally.relayed, now, by_relay=source.endpoint is None)
        return self._perform_delivery(path, wishes, now)

    def _came_by(self, path: PeerPath, source: Source) -> list[PathEffect]:
        """An authentic message came to a socket beside the first: that is how to reach where it came from, unless there is a path already."""
        if (
            source.endpoint is None
            or source.socket == 0
            or (path.state is PathState.DIRECT and path.best is not None and path.best.endpoint == source.endpoint)
        ):
            return []
        return [UseSocket(source.endpoint, source.socket)]

    def _perform_spray(self, actions: list[SprayAction], now: float) -> list[PathEffect]:
        effects: list[PathEffect] = []
        for action in actions:
            match action:
                case Ask():
                    sealed = self._sealer.seal(action.peer, AskMessage(self._sealer.identity.node_key, action.host, action.first))
                    effects += [] if sealed is None else [SendRelayed(action.peer, sealed)]
                case Grant():
                    sealed = self._sealer.seal(action.peer, GrantMessage(self._sealer.identity.node_key, self._seen_by_servers()[0]))
                    effects += [] if sealed is None else [SendRelayed(action.peer, sealed)]
                case Try():
                    sealed = self._sealer.seal(
                        action.peer, Ping(self._sealer.identity.node_key, self._pings.new(action.peer, action.endpoint, now, guess=True))
                    )
                    effects += [] if sealed is None else [SendDatagram(action.endpoint, sealed, action.socket)]
                case CloseSockets():
                    effects.append(action)
                case _:
                    assert_never(action)
        return effects

    def _perform(self, path: PeerPath, actions: list[PeerAction], now: float, *, pinged: bool = False) -> list[PathEffect]:
        """Effects of a peer's actions; its route and its next deadline are taken in. `pinged`: a ping made for them, which may be a replayed one."""
        effects: list[PathEffect] = []
        for action in actions:
            match action:
                case Probe():
                    effects += self._probe(path, action, now, pinged=pinged)
                case PathChanged():
                    effects += self._changed(path, action, now)
                case Exchange():
                    effects += self._exchange(path.peer)
                case _:
                    assert_never(action)
        delivery = self._deliveries[path.peer]
        delivery.use(self._choosable(path), now)
        delivery.heard(path.heard_at)
        route = self._routes[path.peer] = self._route_of(path)
        if route.endpoint is not None:
            self._mtus[path.peer].use_path(route.endpoint)
        self._plan(path, now)
        return effects

    def _plan(self, path: PeerPath, now: float) -> None:
        """When the peer is looked at next."""
        mtu = self._mtus[path.peer].deadline() if self._probes_mtu(path, now) else None
        for deadline in (path.deadline(now), mtu, self._deliveries[path.peer].deadline()):
            if deadline is not None:
                self._schedule.no_later_than(path.peer, deadline)

    def _probes_mtu(self, path: PeerPath, now: float) -> bool:
        """Only where data flows directly."""
        return path.state is PathState.DIRECT and path.active(now) and self._routes[path.peer].endpoint is not None

    def _probe_mtu(self, path: PeerPath, now: float) -> list[PathEffect]:
        if not self._probes_mtu(path, now):
            return []
        known = self._mtus[path.peer]
        size = known.on_timer(now, path.heard_at)
        effects: list[PathEffect] = []
        if known.thin and (left := path.leave(f"packets of {BASE} bytes don't get through", now)):
            known.endpoint = None
            effects += self._perform(path, left, now)
        elif size is not None and known.endpoint is not None:
            length = TRANSPORT_OVERHEAD + size
            ping = Ping(self._sealer.identity.node_key, self._pings.new(path.peer, known.endpoint, now, size=size), length)
            sealed = self._sealer.seal(path.peer, ping)
            effects += [] if sealed is None else [SendDatagram(known.endpoint, sealed, whole=size > BASE)]
        if known.settled and known.limit > self._longest:
            self._longest = known.limit
            effects.append(MtuFound(known.limit))
        self._plan(path, now)
        return effects

    def _perform_delivery(self, path: PeerPath, wishes: Sequence[DeliveryAction], now: float) -> list[PathEffect]:
        """What delivery.py wants. A trial is no change of path: it is told where its outcome is one."""
        effects: list[PathEffect] = []
        for wish in wishes:
            match wish:
                case SendMark():
                    effects += self._mark(path.peer, wish)
                case TryRelay():
                    effects += self._perform(path, path.data_relayed(now), now)
                case ReturnToPath():
                    effects += self._perform(path, path.ask(now), now)
                case LeavePath():
                    effects += self._perform(path, path.leave(wish.why, now, slow=True), now)
                case _:
                    assert_never(wish)
        return effects

    def _mark(self, peer: NodeId, wish: SendMark) -> list[PathEffect]:
        """It goes behind what was sent before it: effects are performed after the batch."""
        sealed = self._sealer.seal(peer, Mark(self._sealer.identity.node_key, wish.number))
        endpoint = self._peers[peer].route.endpoint
        if sealed is None or (endpoint is None and not wish.relay):
            return []
        return [SendRelayed(peer, sealed)] if wish.relay or endpoint is None else [SendDatagram(endpoint, sealed)]

    def _changed(self, path: PeerPath, change: PathChanged, now: float) -> list[PathEffect]:
        """A direct path ends all guessing. Nobody hears of an idle peer's relay. A direct path in trouble may mean that the NAT maps us anew: ask."""
        if path.state is PathState.DIRECT:
            self._spray.found(path.peer, now)
        if not path.active(now):
            return [change] if change.old.endpoint != change.new.endpoint else []
        troubled = change.old.endpoint is not None and (change.new.relay or change.new.endpoint is None)
        if troubled and now >= self._stun.last_round_at + c.STUN_GAP:
            return [change, *self._stun_round(now)]
        return [change]

    def _probe(self, path: PeerPath, probe: Probe, now: float, *, pinged: bool) -> list[PathEffect]:
        peer, known = path.peer, path.candidates.get(probe.endpoint)
        told = known is not None and known.told and not pinged
        if not probe.proven and not self._limiter.may_probe(peer, probe.endpoint.host, now, told=told):
            return []
        token = self._pings.new(peer, probe.endpoint, now)
        sealed = self._sealer.seal(peer, Ping(self._sealer.identity.node_key, token))
        return [] if sealed is None else [SendDatagram(probe.endpoint, sealed, hops=c.OPENING_HOPS if probe.opening else None)]

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
        if peer not in self._fixed or old is None or source.endpoint is None or source.endpoint == old.endpoint or source.endpoint.port == 0:
            return []
        self._routes[peer] = new = Route(source.endpoint, False)
        return [PathChanged(peer, old, new, "the peer moved")]

    def _forget(self, peer: NodeId) -> None:
        self._routes.pop(peer, None)
        self._endpoints.pop(peer, None)
        self._schedule.drop(peer)
        self._mtus.pop(peer, None)
        self._deliveries.pop(peer, None)


def _flags_of(view: View) -> ViewFlag:
    """A view's yes and no for the wire."""
    flags = {
        ViewFlag.UDP: view.udp,
        ViewFlag.RELAY: view.relay,
        ViewFlag.GUESSES: view.may_guess,
        ViewFlag.DIRECT: view.path == "direct",
        ViewFlag.RELAYED: view.path == "relay",
        ViewFlag.RELAY_ALONE: view.way is Way.RELAY,
        ViewFlag.DIRECT_ALONE: view.way is Way.DIRECT,
    }
    return ViewFlag(sum(flag for flag, is_set in flags.items() if is_set))
