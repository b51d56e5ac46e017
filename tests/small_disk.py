"""A file system of two MiB that fills up, for tests of what happens then."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted_small_disk(parent: Path) -> Iterator[Path]:
    """An empty 2 MiB tmpfs under `parent`, or a skip with the reason."""
    path = parent / "small-disk"
    path.mkdir(0o700)
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "calnet-test", str(path)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no tmpfs here: {made.stderr.decode(errors='replace').strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
