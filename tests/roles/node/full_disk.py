"""Use up a file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def fill_up(path: Path) -> None:
    """Write `path` until no space is left on its file system."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)
