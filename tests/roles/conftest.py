"""The built file, once for all tests that run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """calnet.pyz, built from this checkout by this Python."""
    path = tmp_path_factory.mktemp("built") / "calnet.pyz"
    done = subprocess.run([sys.executable, str(ROOT / "build_zipapp.py"), "--output", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path
