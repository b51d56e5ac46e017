"""Reading the TUN: one turn takes what is there, bounded so that others have theirs, and hands packets on.

Hot path: plainer and longer than elsewhere. A packet is read to where the outbound side takes it (`Outbound.plain`), virtio header first where the device has
them; one that may belong to the packet there is read to a slot beside it. What comes in numbers is handed on as less:

- UDP datagrams of one flow, to a peer that takes chunks, are put together as the kernel's own segmentation offload (USO) would have left them;
- of bare TCP acknowledgements that wait together, the last of each flow goes (tunnel/acks.py).

Nothing waits for that: where the TUN had one packet the last time, the next one leaves before it is asked whether there are more.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Final, Protocol

from calnet.host.tun import TunDevice
from calnet.tunnel.acks import LONGEST, BareAck, bare_ack
from calnet.tunnel.coalesce import Flow
from calnet.tunnel.outbound import MAX_PACKET, MAX_RUN, MAX_RUN_BYTES, START, Outbound
from calnet.tunnel.segment import Super
from calnet.wire.tunnel import TRANSPORT_OVERHEAD

READ_BATCH: Final = 64
"""TUN packets, or UDP batches, taken before others have their turn…"""
READ_BYTES: Final = 1 << 20
"""…or so many bytes. Both ends of a stream work at once only where neither waits long for the other: with four times as much a stream was 5 % slower."""
SLOT: Final = 2048
"""Bytes of a packet that may be joined to others, its virtio header included."""
_MAX_SHAPES: Final = 8


class Taker(Protocol):
    """Where packets go that lie in `Outbound.plain`."""

    def take(self, end: int, shape: Super | None = None, *, alone: bool = False) -> None:
        """The packet at `plain[START:end]`. `shape`: it is the first of several joined ones; `alone`: it came alone, and leaves at once."""

    def take_alone(self, end: int) -> bool:
        """Take the packet at `plain[START:end]`, which came alone, if another of its flow did a moment ago. False: it is to be taken by `take`."""

    def take_known(self, length: int) -> bool:
        """Take a super-packet of a stream that was asked about a moment ago, if the one just read, `length` bytes with its virtio header, is that."""

    def joinable(self, length: int) -> Flow | None:
        """The flow of the packet just read, if it is a UDP datagram that those behind it may join, of the flow that the last one was of."""


class TunReader:
    """See the module's docstring. `held` is what can't be sent now: while there is any, nothing more is read."""

    def __init__(self, tun: TunDevice, outbound: Outbound, taker: Taker, held: Sized) -> None:
        self._tun, self._outbound, self._taker, self._held = tun, outbound, taker, held
        self._vnet = tun.offloads.vnet_header
        self._buffer = outbound.plain if self._vnet else outbound.plain[START:]
        self._slot = (memoryview(bytearray(SLOT)), memoryview(bytearray(MAX_PACKET + START)))
        """Where a packet is read that may join the one in the outbound buffer; what is longer than SLOT goes on in the second."""
        self._places: dict[tuple[int, int], list[tuple[memoryview, ...]]] = {}
        self._came_alone = False

    def turn(self) -> None:
        """Take what is there. HostError: the device is gone."""
        read, taker, held, count, room = self._tun.read_into, self._taker, self._held, 0, READ_BYTES
        length = read(self._buffer)
        while length:
            count += 1
            room -= length
            several, following = count > 1 or not self._came_alone, -1
            if (length > SLOT and self._vnet and taker.take_known(length)) or (not several and taker.take_alone(length if self._vnet else length + START)):
                pass
            elif several and (ack := self._ack(length)) is not None:
                following, read_too = self._take_acks(length, ack)
                count += read_too // 4  # they cost so much less than others
            elif several and (flow := self._joinable(length)) is not None:
                following, read_too = self._take_run(length, flow)
                count += read_too // 4
            else:
                taker.take(length if self._vnet else length + START, alone=not several)
                if not several:
                    self._outbound.flush()
            if following < 0:
                following = read(self._buffer) if count < READ_BATCH and room > 0 and not held else 0
            length = following
            if count >= READ_BATCH and length:
                taker.take(length)
                break
        if count:
            self._came_alone = count == 1

    def _ack(self, length: int) -> BareAck | None:
        return bare_ack(self._outbound.plain[START:length]) if self._vnet and length <= START + LONGEST else None

    def _joinable(self, length: int) -> Flow | None:
        return self._taker.joinable(length) if self._vnet and length <= SLOT and not self._outbound.plain[1] else None

    def _take_run(self, length: int, flow: Flow) -> tuple[int, int]:
        """Take the packet just read, and those that come behind it while they join it. Returns the length of the one that came then and doesn't (0: none came),
        and how many were taken."""
        slot, read, number, mask, expected = self._slot[0], self._tun.read_parts, int.from_bytes, flow.mask, flow.expected
        header, joined, following = slot[START : START + flow.header], 1, 0
        places = self._places_for(length, flow.header)[: flow.limit - 1]
        for place in places:
            following = read(place)
            if following != length or slot[1] or number(header, "big") & mask != expected:
                slot[START + flow.header : length] = place[1]
                break
            joined += 1
            following = 0
        shape = Super(flow.version, flow.protocol, flow.ip_header, flow.header, flow.payload, flow.header + joined * flow.payload) if joined > 1 else None
        self._taker.take(length, shape)
        self._move_slot(following)
        if joined > len(places) and not self._held:
            following = self._tun.read_into(self._buffer)
        return following, joined

    def _places_for(self, length: int, header: int) -> list[tuple[memoryview, ...]]:
        """Where those that may join a packet of `length` bytes are read: headers to the slot, payload behind the last one's, what is longer to the slot again.
        As many as one run carries, so that nothing of them is left for a second. Kept for a few shapes."""
        places = self._places.get((length, header))
        if places is None:
            if len(self._places) >= _MAX_SHAPES:
                self._places.clear()
            plain, (slot, rest), payload = self._outbound.plain, self._slot, length - START - header
            most = min(MAX_RUN, MAX_RUN_BYTES // (header + payload + TRANSPORT_OVERHEAD), (MAX_PACKET - header) // payload)
            ends = range(length, length + (most - 1) * payload, payload)
            places = [(slot[: START + header], plain[end : end + payload], slot[length:], rest) for end in ends]
            self._places[length, header] = places
        return places

    def _take_acks(self, length: int, ack: BareAck) -> tuple[int, int]:
        """Take the bare acknowledgement just read and those behind it, but those that a later one makes needless. Returns the length of the packet that came
        then and is none (0: none came), and how many were read."""
        plain, (slot, _) = self._outbound.plain, self._slot
        read, waiting = self._tun.read_parts, {ack.common: (ack, bytes(plain[:length]))}
        count, following = 1, 0
        while count < READ_BATCH and (following := read(self._slot)):
            packet = slot[START:following]
            if not ack.replaced_by(packet):
                later = bare_ack(packet) if following <= START + LONGEST else None
                if later is None:
                    break
                known = waiting.get(later.common)
                if known is None:
                    ack = later
                elif known[0].replaced_by(packet):
                    ack = known[0]
                else:
                    self._take_all(waiting)
                    ack = later
            waiting[ack.common] = ack, bytes(slot[:following])
            count += 1
            following = 0
        self._take_all(waiting)
        self._move_slot(following)
        if count == READ_BATCH and not self._held:
            following = self._tun.read_into(self._buffer)
        return following, count

    def _take_all(self, waiting: dict[int, tuple[BareAck, bytes]]) -> None:
        for _, packet in waiting.values():
            self._outbound.plain[: len(packet)] = packet
            self._taker.take(len(packet))
        waiting.clear()

    def _move_slot(self, length: int) -> None:
        """What was read to the slot, `length` bytes, is the next packet to be taken."""
        plain, (slot, rest) = self._outbound.plain, self._slot
        plain[: min(length, SLOT)] = slot[: min(length, SLOT)]
        if length > SLOT:
            plain[SLOT:length] = rest[: length - SLOT]
