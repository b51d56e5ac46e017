"""The plot of the control plane's growth: its input, and that it is sound SVG with every figure in it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from bench.control import TARGETS
from bench.growth import PLOTS, figures, growth

SVG = "{http://www.w3.org/2000/svg}"


def line(nodes: int, **changes: float) -> str:
    return json.dumps({"bench": "control", "nodes": nodes} | dict.fromkeys(TARGETS, nodes / 10) | changes)


def test_figures_are_the_control_benchs_smallest_first() -> None:
    lines = [line(500), '{"bench": "other", "nodes": 1}', "| a table |", "", line(100)]
    assert [row["nodes"] for row in figures(lines)] == [100, 500]


def test_each_target_has_its_plot() -> None:
    assert {(name, bound) for name, _, bound in PLOTS} == set(TARGETS.items())


@pytest.mark.parametrize("sizes", [(250,), (250, 500, 1000, 2000)])
def test_growth_is_svg_with_a_point_for_each_figure_inside_its_panel(sizes: tuple[int, ...]) -> None:
    root = ElementTree.fromstring(growth(figures(line(size) for size in sizes)))
    panels = root.findall(f"{SVG}g")
    assert len(panels) == len(PLOTS)
    for panel in panels:
        points = panel.findall(f"{SVG}circle")
        assert len(points) == len(sizes)
        assert all(0 <= float(point.get("cx", "-1")) <= 250 and 0 <= float(point.get("cy", "-1")) <= 170 for point in points)
        heights = [float(point.get("cy", "0")) for point in points]
        assert heights == sorted(heights, reverse=True)  # more is higher
