"""Putting consecutive packets of one flow together into the super-packet that the TUN takes in one write. Pure; the counterpart of segment.py.

Hot path: plainer and longer than elsewhere. Each packet costs one comparison of its header, as one number under a mask, with the expected one: 0.2 µs.

Packets join where a receiver can't tell the difference: TCP segments without IP options or fragmentation whose headers are equal but for
identification, checksums and the sequence number that continues; the last may be shorter, or carry PSH or FIN. UDP datagrams of one flow and size, the
last perhaps shorter. Their checksums aren't looked at: the AEAD vouches for every byte, and the kernel gets NEEDS_CSUM with the pseudo-header's sum.
Everything else goes alone, unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from calnet.wire.ip import (
    IPV4_HEADER_SIZE,
    IPV6_HEADER_SIZE,
    NEEDS_CSUM,
    TCP_ACK,
    TCP_CHECKSUM_OFFSET,
    TCP_CWR,
    TCP_ECE,
    TCP_FIN,
    TCP_HEADER_SIZE,
    TCP_PSH,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_SIZE,
    VIRTIO_HEADER,
    GsoType,
    Protocol,
    mask_without,
    partial_checksum,
    pseudo_sum,
    varying,
)

MAX_LENGTH: Final = 65535
MAX_UDP_SEGMENTS: Final = 64
_JOINABLE_FLAGS: Final = TCP_ACK | TCP_PSH | TCP_FIN | TCP_CWR | TCP_ECE
_LAST_FLAGS: Final = TCP_PSH | TCP_FIN
_SEQUENCE_END: Final = 1 << 32


class Flow(NamedTuple):
    """What a packet that others may join looks like. Lengths in bytes: `header` is IP and transport header, `ip_header` IP's part, `payload` what each
    packet carries. A header read as one big-endian number, under `mask`, is `expected` for a packet that joins, `step` more for each further one."""

    version: int
    protocol: int
    ip_header: int
    header: int
    payload: int
    mask: int
    tail_mask: int
    expected: int
    step: int
    limit: int
    """Packets that a super-packet may hold."""


def flow_of(packet: memoryview, length: int) -> Flow | None:
    """The flow that the packet (of `length` bytes, as `packet_length` found) begins; None if nothing can join it."""
    if packet[0] >> 4 == 4:
        if packet[0] != 0x45 or packet[6] & 0x3F or packet[7]:
            return None
        version, ip_header, protocol = 4, IPV4_HEADER_SIZE, packet[9]
    else:
        version, ip_header, protocol = 6, IPV6_HEADER_SIZE, packet[6]
    if protocol == Protocol.TCP:
        return _tcp_flow(packet, length, version, ip_header)
    if protocol == Protocol.UDP:
        return _udp_flow(packet, length, version, ip_header)
    return None


def _tcp_flow(packet: memoryview, length: int, version: int, ip_header: int) -> Flow | None:
    if length < ip_header + TCP_HEADER_SIZE:
        return None
    size = (packet[ip_header + 12] >> 4) * 4
    flags = packet[ip_header + 13]
    header = ip_header + size
    payload = length - header
    if size < TCP_HEADER_SIZE or payload <= 0 or flags & ~_JOINABLE_FLAGS or flags & _LAST_FLAGS or not flags & TCP_ACK:
        return None
    sequence = int.from_bytes(packet[ip_header + 4 : ip_header + 8], "big")
    mask, tail_mask, shift = _masks(version, Protocol.TCP, header)
    expected = int.from_bytes(packet[:header], "big") & mask
    limit = min((MAX_LENGTH - header) // payload, (_SEQUENCE_END - sequence) // payload)
    return Flow(version, Protocol.TCP, ip_header, header, payload, mask, tail_mask, expected, payload << shift, limit)


def _udp_flow(packet: memoryview, length: int, version: int, ip_header: int) -> Flow | None:
    header = ip_header + UDP_HEADER_SIZE
    payload = length - header
    if payload <= 0 or int.from_bytes(packet[ip_header + 4 : ip_header + 6], "big") != length - ip_header or not (packet[header - 2] or packet[header - 1]):
        return None
    mask, tail_mask, _ = _masks(version, Protocol.UDP, header)
    expected = int.from_bytes(packet[:header], "big") & mask
    limit = min((MAX_LENGTH - header) // payload, MAX_UDP_SEGMENTS)
    return Flow(version, Protocol.UDP, ip_header, header, payload, mask, tail_mask, expected, 0, limit)


@lru_cache(maxsize=64)
def _masks(version: int, protocol: int, header: int) -> tuple[int, int, int]:
    """The mask for a full packet, the one for a last packet (lengths and PSH, FIN aside), and by how many bits the sequence number is shifted."""
    ip_header = IPV4_HEADER_SIZE if version == 4 else IPV6_HEADER_SIZE
    check = ip_header + (TCP_CHECKSUM_OFFSET if protocol == Protocol.TCP else UDP_CHECKSUM_OFFSET)
    length_at = 2 if version == 4 else 4
    free, lengths = [*varying(ip_header), range(check, check + 2)], [range(length_at, length_at + 2)]
    if protocol == Protocol.UDP:
        lengths.append(range(ip_header + 4, ip_header + 6))
    full, tail = mask_without(header, *free), mask_without(header, *free, *lengths)
    if protocol == Protocol.TCP:
        tail &= ~(_LAST_FLAGS << (header - ip_header - 14) * 8)
    return full, tail, (header - ip_header - 8) * 8


def joins_last(flow: Flow, packet: memoryview, length: int, index: int) -> bool:
    """Whether a packet that isn't equal to the others may be the last of a super-packet, as number `index` (from 0): shorter, or with PSH or FIN."""
    if not flow.header < length <= flow.header + flow.payload:
        return False
    if (int.from_bytes(packet[: flow.header], "big") ^ (flow.expected + index * flow.step)) & flow.tail_mask:
        return False
    return flow.protocol == Protocol.TCP or (
        int.from_bytes(packet[flow.ip_header + 4 : flow.ip_header + 6], "big") == length - flow.ip_header and any(packet[flow.header - 2 : flow.header])
    )


def super_header(flow: Flow, first: memoryview, last_flags: int, total: int) -> bytes:
    """The virtio, IP and transport header of the super-packet of `total` bytes (headers and all payload): `first` is its first packet's header.

    `last_flags` are the TCP flags of its last packet; ignored for UDP.
    """
    header = bytearray(first[: flow.header])
    if flow.protocol == Protocol.TCP:
        header[flow.ip_header + 13] |= last_flags & _LAST_FLAGS
    return complete(header, flow.version, flow.protocol, flow.ip_header, flow.payload, total)


def complete(header: bytearray, version: int, protocol: int, ip_header: int, segment: int, total: int) -> bytes:
    """`header` (IP and transport; spent) with its lengths and checksums, and the virtio header before it, for a packet of `total` bytes, headers included: a
    super-packet to be cut every `segment` bytes of payload, or one alone where there aren't more."""
    size, transport = len(header), total - ip_header
    if version == 4:
        header[2:4] = total.to_bytes(2, "big")
        header[10:12] = bytes(2)
        header[10:12] = (-int.from_bytes(header[:ip_header], "big") % 65535).to_bytes(2, "big")  # `checksum`, without its frames
        pseudo = pseudo_sum(header[12:20], protocol, transport)
    else:
        header[4:6] = transport.to_bytes(2, "big")
        pseudo = pseudo_sum(header[8:40], protocol, transport)
    if protocol == Protocol.TCP:
        offset, kind = TCP_CHECKSUM_OFFSET, GsoType.TCPV4 if version == 4 else GsoType.TCPV6
    else:
        offset, kind = UDP_CHECKSUM_OFFSET, GsoType.UDP_L4
        header[ip_header + 4 : ip_header + 6] = transport.to_bytes(2, "big")
    header[ip_header + offset : ip_header + offset + 2] = partial_checksum(pseudo).to_bytes(2, "big")
    if total - size <= segment:
        kind, segment = GsoType.NONE, 0
    return VIRTIO_HEADER.pack(NEEDS_CSUM, kind, size, segment, ip_header, offset) + header
