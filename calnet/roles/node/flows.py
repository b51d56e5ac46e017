"""What was found out for flows, so that not each packet is looked at as its flow's first: sessions to send under, streams, short ways, and what may come in.

Hot path. All of it is forgotten together: after REUSE_S of the data path, and at once when anything changes that it rests on (a netmap, an effect). A packet
that opens or resets a TCP connection has a verdict of its own, as the filter treats it otherwise than its flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from calnet.host.udp import UdpTransport
from calnet.model import Buffer, Endpoint
from calnet.paths.effects import Route
from calnet.policy.packets import TCP, flow_key, tcp_flags
from calnet.tunnel.segment import Super
from calnet.tunnel.session import Session
from calnet.tunnel.streams import is_stream
from calnet.tunnel.streams import key as stream_key
from calnet.wire.ip import TCP_RST, TCP_SYN, VIRTIO_HEADER_SIZE

MAX_FLOWS: Final = 256
"""Flows of which something is kept."""

_WHOLE: Final = (13, 37)
"""Lengths of the keys that end with the protocol: those of whole packets. Longer ones end with bytes of the packet."""

Send = Callable[[Session, Super], None]


class ShortWay(NamedTuple):
    """How the packets of a flow leave that come one by one: directly, from the first socket."""

    session: Session
    route: Route
    endpoint: Endpoint
    udp: UdpTransport


class KnownFlows:
    """See the module's docstring. Flows are given by their `flow_key`."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}
        self._short_ways: dict[bytes, ShortWay] = {}
        self._streams: dict[int, tuple[Send, Session, Super]] = {}
        self._accepted: set[tuple[Session, bytes]] = set()

    def forget(self) -> None:
        """All of it."""
        self._sessions.clear()
        self._short_ways.clear()
        self._streams.clear()
        self._accepted.clear()

    def session(self, flow: bytes, packet: Buffer) -> Session | None:
        """The session that a packet of this flow leaves under, if that is known."""
        known = self._sessions.get(flow)
        return None if known is None or _opens_or_resets(flow, packet) else known

    def leaves_under(self, session: Session, flow: bytes, packet: Buffer) -> None:
        """A packet of this flow left under this session: the next ones do."""
        if _opens_or_resets(flow, packet):
            return
        if len(self._sessions) >= MAX_FLOWS:
            self._sessions.clear()
            self._short_ways.clear()
            self._streams.clear()
        self._sessions[flow] = session

    def short_way(self, packet: Buffer) -> ShortWay | None:
        """How this packet, which came alone, leaves, if that is known."""
        flow = flow_key(packet)
        known = None if flow is None else self._short_ways.get(flow)
        return None if known is None or flow is None or _opens_or_resets(flow, packet) else known

    def leaves_by(self, way: ShortWay, flow: bytes, packet: Buffer) -> None:
        """A packet of this flow that came alone left so: the next ones do. Its session is known (`leaves_under`)."""
        if flow in self._sessions and not _opens_or_resets(flow, packet):
            self._short_ways[flow] = way

    def stream(self, read: memoryview, length: int) -> tuple[Send, Session, Super] | None:
        """How the super-packet that was read (virtio header first, `length` bytes in all) is sent, if one of its stream was a moment ago; and its shape."""
        if not self._streams:
            return None
        key = stream_key(read, length)
        known = self._streams.get(key)
        if known is not None and known[2].length != length - VIRTIO_HEADER_SIZE:
            send, session, shape = known
            known = self._streams[key] = send, session, shape._replace(length=length - VIRTIO_HEADER_SIZE)
        return known

    def streams_by(self, send: Send, session: Session, read: memoryview, shape: Super) -> None:
        """The super-packet that was read is sent so: the next ones of its stream are."""
        if is_stream(shape):
            if len(self._streams) >= MAX_FLOWS:
                self._streams.clear()
            self._streams[stream_key(read, len(read))] = send, session, shape

    def accepts(self, session: Session, flow: bytes) -> bool:
        """Whether packets of this flow may come by this session, if that is known; else False."""
        return (session, flow) in self._accepted

    def accept(self, session: Session, flow: bytes) -> None:
        """They may."""
        if len(self._accepted) >= MAX_FLOWS:
            self._accepted.clear()
        self._accepted.add((session, flow))


def _opens_or_resets(flow: bytes, packet: Buffer) -> bool:
    if flow[-1] != TCP or len(flow) not in _WHOLE:
        return False
    flags = packet[33] if packet[0] == 0x45 else tcp_flags(packet)
    return flags is None or bool(flags & (TCP_SYN | TCP_RST))
