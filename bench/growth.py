"""How the control plane grows with the number of nodes, as a plot: python -m bench.growth < JSON-LINES > docs/scale.svg, the lines those of bench.control."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from bench.plot import drawing

WIDTH, HEIGHT, LEFT, TOP = 250, 170, 46, 34
COLUMNS = 3
PLOTS = (
    ("registrations", "registrations a second", 150.0),
    ("session_kb", "KB for each control session", 60.0),
    ("relay_kb", "KB with an idle relay connection", 100.0),
    ("change_p50_ms", "ms until a change is everywhere, p50", 500.0),
    ("change_p99_ms", "ms until a change is everywhere, p99", 1500.0),
    ("policy_ms", "ms until another policy is everywhere", 1000.0),
    ("restart_s", "s until all are settled after a restart", 30.0),
    ("list_ms", "ms for a list of (up to 1,000) nodes", 50.0),
)


def figures(lines: Iterable[str]) -> list[dict[str, float]]:
    """The control bench's figures among these lines, smallest network first."""
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return sorted((row for row in rows if row.get("bench") == "control"), key=lambda row: row["nodes"])


def growth(rows: Sequence[dict[str, float]]) -> str:
    """All plots in one SVG: a line of what was measured, a dashed one for what it must keep to."""
    return drawing([_panel(rows, name, title, bound) for name, title, bound in PLOTS], (WIDTH, HEIGHT), COLUMNS)


def _panel(rows: Sequence[dict[str, float]], name: str, title: str, bound: float) -> str:
    right, bottom = WIDTH - 16, HEIGHT - 30
    most_nodes, most = rows[-1]["nodes"], 1.1 * max(bound, *(row[name] for row in rows))
    points = [(LEFT + (right - LEFT) * row["nodes"] / most_nodes, bottom - (bottom - TOP) * row[name] / most) for row in rows]
    at = bottom - (bottom - TOP) * bound / most
    parts = [
        f'<text x="{LEFT}" y="{TOP - 14}">{title}</text>',
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
        f'<path class="bound" d="M{LEFT} {at:.1f}H{right}"/><text x="{LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{bound:.0f}</text>',
        f'<path class="line" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="point"/>' for x, y in points),
        *(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{row["nodes"]:.0f}</text>' for (x, _), row in zip(points, rows, strict=True)),
        f'<text x="{points[-1][0]:.1f}" y="{points[-1][1] - 7:.1f}" text-anchor="end">{rows[-1][name]:.0f}</text>',
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(growth(figures(sys.stdin)))
