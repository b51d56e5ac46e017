"""Answers that somebody waits for, by the token of what was asked."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from calnet.errors import UnreachableError

Answer = TypeVar("Answer")


class Answers(Generic[Answer]):
    """See the module. `expect` comes before what was asked is sent: the answer may be there at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    def expect(self, token: int) -> None:
        """Somebody will wait for this answer, by `within`."""
        self._waiting[token] = self._loop.create_future()

    async def within(self, token: int, timeout_s: float) -> Answer:
        """The answer that was expected. TimeoutError where none comes in time, UnreachableError where `end` comes first."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._waiting[token]
        finally:
            del self._waiting[token]

    def came(self, token: int, answer: Answer) -> None:
        """An answer; nobody may wait for it any more."""
        waiting = self._waiting.get(token)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def end(self) -> None:
        """None will come any more."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(UnreachableError("the node went down before an answer came"))
