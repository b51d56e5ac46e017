"""The throughput bench's table and plot, from given results."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.throughput import PLOTTED, TESTS, plot, table

RESULTS = {
    ("no tunnel", "TCP, one stream"): [26000.0],
    ("calnet", "TCP, one stream"): [2100.0, 2500.0, 2000.0],
    ("fastd", "TCP, one stream"): [600.0],
    ("calnet", "CPU"): [5.0],
    ("calnet", "ping p50"): [0.7],
}


def test_plot_has_what_was_measured_without_the_bare_wire() -> None:
    text = "".join(ElementTree.fromstring(plot(RESULTS, ["no tunnel", "calnet", "fastd"])).itertext())
    assert "TCP, one stream, Mbit/s" in text
    assert "CPU, s/GB (less is better)" in text
    assert "2,100" in text
    assert "no tunnel" not in text
    assert "ping" not in text


def test_plot_of_nothing_is_nothing() -> None:
    assert not plot({}, ["calnet"])


def test_plotted_are_tests() -> None:
    assert set(PLOTTED) <= {test.name for test in TESTS}


def test_table_has_medians_with_their_range_under_its_title() -> None:
    lines = table(RESULTS, ["calnet", "fastd"], quick=True, title="3 rounds").splitlines()
    assert lines[0] == "| 3 rounds | calnet | fastd |"
    assert "| TCP, one stream, Mbit/s | 2,100 (2,000-2,500) | 600 |" in lines
