"""The node's data path: tunnel, paths and packet filter at work between the TUN device and the UDP port (or the relay).

Theory of operation. Everything runs in one event loop, in short calls: packets to read on the TUN, datagrams to read on UDP, a datagram from the relay, the
one timer, a call of the daemon. Each call takes what is there (bounded, so that nobody starves), seals or opens it in batches (tunnel/outbound.py,
tunnel/inbound.py), gathers what tunnel and paths want done, and ends in `_settle`, which does that, sends what is sealed and re-arms the timer. Effects are
never performed in the middle of a batch, since they may use its buffers.

What is dropped here, and counted: a packet that isn't IP; outbound, one whose source is neither our overlay address nor in a prefix we route for others (its
peer would drop it too; a router whose source NAT is on sends with its own address), or whose destination is nobody's (answered by ICMP "host unreachable");
inbound, one that is not from the peer's addresses, not to ours or to what we route, or that the filter refuses. The filter refuses outbound packets too, in
flows that rules no longer accept. Where the network rejects rather than drops, what the filter refuses is answered (policy/reject.py).

Packets for a peer without a session wait (waiting.py) until `SessionReady`; what leaves, leaves by sending.py.

Error contract: nothing that arrives raises out of here. A TUN device that is gone is told to the host as health `tun-gone`, and nothing more is read from it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Final, assert_never

from calnet.errors import CalnetError, HostError, StateError, TimedOutError, UnreachableError, WireError
from calnet.host.tun import TunDevice
from calnet.host.udp import Receive, UdpTransport
from calnet.model import Address, Buffer, Endpoint, Netmap, NodeId, Peer, Prefix, Source
from calnet.paths.effects import PathChanged, PathEffect, PongReceived, PublishEndpoints, Route, SendCandidates, SendDatagram, SendRelayed
from calnet.paths.paths import Paths
from calnet.policy.filter import PacketFilter
from calnet.policy.packets import flow_key, quoted_destination
from calnet.policy.reject import new_limiter, rejection
from calnet.roles.node.engine import DataPathHost, PeerStatus, PingAnswer
from calnet.roles.node.sending import Sender
from calnet.roles.node.waiting import WaitingPackets
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
from calnet.tunnel.outbound import START, Outbound
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.prefixes import PrefixTable
from calnet.tunnel.segment import finish_checksum, parse_super
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.ip import (
    NEEDS_CSUM,
    VIRTIO_HEADER,
    Virtio,
    destination_of,
    is_usable_source,
    packet_length,
    source_of,
    unreachable,
)
from calnet.wire.tunnel import TRANSPORT_OVERHEAD, DatagramKind, classify

READ_BATCH: Final = 64
"""TUN packets, or UDP batches, taken before others have their turn."""
REUSE_S: Final = 0.05
"""While packets flow, what was found out for a flow is asked again so often (after an effect or a word of the daemon at once), and so are the deadlines."""
UNREACHABLES_PER_SECOND: Final = 50
REJECTIONS_TO_TELL: Final = 3
"""Handshake responses in a row that don't authenticate before the user hears of it."""


class DataPath:
    """See the module's docstring. The caller opened `tun` and `udp` and closes them after `close`."""

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
        mtu: int = 1280,
    ) -> None:
        """`monotonic` goes on while the machine sleeps; `wall` is Unix seconds in server time; `mtu` is the TUN interface's."""
        self._loop, self._tun, self._udp, self._tunnel, self._paths, self._host = loop, tun, udp, tunnel, paths, host
        self._monotonic, self._wall = monotonic, wall
        self._filter = PacketFilter()
        self._own: tuple[bytes, ...] = ()
        self._local: PrefixTable[bool] = PrefixTable(())
        self._rejects = False
        self._rejections_sent = new_limiter()
        self._answers: deque[bytes] = deque()
        self._waiting = WaitingPackets()
        self._effects: deque[TunnelEffect | PathEffect] = deque()
        self._settling = False
        self._pings: dict[int, asyncio.Future[PingAnswer]] = {}
        self._rejections: dict[NodeId, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._running = False
        self._sender = Sender(loop, udp, host.send_relayed, stalled=self._stop_reading, resumed=self._read_on)
        self._source = Source(None, None)
        self._now = monotonic()
        self._sent_in_second = (0, 0)
        self._sent_flow: bytes | None = None
        self._sent_session: Session | None = None
        self._accepted: tuple[Session, bytes] | None = None
        self._reuse_until = 0.0
        self.dropped = 0
        """Packets and datagrams dropped for the reasons in the module's docstring, or for want of room."""
        offloads = tun.offloads
        self._vnet = offloads.vnet_header
        self._outbound = Outbound(mtu, self._send_run)
        self._read_buffer = self._outbound.plain if self._vnet else self._outbound.plain[START:]
        self._inbound = Inbound(
            vnet=offloads.vnet_header,
            tcp=offloads.tcp,
            udp=offloads.udp,
            session=self._find_session,
            opened=self._opened,
            accept=self._accept,
            write=tun.write,
            other=self._not_data,
        )

    # --- Life ---

    def start(self) -> None:
        """Begin to read. Call `apply` before or after."""
        self._running = True
        self._tun.watch(self._loop, self._on_tun)
        self._udp.watch(self._loop, self._on_udp)
        self._settle()

    def close(self) -> None:
        """Read and send nothing more; pings under way fail. Sessions are forgotten with the tunnel."""
        self._running = False
        self._sender.close()
        self._tun.unwatch(self._loop)
        self._udp.unwatch(self._loop)
        for timer in (self._timer, self._look):
            if timer is not None:
                timer.cancel()
        self._timer = self._look = None
        for waiting in self._pings.values():
            if not waiting.done():
                waiting.set_exception(UnreachableError("the node went down before an answer came"))

    # --- What the daemon says ---

    def apply(self, netmap: Netmap, *, accept_routes: bool) -> None:
        """Take a new netmap: peers, their prefixes, filter rules, our own addresses and routes."""
        self._begin()
        own = [address.packed for address in netmap.self.addresses]
        self._own = tuple(own)
        self._local = PrefixTable((prefix, True) for prefix in (*_hosts(netmap.self.addresses), *netmap.self.routes))
        self._filter.set_rules(netmap.filter)
        self._rejects = netmap.reject
        self._effects += self._tunnel.configure((_tunnel_config(peer, accept_routes) for peer in netmap.peers), self._now, self._wall())
        self._paths.set_overlay(netmap.prefixes)
        self._effects += self._paths.set_peers(netmap.peers, self._now)
        known = {peer.id for peer in netmap.peers}
        self._waiting.keep(known)
        self._rejections = {peer: count for peer, count in self._rejections.items() if peer in known}
        self._settle()

    def local_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """The addresses of this machine's interfaces, with our port."""
        self._begin()
        self._effects += self._paths.set_local_endpoints(tuple(endpoints), self._now)
        self._settle()

    def network_changed(self, endpoints: Iterable[Endpoint]) -> None:
        """The network changed, or the machine woke up: `endpoints` are the local ones now."""
        self._begin()
        self._udp.forget_failures()
        self._effects += self._paths.set_local_endpoints(tuple(endpoints), self._now)
        self._effects += self._paths.network_changed(self._now)
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

    def relayed(self, peer: NodeId, datagram: Buffer) -> None:
        """A datagram of `peer` that came by relay."""
        length = len(datagram)
        if not 0 < length <= len(self._inbound.buffer):
            self.dropped += 1
            return
        self._begin(flowing=True)
        self._source = Source(None, peer)
        self._inbound.buffer[:length] = datagram
        self._inbound.receive(length, length)
        self._settle(flowing=True)

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        """Probe the present path to `peer`. TimedOutError without an answer, UnreachableError where `close` comes first; NotFoundError or InvalidError
        for a peer that can't be probed."""
        self._begin()
        token, effects = self._paths.ping(peer, self._now)
        answer: asyncio.Future[PingAnswer] = self._loop.create_future()
        self._pings[token] = answer
        self._effects += effects
        self._settle()
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise TimedOutError(f"no answer within {timeout_s:g} s") from None
        finally:
            del self._pings[token]

    def peer_status(self, peer: NodeId) -> PeerStatus:
        """What `status` shows of a peer; zeros and `none` for an unknown one."""
        known = self._tunnel.peer(peer)
        report = self._paths.report(peer)
        if known is None:
            return PeerStatus("none", None, None, None, 0, 0)
        return PeerStatus(report.path, report.endpoint, report.rtt_s, known.last_handshake_at, known.rx_bytes, known.tx_bytes)

    # --- From the TUN ---

    def _on_tun(self) -> None:
        self._begin(flowing=True)
        read, buffer, take = self._tun.read_into, self._read_buffer, self._take
        try:
            for _ in range(READ_BATCH):
                length = read(buffer)
                if not length:
                    break
                take(length if self._vnet else length + START)
                if self._sender.full:
                    break
        except HostError as error:
            self._tun.unwatch(self._loop)
            self._host.health("tun-gone", str(error))
        self._settle(flowing=True)

    def _take(self, end: int) -> None:
        """The packet at `plain[START:end]`, its virtio header (where the device has them) before it."""
        packet = self._outbound.plain[START:end]
        flow = flow_key(packet)
        if flow is not None and flow == self._sent_flow:
            session = self._sent_session
        else:
            session = self._session_for(packet, end)
            self._sent_flow, self._sent_session = (None, None) if session is None else (flow, session)
        if session is not None:
            try:
                self._seal(session, packet)
            except WireError:
                self.dropped += 1

    def _seal(self, session: Session, packet: memoryview) -> None:
        outbound = self._outbound
        if self._vnet:
            flags, gso_type, *rest = VIRTIO_HEADER.unpack_from(outbound.plain)
            if gso_type:
                outbound.seal_super(session, parse_super(packet, Virtio(flags, gso_type, *rest)))
                return
            if flags & NEEDS_CSUM:
                finish_checksum(packet, Virtio(flags, gso_type, *rest))
        outbound.seal_packet(session, len(packet))

    def _session_for(self, packet: memoryview, end: int) -> Session | None:
        """The session that the packet leaves under; None if it was dropped or waits for one."""
        try:
            packet_length(packet)
        except WireError:
            self.dropped += 1
            return None
        if self._local.lookup(source_of(packet)) is None:
            self.dropped += 1
            return None
        peer = self._tunnel.lookup(destination_of(packet))
        if peer is None:
            self._answer_unreachable(packet)
            return None
        if not self._filter.outbound(packet, self._now):
            self.dropped += 1
            answer = self._rejection(packet)
            if answer is not None:
                self._write_to_tun(answer)
            return None
        session, effects = self._tunnel.session_to_send(peer, self._now, self._wall())
        self._effects += effects
        if session is None:
            self._wait(peer, end)
        return session

    def _wait(self, peer: TunnelPeer, end: int) -> None:
        self.dropped += self._waiting.add(peer.id, bytes(self._outbound.plain[:end]))
        self._effects += self._paths.data_sent(peer.id, self._now)

    def _send_waiting(self, peer: NodeId) -> bool:
        """Seal what waits for the peer's session; whether there was anything."""
        packets = self._waiting.take(peer)
        if not packets:
            return False
        self._outbound.flush()
        for packet in packets:
            self._outbound.plain[: len(packet)] = packet
            self._take(len(packet))
        self._outbound.flush()
        return True

    def _answer_unreachable(self, packet: memoryview) -> None:
        self.dropped += 1
        second, sent = int(self._now), 0
        if self._sent_in_second[0] == second:
            sent = self._sent_in_second[1]
        size = 4 if packet[0] >> 4 == 4 else 16
        own = next((address for address in self._own if len(address) == size), None)
        answer = unreachable(packet, own) if own is not None and sent < UNREACHABLES_PER_SECOND else None
        if answer is not None:
            self._sent_in_second = (second, sent + 1)
            self._write_to_tun(answer)

    def _write_to_tun(self, packet: bytes) -> None:
        self._tun.write([bytes(START), packet] if self._vnet else [packet])

    def _send_run(self, session: Session, datagrams: memoryview, size: int) -> None:
        """Outbound's `send`: one run leaves by the peer's route."""
        peer = session.peer.id
        self.dropped += self._sender.run(peer, self._paths.route(peer), datagrams, size)
        self._tunnel.data_sent(session, self._now, len(datagrams), True)
        self._effects += self._paths.data_sent(peer, self._now)

    def _stop_reading(self) -> None:
        self._tun.unwatch(self._loop)

    def _read_on(self) -> None:
        self._tun.watch(self._loop, self._on_tun)

    # --- From the wire ---

    def _on_udp(self, receive: Receive) -> None:
        self._begin(flowing=True)
        inbound = self._inbound
        for _ in range(READ_BATCH):
            batch = receive(inbound.buffer)
            if batch is None:
                break
            if batch.length:
                self._source = Source(batch.source, None)
                inbound.receive(batch.length, batch.segment)
        self._settle(flowing=True)

    def _find_session(self, index: int) -> Session | None:
        session = self._tunnel.session_by_index(index, self._now)
        relay_peer = self._source.relay_peer
        if session is not None and relay_peer is not None and session.peer.id != relay_peer:
            return None
        return session

    def _opened(self, session: Session, length: int, data: bool) -> None:
        self._effects += self._tunnel.data_received(session, self._source, self._now, self._wall(), length, data)
        self._effects += self._paths.data_received(session.peer.id, self._source, self._now)

    def _accept(self, session: Session, packet: memoryview) -> bool:
        """Whether this inner packet may come from this peer, to us or what we route, and passes the filter."""
        flow = flow_key(packet)
        if flow is None:
            return False
        if self._accepted == (session, flow):
            return True
        source = source_of(packet)
        if not is_usable_source(source) or not self._tunnel.owns(session.peer, source) or self._local.lookup(destination_of(packet)) is None:
            return False
        concerned = quoted_destination(packet)
        if concerned is not None and not (concerned and self._tunnel.owns(session.peer, concerned)):
            return False  # an error about what we sent to somebody else
        if not self._filter.inbound(packet, self._now, flow):
            answer = self._rejection(packet)
            if answer is not None:
                self._answers.append(answer)
            return False
        self._accepted = session, flow
        return True

    def _rejection(self, packet: memoryview) -> bytes | None:
        return rejection(packet, self._rejections_sent, self._now) if self._rejects else None

    def _send_answers(self) -> None:
        """What was refused is answered as soon as the batch is through, since that uses the same buffers."""
        while self._answers:
            packet = bytes(START) + self._answers.popleft()
            self._outbound.plain[: len(packet)] = packet
            self._take(len(packet))
            self._sent_flow = self._sent_session = None  # a reset says nothing of what this host sends in its flow

    def _not_data(self, datagram: memoryview) -> None:
        kind, source = classify(datagram), self._source
        if kind is DatagramKind.TUNNEL_HANDSHAKE:
            self._effects += self._tunnel.receive(datagram, source, self._now, self._wall())
        elif kind is DatagramKind.DISCOVERY:
            self._effects += self._paths.receive_probe(bytes(datagram), source, self._now)
        elif kind is DatagramKind.STUN and source.endpoint is not None:
            self._effects += self._paths.receive_stun(bytes(datagram), source.endpoint, self._now)
        else:
            self.dropped += 1

    # --- What tunnel and paths want done ---

    def _begin(self, *, flowing: bool = False) -> None:
        """Every call from outside begins so; `flowing`: it brings packets, and what is known of their flows holds on for REUSE_S."""
        self._now = self._monotonic()
        if not flowing or self._now >= self._reuse_until:
            self._forget_flows()
            self._reuse_until = self._now + REUSE_S

    def _forget_flows(self) -> None:
        self._sent_flow = self._sent_session = self._accepted = None

    def _settle(self, *, flowing: bool = False) -> None:
        """Every call from outside ends so; `flowing` as in `_begin`. A call that the host makes while it is told something is settled by the one that told
        it."""
        if self._settling:
            return
        self._settling = True
        happened = True
        try:
            self._send_answers()
            self._outbound.flush()
            happened = bool(self._effects)
            if happened:
                self._perform_all()
        finally:
            self._settling = False
        if happened or not flowing:
            self._arm()
        elif self._look is None and self._running:
            self._look = self._loop.call_later(REUSE_S, self._look_again)

    def _perform_all(self) -> None:
        flushed: set[NodeId] = set()
        while self._effects:
            self._forget_flows()
            self._perform(self._effects.popleft(), flushed)

    def _perform(self, effect: TunnelEffect | PathEffect, flushed: set[NodeId]) -> None:
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
                self._host.health(f"handshake-rejected-{effect.peer}", None)
                if self._send_waiting(effect.peer):
                    flushed.add(effect.peer)
            case EndpointAuthenticated():
                self._effects += self._paths.data_received(effect.peer, effect.source, self._now)
            case ClockAhead():
                text = f"the clock of peer {effect.peer} is {effect.seconds:.0f} s ahead: its handshakes are refused until it is set right"
                self._host.health(f"peer-clock-{effect.peer}", text)
            case ResponseRejected():
                self._rejected(effect.peer)
            case HandshakeFailed() | SessionsDropped():
                self.dropped += len(self._waiting.take(effect.peer))
            case SendDatagram():
                self._sender.to(effect.endpoint, effect.data)
            case SendRelayed():
                self._host.send_relayed(effect.peer, [effect.data])
            case SendCandidates():
                self._host.send_candidates(effect.peer, effect.endpoints)
            case PublishEndpoints():
                self._host.publish_endpoints(effect.endpoints)
            case PathChanged():
                self._host.path_changed(effect.peer, f"{describe_route(effect.new)} ({effect.why})")
            case PongReceived():
                self._pong(effect)
            case _:
                assert_never(effect)

    def _send_handshake(self, effect: SendHandshake) -> None:
        if effect.reply_to is not None:
            self._sender.back(effect.reply_to, effect.datagram)
        else:
            self._sender.one(effect.peer, self._paths.route(effect.peer), effect.datagram)
            for endpoint in self._paths.handshake_targets(effect.peer):
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

    def _pong(self, effect: PongReceived) -> None:
        waiting = self._pings.get(effect.token)
        if waiting is not None and not waiting.done():
            waiting.set_result(PingAnswer("direct" if effect.via.endpoint is not None else "relay", effect.via.endpoint, effect.rtt_s))

    # --- The timer ---

    def _arm(self) -> None:
        """One timer for the earliest deadline. One that goes off too early only asks again."""
        if not self._running:
            return
        deadlines = [when for when in (self._tunnel.next_deadline(), self._paths.next_deadline()) if when is not None]
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
        self._now = self._monotonic()
        self._arm()

    def _on_timer(self) -> None:
        self._timer = None
        self._begin()
        self._effects += self._tunnel.on_timer(self._now, self._wall())
        self._effects += self._paths.on_timer(self._now)
        self._settle()


def describe_route(route: Route) -> str:
    """A route as a person reads it."""
    ways = [f"direct {route.endpoint}"] if route.endpoint is not None else []
    return " and ".join([*ways, "relay"] if route.relay else ways) or "none"


def _hosts(addresses: Iterable[Address]) -> list[Prefix]:
    return [ip_network(address) for address in addresses]


def _tunnel_config(peer: Peer, accept_routes: bool) -> TunnelPeerConfig:
    return TunnelPeerConfig(
        id=peer.id,
        node_key=peer.node_key,
        previous_node_key=peer.previous_node_key,
        kind=peer.kind,
        psk=peer.preshared_key,
        allowed=(*_hosts(peer.addresses), *(peer.routes if accept_routes else ())),
        also_from=peer.backup_routes if accept_routes else (),
        keepalive_s=peer.keepalive_s,
        key_expires=peer.key_expires,
    )
