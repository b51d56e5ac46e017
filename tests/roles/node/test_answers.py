"""Answers that somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from calnet.errors import UnreachableError
from calnet.roles.node.answers import Answers


def play(script: Callable[[Answers[str]], Awaitable[None]]) -> None:
    async def run() -> None:
        await script(Answers[str](asyncio.get_running_loop()))

    asyncio.run(run())


def test_answer_that_comes_before_anybody_waits_is_kept_for_who_asked() -> None:
    async def script(answers: Answers[str]) -> None:
        answers.expect(1)
        answers.expect(2)
        answers.came(2, "two")
        answers.came(2, "two again")
        answers.came(3, "nobody asked")
        asyncio.get_running_loop().call_later(0.01, answers.came, 1, "one")
        assert [await answers.within(token, 20.0) for token in (2, 1)] == ["two", "one"]

    play(script)


def test_late_answer_is_a_timeout_and_counts_for_nothing() -> None:
    async def script(answers: Answers[str]) -> None:
        answers.expect(1)
        with pytest.raises(TimeoutError):
            await answers.within(1, 0.01)
        answers.came(1, "late")

    play(script)


def test_who_waits_at_the_end_is_told() -> None:
    async def script(answers: Answers[str]) -> None:
        answers.expect(1)
        asyncio.get_running_loop().call_soon(answers.end)
        with pytest.raises(UnreachableError, match="went down"):
            await answers.within(1, 20.0)

    play(script)
