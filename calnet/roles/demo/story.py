"""What a person sees of the demo: one line a step as it happens, a spinner while it waits, plain text where it isn't a terminal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, TextIO, TypeVar

from calnet.errors import TimedOutError

Value = TypeVar("Value")

_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAME_S: Final = 0.08
_POLL_S: Final = 0.02


class Story:
    """Lines of the form `  1.2 s  what       text`, to one stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = time.monotonic()
        self._tty = stream.isatty()
        self._frames = itertools.cycle(_SPINNER)
        self._drawn_at = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    def title(self, text: str) -> None:
        self._write(self._styled("1", text) + "\n\n")

    def picture(self, text: str) -> None:
        self._write(self._styled("2", text) + "\n\n")

    def tell(self, what: str, text: str, *, good: bool = True) -> None:
        """One step that is done."""
        self._clear()
        mark = self._styled("32", "✓") if good else self._styled("31", "✗")
        self._write(f"{mark} {self._styled('2', f'{self.elapsed_s:5.1f} s')}  {self._styled('1', f'{what:<11}')} {text}\n")

    def note(self, text: str) -> None:
        """A line beside the steps."""
        self._clear()
        self._write(text + "\n")

    def waiting(self, text: str) -> None:
        """Show that something is awaited (on a terminal alone); call it again and again."""
        if self._tty and time.monotonic() - self._drawn_at >= _FRAME_S:
            self._drawn_at = time.monotonic()
            self._write(f"\r\x1b[K{next(self._frames)} {self._styled('2', f'{self.elapsed_s:5.1f} s  {text} …')}")

    def until(self, condition: Callable[[], Value], within: float, text: str) -> Value:
        """The first true value of `condition`, shown as waiting meanwhile; TimedOutError after `within` seconds."""
        deadline = time.monotonic() + within
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimedOutError(f"{text}: not within {within:g} s")
            self.waiting(text)
            time.sleep(_POLL_S)
        return value

    def _clear(self) -> None:
        if self._tty:
            self._write("\r\x1b[K")

    def _styled(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._tty else text

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
