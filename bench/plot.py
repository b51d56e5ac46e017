"""What plots share: panels in columns, as one SVG. It brings its own background and follows the reader's colour scheme, so it can be read on any page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LIGHT: Final = {"paper": "#fff", "text": "#333", "axis": "#888", "bound": "#c33", "ours": "#1668b8", "theirs": "#a3a9b0"}
DARK: Final = {"paper": "#161b22", "text": "#e6edf3", "axis": "#8b949e", "bound": "#ff7b72", "ours": "#58a6ff", "theirs": "#5a626c"}


def drawing(panels: Sequence[str], size: tuple[int, int], columns: int) -> str:
    """The panels, SVG elements that fill boxes of `size`, row by row."""
    columns = min(columns, len(panels))
    width, height = size[0] * columns, size[1] * -(-len(panels) // columns)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"><style>{_style()}</style>'
    placed = [f'<g transform="translate({at % columns * size[0]} {at // columns * size[1]})">{panel}</g>' for at, panel in enumerate(panels)]
    return "\n".join([head, f'<rect class="paper" width="{width}" height="{height}"/>', *placed, "</svg>", ""])


def _style() -> str:
    shapes = "text{font:11px sans-serif}.axis,.bound,.line,.range{fill:none}.line{stroke-width:2}"
    return f"{shapes}{_colours(LIGHT)}@media(prefers-color-scheme:dark){{{_colours(DARK)}}}"


def _colours(scheme: dict[str, str]) -> str:
    return (
        ".paper{{fill:{paper}}}text{{fill:{text}}}.axis{{stroke:{axis}}}.bound{{stroke:{bound};stroke-dasharray:4 3}}.range{{stroke:{text}}}"
        ".line{{stroke:{ours}}}.point,.ours{{fill:{ours}}}.theirs{{fill:{theirs}}}"
    ).format_map(scheme)
