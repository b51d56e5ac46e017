"""Each attack on the list has at least one test under its number."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

SURVIVED = [*range(1, 11), *range(12, 38), *range(40, 44)]
"""1-10 the tunnel, 12 the host, 13-19 discovery, STUN and relay, 20-27 registration and life cycle, 28-37 REST and sign-in, 40-43 the local host. The rest
comes with exit nodes and the web UI."""


@functools.cache
def numbers() -> set[int]:
    found: set[int] = set()
    for file in sorted(Path(__file__).parent.parent.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (match := re.match(r"test_attack_(\d\d)_", node.name)):
                found.add(int(match[1]))
    return found


@pytest.mark.parametrize("number", SURVIVED)
def test_attack_on_the_list_has_a_test(number: int) -> None:
    assert number in numbers()
