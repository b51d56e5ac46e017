"""Text from others, made harmless for a terminal and a log line."""

from __future__ import annotations


def shown(text: str, limit: int = 200) -> str:
    """`text` with what is not printable (CR, LF, ANSI escapes, bidirectional marks) written as backslash escapes, cut at `limit` characters."""
    safe = "".join(character if character.isprintable() and character != "\\" else character.encode("unicode_escape").decode() for character in text[:limit])
    return safe + ("…" if len(text) > limit else "")
