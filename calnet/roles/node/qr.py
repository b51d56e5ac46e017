"""A QR code for terminals: lines of half blocks, two rows of modules each, light on dark as most terminals are. Pure."""

from __future__ import annotations

from typing import Final

_QUIET_ZONE: Final = 2
_BLOCKS: Final = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


def qr_lines(text: str) -> list[str]:
    """The code as lines to print."""
    import segno

    rows = [[not dark for dark in row] for row in segno.make(text, error="l", micro=False).matrix]
    width = len(rows[0]) + 2 * _QUIET_ZONE
    light = [[True] * width] * _QUIET_ZONE
    framed = [*light, *([True] * _QUIET_ZONE + row + [True] * _QUIET_ZONE for row in rows), *light]
    if len(framed) % 2:
        framed.append([False] * width)
    return ["".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True)) for upper, lower in zip(framed[::2], framed[1::2], strict=True)]
