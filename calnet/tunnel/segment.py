"""Cutting a TCP or UDP super-packet, as a TUN with offloads gives it, into the IP packets that it stands for. Pure.

Hot path: called once for each super-packet. Only headers are made here, and not one by one: what differs from packet to packet is a column of numbers, which
the outbound side writes by one strided assignment. And such a column is computed as one number, with a lane of so many bits for each packet: Python adds and
masks all of them at once. 0.15 µs a packet, beside the sum of its payload (sums.py).

What a network card does with TSO and USO is done here (the kernel's `tcp_gso_segment`, `inet_gso_segment`): the IPv4 identification counts up, sequence
numbers advance by the payload, CWR stays on the first segment alone, PSH and FIN on the last, every length and checksum is set.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from calnet.errors import WireError
from calnet.lanes import ones_and_ramp
from calnet.tunnel.sums import SWAP
from calnet.wire.ip import (
    GSO_ECN,
    IPV4_HEADER_SIZE,
    IPV6_HEADER_SIZE,
    NEEDS_CSUM,
    TCP_CHECKSUM_OFFSET,
    TCP_CWR,
    TCP_FIN,
    TCP_HEADER_SIZE,
    TCP_PSH,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_SIZE,
    GsoType,
    Protocol,
    Virtio,
    ones_sum,
    packet_length,
    pseudo_sum,
)

_GSO_SHAPES: Final = {GsoType.TCPV4: (4, Protocol.TCP), GsoType.TCPV6: (6, Protocol.TCP)}
_EXTENSIONS: Final = frozenset((0, 43, 60))
"""Hop-by-hop options, routing, destination options: a fragment is never a super-packet."""
_FIRST_FLAGS_OFF: Final = TCP_PSH | TCP_FIN
_MIDDLE_FLAGS_OFF: Final = TCP_PSH | TCP_FIN | TCP_CWR
_MASK32: Final = 0xFFFFFFFF


class Super(NamedTuple):
    """A super-packet's shape: `header` bytes of IP and transport header, of which `ip_header` are IP's, then payload to be cut every `segment` bytes."""

    version: int
    protocol: int
    ip_header: int
    header: int
    segment: int
    length: int


def parse_super(packet: memoryview, virtio: Virtio) -> Super:
    """The shape of the super-packet that fills `packet`; WireError where header and virtio header don't fit together."""
    length = packet_length(packet)
    version = packet[0] >> 4
    ip_header, protocol = ((packet[0] & 15) * 4, packet[9]) if version == 4 else _ipv6_headers_end(packet)
    gso_type = virtio.gso_type & ~GSO_ECN
    if length != len(packet) or virtio.gso_size == 0:
        raise WireError("a super-packet whose length is wrong")
    expected = _GSO_SHAPES.get(gso_type) if gso_type != GsoType.UDP_L4 else (version, Protocol.UDP)  # type: ignore[call-overload]
    if expected != (version, protocol):
        raise WireError("a super-packet of another protocol than its virtio header says")
    if version == 4 and (packet[6] & 0x3F or packet[7]):
        raise WireError("a super-packet that is a fragment")
    size = UDP_HEADER_SIZE
    if protocol == Protocol.TCP:
        if length < ip_header + TCP_HEADER_SIZE:
            raise WireError("a TCP header cut short")
        size = (packet[ip_header + 12] >> 4) * 4
    header = ip_header + size
    if length <= header or (protocol == Protocol.TCP and size < TCP_HEADER_SIZE):
        raise WireError("a super-packet without payload")
    return Super(version, protocol, ip_header, header, min(virtio.gso_size, length - header), length)


def _ipv6_headers_end(packet: memoryview) -> tuple[int, int]:
    """(where the transport header begins, its protocol), behind extension headers that each packet of a super-packet repeats (RFC 8200 section 4)."""
    protocol, end = packet[6], IPV6_HEADER_SIZE
    while protocol in _EXTENSIONS and end + 8 <= len(packet):
        protocol, end = packet[end], end + 8 + packet[end + 1] * 8
    return end, protocol


class Headers(NamedTuple):
    """The IP and transport headers of the packets that a super-packet stands for: packet k's payload is the super-packet's from k * segment on.

    Most of them are alike: `template`, with the numbers of `columns` in it, each an offset and a number for each packet (in network order, 2 or 4 bytes, which
    need not lie side by side in memory). The
    last one is `last` instead; so is the first `first`, unless that is empty.
    """

    template: bytes
    columns: list[tuple[int, memoryview]]
    first: bytes
    last: bytes


def headers_of(packet: memoryview, shape: Super, sums: list[int]) -> Headers:
    """`sums` of the payloads are congruent to the `little_sum` of each (sums.py), 0 or more and below 2**64."""
    made = (_tcp_headers if shape.protocol == Protocol.TCP else _udp_headers)(packet, shape, sums)
    return made if shape.version == 6 else _with_ipv4(packet, shape, len(sums), made)


def _tcp_headers(packet: memoryview, shape: Super, sums: list[int]) -> Headers:
    """IPv4's own fields are still those of the super-packet."""
    step, count = shape.segment, len(sums)
    layout = _tcp_struct(shape.ip_header, shape.header - shape.ip_header)
    ip, ports, sequence, acknowledged, flags, window, _, options = layout.unpack_from(packet)
    rest = int.from_bytes(ports, "big") + int.from_bytes(acknowledged, "big") + window + ones_sum(options)
    constant, size = _pseudo(packet, shape) + rest, shape.header - shape.ip_header

    def header(k: int, flags: int, payload: int) -> bytes:
        number = (sequence + k * step) & _MASK32
        check = -(constant + size + payload + number + flags + sums[k] * SWAP) % 65535
        before = ip if shape.version == 4 else _with_length(ip, shape, size + payload)
        return layout.pack(before, ports, number, acknowledged, flags, window, check, options)

    middle, end = flags & ~_MIDDLE_FLAGS_OFF, sequence + count * step
    base = constant + size + step + middle
    if end <= _MASK32 and count <= _MAX_LANES:
        lanes = _lanes(count)
        numbers, checks = _ramp("I", 4 * count, sequence, step, lanes.of_32), _checksums(base + sequence, step, sums, lanes)
    else:
        each = [number & _MASK32 for number in range(sequence, end, step)]
        numbers, checks = _column("I", each), _column("H", [-(base + number + value * SWAP) % 65535 for number, value in zip(each, sums, strict=True)])
    columns = [(shape.ip_header + 4, numbers), (shape.ip_header + TCP_CHECKSUM_OFFSET, checks)]
    first = header(0, flags & ~_FIRST_FLAGS_OFF, step) if flags & TCP_CWR and count > 1 else b""
    last = header(count - 1, flags & ~TCP_CWR if count > 1 else flags, shape.length - shape.header - step * (count - 1))
    return Headers(header(0, middle, step), columns, first, last)


def _udp_headers(packet: memoryview, shape: Super, sums: list[int]) -> Headers:
    """As `_tcp_headers`."""
    ports = bytes(packet[shape.ip_header : shape.ip_header + 4])
    constant, size = _pseudo(packet, shape) + int.from_bytes(ports, "big"), UDP_HEADER_SIZE
    ip = bytes(packet[: shape.ip_header])

    def header(payload: int, value: int) -> bytes:
        length = size + payload
        before = ip if shape.version == 4 else _with_length(ip, shape, length)
        return before + _UDP.pack(ports, length, -(constant + 2 * length + value * SWAP) % 65535 or 65535)

    base = constant + 2 * (size + shape.segment)
    checks = [-(base + value * SWAP) % 65535 or 65535 for value in sums]
    columns = [(shape.ip_header + UDP_CHECKSUM_OFFSET, _column("H", checks))]
    last = header(shape.length - shape.header - shape.segment * (len(sums) - 1), sums[-1])
    return Headers(header(shape.segment, sums[0]), columns, b"", last)


def _with_ipv4(packet: memoryview, shape: Super, count: int, made: Headers) -> Headers:
    """The same with identification, length and checksum in the IPv4 headers."""
    layout = _ipv4_struct(shape.ip_header)
    first, _, ident, fragment, life, _, rest = layout.unpack_from(packet)
    constant = first + fragment + life + int.from_bytes(rest, "big")

    def header(k: int, transport: bytes, length: int) -> bytes:
        number = (ident + k) & 0xFFFF
        return layout.pack(first, length, number, fragment, life, -(constant + length + number) % 65535, rest) + transport[shape.ip_header :]

    full = shape.header + shape.segment
    highest = -(constant + full + ident) % 65535
    if ident + count <= 0x10000 and highest >= count and count <= _MAX_LANES:
        lanes = _lanes(count)
        numbers, checks = _ramp("H", 2 * count, ident, 1, lanes.of_16), _ramp("H", 2 * count, highest, -1, lanes.of_16)
    else:
        each = [number & 0xFFFF for number in range(ident, ident + count)]
        numbers, checks = _column("H", each), _column("H", [-(constant + full + number) % 65535 for number in each])
    columns = [*made.columns, (_IPV4_IDENT, numbers), (_IPV4_CHECK, checks)]
    last = header(count - 1, made.last, shape.length - shape.segment * (count - 1))
    return Headers(header(0, made.template, full), columns, made.first and header(0, made.first, full), last)


def _with_length(ip: bytes, shape: Super, transport: int) -> bytes:
    """An IPv6 header with extension headers, before `transport` bytes."""
    return ip[:4] + (shape.ip_header - IPV6_HEADER_SIZE + transport).to_bytes(2, "big") + ip[6:]


def _column(kind: str, numbers: Iterable[int]) -> memoryview:
    column = array(kind, numbers)
    if sys.byteorder == "little":
        column.byteswap()
    return memoryview(column)


class _Lanes(NamedTuple):
    """As lanes.py has them, a lane for each of so many packets."""

    of_16: tuple[int, int]
    """1 in each, and the packet's number in each; the first packet's the highest…"""
    of_32: tuple[int, int]
    of_64: tuple[int, int]
    """…and here the lowest."""
    low_16: int
    """The lower bits of each lane of 64."""
    low_32: int
    low_48: int


_MAX_LANES: Final = 128
"""Packets of a super-packet whose columns are computed so: those of 512 bytes and more. What is kept for each count is bounded so."""


@lru_cache(maxsize=_MAX_LANES)
def _lanes(count: int) -> _Lanes:
    of_16, of_32, of_64 = (ones_and_ramp(count, bits, first_high=bits < 64) for bits in (16, 32, 64))
    return _Lanes(of_16, of_32, of_64, *(of_64[0] * ((1 << bits) - 1) for bits in (16, 32, 48)))


def _ramp(kind: Literal["H", "I"], size: int, start: int, step: int, lanes: tuple[int, int]) -> memoryview:
    """The column `start + k * step` for each packet k, `size` bytes in all; none of them leaves its lane."""
    ones, numbers = lanes
    return memoryview((start * ones + step * numbers).to_bytes(size, "big")).cast(kind)


def _checksums(base: int, step: int, sums: list[int], lanes: _Lanes) -> memoryview:
    """The checksum of what sums up to `base + k * step` and the payload's sum, for each packet k. Computed of little-endian words, as those of the payloads
    are: so the bytes of the result, least first, stand as the network has them."""
    (ones, numbers), low_16, low_32, low_48 = lanes.of_64, lanes.low_16, lanes.low_32, lanes.low_48
    total = int.from_bytes(struct.pack(f"<{len(sums)}Q", *sums), "little")
    total = (total & low_32) + (total >> 32 & low_32)
    total += (base * SWAP % 65535 or 65535) * ones + step * SWAP % 65535 * numbers  # never 0 in a lane, whose checksum would be 0xffff then
    for _ in range(3):  # no lane holds more than 34 bits; then 2**19, 65535 + 8, 65535
        total = (total & low_16) + (total >> 16 & low_48)
    return memoryview((low_16 - total).to_bytes(8 * len(sums), "little")).cast("H")[::4]


_IPV4_IDENT: Final = 4
_IPV4_CHECK: Final = 10
_UDP: Final = struct.Struct(">4sHH")


# IPv4: version to TOS, total length, identification, fragment, TTL and protocol, checksum, addresses and options.
# TCP: what stands before it, ports, sequence, acknowledgement, data offset and flags, window, checksum, urgent pointer and options.


@lru_cache(maxsize=16)
def _ipv4_struct(size: int) -> struct.Struct:
    return struct.Struct(f">HHHHHH{size - 12}s")


@lru_cache(maxsize=64)
def _tcp_struct(before: int, size: int) -> struct.Struct:
    return struct.Struct(f">{before}s4sI4sHHH{size - 18}s")


def _pseudo(packet: memoryview, shape: Super) -> int:
    """Sum of the pseudo-header without its length. Behind extension headers it is the kernel's, from the checksum field (a routing header hides the last
    destination, which counts: RFC 8200 section 8.1)."""
    if shape.version == 6 and shape.ip_header > IPV6_HEADER_SIZE:
        field = shape.ip_header + (TCP_CHECKSUM_OFFSET if shape.protocol == Protocol.TCP else UDP_CHECKSUM_OFFSET)
        return int.from_bytes(packet[field : field + 2], "big") - (shape.length - shape.ip_header)
    addresses = packet[12:20] if shape.version == 4 else packet[8:40]
    return pseudo_sum(addresses, shape.protocol, 0)


def finish_checksum(packet: memoryview, virtio: Virtio) -> None:
    """Complete, in place, the checksum of a packet that the kernel left to us (NEEDS_CSUM without segmentation). WireError where it would lie outside.

    The field holds the pseudo-header's sum already; a UDP checksum of 0 is sent as 0xffff (RFC 768).
    """
    if not virtio.flags & NEEDS_CSUM:
        return
    where = virtio.csum_start + virtio.csum_offset
    if virtio.csum_start < IPV4_HEADER_SIZE or where + 2 > len(packet):
        raise WireError("a checksum field outside its packet")
    value = -ones_sum(packet[virtio.csum_start :]) % 65535
    packet[where : where + 2] = (value or 65535).to_bytes(2, "big")
