"""Fixtures for every part: `small_disk`, a file system of two MiB that fills up (needs root for the tmpfs)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty 2 MiB file system, or a skip with the reason."""
    path = tmp_path / "small-disk"
    path.mkdir(0o700)
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "calnet-test", str(path)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no tmpfs here: {made.stderr.decode(errors='replace').strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)
