"""What a store in one file does before its documents are rewritten: keep a whole copy beside it, named by what it holds, and never over an older one."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

from calnet import files


def rewrite_with_copy(path: Path, label: str, copy: Callable[[Path, int], None], write: Callable[[], None]) -> str:
    """Engine.rewrite for the store at `path`: `copy(path, descriptor)` fills a file that is there, empty, under a name that only whole copies lose. Where
    `write` fails, what was there still stands, and the copy goes."""
    fresh = path.with_name(f"{path.name}.copying")
    files.remove_private(fresh)
    descriptor = files.open_private(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        copy(fresh, descriptor)
        os.fsync(descriptor)
    except BaseException:
        files.remove_private(fresh)
        raise
    finally:
        os.close(descriptor)
    kept = free_name(f"{path.name}.{label}", lambda name: path.with_name(name).exists())
    files.rename_private(fresh, path.with_name(kept))
    try:
        write()
    except BaseException:
        files.remove_private(path.with_name(kept))
        raise
    return str(path.with_name(kept))


def free_name(wanted: str, taken: Callable[[str], bool]) -> str:
    """`wanted`, or with the first number behind it that is not taken."""
    return next(name for number in count(1) if not taken(name := wanted if number == 1 else f"{wanted}_{number}"))
