"""IP packets built from what they mean, byte by byte from the RFCs, without the code under test."""

from __future__ import annotations

import ipaddress
import struct

TCP, UDP, ICMP, ICMPV6, GRE = 6, 17, 1, 58, 47


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    number: int = 1,
    offset: int = 0,
    more: bool = False,
    options: bytes = b"",
    ext: bytes = b"",
) -> bytes:
    """A packet; `offset` in bytes. IPv6 gets a fragment header where `offset` or `more` ask for one; `ext` are extension headers already chained, whose
    first header's type is its first byte (and is cut off)."""
    src, dst = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if src.version == 4:
        field = (0x2000 if more else 0) | offset // 8
        head = 20 + len(options)
        return (
            struct.pack("!BBHHHBBH4s4s", 0x40 | head // 4, 0, head + len(payload), number, field, 64, protocol, 0, src.packed, dst.packed) + options + payload
        )
    first = protocol
    if offset or more:
        payload = struct.pack("!BBHI", protocol, 0, offset | more, number) + payload
        first = 44
    if ext:
        first, payload = ext[0], ext[1:] + payload
    return struct.pack("!IHBB16s16s", 0x60000000, len(payload), first, 64, src.packed, dst.packed) + payload


def tcp(source: str, destination: str, sport: int, dport: int, *, flags: int = 0x10, **options: object) -> bytes:
    return ip(source, destination, TCP, struct.pack("!HHIIBBHHH", sport, dport, 1, 2, 0x50, flags, 100, 0, 0) + b"data", **options)  # type: ignore[arg-type]


def udp(source: str, destination: str, sport: int, dport: int, **options: object) -> bytes:
    return ip(source, destination, UDP, struct.pack("!HHHH", sport, dport, 12, 0) + b"data", **options)  # type: ignore[arg-type]


def icmp(source: str, destination: str, kind: int, number: int = 0, payload: bytes = b"", *, code: int = 0) -> bytes:
    protocol = ICMP if ":" not in source else ICMPV6
    return ip(source, destination, protocol, struct.pack("!BBHHH", kind, code, 0, number, 1) + payload)
