"""Third parties' test vectors, which stay outside the repository: $CALNET_VECTORS, else `shared/vectors` beside the repository's root.

A missing file skips the test with the reason, or fails it where CALNET_REQUIRE_VECTORS=1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "vectors"


def folder() -> Path:
    """Where the vectors are looked for."""
    return Path(os.environ.get("CALNET_VECTORS") or _BESIDE)


def load(name: str) -> Any:
    """The vectors in `name` (such as `wycheproof/x25519_test.json`): parsed JSON for `.json`, else the file's text."""
    path = folder() / name
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        reason = f"no test vectors at {path}: {error.strerror}"
        if os.environ.get("CALNET_REQUIRE_VECTORS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return json.loads(text) if path.suffix == ".json" else text


def records(text: str) -> list[dict[str, str]]:
    """The records of a NIST-style file: `NAME = value` lines, blank lines between, `#` for comments; names in upper case."""
    found: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        if fields:
            found.append({name.strip().upper(): value.strip() for name, value in fields.items()})
    return found


def value(text: str) -> bytes:
    """The bytes of such a field: hexadecimal, or quoted text."""
    return text[1:-1].encode() if text.startswith('"') else bytes.fromhex(text)
