"""The daemon's tasks by name, one of a name at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from calnet.roles.node.notices import Notices
from calnet.roles.node.underlay import STABLE_S, backoff

log = logging.getLogger(__name__)


class Tasks:
    """A task that ends by a defect is logged, and becomes a health line."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; a task that has this name yet is cancelled."""
        self.cancel(name)
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))

    def keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work()` until it returns or is cancelled; what ends by a defect is begun anew, after a pause that grows while it comes to nothing."""
        self.spawn(name, self._kept(name, work))

    async def _kept(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        attempt, loop = 0, asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                return await work()
            except Exception as error:
                log.error("task_failed task=%s error=%r", name, error, exc_info=error)
                self._notices.set("internal", f"an internal task ({name}) was begun anew after a defect: please report it with the daemon's log")
            attempt = 0 if loop.time() - started > STABLE_S else attempt + 1
            await asyncio.sleep(backoff(attempt, 1.0))

    def cancel(self, name: str) -> None:
        """Cancel the task with this name, if there is one."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> list[asyncio.Task[None]]:
        """Cancel all; they are returned, as they may take a moment to end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return tasks

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed task=%s error=%r", name, error, exc_info=error)
            self._notices.set("internal", f"an internal task ({name}) ended by a defect: restart the daemon, and see its log")
