"""Tasks that end together."""

from __future__ import annotations

import asyncio

import pytest

from calnet.errors import UnreachableError
from calnet.roles.node.together import together


async def _fails(failure: BaseException) -> None:
    await asyncio.sleep(0)
    raise failure


async def _stays(ended: list[str], name: str = "stayed") -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append(name)


def test_together_one_fails_ends_the_others_and_raises_it() -> None:
    ended: list[str] = []
    with pytest.raises(UnreachableError, match="gone"):
        asyncio.run(together(_stays(ended, "one"), _fails(UnreachableError("gone")), _stays(ended, "two")))
    assert sorted(ended) == ["one", "two"]


def test_together_failure_leaves_the_caller_uncancelled() -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(UnreachableError):
                await together(_stays([]), _fails(UnreachableError("gone")))
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()

    asyncio.run(main())


def test_together_caller_cancelled_ends_all_and_is_cancelled() -> None:
    async def main() -> None:
        ended: list[str] = []
        caller = asyncio.create_task(together(_stays(ended), _stays(ended)))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert len(ended) == 2

    asyncio.run(main())


def test_together_failure_beside_a_cancel_does_not_lose_the_cancel() -> None:
    async def main() -> None:
        caller = asyncio.create_task(together(_stays([]), _fails(UnreachableError("gone"))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(main())


def test_together_defect_comes_before_an_expected_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(together(_fails(UnreachableError("gone")), _fails(ZeroDivisionError())))


def test_together_all_done_returns() -> None:
    asyncio.run(together(asyncio.sleep(0), asyncio.sleep(0)))
