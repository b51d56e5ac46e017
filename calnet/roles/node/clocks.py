"""The clocks of a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clocks:
    """`wall` is this machine's Unix time; `awake` a clock that stands still while it sleeps, `elapsed` one that goes on."""

    wall: Callable[[], float]
    awake: Callable[[], float]
    elapsed: Callable[[], float]
