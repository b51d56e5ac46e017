"""Packets from the TUN on their way to a peer: whose they are, under which session they leave, and as what.

Hot path: what was found out for a flow holds for the next packets of it (flows.py). A packet that comes alone, as another of its flow did a moment ago, takes a
short way; a super-packet of a known stream is sent without another look.

What is dropped here, and counted: a packet that isn't IP, one that may not leave (admission.py), and one whose destination is nobody's (answered by ICMP "host
unreachable"). One that is longer than its path takes goes by relay while that is being found out; else its sender is told. Packets for a peer without a session
wait (waiting.py) until `SessionReady`.

While a batch is under way nothing else may use `outbound.plain`, where packets are read to: what is to be answered or sent besides waits for its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from calnet.errors import HostError, WireError
from calnet.host.tun import TunDevice
from calnet.model import NodeId
from calnet.paths.effects import Route
from calnet.paths.mtu import BASE, ETHERNET
from calnet.paths.paths import Paths
from calnet.policy.packets import flow_key
from calnet.roles.node.accounts import Accounts, Effects
from calnet.roles.node.admission import Admission
from calnet.roles.node.flows import KnownFlows, ShortWay
from calnet.roles.node.reading import TunReader
from calnet.roles.node.sending import Sender
from calnet.roles.node.waiting import WaitingPackets
from calnet.tunnel.chunks import can_be_chunks
from calnet.tunnel.coalesce import Flow, flow_of
from calnet.tunnel.outbound import START, Outbound
from calnet.tunnel.peer import TunnelPeer
from calnet.tunnel.routers import Routers
from calnet.tunnel.segment import Super, finish_checksum, parse_super
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.ip import NEEDS_CSUM, VIRTIO_HEADER, Protocol, Virtio, destination_of, may_be_fragmented, packet_length, too_big, unreachable

ERRORS_PER_SECOND: Final = 50
BY_RELAY: Final = Route(None, True)


class Outgoing:
    """See the module's docstring. The time is that of `accounts`; what is to be done besides is appended to `effects`; `wall` gives Unix seconds in server
    time; `mtu` is the TUN interface's."""

    def __init__(
        self,
        tun: TunDevice,
        *,
        tunnel: Tunnel,
        paths: Paths,
        routers: Routers,
        admission: Admission,
        flows: KnownFlows,
        accounts: Accounts,
        effects: Effects,
        sender: Sender,
        wall: Callable[[], float],
        mtu: int,
    ) -> None:
        self._tun, self._vnet = tun, tun.offloads.vnet_header
        self._tunnel, self._paths, self._routers, self._admission, self._flows = tunnel, paths, routers, admission, flows
        self._accounts, self._effects, self._sender, self._wall = accounts, effects, sender, wall
        self._outbound = Outbound(max(mtu, ETHERNET), self._send_run)
        self._reader = TunReader(tun, self._outbound, self, sender.held)
        self._waiting = WaitingPackets()
        self._detour = False
        """What is sealed now goes by relay alone."""
        self._last_flow: bytes | None = None
        self._last_session: Session | None = None
        """Of the packet taken last."""
        self._errors_in_second = (0, 0)
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Packets dropped for the reasons in the module's docstring, or for want of room."""
        return self._dropped + self._outbound.dropped

    def read(self) -> None:
        """Take what is to be read on the TUN, and send it. HostError: the device is gone."""
        try:
            self._reader.turn()
        except HostError:
            self._outbound.flush()
            raise
        self._outbound.flush()

    def finish(self) -> None:
        """The batch is through: what was refused on its way in is answered, and what is sealed leaves."""
        answers = self._admission.answers
        while answers:
            self._take_kept(bytes(START) + answers.popleft())
        self._outbound.flush()

    def forget_last(self) -> None:
        """What was found out for the last packet holds no longer; `flows` is the caller's to forget."""
        self._last_flow = self._last_session = None

    def send_waiting(self, peer: NodeId) -> bool:
        """Seal what waits for the peer's session; whether there was anything."""
        packets = self._waiting.take(peer)
        if not packets:
            return False
        self._outbound.flush()
        for packet in packets:
            self._take_kept(packet)
        self._outbound.flush()
        return True

    def drop_waiting(self, peer: NodeId) -> None:
        """What waits for the peer's session waits in vain."""
        self._dropped += len(self._waiting.take(peer))

    def keep_waiting(self, peers: set[NodeId]) -> None:
        """These peers are left."""
        self._waiting.keep(peers)

    # --- reading.Taker ---

    def take_alone(self, end: int) -> bool:
        """reading.Taker's."""
        outbound, plain = self._outbound, self._outbound.plain
        packet = plain[START:end]
        way = self._flows.short_way(packet)
        if way is None or len(packet) > BASE or (self._vnet and plain[1]):
            return False
        if self._vnet and plain[0]:
            virtio = Virtio(*VIRTIO_HEADER.unpack_from(plain))
            if virtio.flags & NEEDS_CSUM:
                try:
                    finish_checksum(packet, virtio)
                except WireError:
                    self._dropped += 1
                    return True
            plain[0] = 0
        datagram = outbound.seal_packet(way.session, len(packet))
        if datagram is not None:
            if not way.udp.send(way.endpoint, datagram, len(datagram)):
                self._dropped += self._sender.run(way.session.peer.id, way.route, datagram, len(datagram))
            self._accounts.sent(way.session, way.route, len(datagram))
        return True

    def take_known(self, length: int) -> bool:
        """reading.Taker's."""
        known = self._flows.stream(self._outbound.plain, length)
        if known is None:
            return False
        send, session, shape = known
        send(session, shape)
        return True

    def joinable(self, length: int) -> Flow | None:
        """reading.Taker's: only to a peer that takes chunks."""
        session = self._last_session
        if session is None or self._last_flow is None or not session.peer.config.chunks:
            return None
        packet = self._outbound.plain[START:length]
        if flow_key(packet) != self._last_flow:
            return None
        flow = flow_of(packet, len(packet))
        return flow if flow is not None and flow.protocol == Protocol.UDP else None

    def take(self, end: int, shape: Super | None = None, *, alone: bool = False) -> None:
        """reading.Taker's: the packet at `plain[START:end]`, its virtio header (where the device has them) before it."""
        packet = self._outbound.plain[START:end]
        flow = flow_key(packet)
        session = None if flow is None else self._flows.session(flow, packet)
        if session is None:
            session = self._session_for(packet, end)
            if session is not None and flow is not None:
                self._flows.leaves_under(session, flow, packet)
        self._last_flow, self._last_session = (None, None) if session is None else (flow, session)
        if session is None:
            return
        try:
            self._seal(session, packet, shape, alone=alone)
        except WireError:
            self._dropped += 1
            return
        if alone and flow is not None:
            route = self._paths.route(session.peer.id)
            udp = None if route.relay or route.endpoint is None else self._sender.first_socket(route.endpoint)
            if udp is not None and route.endpoint is not None:
                self._flows.leaves_by(ShortWay(session, route, route.endpoint, udp), flow, packet)

    # --- One packet ---

    def _take_kept(self, packet: bytes) -> None:
        """Take one that was kept, its virtio header before it, as if it had just been read."""
        self._outbound.plain[: len(packet)] = packet
        self.take(len(packet))

    def _session_for(self, packet: memoryview, end: int) -> Session | None:
        """The session that the packet leaves under; None if it was dropped or waits for one."""
        try:
            packet_length(packet)
        except WireError:
            self._dropped += 1
            return None
        if not self._admission.is_from_us(packet):
            self._dropped += 1
            return None
        destination, now = destination_of(packet), self._accounts.now
        peer = self._tunnel.lookup(destination)
        if peer is None:
            self._routers.sent(destination, now)  # the key of the prefix's router may have run out
            self._answer(packet, unreachable)
            return None
        if not self._admission.may_leave(packet):
            self._dropped += 1
            answer = self._admission.rejection(packet)
            if answer is not None:
                self._write(answer)
            return None
        self._routers.sent(destination, now)
        session, effects = self._tunnel.session_to_send(peer, now, self._wall())
        self._effects += effects
        if session is None:
            self._wait(peer, end)
        return session

    def _wait(self, peer: TunnelPeer, end: int) -> None:
        self._dropped += self._waiting.add(peer.id, bytes(self._outbound.plain[:end]))
        self._effects += self._paths.data_sent(peer.id, self._accounts.now)

    def _seal(self, session: Session, packet: memoryview, shape: Super | None = None, *, fits: bool = False, alone: bool = False) -> None:
        """`shape` and `alone`: as in `take`; `fits`: it goes, however long it is."""
        outbound, longest = self._outbound, len(packet)
        if shape is not None:
            longest = shape.header + shape.segment
        elif self._vnet and (outbound.plain[0] or outbound.plain[1]):
            virtio = Virtio(*VIRTIO_HEADER.unpack_from(outbound.plain))
            if virtio.gso_type:
                shape = parse_super(packet, virtio)
                longest = shape.header + shape.segment
            elif virtio.flags & NEEDS_CSUM:
                finish_checksum(packet, virtio)
                outbound.plain[0] = 0
        if longest > BASE and not fits and not self._paths.fits(session.peer.id, longest, self._accounts.now):
            self._too_long(session, packet, shape)
        elif alone and shape is None:
            outbound.send_packet(session, longest)
        elif shape is None:
            outbound.add_packet(session, longest)
        else:
            send = outbound.send_chunks if session.peer.config.chunks and can_be_chunks(shape) else outbound.add_super
            if not fits:
                self._flows.streams_by(send, session, outbound.plain[: START + len(packet)], shape)
            send(session, shape)

    def _too_long(self, session: Session, packet: memoryview, shape: Super | None) -> None:
        """A packet that the direct path may not take at once: it goes by relay while that is being found out; else its sender is told, and sends shorter
        ones. One that may be fragmented goes all the same."""
        peer = session.peer.id
        mtu, settled = self._paths.mtu_of(peer)
        free = may_be_fragmented(packet)
        if self._paths.may_detour(peer) and (free or not settled):
            self._outbound.flush()
            self._detour = True
            try:
                self._seal(session, packet, shape, fits=True)
                self._outbound.flush()
            finally:
                self._detour = False
        elif free:
            self._seal(session, packet, shape, fits=True)
        else:
            self._dropped += 0 if shape is None else -(-(shape.length - shape.header) // shape.segment) - 1
            self._answer(packet, lambda packet: too_big(packet, mtu))

    def _answer(self, packet: memoryview, make: Callable[[memoryview], bytes | None]) -> None:
        """Drop a packet, with an ICMP error to its sender, not too often."""
        self._dropped += 1
        second, sent = int(self._accounts.now), 0
        if self._errors_in_second[0] == second:
            sent = self._errors_in_second[1]
        answer = make(packet) if sent < ERRORS_PER_SECOND else None
        if answer is not None:
            self._errors_in_second = (second, sent + 1)
            self._write(answer)

    def _write(self, packet: bytes) -> None:
        self._tun.write([bytes(START), packet] if self._vnet else [packet])

    def _send_run(self, session: Session, datagrams: memoryview, size: int) -> None:
        """Outbound's `send`: one run leaves by the peer's route."""
        peer = session.peer.id
        route = BY_RELAY if self._detour else self._paths.route(peer)
        self._dropped += self._sender.run(peer, route, datagrams, size)
        self._accounts.sent(session, route, len(datagrams))
