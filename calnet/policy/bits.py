"""Sets of nodes as bits of an integer: a few hundred bytes for thousands of nodes, united and compared in no time. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, cast

from calnet.model import NodeId

_ONE: Final = ord("1")
_BITS: Final = tuple(tuple(bit for bit in range(8) if octet >> bit & 1) for octet in range(256))


def mask_of(nodes: Collection[NodeId]) -> int:
    """The bits of these ids."""
    if not nodes:
        return 0
    top = max(nodes)
    digits = bytearray(b"0") * (top + 1)
    for node in nodes:
        digits[top - node] = _ONE
    return int(digits, 2)


def ids_of(mask: int) -> list[NodeId]:
    """The ids whose bits these are, in order."""
    octets = mask.to_bytes((mask.bit_length() + 7) // 8, "little")
    return cast(list[NodeId], [first + bit for first, octet in zip(range(0, len(octets) * 8, 8), octets, strict=True) if octet for bit in _BITS[octet]])


class Masks:
    """The masks of sets that stay the same for a while, each made once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Collection[NodeId], int]] = {}
        """By identity of the set, which the entry holds, so that no other gets it."""

    def clear(self) -> None:
        """Some of the sets changed."""
        self._known.clear()

    def union(self, sets: Iterable[Collection[NodeId]]) -> int:
        """The mask of all of them together."""
        mask = 0
        for nodes in sets:
            known = self._known.get(id(nodes))
            if known is None:
                known = self._known[id(nodes)] = nodes, mask_of(nodes)
            mask |= known[1]
        return mask
