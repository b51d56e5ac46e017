"""The netmap on disk: written after each change, never back once forgotten, and said when it can't be written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from calnet.errors import StateError
from calnet.model import Endpoint, NodeId
from calnet.roles.node import netmap_keeper
from calnet.roles.node.netmap_keeper import NetmapKeeper
from calnet.roles.node.state import StateDirectory
from tests.roles.node.fakes import a_netmap, until


def keeping(path: Path, script: Callable[[StateDirectory, NetmapKeeper, list[str | None]], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netmap_keeper, "PAUSE_S", 0.0)

    async def main() -> None:
        directory = StateDirectory(path / "state", Random(1).randbytes)
        said: list[str | None] = []
        keeper = NetmapKeeper(directory, said.append)
        task = asyncio.create_task(keeper.run())
        try:
            async with asyncio.timeout(20):
                await script(directory, keeper, said)
        finally:
            task.cancel()
            directory.close()

    asyncio.run(main())


def test_keeper_writes_the_last_netmap_with_what_worked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(directory: StateDirectory, keeper: NetmapKeeper, said: list[str | None]) -> None:
        keeper.keep(a_netmap(1))
        keeper.keep(a_netmap(2))
        keeper.worked(NodeId(2), Endpoint("192.0.2.9", 9))
        await until(lambda: directory.load_netmap()[0] is not None)
        stored = directory.load_netmap()[0]
        assert stored is not None
        assert stored.version == 2
        assert stored.peers[0].endpoints == (Endpoint("192.0.2.9", 9),)

    keeping(tmp_path, script, monkeypatch)


def test_keeper_forgetting_during_a_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(directory: StateDirectory, keeper: NetmapKeeper, said: list[str | None]) -> None:
        for version in range(1, 30):
            keeper.keep(a_netmap(version))
            await asyncio.sleep(0)
            keeper.forget()
            assert directory.load_netmap() == (None, None)
        keeper.write_now()
        assert directory.load_netmap() == (None, None)

    keeping(tmp_path, script, monkeypatch)


def test_keeper_that_can_not_write_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(directory: StateDirectory, keeper: NetmapKeeper, said: list[str | None]) -> None:
        def full(netmap: object) -> None:
            raise StateError("no space left on that disk")

        with monkeypatch.context() as patched:
            patched.setattr(directory, "save_netmap", full)
            keeper.keep(a_netmap(1))
            await until(lambda: said == ["no space left on that disk"])
        keeper.keep(a_netmap(2))
        await until(lambda: said[-1] is None)
        stored = directory.load_netmap()[0]
        assert stored is not None
        assert stored.version == 2

    keeping(tmp_path, script, monkeypatch)


def test_keeper_ended_before_its_thread_began_has_the_netmap_written_by_write_now(tmp_path: Path) -> None:
    async def main() -> None:
        directory, blocked = StateDirectory(tmp_path / "state", Random(1).randbytes), threading.Event()
        keeper = NetmapKeeper(directory, lambda text: None)
        workers = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(workers)
        workers.submit(blocked.wait)
        task = asyncio.create_task(keeper.run())
        keeper.keep(a_netmap(1))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        keeper.write_now()
        stored = directory.load_netmap()[0]
        blocked.set()
        directory.close()
        assert stored is not None
        assert stored.version == 1

    asyncio.run(main())
