"""Names: what people and nodes may be called, and what a node is called when nobody chose.

DNS labels (RFC 1123 section 2.1), but never all digits: those are ids.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from calnet.errors import InvalidError

MAX_LABEL: Final = 63
MAX_TAGS: Final = 32
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TAG: Final = re.compile(r"tag:[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")


def check_name(text: str) -> str:
    """`text` in lower case; InvalidError unless it is a DNS label and not a number."""
    name = text.lower()
    if not _LABEL.fullmatch(name) or name.isdigit():
        raise InvalidError(f"{text!r} is no name: use 1 to 63 letters, digits and hyphens, not a hyphen at an end, not digits alone")
    return name


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The tags in order, each once; InvalidError unless each is `tag:` and a DNS label."""
    if len(tags) > MAX_TAGS:
        raise InvalidError(f"at most {MAX_TAGS} tags")
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise InvalidError(f"{tag!r} is no tag: write tag:NAME with lower-case letters, digits and hyphens")
    return tuple(sorted(set(tags)))


def name_from_hostname(hostname: str) -> str:
    """The DNS label nearest to a host name: its first part, lower case, other characters made hyphens; `node` where nothing is left."""
    first = hostname.strip().lower().partition(".")[0]
    label = re.sub(r"[^a-z0-9]+", "-", first).strip("-")[:MAX_LABEL].strip("-")
    if not label:
        return "node"
    return f"node-{label}"[:MAX_LABEL].strip("-") if label.isdigit() else label


def free_name(base: str, taken: Container[str]) -> str:
    """`base`, or the first of `base-1`, `base-2`, … that is not taken, cut to 63 characters."""
    name, number = base, 0
    while name in taken:
        number += 1
        suffix = f"-{number}"
        name = base[: MAX_LABEL - len(suffix)].rstrip("-") + suffix
    return name


def printable(text: str, limit: int = 255) -> str:
    """What a node says of itself, fit for terminals and logs: without control characters, line breaks and escapes, at most `limit` characters."""
    return "".join(letter for letter in text if letter.isprintable())[:limit].strip()
