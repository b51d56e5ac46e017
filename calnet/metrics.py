"""The server's figures in Prometheus's text format (version 0.0.4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    """One family: its values by labels."""

    name: str
    kind: str
    help: str
    values: Mapping[tuple[tuple[str, str], ...], float]


def single(name: str, kind: str, text: str, value: float) -> Metric:
    """A family of one value without labels."""
    return Metric(name, kind, text, {(): value})


def rendered(metrics: Iterable[Metric]) -> str:
    """The exposition of these families."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.values.items():
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{metric.name}{f'{{{shown}}}' if shown else ''} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
