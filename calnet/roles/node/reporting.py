"""The node's health, told to its server, so that who manages the network sees what a user of `status` on that machine would."""

from __future__ import annotations

import asyncio
from typing import Final

from calnet.roles.node.daemon import Daemon
from calnet.roles.node.overview import health_lines
from calnet.wire.control import HealthLine

INTERVAL_S: Final = 20.0
MAX_LINES: Final = 32


async def report_health(daemon: Daemon) -> None:
    """Tell the server each time the lines are others, and once a session."""
    told: tuple[object, tuple[HealthLine, ...]] | None = None
    while True:
        await asyncio.sleep(INTERVAL_S)
        client = daemon.control.client
        if client is None or not client.connected or daemon.engine is None:
            continue
        lines = tuple(HealthLine(line.code[:40], line.severity[:20], line.text[:400]) for line in (await health_lines(daemon))[:MAX_LINES])
        session = client.session
        if (lines or told is not None) and told != (session, lines):
            client.health(lines)
            told = (session, lines)
