"""The daemon's tasks by name, one of a name at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from calnet.roles.node.notices import Notices

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
