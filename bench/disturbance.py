"""Whether something else is at work on this machine: other processes before a measurement, and the host of a virtual machine (steal) during one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

QUIET_BUSY: Final = 0.15
"""Part of all cores that may be busy before a measurement begins…"""
SAMPLE_S: Final = 0.25
SETTLE_S: Final = 5.0
"""…and how long it waits for that."""
STOLEN: Final = 0.05
"""Part of all cores that the host may take away during a measurement before it counts as disturbed."""


def _ticks() -> tuple[int, int, int]:
    """(all, idle, stolen) clock ticks of all cores so far (proc(5))."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4], fields[7]


def settle() -> None:
    """Wait until the cores are idle, for a while at most."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        before = _ticks()
        time.sleep(SAMPLE_S)
        after = _ticks()
        total = after[0] - before[0]
        if total and 1 - (after[1] - before[1]) / total <= QUIET_BUSY:
            return


class Watch:
    """A measurement, as a context; afterwards `disturbed` says whether the host took much of the cores' time."""

    def __enter__(self) -> Watch:
        self._before = _ticks()
        self.disturbed = False
        return self

    def __exit__(self, *_: object) -> None:
        after = _ticks()
        total = after[0] - self._before[0]
        self.disturbed = total > 0 and (after[2] - self._before[2]) / total > STOLEN
