"""How the daemon logs: one line an event to stderr, `level event key=value …`, nothing in it that could move a terminal or forge a line."""

from __future__ import annotations

import logging
import sys
from collections import deque
from datetime import UTC, datetime
from typing import Final

from calnet.roles.node.escape import shown

RECENT_LINES: Final = 400
LINE_LIMIT = 2000
"""Characters of a line without a traceback."""


class SafeFormatter(logging.Formatter):
    """Escapes what is not printable in the whole message; a traceback follows only at debug level, each of its lines escaped too."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(levelname)s %(message)s")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname.lower()} {shown(record.getMessage(), LINE_LIMIT)}"
        if self._tracebacks and record.exc_info:
            line += "\n" + "\n".join(shown(part, LINE_LIMIT) for part in self.formatException(record.exc_info).splitlines())
        return line


class _Recent(logging.Handler):
    """Keeps the last lines, for `bugreport`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=RECENT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{datetime.fromtimestamp(record.created, UTC).isoformat(timespec='milliseconds')} {self.format(record)}")


_RECENT: Final = _Recent()
_RECENT.setFormatter(SafeFormatter(tracebacks=True))


def recent() -> tuple[str, ...]:
    """The last lines that were logged, with their times."""
    return tuple(_RECENT.lines)


def set_up(*, debug: bool) -> None:
    """Log to stderr: what a person acts on, or with `debug` everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter(tracebacks=debug))
    root = logging.getLogger()
    root.handlers[:] = [handler, _RECENT]
    root.setLevel(logging.WARNING)
    logging.getLogger("calnet").setLevel(logging.DEBUG if debug else logging.INFO)
