"""Acknowledgements that a later one makes needless. Pure.

A host that receives a stream acknowledges each super-packet it is given, so a fast stream brings as many packets back as it sends reads. TCP acknowledges
cumulatively (RFC 9293, section 3.4): of those that wait together, the last says it all. The earlier ones are left out, as a queue that filters
acknowledgements does it (CAKE's `ack-filter`), under the strictest rules:

- both are bare acknowledgements of one flow: no payload, no flag but ACK (so no ECN echo), no option but timestamps (so no SACK), and everything else alike
  but window, identification and checksums;
- the later one acknowledges more: duplicates, which count losses, and window updates are not needless, but for the last of them where more is acknowledged
  after it.
"""

from __future__ import annotations

from typing import Final

from calnet.tunnel.streams import TCP_SIZE, TIMESTAMPS
from calnet.wire.ip import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, TCP_ACK, TCP_CHECKSUM_OFFSET, TCP_HEADER_SIZE, Protocol, mask_without, varying

_HALF: Final = 1 << 31
_MASK32: Final = 0xFFFFFFFF


class BareAck:
    """A bare acknowledgement: `common` is what those that may stand for each other are alike in, as a number, `length` its bytes."""

    __slots__ = ("_mask", "_shift", "acknowledged", "common", "length")

    def __init__(self, number: int, mask: int, length: int, at: int) -> None:
        """`number` is the packet of `length` bytes; what it acknowledges stands at `at`."""
        self.common, self.length = number & mask, length
        self._mask, self._shift = mask, (length - at - 4) * 8
        self.acknowledged = number >> self._shift & _MASK32

    def replaced_by(self, packet: memoryview) -> bool:
        """Let the packet (padding may follow it) take this one's place, if that makes this one needless: it acknowledges more, and is alike otherwise. Returns
        whether it did."""
        number = int.from_bytes(packet[: self.length], "big")
        if number & self._mask != self.common:
            return False
        acknowledged = number >> self._shift & _MASK32
        if not 0 < (acknowledged - self.acknowledged & _MASK32) < _HALF:
            return False
        self.acknowledged = acknowledged
        return True


def _mask(ip_header: int, size: int) -> int:
    options = ip_header + TCP_HEADER_SIZE + len(TIMESTAMPS)
    free = [range(ip_header + start, ip_header + start + length) for start, length in ((8, 4), (14, 2), (TCP_CHECKSUM_OFFSET, 2))]
    return mask_without(size, *varying(ip_header), *free, range(options, max(size, options)))


_MASKS: Final = {
    ip_header + TCP_HEADER_SIZE + options: (ip_header, (TCP_HEADER_SIZE + options) << 2, _mask(ip_header, ip_header + TCP_HEADER_SIZE + options))
    for ip_header in (IPV4_HEADER_SIZE, IPV6_HEADER_SIZE)
    for options in (0, TCP_SIZE - TCP_HEADER_SIZE)
}
"""By the packet's length: where TCP begins, its data offset byte, and the bits that have to be alike."""
LONGEST: Final = max(_MASKS)
"""Bytes of the longest bare acknowledgement."""


def bare_ack(packet: memoryview) -> BareAck | None:
    """What the packet (all of it) acknowledges, if it does nothing else."""
    shape = _MASKS.get(len(packet))
    if shape is None:
        return None
    start, offset, mask = shape
    if packet[start + 12] != offset or packet[start + 13] != TCP_ACK:
        return None
    if start == IPV4_HEADER_SIZE:
        alone = packet[0] == 0x45 and packet[9] == Protocol.TCP and packet[2] << 8 | packet[3] == len(packet) and not (packet[6] & 0x3F or packet[7])
    else:
        alone = packet[0] >> 4 == 6 and packet[6] == Protocol.TCP and packet[4] << 8 | packet[5] == len(packet) - start
    options = bytes(packet[start + TCP_HEADER_SIZE :])
    if not alone or (options and not options.startswith(TIMESTAMPS)):
        return None
    return BareAck(int.from_bytes(packet, "big"), mask, len(packet), start + 8)
