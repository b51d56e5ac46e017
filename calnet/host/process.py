"""This process, and others of the same program: how to start one, how it ends with its parent, and what it keeps to itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

import calnet
from calnet.errors import HostError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4


def self_command() -> tuple[str, ...]:
    """How to start this same program again: the archive it runs from, or the checkout's calnet.py, by this interpreter. HostError where it is neither."""
    import zipfile

    if sys.argv and zipfile.is_zipfile(sys.argv[0]):
        return (sys.executable, "-IS", os.path.abspath(sys.argv[0]))
    script = Path(calnet.__file__).resolve().parent.parent / "calnet.py"
    if not script.is_file():
        raise HostError("this runs neither from calnet.pyz nor from a checkout, so it can't start itself again; build the file with: python3 build_zipapp.py")
    return (sys.executable, str(script))


def no_core_dumps() -> None:
    """Keys must not reach a core file, nor another process of this user (PR_SET_DUMPABLE)."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with_parent() -> None:
    """The kernel kills this process when the one that started it ends. One that has ended already is not noticed."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
