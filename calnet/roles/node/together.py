"""The tasks of one connection: they run together, and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from calnet.errors import CalnetError


async def together(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until one of them fails or the caller is cancelled, end the others, and raise that failure or the cancel.

    Of several failures one that is no CalnetError is raised, as it is a defect.

    In place of asyncio.TaskGroup, which cancels its caller to wake it: a cancel of the caller's own can be lost in that, and the caller's task stays
    marked as being cancelled (`cancelling()` is not 0), with which each later asyncio.timeout of Python 3.11.2, Debian 12's, ends the task.
    """
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    failures = [failure for task in tasks if not task.cancelled() and (failure := task.exception()) is not None]
    if failures:
        raise next((failure for failure in failures if not isinstance(failure, CalnetError)), failures[0])
