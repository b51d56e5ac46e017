"""Times as people and programs read them."""

from __future__ import annotations

from datetime import UTC, datetime

from calnet.errors import InvalidError


def time_text(at: float | None) -> str | None:
    """RFC 3339 in UTC with whole seconds."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")[:-6] + "Z"


def exact_time_text(at: float) -> str:
    """RFC 3339 in UTC with milliseconds: `parse_time` of it gives back a time that has no more of them."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time or a date (its midnight, UTC); InvalidError for anything else."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"{text!r} is no time: write it like 2026-01-31T12:00:00Z, or 2026-01-31") from error
