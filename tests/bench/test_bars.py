"""The plot of the throughput bench."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from bench.bars import drawing, figures


def line(contender: str, rate: float) -> str:
    return json.dumps({"bench": "throughput", "round": 0, "contender": contender, "TCP, one stream": rate, "ping p50": 1.0})


def test_each_tunnel_has_a_bar_as_long_as_its_median_in_each_panel() -> None:
    rounds = [line("calnet", rate) for rate in (300.0, 100.0, 200.0)]
    found = figures(["# throughput\n", line("no tunnel", 9000.0), *rounds, line("other", 50.0), json.dumps({"bench": "exact"})])
    assert found["calnet", "TCP, one stream"] == [300.0, 100.0, 200.0]
    root = ElementTree.fromstring(drawing(found))
    panels = root.findall("{*}g")
    assert [panel.find("{*}text").text for panel in panels] == ["TCP, one stream, Mbit/s", "ping p50, ms"]  # type: ignore[union-attr]
    ours, other = panels[0].findall("{*}rect")
    assert ours.get("class") == "bar ours"
    assert float(ours.get("width", "0")) == pytest.approx(4 * float(other.get("width", "0")), abs=0.5)
    assert [text.text for text in panels[0].findall("{*}text")][1:] == ["calnet", "200", "other", "50.00"]
