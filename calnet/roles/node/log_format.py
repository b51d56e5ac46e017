"""How the daemon logs: one line an event to stderr, `level event key=value …`, nothing in it that could move a terminal or forge a line."""

from __future__ import annotations

import logging
import sys

from calnet.roles.node.escape import shown

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


def set_up(*, debug: bool) -> None:
    """Log to stderr: what a person acts on, or with `debug` everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter(tracebacks=debug))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("calnet").setLevel(logging.DEBUG if debug else logging.INFO)
