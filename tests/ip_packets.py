"""IP packets for tests, built and checked the slow and obvious way: the oracle for wire/ip.py, tunnel/segment.py and tunnel/coalesce.py.

Nothing here uses the code under test.
"""

from __future__ import annotations

import ipaddress
import struct

V4 = ("10.77.0.1", "10.77.0.2")
V6 = ("fd77::1", "fd77::2")
TIMESTAMPS = b"\x01\x01\x08\x0a\0\0\0\x05\0\0\0\x06"


DESTINATION_OPTIONS = (60, bytes((0, 1)) + b"\x01\x0c" + bytes(12))
"""An IPv6 extension header, as `with_extension` takes it."""
ROUTING = (43, bytes((0, 2, 4, 0)) + bytes(4) + bytes(range(16)))
"""One that has reached its last hop."""


def with_extension(packet: bytes, extension: tuple[int, bytes]) -> bytes:
    """The IPv6 packet with an extension header before its payload."""
    kind, header = extension
    return packet[:4] + struct.pack(">H", len(packet) - 40 + len(header)) + bytes((kind,)) + packet[7:40] + packet[6:7] + header[1:] + packet[40:]


def headers_of(packet: bytes) -> tuple[int, int]:
    """(where the transport header begins, its protocol)."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4, packet[9]
    start, protocol = 40, packet[6]
    while protocol in (43, 60):
        start, protocol = start + 8 + packet[start + 1] * 8, packet[start]
    return start, protocol


def slow_sum(data: bytes) -> int:
    """RFC 1071, word by word with end-around carry."""
    total = 0
    for index in range(0, len(data), 2):
        word = data[index] << 8 | (data[index + 1] if index + 1 < len(data) else 0)
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def slow_checksum(data: bytes) -> int:
    return slow_sum(data) ^ 0xFFFF


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def pseudo(source: str, target: str, protocol: int, length: int) -> bytes:
    if ":" in source:
        return packed(source) + packed(target) + struct.pack(">I3xB", length, protocol)
    return packed(source) + packed(target) + struct.pack(">BBH", 0, protocol, length)


def ip_packet(
    payload: bytes, protocol: int, ends: tuple[str, str] = V4, *, ident: int = 7, tos: int = 0, options: bytes = b"", fragment: int = 0x4000, ttl: int = 64
) -> bytes:
    source, target = ends
    if ":" in source:
        return struct.pack(">IHBB", 6 << 28 | tos << 20, len(payload), protocol, ttl) + packed(source) + packed(target) + payload
    size = 20 + len(options)
    header = struct.pack(">BBHHHBBH", 0x40 | size // 4, tos, size + len(payload), ident, fragment, ttl, protocol, 0) + packed(source) + packed(target) + options
    return header[:10] + struct.pack(">H", slow_checksum(header)) + header[12:] + payload


def tcp(
    payload: bytes,
    ends: tuple[str, str] = V4,
    *,
    ports: tuple[int, int] = (1000, 2000),
    sequence: int = 1,
    flags: int = 0x10,
    window: int = 501,
    options: bytes = TIMESTAMPS,
    ident: int = 7,
    tos: int = 0,
    acknowledged: int = 99,
    ip_options: bytes = b"",
) -> bytes:
    header = struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFFFFFF, acknowledged, (20 + len(options)) // 4 << 4, flags, window, 0, 0) + options
    segment = header + payload
    check = slow_checksum(pseudo(*ends, 6, len(segment)) + segment)
    segment = segment[:16] + struct.pack(">H", check) + segment[18:]
    return ip_packet(segment, 6, ends, ident=ident, tos=tos, options=ip_options)


def udp(payload: bytes, ends: tuple[str, str] = V4, *, ports: tuple[int, int] = (1000, 2000), ident: int = 7, check: bool = True) -> bytes:
    segment = struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload
    value = (slow_checksum(pseudo(*ends, 17, len(segment)) + segment) or 0xFFFF) if check else 0
    return ip_packet(segment[:6] + struct.pack(">H", value) + segment[8:], 17, ends, ident=ident)


def icmp_echo(ends: tuple[str, str] = V4, payload: bytes = b"hello", *, kind: int | None = None) -> bytes:
    six = ":" in ends[0]
    body = bytes((kind if kind is not None else (128 if six else 8), 0, 0, 0, 0, 1, 0, 1)) + payload
    protocol = 58 if six else 1
    check = slow_checksum((pseudo(*ends, 58, len(body)) if six else b"") + body)
    return ip_packet(body[:2] + struct.pack(">H", check) + body[4:], protocol, ends)


def is_sound(packet: bytes) -> bool:
    """Whether every length and checksum of a whole TCP, UDP or ICMP packet holds."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        if slow_sum(packet[:size]) != 0xFFFF or packet[2] << 8 | packet[3] != len(packet):
            return False
        protocol, ends = packet[9], (str(ipaddress.ip_address(packet[12:16])), str(ipaddress.ip_address(packet[16:20])))
    else:
        size = 40
        if packet[4] << 8 | packet[5] != len(packet) - 40:
            return False
        protocol, ends = packet[6], (str(ipaddress.ip_address(packet[8:24])), str(ipaddress.ip_address(packet[24:40])))
    body = packet[size:]
    if protocol == 17:
        if body[4] << 8 | body[5] != len(body):
            return False
        if body[6:8] == b"\0\0":
            return ":" not in ends[0]
    covered = body if protocol == 1 else pseudo(*ends, protocol, len(body)) + body
    return slow_sum(covered) == 0xFFFF


def virtio(packet: bytes, segment: int) -> tuple[int, int, int, int, int, int]:
    """The virtio header with which the kernel would hand over this super-packet."""
    six = packet[0] >> 4 == 6
    size, protocol = headers_of(packet)
    kind = 5 if protocol == 17 else 4 if six else 1
    return (1, kind, 0, segment, size, 6 if protocol == 17 else 16)


def as_kernel_gives(packet: bytes, segment: int = 0) -> bytes:
    """Virtio header and packet with the checksum left to us: only the pseudo-header's sum stands in its field."""
    flags, kind, _, size, start, offset = virtio(packet, segment)
    six = packet[0] >> 4 == 6
    addresses = packet[8:40] if six else packet[12:20]
    _, protocol = headers_of(packet)
    partial = slow_sum(addresses + struct.pack(">HH", protocol, len(packet) - start))
    where = start + offset
    return struct.pack("=BBHHHH", flags, kind if segment else 0, 0, size, start, offset) + packet[:where] + struct.pack(">H", partial) + packet[where + 2 :]


def cut(packet: bytes, segment: int) -> list[bytes]:
    """What a network card makes of the super-packet: rebuilt from its fields, packet by packet."""
    six = packet[0] >> 4 == 6
    start, protocol = headers_of(packet)
    size = 8 if protocol == 17 else (packet[start + 12] >> 4) * 4
    ends = tuple(str(ipaddress.ip_address(one)) for one in ((packet[8:24], packet[24:40]) if six else (packet[12:16], packet[16:20])))
    payload = packet[start + size :]
    pieces = [payload[at : at + segment] for at in range(0, len(payload), segment)]
    made = []
    for index, piece in enumerate(pieces):
        header = bytearray(packet[start : start + size])
        if protocol == 6:
            sequence = (int.from_bytes(header[4:8], "big") + index * segment) & 0xFFFFFFFF
            header[4:8] = sequence.to_bytes(4, "big")
            if index:
                header[13] &= ~0x80
            if index < len(pieces) - 1:
                header[13] &= ~0x09
            check = 16
        else:
            header[4:6] = (8 + len(piece)).to_bytes(2, "big")
            check = 6
        header[check : check + 2] = b"\0\0"
        body = bytes(header) + piece
        value = slow_checksum(pseudo(ends[0], ends[1], protocol, len(body)) + body)
        if protocol == 17:
            value = value or 0xFFFF
        body = body[:check] + struct.pack(">H", value) + body[check + 2 :]
        if six:
            made.append(packet[:4] + struct.pack(">H", start - 40 + len(body)) + packet[6:start] + body)
        else:
            ip = bytearray(packet[:start])
            ip[2:4] = (start + len(body)).to_bytes(2, "big")
            ip[4:6] = ((int.from_bytes(packet[4:6], "big") + index) & 0xFFFF).to_bytes(2, "big")
            ip[10:12] = b"\0\0"
            ip[10:12] = slow_checksum(bytes(ip)).to_bytes(2, "big")
            made.append(bytes(ip) + body)
    return made
