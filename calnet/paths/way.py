"""What the user wants of the path to a peer."""

from __future__ import annotations

import enum


class Way(enum.Enum):
    """The best path (`auto`), the relay alone, or never the relay."""

    AUTO = "auto"
    RELAY = "relay"
    DIRECT = "direct"
