"""How contenders compare, as bars: python -m bench.bars < JSON-LINES > docs/performance.svg, the lines those of bench.throughput."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

WIDTH, ROW, LEFT, TOP, COLUMNS = 380, 18, 150, 30, 2
TESTS = {
    "TCP, one stream": "Mbit/s",
    "TCP, four streams": "Mbit/s",
    "TCP, no offloads on the wire": "Mbit/s",
    "TCP at 1 % loss": "Mbit/s",
    "UDP 1,200 bytes": "Mbit/s",
    "UDP 64 bytes, lossless": "packets/s",
    "ping p50": "ms",
    "CPU": "s/GB",
}
BARE = "no tunnel"
STYLE = "text{font:11px sans-serif;fill:#333}.bar{fill:#9ab}.ours{fill:#1668b8}.range{stroke:#333}"

Figures = Mapping[tuple[str, str], Sequence[float]]
"""By contender and test: of each round."""


def figures(lines: Iterable[str]) -> dict[tuple[str, str], list[float]]:
    """The throughput bench's figures among these lines."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        row = json.loads(line) if line.startswith("{") else {}
        if row.get("bench") == "throughput":
            for test in TESTS:
                if test in row:
                    found[row["contender"], test].append(row[test])
    return dict(found)


def drawing(found: Figures) -> str:
    """One SVG: a panel for each test, a bar as long as the median for each tunnel, with a line from the least to the most."""
    names = [name for name in dict.fromkeys(name for name, _ in found) if name != BARE]
    tests = [test for test in TESTS if any((name, test) in found for name in names)]
    height = TOP + ROW * len(names) + 16
    panels = [_panel(found, test, names, at % COLUMNS * WIDTH, at // COLUMNS * height) for at, test in enumerate(tests)]
    width, total = WIDTH * COLUMNS, height * -(-len(tests) // COLUMNS)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}"><style>{STYLE}</style>'
    return "\n".join([head, f'<rect width="{width}" height="{total}" fill="#fff"/>', *panels, "</svg>", ""])


def _panel(found: Figures, test: str, names: Sequence[str], x: int, y: int) -> str:
    most = max(max(found[name, test]) for name in names if (name, test) in found)
    scale = (WIDTH - LEFT - 60) / most if most else 0.0
    parts = [f'<g transform="translate({x} {y})"><text x="{LEFT}" y="{TOP - 12}" font-weight="bold">{test}, {TESTS[test]}</text>']
    for at, name in enumerate(names):
        values, top = found.get((name, test)), TOP + ROW * at
        parts.append(f'<text x="{LEFT - 6}" y="{top + 11}" text-anchor="end">{name}</text>')
        if values:
            middle, low, high = statistics.median(values), min(values), max(values)
            ours = " ours" if name.startswith("calnet") else ""
            shown = f"{middle:,.0f}" if middle >= 100 else f"{middle:.2f}"
            parts += [
                f'<rect class="bar{ours}" x="{LEFT}" y="{top}" width="{middle * scale:.1f}" height="{ROW - 5}"/>',
                f'<path class="range" d="M{LEFT + low * scale:.1f} {top + 6.5}H{LEFT + high * scale:.1f}"/>',
                f'<text x="{LEFT + high * scale + 5:.1f}" y="{top + 11}">{shown}</text>',
            ]
    return "\n".join([*parts, "</g>"])


if __name__ == "__main__":
    sys.stdout.write(drawing(figures(sys.stdin)))
