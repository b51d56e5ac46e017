"""From the registry's futures to the event loop's."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def durable(change: Future[T]) -> T:
    """The result of a change once it is durable. Who stops waiting does not undo it: the change goes on."""
    waiting = asyncio.wrap_future(change)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(waiting)
