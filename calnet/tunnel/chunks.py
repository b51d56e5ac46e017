"""Chunks, the segment extension: a super-packet travels as its payload cut into datagrams, each with the super-packet's one header behind it. Pure.

Hot path: called once for each super-packet. What it spares, against packets of their own (segment.py, coalesce.py), is each packet's header and checksum: a
third of the sender's time.

    datagram    type u8 = 5 | header length / 4 u8 | first u8 | count u8 | receiver index u32 | counter u64 | AEAD(chunk | trailer)
    nonce       the datagram's first 4 bytes | counter u64

Chunk k of a super-packet is its payload's bytes from k * size on; all chunks but the last are `size` bytes. Its counter is that of chunk 0 plus k, and `first`
the low byte of chunk 0's, so a receiver knows k before it opens anything; what it knew so is authenticated as a part of the nonce. The trailer is the
super-packet's IP and transport header, with `size` for IP's length (IPv4's total length, IPv6's payload length); checksums and UDP's length are not
looked at. So a chunk with its trailer is as long as the packet it stands for, and what limits one limits the other.

The trailer stands last so that nothing has to be moved: chunks are sealed from the last to the first, each with its trailer over the beginning of the next
one's payload; and opened from the first to the last into their final place, each over the last one's trailer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from calnet.tunnel.segment import Super
from calnet.wire.ip import (
    IPV4_HEADER_SIZE,
    IPV6_HEADER_SIZE,
    TCP_CWR,
    TCP_FIN,
    TCP_HEADER_SIZE,
    TCP_PSH,
    UDP_HEADER_SIZE,
    Protocol,
)
from calnet.wire.tunnel import TRANSPORT_OVERHEAD, MessageType

MAX_CHUNKS: Final = 64
MAX_HEADER: Final = IPV6_HEADER_SIZE + 60
"""IPv6 without extension headers, TCP with all the options that there is room for."""
_LAST_FLAGS: Final = TCP_PSH | TCP_FIN
_new: Final = tuple.__new__
"""Makes a named tuple without a frame of Python."""


class Announced(NamedTuple):
    """What a chunk's first word and counter say. Lengths in bytes."""

    header: int
    number: int
    """Which chunk of the super-packet this is, from 0."""
    chunks: int
    """How many the super-packet has."""


class Shape(NamedTuple):
    """What an authenticated trailer says: a super-packet's IP header and chunks are so long."""

    version: int
    protocol: int
    ip_header: int
    size: int


def can_be_chunks(shape: Super) -> bool:
    """Whether the extension carries such a super-packet: IP headers without options."""
    return shape.ip_header == (IPV4_HEADER_SIZE if shape.version == 4 else IPV6_HEADER_SIZE)


def first_word(header: int, first_counter: int, count: int) -> int:
    """A chunk's first 4 bytes, as a little-endian number."""
    return MessageType.CHUNK | header << 6 | (first_counter & 0xFF) << 16 | count << 24


def announced(word: int, counter: int) -> Announced | None:
    """What `first_word` and the counter of a chunk say; None where no sender says so."""
    header, first, count = (word >> 8 & 0xFF) * 4, word >> 16 & 0xFF, word >> 24
    number = counter - first & 0xFF
    if not (IPV4_HEADER_SIZE + UDP_HEADER_SIZE <= header <= MAX_HEADER and number < count <= MAX_CHUNKS):
        return None
    return _new(Announced, (header, number, count))


def behind(datagram: memoryview) -> int:
    """How many datagrams that come behind this one are best opened with it: of a chunk, the further ones of its super-packet, so that one write takes them."""
    if len(datagram) >= TRANSPORT_OVERHEAD and datagram[0] == MessageType.CHUNK:
        number, chunks = datagram[8] - datagram[2] & 0xFF, datagram[3]  # as `announced` has them
        if number < chunks <= MAX_CHUNKS:
            return chunks - number - 1
    return MAX_CHUNKS


def set_size(header: bytearray, version: int, size: int) -> None:
    """Make a header the trailer of chunks of `size` bytes."""
    where = 2 if version == 4 else 4
    header[where : where + 2] = size.to_bytes(2, "big")


def shape_of(trailer: bytearray) -> Shape | None:
    """What an authenticated trailer says; None where it can't be one, or is not as long as was announced."""
    if trailer[0] == 0x45:
        if trailer[6] & 0x3F or trailer[7]:
            return None
        version, protocol, ip_header, size = 4, trailer[9], IPV4_HEADER_SIZE, trailer[2] << 8 | trailer[3]
    elif trailer[0] >> 4 == 6 and len(trailer) > IPV6_HEADER_SIZE:
        version, protocol, ip_header, size = 6, trailer[6], IPV6_HEADER_SIZE, trailer[4] << 8 | trailer[5]
    else:
        return None
    transport = UDP_HEADER_SIZE
    if protocol == Protocol.TCP and len(trailer) >= ip_header + TCP_HEADER_SIZE:
        transport = (trailer[ip_header + 12] >> 4) * 4
        if transport < TCP_HEADER_SIZE:
            return None
    elif protocol != Protocol.UDP:
        return None
    return Shape(version, protocol, ip_header, size) if size and len(trailer) == ip_header + transport else None


def move_on(header: bytearray, shape: Shape, number: int, *, last: bool) -> None:
    """Turn the header of a super-packet into that of its part which begins with chunk `number`; `last`: and holds its last chunk. IPv4's identification and
    TCP's sequence number go on, CWR stays with the first chunk, PSH and FIN with the last (as segment.py has it)."""
    if shape.version == 4 and number:
        ident = (header[4] << 8 | header[5]) + number
        header[4:6] = (ident & 0xFFFF).to_bytes(2, "big")
    if shape.protocol == Protocol.TCP:
        start = shape.ip_header
        if number:
            sequence = int.from_bytes(header[start + 4 : start + 8], "big") + number * shape.size
            header[start + 4 : start + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
            header[start + 13] &= ~TCP_CWR
        if not last:
            header[start + 13] &= ~_LAST_FLAGS
