"""What the daemon has to tell its user: lines that hold until taken back, and events that stay on view for a day. Pure but for the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from calnet.roles.node.escape import shown
from calnet.roles.node.routes import Finding

log = logging.getLogger(__name__)

NOTICE_S: Final = 86_400.0


class Notices:
    """See the module's docstring. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._standing: dict[str, str] = {}
        self._events: dict[tuple[str, object], tuple[float, Finding]] = {}

    def __contains__(self, code: str) -> bool:
        """Whether a line with this code stands."""
        return code in self._standing

    def set(self, code: str, text: str | None) -> None:
        """A line by its code; None takes it back. A new text is logged once."""
        if text is None:
            self._standing.pop(code, None)
        elif self._standing.get(code) != text:
            log.warning("health code=%s text=%s", code, shown(text, 400))
            self._standing[code] = text

    def event(self, about: object, finding: Finding) -> None:
        """Something that happened; a later one with the same code about the same replaces it."""
        self._events[(finding.code, about)] = (self._clock() + NOTICE_S, finding)

    def clear(self) -> None:
        """Take all standing lines back; events stay."""
        self._standing.clear()

    def findings(self) -> list[Finding]:
        """All that is to be told now."""
        now = self._clock()
        self._events = {key: entry for key, entry in self._events.items() if entry[0] > now}
        return [*(finding for _, finding in self._events.values()), *(Finding(code, text) for code, text in self._standing.items())]
