"""What a refused packet is answered where policy says `reject`: a TCP reset, or an ICMP error "administratively prohibited". Pure.

The answer comes from the address that the packet went to, as from a firewall on that host: the sender's own filter lets it in as part of the flow. Send it as
any packet of this host: neither a reset nor an ICMP error begins a flow (`PacketFilter.outbound`). For a packet that was refused on its way out, the same
answer goes to this host instead.

Sources: RFC 9293 section 3.10.7.1 (resets), RFC 792 and RFC 1812 section 5.2.7.1 (type 3, code 13), RFC 4443 section 3.1 (type 1, code 1); what must never be
answered: RFC 1122 section 3.2.2, RFC 4443 section 2.4.

Error contract: nothing here raises for any packet; one that is malformed or must not be answered gets None, and costs nothing of the rate.
"""

from __future__ import annotations

import struct
from typing import Final

from calnet.limits import RateLimiter
from calnet.model import Buffer
from calnet.policy.packets import ICMP, ICMPV6, TCP, Header, is_request, read_header
from calnet.wire.ip import (
    ICMP_QUOTE,
    TCP_ACK,
    TCP_CHECKSUM_OFFSET,
    TCP_FIN,
    TCP_HEADER_SIZE,
    TCP_RST,
    TCP_SYN,
    checksum,
    icmp_error,
    is_usable_source,
    pseudo_sum,
)

RATE: Final = 20.0
"""Answers a second to one sender (RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 (f) ask for a limit)."""
BURST: Final = 50.0

_V4_PROHIBITED: Final = (3, 13)
_V6_PROHIBITED: Final = (1, 1)


def new_limiter() -> RateLimiter:
    """A limiter to hand to `rejection`."""
    return RateLimiter(RATE, BURST, capacity=4096)


def rejection(packet: Buffer, limiter: RateLimiter, now: float) -> bytes | None:
    """The IP packet that answers a refused `packet`, to be sent to its sender; None where it gets no answer, or its sender had its share of them."""
    header = read_header(packet, quoted=False)
    if header is None or header.offset:
        return None
    half = len(header.addresses) // 2
    source, target = header.addresses[:half], header.addresses[half:]
    if not is_usable_source(source) or not is_usable_source(target):
        return None
    answer = _reset(packet, header) if header.protocol == TCP and not header.fragment else _prohibited(packet, header)
    return answer if answer is not None and limiter.allow(source, now) else None


def _prohibited(packet: Buffer, header: Header) -> bytes | None:
    if header.protocol in (ICMP, ICMPV6) and (header.end <= header.start or not is_request(header.protocol, packet[header.start])):
        return None
    half = len(header.addresses) // 2
    kind, code = _V4_PROHIBITED if half == 4 else _V6_PROHIBITED
    quote = bytes(packet[: min(header.end, ICMP_QUOTE)])
    return icmp_error(kind, code, quote, header.addresses[half:], header.addresses[:half])


def _reset(packet: Buffer, header: Header) -> bytes | None:
    """The reset that a host without that connection would send; None for a reset, and for less than a TCP header."""
    size = header.end - header.start
    if size < TCP_HEADER_SIZE:
        return None
    source_port, target_port, sequence, acknowledged, offset, flags = struct.unpack_from(">HHIIBB", packet, header.start)
    length = size - (offset >> 4) * 4
    if flags & TCP_RST or length < 0:
        return None
    if flags & TCP_ACK:
        answered = (acknowledged, 0, TCP_RST)
    else:
        length += bool(flags & TCP_SYN) + bool(flags & TCP_FIN)
        answered = (0, (sequence + length) & 0xFFFF_FFFF, TCP_RST | TCP_ACK)
    half = len(header.addresses) // 2
    addresses = header.addresses[half:] + header.addresses[:half]
    segment = bytearray(struct.pack(">HHIIBBHHH", target_port, source_port, answered[0], answered[1], 5 << 4, answered[2], 0, 0, 0))
    value = checksum(segment, pseudo_sum(addresses, TCP, len(segment)))
    segment[TCP_CHECKSUM_OFFSET : TCP_CHECKSUM_OFFSET + 2] = value.to_bytes(2, "big")
    return _ip_header(addresses, len(segment)) + bytes(segment)


def _ip_header(addresses: bytes, length: int) -> bytes:
    if len(addresses) == 32:
        return struct.pack(">IHBB", 0x6 << 28, length, TCP, 64) + addresses
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, TCP, 0) + addresses)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header)
