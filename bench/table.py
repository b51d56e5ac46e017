"""The Markdown table that every bench ends with: what was measured, against what it should be, as a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is measured / target (None: told for comparison, no target); `at_most` says on which side of 1 it should be."""

    what: str
    measured: str
    target: str
    ratio: float | None
    at_most: bool

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where there is no target."""
        if self.ratio is None:
            return ""
        return "met" if (self.ratio <= 1.0 if self.at_most else self.ratio >= 1.0) else "missed"


@dataclass(frozen=True, slots=True)
class Found:
    """What a bench brings home: its rows, and perhaps a table of everything in Markdown, and a plot in SVG."""

    rows: Sequence[Row]
    table: str = ""
    plot: str = ""


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| what | measured | target | measured / target | |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.what} | {r.measured} | {r.target} | {'' if r.ratio is None else f'{r.ratio:.2f}'} | {r.verdict} |" for r in rows]
    return "\n".join(lines)


def print_table(rows: Sequence[Row]) -> None:
    print("\n" + markdown(rows), flush=True)
