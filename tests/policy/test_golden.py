"""Each policy in golden/ makes of the nodes what stands beside it, or is refused for what stands beside it."""

from __future__ import annotations

import json

import pytest

from tests.policy.golden_files import GOLDEN, render

NAMES = sorted(path.stem for path in GOLDEN.glob("*.hujson"))


@pytest.mark.parametrize("name", NAMES)
def test_golden_policy_gives_what_stands_beside_it(name: str) -> None:
    assert render((GOLDEN / f"{name}.hujson").read_text()) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_golden_files_are_complete() -> None:
    assert len(NAMES) > 10
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*NAMES, "nodes"}
    assert all(name.startswith("refused-") == ("problems" in json.loads((GOLDEN / f"{name}.json").read_text())) for name in NAMES)
