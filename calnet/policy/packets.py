"""What the packet filter has to know of an IP packet: its flow, the flow of its replies, and for fragments and ICMP errors what they belong to. Pure.

Sources: RFC 791, RFC 8200 (extension headers), RFC 792 and RFC 4443 (ICMP), RFC 1858 and RFC 5722 (fragments that hide a header).

A flow key is addresses, four bytes of ports (or of ICMP type and identifier) and the protocol, in the direction of the packet: 13 bytes for IPv4, 37 for
IPv6. Fragments and ICMP errors have longer keys, one for each datagram, so that a batch never shares a verdict among them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from calnet.model import Buffer
from calnet.wire.ip import Protocol

ICMP: Final = int(Protocol.ICMP)
TCP: Final = int(Protocol.TCP)
UDP: Final = int(Protocol.UDP)
ICMPV6: Final = int(Protocol.ICMPV6)
WITH_PORTS: Final = frozenset((TCP, UDP, 33, 132, 136))
"""TCP, UDP, DCCP, SCTP, UDP-Lite: source and destination port are the first four bytes."""

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS: Final = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION))
_MAX_EXTENSIONS: Final = 8
_TCP_HEADER: Final = 20
_REPLY_OF: Final = {(ICMP, 8): 0, (ICMP, 13): 14, (ICMPV6, 128): 129}
"""ICMP requests, and the type of their replies: what a sent one lets in."""
_REPLIES: Final = {(protocol, reply) for (protocol, _), reply in _REPLY_OF.items()}
_ERRORS: Final = {(ICMP, 3), (ICMP, 11), (ICMP, 12), (ICMPV6, 1), (ICMPV6, 2), (ICMPV6, 3), (ICMPV6, 4)}
_NO_PORTS: Final = b"\0\0\0\0"
_LAST: Final = tuple(bytes((protocol,)) for protocol in range(256))


class Header(NamedTuple):
    """An IP header read to its transport. `start` is where the transport begins, `end` where the packet ends; `fragment` is b"" for a whole packet, else
    what all fragments of the datagram share; `offset` is the fragment's, in bytes."""

    addresses: bytes
    protocol: int
    start: int
    end: int
    fragment: bytes
    offset: int


class Parsed(NamedTuple):
    """A packet as the filter sees it.

    `key` tells it from packets that need a verdict of their own; `flow` is its flow's key; `reply` the flow key of what may answer it (b"" if nothing is
    expected to); `port` the destination port or -1; `fragment` what all fragments of its datagram share (b"" for a whole packet); `first` False for a
    fragment without the transport's header; `quoted` the reply key of the packet an ICMP error quotes, if that packet went the other way (else b"").
    """

    key: bytes
    flow: bytes
    reply: bytes
    addresses: bytes
    protocol: int
    port: int
    fragment: bytes
    first: bool
    quoted: bytes


def flow_key(packet: Buffer) -> bytes | None:
    """The key that packets of one flow and direction share and no others have; None for a packet that is malformed (to be dropped).

    Hot: whole TCP, UDP and echo packets without IP options or extension headers take the short way.
    """
    if len(packet) >= 28 and packet[0] == 0x45 and not (packet[6] & 0x3F or packet[7]):
        protocol = packet[9]
        length = packet[2] << 8 | packet[3]
        if (protocol == UDP and 28 <= length <= len(packet)) or (protocol == TCP and 40 <= length <= len(packet)):
            return bytes(packet[12:24]) + _LAST[protocol]
        if protocol == ICMP and 28 <= length <= len(packet) and packet[20] in (0, 8):
            return b"%b%b\0%b\1" % (bytes(packet[12:20]), bytes(packet[20:21]), bytes(packet[24:26]))
    elif len(packet) >= 48 and packet[0] >> 4 == 6:
        protocol = packet[6]
        length = 40 + (packet[4] << 8 | packet[5])
        if (protocol == UDP and 48 <= length <= len(packet)) or (protocol == TCP and 60 <= length <= len(packet)):
            return bytes(packet[8:44]) + _LAST[protocol]
        if protocol == ICMPV6 and 48 <= length <= len(packet) and packet[40] in (128, 129):
            return b"%b%b\0%b\x3a" % (bytes(packet[8:40]), bytes(packet[40:41]), bytes(packet[44:46]))
    parsed = parse(packet)
    return None if parsed is None else parsed.key


def reply_key(packet: Buffer) -> bytes:
    """The flow key of what may answer this packet; b"" where nothing is expected to, or it is malformed. Hot, as `flow_key`."""
    if len(packet) >= 28 and packet[0] == 0x45 and not (packet[6] & 0x3F or packet[7]) and packet[9] in (UDP, TCP):
        return b"%b%b%b%b%b" % (bytes(packet[16:20]), bytes(packet[12:16]), bytes(packet[22:24]), bytes(packet[20:22]), _LAST[packet[9]])
    parsed = parse(packet)
    return b"" if parsed is None else parsed.reply


def parse(packet: Buffer) -> Parsed | None:
    """The packet as the filter sees it, None for a malformed one. Never raises, whatever the bytes."""
    header = read_header(packet, quoted=False)
    return None if header is None else _parse_transport(packet, header)


def read_header(packet: Buffer, *, quoted: bool) -> Header | None:
    """The IP header; None where it is malformed. A `quoted` packet may be cut off behind its headers."""
    if len(packet) < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        return _read_v4(packet, quoted)
    return _read_v6(packet, quoted) if version == 6 else None


def _read_v4(packet: Buffer, quoted: bool) -> Header | None:
    start = (packet[0] & 15) * 4
    length = packet[2] << 8 | packet[3]
    if start < 20 or length < start or start > len(packet) or (length > len(packet) and not quoted):
        return None
    addresses, protocol = bytes(packet[12:20]), packet[9]
    field = packet[6] << 8 | packet[7]
    fragment = addresses + bytes((protocol,)) + bytes(packet[4:6]) if field & 0x3FFF else b""
    return Header(addresses, protocol, start, min(length, len(packet)), fragment, (field & 0x1FFF) * 8)


def _read_v6(packet: Buffer, quoted: bool) -> Header | None:
    length = 40 + (packet[4] << 8 | packet[5]) if len(packet) >= 40 else 0
    if length < 40 or (length > len(packet) and not quoted):
        return None
    end = min(length, len(packet))
    addresses, protocol, start = bytes(packet[8:40]), packet[6], 40
    fragment, offset = b"", 0
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS or offset:
            return Header(addresses, protocol, start, end, fragment, offset)
        if end < start + 8:
            return None
        if protocol == _FRAGMENT:
            if fragment:
                return None
            field = packet[start + 2] << 8 | packet[start + 3]
            fragment, offset = addresses + bytes(packet[start + 4 : start + 8]), field & 0xFFF8
            size = 8
        elif protocol == _AUTHENTICATION:
            size = (packet[start + 1] + 2) * 4
        elif protocol == _ROUTING and packet[start + 2] == 0:
            return None  # RFC 5095: type 0 routing headers are not honoured
        else:
            size = (packet[start + 1] + 1) * 8
        protocol, start = packet[start], start + size
        if start > end:
            return None
    return None


def _parse_transport(packet: Buffer, header: Header) -> Parsed | None:
    addresses, protocol, start, end, fragment, offset = header
    if offset:
        if protocol == TCP and offset < _TCP_HEADER:
            return None  # RFC 1858: it would overwrite the ports or flags of the first
        return Parsed(b"later fragment %b%d" % (fragment, offset), b"", b"", addresses, protocol, -1, fragment, False, b"")
    if end - start < (_TCP_HEADER if protocol == TCP else 8 if protocol in WITH_PORTS or protocol in (ICMP, ICMPV6) else 0):
        return None
    flow, reply = _flow(packet, header)
    key, quoted = (b"first fragment %b%b" % (fragment, flow) if fragment else flow), b""
    if protocol in (ICMP, ICMPV6) and (protocol, packet[start]) in _ERRORS:
        quoted = _quoted_reply(bytes(packet[start + 8 : end]), addresses)
        key = b"error %b%b" % (key, bytes(packet[start + 8 : min(start + 72, end)]))
    port = packet[start + 2] << 8 | packet[start + 3] if protocol in WITH_PORTS else -1
    return Parsed(key, flow, reply, addresses, protocol, port, fragment, True, quoted)


def _flow(packet: Buffer, header: Header) -> tuple[bytes, bytes]:
    """(key, reply key) of a packet whose transport's first bytes are there."""
    addresses, protocol, start = header.addresses, header.protocol, header.start
    half = len(addresses) // 2
    swapped = addresses[half:] + addresses[:half]
    last = _LAST[protocol]
    if protocol in WITH_PORTS:
        ports = bytes(packet[start : start + 4])
        return addresses + ports + last, swapped + ports[2:] + ports[:2] + last
    if protocol not in (ICMP, ICMPV6):
        return addresses + _NO_PORTS + last, swapped + _NO_PORTS + last
    kind = packet[start]
    answer = _REPLY_OF.get((protocol, kind))
    if answer is None and (protocol, kind) not in _REPLIES:
        return addresses + bytes((kind, packet[start + 1], 0, 0)) + last, b""
    number = bytes(packet[start + 4 : start + 6])
    reply = b"" if answer is None else swapped + bytes((answer, 0)) + number + last
    return addresses + bytes((kind, 0)) + number + last, reply


def is_request(protocol: int, kind: int) -> bool:
    """Whether an ICMP message of this type asks for a reply."""
    return (protocol, kind) in _REPLY_OF


def tcp_flags(packet: Buffer) -> int | None:
    """The flags of a TCP packet; None for any other, and for one without its whole header."""
    header = read_header(packet, quoted=False)
    if header is None or header.protocol != TCP or header.offset or header.end - header.start < _TCP_HEADER:
        return None
    return packet[header.start + 13]


def quoted_destination(packet: Buffer) -> bytes | None:
    """Where the packet that an ICMP error quotes was going, packed; b"" where it quotes none that the error's receiver sent; None for any other packet.

    Kernels look up whom an error concerns by the quoted addresses alone, so both have to be right. Cheap for what is not ICMP.
    """
    if len(packet) >= 20 and (packet[9] != ICMP if packet[0] >> 4 == 4 else packet[6] in (TCP, UDP)):
        return None
    header = read_header(packet, quoted=False)
    if header is None or header.offset or header.end <= header.start or (header.protocol, packet[header.start]) not in _ERRORS:
        return None
    quote = read_header(bytes(packet[header.start + 8 : header.end]), quoted=True)
    half = len(header.addresses) // 2
    if quote is None or len(quote.addresses) != len(header.addresses) or quote.addresses[:half] != header.addresses[half:]:
        return b""
    return quote.addresses[half:]


def _quoted_reply(packet: bytes, outer: bytes) -> bytes:
    """Key of the replies to the packet that an ICMP error with addresses `outer` quotes; b"" unless the error's receiver sent it.

    For a quoted ICMP reply or error there is none, and none is reported (RFC 1122 section 3.2.2).
    """
    header = read_header(packet, quoted=True)
    half = len(outer) // 2
    if header is None or header.offset or header.end - header.start < 8 or header.addresses[:half] != outer[half:] or len(header.addresses) != len(outer):
        return b""
    return _flow(packet, header)[1]
