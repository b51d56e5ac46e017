"""Times as people and programs read them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from calnet.errors import InvalidError


@lru_cache(maxsize=32_768)
def time_text(at: float | None) -> str | None:
    """RFC 3339 in UTC with whole seconds. Kept, as lists of nodes say the same again and again."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")[:-6] + "Z"


def exact_time_text(at: float) -> str:
    """RFC 3339 in UTC with milliseconds: `parse_time` of it gives back a time that has no more of them."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time or a date (its midnight, UTC); InvalidError for anything else, and for what is outside the years 1 to 9999 in UTC."""
    try:
        found = datetime.fromisoformat(text)
        at = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
        datetime.fromtimestamp(at, UTC)  # what can't be written again is none: another day in UTC may be outside the calendar
        return at
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidError(f"{text!r} is no time: write it like 2026-01-31T12:00:00Z, or 2026-01-31") from error
