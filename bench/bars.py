"""Results of several contenders as bars: a panel a test, each bar as long as the median, its line from the least to the most."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.plot import drawing

WIDTH, LEFT, RIGHT, TOP, STEP = 400, 142, 62, 30, 18
COLUMNS: Final = 2
OURS: Final = "calnet"
"""Names that begin so are drawn in our colour."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One test: what each contender reached, round by round, at least once."""

    title: str
    results: Sequence[tuple[str, Sequence[float]]]


def bars(panels: Sequence[Panel]) -> str:
    """All of them in one SVG. At least one panel, with at least one result."""
    height = TOP + STEP * max(len(panel.results) for panel in panels) + 12
    return drawing([_panel(panel) for panel in panels], (WIDTH, height), COLUMNS)


def _panel(panel: Panel) -> str:
    most = max(max(values) for _, values in panel.results)
    scale = (WIDTH - LEFT - RIGHT) / (most or 1.0)
    parts = [f'<text x="{LEFT}" y="{TOP - 12}">{panel.title}</text>']
    for place, (name, values) in enumerate(panel.results):
        top, middle = TOP + place * STEP, statistics.median(values)
        low, end, high = (LEFT + scale * value for value in (min(values), middle, max(values)))
        parts += [
            f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{name}</text>',
            f'<rect class="{"ours" if name.startswith(OURS) else "theirs"}" x="{LEFT}" y="{top}" width="{end - LEFT:.1f}" height="{STEP - 5}"/>',
            f'<text x="{high + 5:.1f}" y="{top + 10}">{middle:,.{0 if middle >= 100 else 1}f}</text>',
        ]
        if high > low:
            parts.append(f'<path class="range" d="M{low:.1f} {top + 3}v7m0 -3.5H{high:.1f}m0 -3.5v7"/>')
    bottom = TOP + len(panel.results) * STEP
    parts.append(f'<path class="axis" d="M{LEFT} {TOP - 4}V{bottom}"/>')
    return "\n".join(parts)
