"""The node's data path: tunnel, paths and packet filter at work between the TUN device and the UDP port (or the relay).

Theory of operation. Everything runs in one event loop, in short calls: packets to read on the TUN, datagrams to read on UDP, a datagram from the relay, the
one timer, a call of the daemon. Each call takes what is there (bounded, so that nobody starves), seals or opens it in batches (tunnel/outbound.py,
tunnel/inbound.py), gathers what tunnel and paths want done, and ends in `_settle`, which does that, sends what is sealed and re-arms the timer. Effects are
never performed in the middle of a batch, since they may use its buffers.

What may pass is admission.py's to say, what becomes of the TUN's packets outgoing.py's; what leaves, leaves by sending.py, from the sockets of ports.py. Of
several routers for one prefix the one in use is chosen by tunnel/routers.py: the netmap's, or another while that one doesn't answer.

Error contract: nothing that arrives raises out of here. A TUN device that is gone is told to the host as health `tun-gone`, and nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, assert_never

from calnet.crypto.aead import Aead
from calnet.crypto.keys import RandomBytes
from calnet.errors import CalnetError, HostError, StateError, TimedOutError
from calnet.host.receiving import Receive
from calnet.host.tun import TunDevice
from calnet.host.udp import UdpTransport
from calnet.model import Buffer, Endpoint, Netmap, NodeId, Peer, Prefix, Source
from calnet.paths.effects import (
    CloseSockets,
    MtuFound,
    PathChanged,
    PathEffect,
    PongReceived,
    PublishEndpoints,
    SendCandidates,
    SendDatagram,
    SendRelayed,
    UseSocket,
    ViewReceived,
    describe_route,
)
from calnet.paths.explain import View
from calnet.paths.paths import Paths
from calnet.paths.way import Way
from calnet.roles.node.accounts import Accounts, Effects
from calnet.roles.node.admission import Admission
from calnet.roles.node.answers import Answers
from calnet.roles.node.engine import NO_WAYS, DataPathHost, PeerStatus, PingAnswer
from calnet.roles.node.flows import KnownFlows
from calnet.roles.node.outgoing import Outgoing
from calnet.roles.node.ports import LEFT, Ports
from calnet.roles.node.reading import READ_BATCH, READ_BYTES
from calnet.roles.node.routes import routers_of
from calnet.roles.node.sending import Sender
from calnet.tunnel.capabilities import AES, CHUNKS
from calnet.tunnel.effects import (
    ClockAhead,
    EndpointAuthenticated,
    HandshakeFailed,
    PersistTimestamp,
    ResponseRejected,
    SendCookie,
    SendHandshake,
    SendKeepalive,
    SessionReady,
    SessionsDropped,
    TunnelEffect,
)
from calnet.tunnel.inbound import Inbound
from calnet.tunnel.peer import TunnelPeerConfig
from calnet.tunnel.prefixes import hosts
from calnet.tunnel.routers import ProbeRouter, RouterEffect, RouterMoved, Routers
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.stun import TRANSACTION_SIZE, build_request
from calnet.wire.tunnel import TRANSPORT_OVERHEAD, DatagramKind, classify

REUSE_S: Final = 0.05
"""While packets flow, what was found out for a flow is asked again so often (after an effect or a word of the daemon at once), and so are the deadlines."""
HAIRPIN_TRIES: Final = 3
REJECTIONS_TO_TELL: Final = 3
"""Handshake responses in a row that don't authenticate before the user hears of it."""


class DataPath:
    """See the module's docstring. The caller opened `tun` and closes it after `close`, which closes `udp`."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        tun: TunDevice,
        udp: UdpTransport,
        tunnel: Tunnel,
        paths: Paths,
        host: DataPathHost,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        random: RandomBytes,
        mtu: int = 1280,
        more_udp: Callable[[], UdpTransport] | None = None,
        capabilities: tuple[str, ...] = (),
    ) -> None:
        """`more_udp` opens a further UDP port (HostError where it can't), which the data path closes too. `monotonic` goes on while the machine sleeps; `wall`
        is Unix seconds in server time; `mtu` is the TUN interface's at first; it grows with what paths are found to take. `capabilities` are those that this
        node announces."""
        self.mtu = mtu
        self._loop, self._tun, self._tunnel, self._paths, self._host = loop, tun, tunnel, paths, host
        self._monotonic, self._wall, self._random = monotonic, wall, random
        self._routers = Routers()
        self._peers: tuple[Peer, ...] = ()
        self._accept_routes = False
        self._carries: dict[NodeId, tuple[Prefix, ...]] = {}
        self._effects: Effects = deque()
        self._settling = False
        self._pings = Answers[PingAnswer](loop)
        self._views = Answers[View](loop)
        self._hairpins: dict[bytes, asyncio.Event] = {}
        self._rejections: dict[NodeId, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._running = self._reads_tun = False
        self._aes = AES in capabilities
        self._now = monotonic()
        self._again: set[Receive] = set()
        """Sockets whose turn comes again, each once."""
        self._reuse_until = 0.0
        self.on_packets: Callable[[float], None] | None = None
        """Hears the time of each turn that carried packets (rehearsal.py)."""
        self.path_changes: Counter[str] = Counter()
        """By what they changed to: direct, relay, both, none."""
        self._dropped = 0
        self._ports = Ports(loop, udp, more_udp, self._on_udp)
        self._sender = Sender(loop, udp, host.send_relayed, stalled=self._stop_reading, resumed=self._read_on, open_socket=self._ports.open_beside)
        self._accounts = Accounts(tunnel, paths, self._routers, self._effects, wall)
        self._flows = KnownFlows()
        """What was found out for flows: the session that each leaves under, and those that may come under a session."""
        self._admission = Admission(tunnel, self._flows, self._accounts)
        self._outgoing = Outgoing(
            tun,
            tunnel=tunnel,
            paths=paths,
            routers=self._routers,
            admission=self._admission,
            flows=self._flows,
            accounts=self._accounts,
            effects=self._effects,
            sender=self._sender,
            wall=wall,
            mtu=mtu,
        )
        self._inbound = Inbound(
            vnet=tun.offloads.vnet_header,
            tcp=tun.offloads.tcp,
            udp=tun.offloads.udp,
            session=self._find_session,
            opened=self._accounts.received,
            accept=self._admission.may_come,
            write=tun.write,
            other=self._not_data,
        )

    # --- Life ---

    def start(self) -> None:
        """Begin to read. Call `apply` before or after."""
        self._running = True
        self._read_on()
        self._ports.start()
        self._settle()

    def close(self) -> None:
        """Read and send nothing more; pings under way fail. Sessions are forgotten with the tunnel."""
        self._running = False
        self._sender.close()
        self._stop_reading()
        self._ports.close()
        for timer in (self._timer, self._look):
            if timer is not None:
                timer.cancel()
        self._timer = self._look = None
        self._pings.end()
        self._views.end()

    @property
    def dropped(self) -> int:
        """Packets and datagrams that were dropped: not genuine, not new, not allowed, nobody's, or for want of room."""
        return self._dropped + self._outgoing.dropped + self._inbound.dropped

    # --- What the daemon says ---

    def apply(self, netmap: Netmap, *, accept_routes: bool, ways: Mapping[NodeId, Way] = NO_WAYS) -> None:
        """Take a new netmap: peers, their prefixes, filter rules, our own addresses and routes."""
        self._begin()
        self._admission.apply(netmap)
        self._peers, self._accept_routes = netmap.peers, accept_routes
        moves = self._routers.configure(routers_of(netmap.peers) if accept_routes else {})
        self._configure_tunnel()
        self._paths.set_overlay(netmap.prefixes)
        self._effects += self._paths.set_peers(netmap.peers, self._now)
        self._effects += self._paths.set_ways(ways, self._now)
        for move in moves:
            self._moved(move)
        known = {peer.id for peer in netmap.peers}
        self._outgoing.keep_waiting(known)
        self._rejections = {peer: count for peer, count in self._rejections.items() if peer in known}
        self._settle()

    def _configure_tunnel(self) -> None:
        self._carries = {peer.id: self._carried(peer) for peer in self._peers}
        configs = [_tunnel_config(peer, self._carries[peer.id], self._accept_routes, self._aes) for peer in self._peers]
        self._effects += self._tunnel.configure(configs, self._now, self._wall())

    def _carried(self, peer: Peer) -> tuple[Prefix, ...]:
        """The prefixes that go to this peer now: where several could route one, not always the netmap's choice."""
        if not self._accept_routes:
            return ()
        carriers = [(route, self._routers.carrier(route)) for route in (*peer.routes, *peer.backup_routes)]
        return tuple(route for route, carrier in carriers if carrier == peer.id or (carrier is None and route in peer.routes))

    def local_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """The addresses of this machine's interfaces, with our port."""
        self._begin()
        self._effects += self._paths.set_local_endpoints(tuple(endpoints), self._now)
        self._settle()

    @property
    def port(self) -> int:
        """The UDP port in use."""
        return self._ports.udp.port

    def change_port(self) -> None:
        """Another UDP port is in use from now on, if one can be had. What still comes to the old one is taken for LEFT_S, if it is data."""
        if self._ports.change():
            self._sender.change_socket(self._ports.udp)
            self._forget_flows()

    def network_changed(self, endpoints: Iterable[Endpoint], *, moved: bool = False) -> None:
        """The network changed, or the machine woke up: `endpoints` are the local ones now. `moved`: packets leave from elsewhere."""
        self._begin()
        self._sender.forget_failures()
        self._effects += self._paths.network_changed(self._now, local=tuple(endpoints), moved=moved)
        self._settle()

    def mapped_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Endpoints of routers that lead to our port."""
        self._begin()
        self._effects += self._paths.set_mapped_endpoints(tuple(endpoints), self._now)
        self._settle()

    def stun_servers(self, servers: Iterable[Endpoint]) -> None:
        """STUN servers, their names resolved."""
        self._begin()
        self._effects += self._paths.set_stun_servers(tuple(servers), self._now)
        self._settle()

    def candidates(self, peer: NodeId, endpoints: Iterable[Endpoint]) -> None:
        """The peer's candidates, as the control session brought them."""
        self._begin()
        self._effects += self._paths.peer_candidates(peer, tuple(endpoints), self._now)
        self._settle()

    def relay_connected(self, connected: bool) -> None:
        """The relay can be used, or no more."""
        self._begin()
        self._effects += self._paths.relay_connected(connected, self._now)
        self._settle()

    def relayed(self, peer: NodeId, datagrams: Iterable[Buffer]) -> None:
        """Datagrams of `peer` that came by relay: equal-sized ones that follow one another, the last perhaps shorter, are opened as one batch."""
        self._begin(flowing=True)
        self._accounts.source = Source(None, peer)
        inbound, buffer = self._inbound, self._inbound.buffer
        size = end = 0
        for datagram in datagrams:
            length = len(datagram)
            if not 0 < length <= len(buffer):
                self._dropped += 1
                continue
            if end and (length > size or end + length > len(buffer)):
                inbound.receive(end, size)
                end = 0
            if not end:
                size = length
            buffer[end : end + length] = datagram
            end += length
            if length < size:
                inbound.receive(end, size)
                end = 0
        if end:
            inbound.receive(end, size)
        self._settle(flowing=True)

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        """Probe the present path to `peer`. TimedOutError without an answer, UnreachableError where `close` comes first; NotFoundError or InvalidError
        for a peer that can't be probed."""
        self._begin()
        token, effects = self._paths.ping(peer, self._now)
        self._pings.expect(token)
        self._effects += effects
        self._settle()
        try:
            return await self._pings.within(token, timeout_s)
        except TimeoutError:
            raise TimedOutError(f"no answer within {timeout_s:g} s") from None

    async def why(self, peer: NodeId, timeout_s: float) -> tuple[View, View | None]:
        """How both ends see the path: the other's is None where it does not answer in time. Errors as `ping`."""
        self._begin()
        token, effects = self._paths.question(peer, self._now)
        here = self._paths.view(peer, self._now)
        self._views.expect(token)
        self._effects += effects
        self._settle()
        try:
            return here, await self._views.within(token, timeout_s)
        except TimeoutError:
            return here, None

    async def hairpin(self, timeout_s: float) -> bool | None:
        """Whether the NAT leads back in what its own hosts send to the address that it gave to our port (RFC 4787 section 6); None where there is none."""
        outside = next((endpoint for endpoint in self._paths.reflexive() if ":" not in endpoint.host and not self._paths.is_local(endpoint)), None)
        other = None if outside is None else self._ports.open_other()
        if outside is None or other is None:
            return None
        transaction = self._random(TRANSACTION_SIZE)
        came = self._hairpins[transaction] = asyncio.Event()
        request = build_request(transaction)
        try:
            for _ in range(HAIRPIN_TRIES):
                other.send(outside, request, len(request))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s / HAIRPIN_TRIES):
                        await came.wait()
                        return True
            return False
        finally:
            del self._hairpins[transaction]
            other.close()

    def peer_status(self, peer: NodeId) -> PeerStatus:
        """What `status` shows of a peer; zeros and `none` for an unknown one."""
        known = self._tunnel.peer(peer)
        report = self._paths.report(peer)
        if known is None:
            return PeerStatus("none", None, None, None, 0, 0)
        carries = self._carries.get(peer, ())
        moved = known.rx_bytes, known.tx_bytes
        cipher = "" if known.current is None else known.current.aead.value
        return PeerStatus(report.path, report.endpoint, report.rtt_s, known.last_handshake_at, *moved, carries, report.mtu, report.left, cipher)

    # --- From the TUN ---

    def _on_tun(self) -> None:
        self._begin(flowing=True)
        self._read_tun()
        self._settle(flowing=True)

    def _read_tun(self) -> None:
        try:
            self._outgoing.read()
        except HostError as error:
            self._stop_reading()
            self._host.health("tun-gone", str(error))

    def _stop_reading(self) -> None:
        self._reads_tun = False
        self._tun.unwatch(self._loop)

    def _read_on(self) -> None:
        self._reads_tun = True
        self._tun.watch(self._loop, self._on_tun)

    # --- From the wire ---

    def _on_udp(self, socket: int, receive: Receive) -> None:
        self._begin(flowing=True)
        inbound, count, room, answered = self._inbound, READ_BATCH, READ_BYTES, False
        while batch := receive(inbound.buffer):
            if answered:  # timers and paths are told in the order in which things came about
                self._accounts.tell()
                answered = False
            if batch.length:
                if self._accounts.source.socket != socket or self._accounts.source.endpoint != batch.source:
                    self._accounts.source = Source(batch.source, None, socket)
                inbound.receive(batch.length, batch.segment)
                if count == READ_BATCH and batch.length == batch.segment and self._reads_tun and not self._has_news():
                    answered = True  # what came alone may be what somebody waits for, and so may its answer: all else comes after
                    self._read_tun()
            count -= 1
            room -= batch.length
            if not count or room <= 0:  # others have their turn; `receive` may keep one that no readiness tells of
                if receive not in self._again:
                    self._again.add(receive)
                    self._loop.call_soon(self._on_udp_again, socket, receive)
                break
        if self._has_news():
            self._settle(flowing=True)
        if self._reads_tun and not answered:  # what was written may have been answered already: an echo, an acknowledgement, what an acknowledgement let go
            self._read_tun()
        self._settle(flowing=True)

    def _has_news(self) -> bool:
        return bool(self._effects) or self._accounts.has_news()

    def _on_udp_again(self, socket: int, receive: Receive) -> None:
        self._again.discard(receive)
        if self._running:
            self._on_udp(socket, receive)

    def _find_session(self, index: int) -> Session | None:
        session = self._tunnel.session_by_index(index, self._now)
        relay_peer = self._accounts.source.relay_peer
        if session is not None and relay_peer is not None and session.peer.id != relay_peer:
            return None
        return session

    def _not_data(self, datagram: memoryview) -> None:
        self._accounts.tell_received()
        kind, source = classify(datagram), self._accounts.source
        if source.socket == LEFT:  # an answer would come from elsewhere
            self._dropped += 1
        elif kind is DatagramKind.TUNNEL_HANDSHAKE:
            self._effects += self._tunnel.receive(datagram, source, self._now, self._wall())
        elif kind is DatagramKind.DISCOVERY:
            self._effects += self._paths.receive_probe(bytes(datagram), source, self._now)
        elif kind is DatagramKind.STUN and (came := self._hairpins.get(bytes(datagram[8:20]))) is not None:
            came.set()
        elif kind is DatagramKind.STUN and source.endpoint is not None:
            self._effects += self._paths.receive_stun(bytes(datagram), source.endpoint, self._now)
        else:
            self._dropped += 1

    # --- What tunnel and paths want done ---

    def _begin(self, *, flowing: bool = False) -> None:
        """Every call from outside begins so; `flowing`: it brings packets, and what is known of their flows holds on for REUSE_S."""
        self._now = self._accounts.now = self._monotonic()
        if not flowing or self._now >= self._reuse_until:
            self._forget_flows()
            self._reuse_until = self._now + REUSE_S

    def _forget_flows(self) -> None:
        self._outgoing.forget_last()
        self._flows.forget()
        self._inbound.forget_streams()

    def _settle(self, *, flowing: bool = False) -> None:
        """Every call from outside ends so; `flowing` as in `_begin`. A call that the host makes while it is told something is settled by the one that told
        it."""
        if self._settling:
            return
        self._settling = True
        happened = True
        try:
            self._outgoing.finish()
            self._accounts.tell()
            happened = bool(self._effects)
            if happened:
                self._perform_all()
        finally:
            self._settling = False
        if self._accounts.carried:
            self._accounts.carried = False
            if self.on_packets is not None:
                self.on_packets(self._now)
        if happened or not flowing:
            self._arm()
        elif self._look is None and self._running:
            self._look = self._loop.call_later(REUSE_S, self._look_again)

    def _perform_all(self) -> None:
        flushed: set[NodeId] = set()
        while self._effects:
            self._forget_flows()
            self._perform(self._effects.popleft(), flushed)
            if not self._effects:
                self._accounts.tell_sent()

    def _perform(self, effect: TunnelEffect | PathEffect | RouterEffect, flushed: set[NodeId]) -> None:
        match effect:
            case SendHandshake():
                self._send_handshake(effect)
            case SendCookie():
                self._sender.back(effect.reply_to, effect.datagram)
            case SendKeepalive():
                if not (effect.confirms and effect.session.peer.id in flushed):
                    self._send_keepalive(effect.session)
            case PersistTimestamp():
                self._persist(effect)
            case SessionReady():
                self._rejections.pop(effect.peer, None)
                self._routers.heard(effect.peer, self._now)
                self._host.health(f"handshake-rejected-{effect.peer}", None)
                if self._outgoing.send_waiting(effect.peer):
                    flushed.add(effect.peer)
            case EndpointAuthenticated():
                self._effects += self._paths.data_received(effect.peer, effect.source, self._now)
            case ClockAhead():
                text = f"the clock of peer {effect.peer} is {effect.seconds:.0f} s ahead: its handshakes are refused until it is set right"
                self._host.health(f"peer-clock-{effect.peer}", text)
            case ResponseRejected():
                self._rejected(effect.peer)
            case HandshakeFailed() | SessionsDropped():
                self._outgoing.drop_waiting(effect.peer)
            case SendDatagram():
                self._sender.to(effect.endpoint, effect.data, effect.socket, whole=effect.whole, hops=effect.hops)
            case UseSocket():
                self._sender.use(effect.endpoint, effect.socket)
            case CloseSockets():
                self._sender.close_sockets(all_=effect.all_)
            case SendRelayed():
                self._host.send_relayed(effect.peer, [effect.data])
            case SendCandidates():
                self._host.send_candidates(effect.peer, effect.endpoints)
            case MtuFound():
                if effect.mtu > self.mtu:
                    self.mtu = effect.mtu
                    self._host.mtu_raised(effect.mtu)
            case PublishEndpoints():
                self._host.publish_endpoints(effect.endpoints)
            case PathChanged():
                self.path_changes[
                    "both" if effect.new.endpoint and effect.new.relay else "direct" if effect.new.endpoint else "relay" if effect.new.relay else "none"
                ] += 1
                self._host.path_changed(effect.peer, f"{describe_route(effect.new)} ({effect.why})", effect.new.endpoint)
            case PongReceived():
                self._pong(effect)
            case ViewReceived():
                self._views.came(effect.token, effect.view)
            case ProbeRouter():
                self._effects += self._paths.ping(effect.peer, self._now)[1]
            case RouterMoved():
                self._configure_tunnel()
                self._moved(effect)
            case _:
                assert_never(effect)

    def _send_handshake(self, effect: SendHandshake) -> None:
        if effect.reply_to is not None:
            self._sender.back(effect.reply_to, effect.datagram)
        else:
            self._sender.one(effect.peer, self._paths.route(effect.peer), effect.datagram)
            for endpoint in self._paths.handshake_targets(effect.peer, self._now):
                self._sender.to(endpoint, effect.datagram)
        self._effects += self._paths.data_sent(effect.peer, self._now)

    def _send_keepalive(self, session: Session) -> None:
        try:
            peer = session.peer.id
            self._sender.one(peer, self._paths.route(peer), session.seal(b""))
        except CalnetError:
            return
        self._tunnel.data_sent(session, self._now, TRANSPORT_OVERHEAD, False)

    def _persist(self, effect: PersistTimestamp) -> None:
        """Where it can't be kept, what depends on it is not done: a stamp sent twice, or accepted twice, would undo replay protection."""
        try:
            self._host.persist_timestamp(effect.node_key, effect.timestamp, effect.sent)
        except StateError as error:
            self._host.health("stamps", str(error))
            while self._effects and isinstance(self._effects[0], SendHandshake | EndpointAuthenticated):
                self._effects.popleft()

    def _rejected(self, peer: NodeId) -> None:
        count = self._rejections[peer] = self._rejections.get(peer, 0) + 1
        if count == REJECTIONS_TO_TELL:
            text = f"peer {peer} answers handshakes that don't authenticate: its pre-shared key or node key is not the one we have"
            self._host.health(f"handshake-rejected-{peer}", text)

    def _moved(self, move: RouterMoved) -> None:
        """The tunnel knows of it: what waits for the prefix goes to its new router."""
        self._host.router_moved(move.prefix, move.old, move.new, move.why)
        self._outgoing.send_waiting(move.old)

    def _pong(self, effect: PongReceived) -> None:
        self._routers.answered(effect.peer, self._now, effect.rtt_s)
        self._pings.came(effect.token, PingAnswer("direct" if effect.via.endpoint is not None else "relay", effect.via.endpoint, effect.rtt_s))

    # --- The timer ---

    def _arm(self) -> None:
        """One timer for the earliest deadline. One that goes off too early only asks again."""
        if not self._running:
            return
        deadlines = [when for when in (self._tunnel.next_deadline(), self._paths.next_deadline(), self._routers.next_deadline()) if when is not None]
        if not deadlines:
            return
        earliest = min(deadlines)
        if self._timer is not None:
            if earliest >= self._armed_for:
                return
            self._timer.cancel()
        self._armed_for = earliest
        self._timer = self._loop.call_later(max(0.0, earliest - self._now), self._on_timer)

    def _look_again(self) -> None:
        """Packets flowed: what they moved in the deadlines is taken in."""
        self._look = None
        self._now = self._accounts.now = self._monotonic()
        self._arm()

    def _on_timer(self) -> None:
        self._timer = None
        self._begin()
        self._effects += self._tunnel.on_timer(self._now, self._wall())
        self._effects += self._paths.on_timer(self._now)
        self._effects += self._routers.on_timer(self._now)
        self._settle()


def _tunnel_config(peer: Peer, carried: tuple[Prefix, ...], accept_routes: bool, aes: bool) -> TunnelPeerConfig:
    others = (route for route in (*peer.routes, *peer.backup_routes) if accept_routes and route not in carried)
    return TunnelPeerConfig(
        id=peer.id,
        node_key=peer.node_key,
        previous_node_key=peer.previous_node_key,
        kind=peer.kind,
        psk=peer.preshared_key,
        allowed=(*hosts(peer.addresses), *carried),
        also_from=tuple(others),
        keepalive_s=peer.keepalive_s,
        aead=Aead.AES_256_GCM if aes and AES in peer.capabilities else Aead.CHACHA20_POLY1305,
        chunks=CHUNKS in peer.capabilities,
        key_expires=peer.key_expires,
    )
