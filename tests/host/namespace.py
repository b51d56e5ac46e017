"""Run a function in a network namespace of its own: a forked child that unshares, so that nothing has a name that could collide."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


def in_namespace(work: Callable[[], T]) -> T:
    """What `work` returns, run in a child in a fresh namespace with loopback up. AssertionError with the child's traceback where it fails."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        outcome: tuple[bool, object]
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            sh("ip link set lo up")
            outcome = (True, work())
        except BaseException:  # noqa: BLE001 - the child's end: whatever it was, the parent has to hear of it
            outcome = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    assert data, "the child died without a word"
    good, value = pickle.loads(data)
    assert good, value
    return value  # type: ignore[no-any-return]


def sh(command: str) -> str:
    """Run a shell command; its output. AssertionError where it fails."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
