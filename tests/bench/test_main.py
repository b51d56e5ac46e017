"""What `--write` makes of a document: figures between the markers, the plot beside it, the rest as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import BEGIN, BENCHES, END, with_figures, write
from bench.table import Found, Row

ROW = Row("a figure", "2", "≤ 4", 0.5, at_most=True)


def test_write_puts_tables_plot_and_rows_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "figures.md"
    document.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
    write(document, [Found([ROW]), Found([ROW], "| a table |", "<svg/>")])
    text = document.read_text()
    assert text.startswith(f"# Before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count("| a figure | 2 | ≤ 4 | 0.50 | met |") == 2
    assert text.index("| a table |") < text.index("](figures.svg)") < text.index("| a figure |")
    assert (tmp_path / "figures.svg").read_text() == "<svg/>"


def test_write_without_a_plot_leaves_none(tmp_path: Path) -> None:
    document = tmp_path / "figures.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    write(document, [Found([ROW])])
    assert "svg" not in document.read_text()
    assert list(tmp_path.iterdir()) == [document]


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        with_figures("nothing", "figures")


@pytest.mark.parametrize("name", BENCHES)
def test_each_bench_is_there(name: str) -> None:
    assert (Path(__file__).parents[2] / "bench" / f"{name}.py").is_file()
