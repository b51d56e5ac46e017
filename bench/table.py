"""The Markdown table that every bench ends with: what was measured, against what it should be, as a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is measured / target (None: no ratio); `at_most` says on which side of 1 it should be."""

    what: str
    measured: str
    target: str
    ratio: float | None
    at_most: bool

    @property
    def met(self) -> bool:
        """Without a ratio, `at_most` itself is the verdict."""
        if self.ratio is None:
            return self.at_most
        return self.ratio <= 1.0 if self.at_most else self.ratio >= 1.0


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| what | measured | target | measured / target | |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.what} | {r.measured} | {r.target} | {'' if r.ratio is None else f'{r.ratio:.2f}'} | {'met' if r.met else 'missed'} |" for r in rows]
    return "\n".join(lines)


def print_table(rows: Sequence[Row]) -> None:
    print("\n" + markdown(rows), flush=True)
