"""The daemon's tasks: what a defect does to them."""

from __future__ import annotations

import asyncio

import pytest

from calnet.roles.node import tasks
from calnet.roles.node.notices import Notices
from calnet.roles.node.tasks import Tasks
from tests.roles.node.fakes import until


def test_kept_task_is_begun_anew_after_a_defect(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tasks, "backoff", lambda attempt, fraction: 0.01 * attempt)

    async def main() -> None:
        notices, begun, ended = Notices(lambda: 0.0), list[int](), list[int]()
        kept = Tasks(notices)

        async def work() -> None:
            begun.append(1)
            if len(begun) < 3:
                raise ValueError("a defect")
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        kept.keep("work", work)
        await until(lambda: len(begun) == 3)
        assert ["work" in finding.text for finding in notices.findings()] == [True]
        kept.cancel("work")
        await until(lambda: ended == [1])
        assert len(begun) == 3

    asyncio.run(main())
    assert caplog.text.count("task_failed task=work error=ValueError") == 2


def test_spawned_task_that_ends_by_a_defect_is_told_and_stays_ended() -> None:
    async def main() -> None:
        notices = Notices(lambda: 0.0)

        async def work() -> None:
            raise ValueError("a defect")

        Tasks(notices).spawn("once", work())
        await until(lambda: "internal" in notices)

    asyncio.run(main())
