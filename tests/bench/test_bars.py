"""Bars: as long as the median, with a line over the range, nothing outside the panel."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench.bars import LEFT, WIDTH, Panel, bars

SVG = "{http://www.w3.org/2000/svg}"


def panel(*results: tuple[str, list[float]]) -> ElementTree.Element:
    found = ElementTree.fromstring(bars([Panel("a test", results)])).find(f"{SVG}g")
    assert found is not None
    return found


def test_bars_are_as_long_as_the_medians_and_say_them() -> None:
    drawn = panel(("calnet", [300.0, 100.0, 200.0]), ("fastd", [50.0]))
    long, short = (float(bar.get("width", "0")) for bar in drawn.findall(f"{SVG}rect"))
    assert long == pytest.approx(4 * short, abs=0.2)
    assert [bar.get("class") for bar in drawn.findall(f"{SVG}rect")] == ["ours", "theirs"]
    assert [text.text for text in drawn.findall(f"{SVG}text")] == ["a test", "calnet", "200", "fastd", "50.0"]


def test_bars_show_a_range_where_there_were_several_rounds() -> None:
    drawn = panel(("calnet", [300.0, 100.0]), ("fastd", [50.0]), ("tinc", [7.0, 7.0]))
    (line,) = (path.get("d", "") for path in drawn.findall(f"{SVG}path") if path.get("class") == "range")
    low, high = float(line[1:].split()[0]), float(line.partition("H")[2].partition("m")[0])
    assert (low - LEFT) * 3 == pytest.approx(high - LEFT, abs=0.2)
    assert high < WIDTH - 40  # the figure stands behind it


def test_bars_of_zeros_are_drawn() -> None:
    assert panel(("calnet", [0.0])).find(f"{SVG}rect") is not None
