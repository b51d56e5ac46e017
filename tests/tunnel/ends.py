"""Two sessions that stand for the two ends of one keypair, and batches between them."""

from __future__ import annotations

import struct
from collections.abc import Callable

from calnet.crypto.batch import NewBatch, portable_batch
from calnet.model import Buffer, NodeId
from calnet.tunnel.chunks import can_be_chunks
from calnet.tunnel.inbound import Inbound
from calnet.tunnel.outbound import START, Outbound
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.segment import finish_checksum, parse_super
from calnet.tunnel.session import Session
from calnet.wire.ip import parse_virtio
from tests.ip_packets import cut

new_batch: NewBatch = portable_batch
"""What sessions of these tests do batches with; a fixture sets it."""


def sessions(keys: tuple[bytes, bytes] = (b"a" * 32, b"b" * 32), indices: tuple[int, int] = (0xA0000001, 0xB0000002)) -> tuple[Session, Session]:
    """The initiator's and the responder's."""
    peer = TunnelPeer(TunnelPeerConfig(NodeId(1), bytes(32)))
    one = Session(peer, local_index=indices[0], remote_index=indices[1], initiator=True, remote_static=bytes(32), keys=keys, now=5.0, new_batch=new_batch)
    two = Session(
        peer, local_index=indices[1], remote_index=indices[0], initiator=False, remote_static=bytes(32), keys=keys[::-1], now=5.0, new_batch=new_batch
    )
    return one, two


class Sender:
    """Outbound with its runs recorded: (session, datagrams, size)."""

    def __init__(self, mtu: int = 1280, *, chunks: bool = False) -> None:
        self.chunks = chunks
        self.runs: list[tuple[Session, bytes, int]] = []
        self.outbound = Outbound(mtu, lambda session, datagrams, size: self.runs.append((session, bytes(datagrams), size)))

    def take(self, session: Session, read: bytes) -> None:
        """One TUN read: virtio header and packet."""
        plain = self.outbound.plain
        plain[: len(read)] = read
        header, packet = parse_virtio(read), plain[START : len(read)]
        shape = parse_super(packet, header) if header.gso_type else None
        if shape is not None and self.chunks and can_be_chunks(shape):
            self.outbound.send_chunks(session, shape)
        elif shape is not None:
            self.outbound.add_super(session, shape)
        else:
            finish_checksum(packet, header)
            self.outbound.add_packet(session, len(packet))

    def datagrams(self) -> list[bytes]:
        """All sent, one by one, in order."""
        self.outbound.flush()
        return [run[at : at + size] for _, run, size in self.runs for at in range(0, len(run), size)]


class Receiver:
    """Inbound with all it does recorded."""

    def __init__(self, *known: Session, vnet: bool = True, tcp: bool = True, udp: bool = True) -> None:
        self.sessions = {session.local_index: session for session in known}
        self.writes: list[bytes] = []
        self.events: list[tuple[object, ...]] = []
        self.others: list[bytes] = []
        self.accepts: Callable[[bytes], bool] = lambda packet: True
        self.inbound = Inbound(
            vnet=vnet, tcp=tcp, udp=udp, session=self.sessions.get, opened=self._opened, accept=self._accept, write=self._write, other=self._other
        )
        self.vnet = vnet

    def _opened(self, session: Session, length: int, data: bool) -> None:
        self.events.append((session, length, data))

    def _accept(self, session: Session, packet: memoryview) -> bool:
        return self.accepts(bytes(packet))

    def _write(self, parts: list[Buffer]) -> None:
        self.writes.append(b"".join(parts))

    def _other(self, datagram: memoryview) -> None:
        self.others.append(bytes(datagram))

    def take(self, batch: bytes, size: int | None = None) -> None:
        """One receive: datagrams of `size` bytes side by side."""
        self.inbound.buffer[: len(batch)] = batch
        self.inbound.receive(len(batch), len(batch) if size is None else size)

    def packets(self) -> list[bytes]:
        """What the kernel makes of all writes: super-packets cut again."""
        if not self.vnet:
            return self.writes
        made = []
        for write in self.writes:
            flags, kind, _, segment, start, offset = struct.unpack("=BBHHHH", write[:10])
            if kind:
                assert (flags, offset) == (1, 6 if kind == 5 else 16)
                assert start == (40 if write[10] >> 4 == 6 else 20)
                made += cut(write[10:], segment)
            elif flags:
                made += cut(write[10:], len(write))
            else:
                made.append(write[10:])
        return made
