"""IP packets and the virtio network header, as the data path needs them: lengths, addresses, checksums, ICMP errors. Pure.

Sources: RFC 791, RFC 8200 (IP), RFC 9293 (TCP), RFC 768 (UDP), RFC 792, RFC 4443 (ICMP), RFC 1071 (checksum), virtio 1.2 section 5.1.6
(`struct virtio_net_hdr`, 10 bytes, host byte order on a TUN device).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from calnet.errors import WireError
from calnet.model import Buffer


class Protocol(IntEnum):
    """IP protocol numbers that the data path looks at."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58


class GsoType(IntEnum):
    """`gso_type` of a virtio header, without its ECN bit."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP_L4 = 5


GSO_ECN: Final = 0x80
NEEDS_CSUM: Final = 1
VIRTIO_HEADER_SIZE: Final = 10
VIRTIO_HEADER: Final = struct.Struct("=BBHHHH")
NO_VIRTIO: Final = bytes(VIRTIO_HEADER_SIZE)

IPV4_HEADER_SIZE: Final = 20
IPV6_HEADER_SIZE: Final = 40
UDP_HEADER_SIZE: Final = 8
TCP_HEADER_SIZE: Final = 20
TCP_CHECKSUM_OFFSET: Final = 16
UDP_CHECKSUM_OFFSET: Final = 6

TCP_FIN: Final = 0x01
TCP_SYN: Final = 0x02
TCP_RST: Final = 0x04
TCP_PSH: Final = 0x08
TCP_ACK: Final = 0x10
TCP_ECE: Final = 0x40
TCP_CWR: Final = 0x80

ICMP_QUOTE: Final = 128
"""Bytes of the offending packet that an ICMP error of ours quotes."""


class Virtio(NamedTuple):
    """A virtio network header. `csum_start` counts from the packet's first byte; `hdr_len` from the kernel is not the header's length."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int


def parse_virtio(data: Buffer) -> Virtio:
    """The virtio header at the beginning of `data`; WireError if it is cut short."""
    if len(data) < VIRTIO_HEADER_SIZE:
        raise WireError("a virtio header is 10 bytes")
    return Virtio(*VIRTIO_HEADER.unpack_from(data))


def mask_without(length: int, *free: range) -> int:
    """A header of `length` bytes, as one big-endian number: the bits that are compared, which are those of all bytes but the `free` ones."""
    kept = bytearray(b"\xff" * length)
    for part in free:
        kept[part.start : part.stop] = bytes(len(part))
    return int.from_bytes(kept, "big")


def varying(ip_header: int) -> tuple[range, ...]:
    """Bytes of an IP header without options that differ from packet to packet of a flow: IPv4's identification and checksum."""
    return (range(4, 6), range(10, 12)) if ip_header == IPV4_HEADER_SIZE else ()


def ones_sum(data: Buffer) -> int:
    """Sum of big-endian 16-bit words modulo 65535 (RFC 1071), an odd last byte padded with a zero: 0 ≤ sum < 65535.

    2**16 is 1 modulo 65535, so a whole run of words can be taken as one number; halves are added first, because a division costs more per digit.
    """
    length = len(data)
    value = int.from_bytes(data, "big")
    if length & 1:
        value <<= 8
    bits = (length + 1) * 8
    while bits > 1024:
        half = (bits >> 5) << 4
        value = (value & ((1 << half) - 1)) + (value >> half)
        bits -= half - 16
    return value % 65535


def checksum(data: Buffer, initial: int = 0) -> int:
    """The Internet checksum of `data`, `initial` (any number: earlier words, a pseudo-header sum) added. Right for data that isn't all zeros."""
    return -(ones_sum(data) + initial) % 65535


def pseudo_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """Sum of a TCP or UDP pseudo-header: `addresses` is source and destination as in the IP header (8 or 32 bytes), `length` the transport's bytes."""
    return (int.from_bytes(addresses, "big") + protocol + length) % 65535


def partial_checksum(total: int) -> int:
    """What stands in the checksum field of a packet with NEEDS_CSUM: the pseudo-header's sum, not complemented, in its canonical form (never 0)."""
    return total % 65535 or 65535


def packet_length(packet: Buffer) -> int:
    """Bytes of the IP packet at the beginning of `packet`, which may be followed by padding. WireError: not IP, header cut short, longer than `packet`."""
    available = len(packet)
    if available < IPV4_HEADER_SIZE:
        raise WireError("shorter than an IP header")
    version = packet[0] >> 4
    if version == 4:
        header = (packet[0] & 15) * 4
        length = packet[2] << 8 | packet[3]
        if header < IPV4_HEADER_SIZE or length < header:
            raise WireError("an IPv4 packet shorter than its header")
    elif version == 6:
        length = IPV6_HEADER_SIZE + (packet[4] << 8 | packet[5])
    else:
        raise WireError("neither IPv4 nor IPv6")
    if length > available:
        raise WireError("an IP packet longer than the data it came in")
    return length


def source_of(packet: Buffer) -> bytes:
    """Packed source address of a packet that `packet_length` accepted."""
    return bytes(packet[12:16]) if packet[0] >> 4 == 4 else bytes(packet[8:24])


def destination_of(packet: Buffer) -> bytes:
    """Packed destination address of a packet that `packet_length` accepted."""
    return bytes(packet[16:20]) if packet[0] >> 4 == 4 else bytes(packet[24:40])


def is_usable_source(address: bytes) -> bool:
    """Whether a packet may come from this packed address: not unspecified, loopback, multicast, broadcast, or IPv4-mapped."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    if address[0] == 0xFF:
        return False
    return address[:12] not in (bytes(12), b"\0\0\0\0\0\0\0\0\0\0\xff\xff")


def unreachable(packet: Buffer) -> bytes | None:
    """The ICMP "host unreachable" (IPv6: "address unreachable") to the sender of `packet`; None where none may be sent.

    None: `packet` is damaged, not a first fragment, itself an ICMP error or unknown ICMP type, or goes to or comes from no single host (RFC 1122 section
    3.2.2, RFC 4443 section 2.4). It comes from the packet's destination: Linux takes none from an address of its own.
    """
    return _told(packet, 3, 1) if packet[:1] and packet[0] >> 4 == 4 else _told(packet, 1, 3)


def too_big(packet: Buffer, mtu: int) -> bytes | None:
    """The ICMP "fragmentation needed" (RFC 1191; IPv6: "packet too big", RFC 4443 section 3.2) to the sender of `packet`; None and source as above."""
    return _told(packet, 3, 4, mtu) if packet[:1] and packet[0] >> 4 == 4 else _told(packet, 2, 0, mtu)


def may_be_fragmented(packet: Buffer) -> bool:
    """Whether this is an IPv4 packet without "don't fragment"."""
    return packet[0] >> 4 == 4 and not packet[6] & 0x40


def _told(packet: Buffer, kind: int, code: int, word: int = 0) -> bytes | None:
    """An ICMP error about `packet` to its sender."""
    try:
        length = packet_length(packet)
    except WireError:
        return None
    back, target = source_of(packet), destination_of(packet)
    if not is_usable_source(back) or not is_usable_source(target):
        return None
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        if packet[6] & 0x1F or packet[7] or (packet[9] == Protocol.ICMP and (length <= header or packet[header] not in (0, 8))):
            return None
    elif packet[6] == Protocol.ICMPV6 and (length <= IPV6_HEADER_SIZE or packet[IPV6_HEADER_SIZE] < 128):
        return None
    return icmp_error(kind, code, bytes(packet[: min(length, ICMP_QUOTE)]), target, back, word)


def icmp_error(kind: int, code: int, quote: bytes, source: bytes, target: bytes, word: int = 0) -> bytes:
    """The IP packet of an ICMP error (of ICMPv6 where the packed addresses are IPv6), `word` its second one, from `source` to `target`."""
    body = bytearray(bytes((kind, code)) + bytes(2) + word.to_bytes(4, "big") + quote)
    if len(source) == 4:
        body[2:4] = checksum(body).to_bytes(2, "big")
        ip = bytearray(struct.pack(">BBHHHBBH4s4s", 0x45, 0xC0, 20 + len(body), 0, 0, 64, Protocol.ICMP, 0, source, target))
        ip[10:12] = checksum(ip).to_bytes(2, "big")
        return bytes(ip + body)
    body[2:4] = checksum(body, pseudo_sum(source + target, Protocol.ICMPV6, len(body))).to_bytes(2, "big")
    return struct.pack(">IHBB16s16s", 0x6 << 28, len(body), Protocol.ICMPV6, 64, source, target) + bytes(body)
