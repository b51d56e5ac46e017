"""What the super-packets of a stream have in common, so that what was found out for one holds for the next. Pure.

Hot path. Of a stream's super-packets all is alike but lengths, identification, checksums, and TCP's numbers, window, flags and timestamps: the rest, taken as
one number, tells the stream, its segment size and the shape of its headers. That is so for what `is_stream` allows alone, TCP with twelve bytes of options,
which is how bulk data comes: other super-packets share their key with others, and are never kept under it.
"""

from __future__ import annotations

from typing import Final

from calnet.tunnel.coalesce import complete
from calnet.tunnel.segment import Super
from calnet.wire.ip import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, TCP_CHECKSUM_OFFSET, TCP_HEADER_SIZE, VIRTIO_HEADER_SIZE, Protocol, mask_without, varying

TIMESTAMPS: Final = b"\x01\x01\x08\x0a"
"""NOP, NOP, kind 8, length 10 (RFC 7323, appendix A)."""
_OPTIONS_SIZE: Final = 12
TCP_SIZE: Final = TCP_HEADER_SIZE + _OPTIONS_SIZE


def mask_of(ip_header: int, *, virtio: bool = False, length: bool = False) -> int:
    """The bits that are alike, of IP and TCP header. `virtio`: with a virtio header before them; `length`: the IP header's length is alike too."""
    at, tcp = 2 if ip_header == IPV4_HEADER_SIZE else 4, ip_header
    numbers, rest = range(tcp + 4, tcp + 12), range(tcp + 13, tcp + TCP_CHECKSUM_OFFSET + 2)
    stamps = range(tcp + TCP_HEADER_SIZE + len(TIMESTAMPS), tcp + TCP_SIZE)
    mask = mask_without(tcp + TCP_SIZE, *varying(ip_header), *(() if length else (range(at, at + 2),)), numbers, rest, stamps)
    before = mask_without(VIRTIO_HEADER_SIZE, range(2, 4)) if virtio else 0  # all but hdr_len, which the kernel sets to something else
    return before << (tcp + TCP_SIZE) * 8 | mask


_MASK4: Final = mask_of(IPV4_HEADER_SIZE, virtio=True)
_MASK6: Final = mask_of(IPV6_HEADER_SIZE, virtio=True)
_END4: Final = VIRTIO_HEADER_SIZE + IPV4_HEADER_SIZE + TCP_SIZE
_END6: Final = VIRTIO_HEADER_SIZE + IPV6_HEADER_SIZE + TCP_SIZE
_LENGTH4: Final = VIRTIO_HEADER_SIZE + 2
_LENGTH6: Final = VIRTIO_HEADER_SIZE + 4
_SIZE4: Final = IPV4_HEADER_SIZE + TCP_SIZE
_SIZE6: Final = IPV6_HEADER_SIZE + TCP_SIZE
_KEPT4: Final = mask_without(_SIZE4, range(2, 4), range(10, 12), range(IPV4_HEADER_SIZE + TCP_CHECKSUM_OFFSET, IPV4_HEADER_SIZE + TCP_CHECKSUM_OFFSET + 2))
_KEPT6: Final = mask_without(_SIZE6, range(4, 6), range(IPV6_HEADER_SIZE + TCP_CHECKSUM_OFFSET, IPV6_HEADER_SIZE + TCP_CHECKSUM_OFFSET + 2))
_IDENT4: Final = (_SIZE4 - 6) * 8
_CHECK4: Final = (_SIZE4 - 12) * 8
_MAX_TOTALS: Final = 64
"""Lengths of super-packets for which something is kept: a stream's are mostly of one."""


class Headers:
    """The headers of one stream's super-packets as the TUN takes them: what coalesce.py's `complete` makes of them, as one number."""

    __slots__ = ("_header", "_ip_header", "_known", "_segment", "_version")

    def __init__(self, header: bytes, version: int, ip_header: int, segment: int) -> None:
        """`header` is the IP and TCP header of one of them, to be cut every `segment` bytes of payload; `is_stream` holds for it."""
        self._header, self._version, self._ip_header, self._segment = header, version, ip_header, segment
        self._known: dict[int, tuple[int, int]] = {}

    def whole(self, header: int, total: int) -> bytes:
        """Virtio, IP and TCP header of a super-packet of `total` bytes whose IP and TCP header, as a number, is `header`."""
        known = self._known.get(total)
        if known is None:
            known = self._learn(total)
        rest, check = known
        if self._version == 4:
            return (header & _KEPT4 | rest | (check - (header >> _IDENT4 & 0xFFFF)) % 65535 << _CHECK4).to_bytes(VIRTIO_HEADER_SIZE + _SIZE4, "big")
        return (header & _KEPT6 | rest).to_bytes(VIRTIO_HEADER_SIZE + _SIZE6, "big")

    def _learn(self, total: int) -> tuple[int, int]:
        """What is alike for all of `total` bytes: all but what `whole` takes from each, and the sum of IPv4's checksum and identification."""
        if len(self._known) >= _MAX_TOTALS:
            self._known.clear()
        whole = int.from_bytes(complete(bytearray(self._header), self._version, Protocol.TCP, self._ip_header, self._segment, total), "big")
        check = 0
        if self._version == 4:
            check = (whole >> _CHECK4 & 0xFFFF) + (whole >> _IDENT4 & 0xFFFF)
            whole &= ~(0xFFFF << _CHECK4)
        known = self._known[total] = whole & ~(_KEPT4 if self._version == 4 else _KEPT6), check
        return known


def is_stream(shape: Super) -> bool:
    """Whether a super-packet of this shape may be known by its `key`: its headers are where the mask takes them to be."""
    ip_header = IPV4_HEADER_SIZE if shape.version == 4 else IPV6_HEADER_SIZE
    return shape.protocol == Protocol.TCP and shape.ip_header == ip_header and shape.header == ip_header + TCP_SIZE


def key(read: memoryview, length: int) -> int:
    """The stream of a super-packet as it was read, virtio header first, `length` bytes in all; 0, which is no stream's, for one whose IP header says another
    length. What is equal to the key of one that `is_stream` allows is of its stream and shape."""
    if read[VIRTIO_HEADER_SIZE] == 0x45:
        if read[_LENGTH4] << 8 | read[_LENGTH4 + 1] != length - VIRTIO_HEADER_SIZE:
            return 0
        return int.from_bytes(read[:_END4], "big") & _MASK4
    if read[_LENGTH6] << 8 | read[_LENGTH6 + 1] != length - VIRTIO_HEADER_SIZE - IPV6_HEADER_SIZE:
        return 0
    return int.from_bytes(read[:_END6], "big") & _MASK6
