"""What plots share: panels side by side, and colours that can be told from the paper under both schemes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench.plot import DARK, LIGHT, drawing

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_colours_stand_out_from_the_paper(scheme: dict[str, str]) -> None:
    assert contrast(scheme["text"], scheme["paper"]) >= 7
    assert contrast(scheme["ours"], scheme["paper"]) >= 4.5
    assert contrast(scheme["bound"], scheme["paper"]) >= 4.5
    assert min(contrast(scheme[name], scheme["paper"]) for name in ("axis", "theirs")) >= 2


@pytest.mark.parametrize(
    ("count", "size", "last"), [(1, (100, 50), "translate(0 0)"), (3, (200, 100), "translate(0 50)"), (4, (200, 100), "translate(100 50)")]
)
def test_drawing_places_panels_row_by_row_on_its_own_paper(count: int, size: tuple[int, int], last: str) -> None:
    root = ElementTree.fromstring(drawing(["<text>one</text>"] * count, (100, 50), 2))
    paper = root.find(f"{SVG}rect")
    assert paper is not None
    assert (paper.get("width"), paper.get("height")) == (str(size[0]), str(size[1]))
    panels = root.findall(f"{SVG}g")
    assert len(panels) == count
    assert panels[-1].get("transform") == last
