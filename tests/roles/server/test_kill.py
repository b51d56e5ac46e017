"""A server killed by SIGKILL while keys are made and nodes register through it: whatever it had acknowledged, to whomever, is there after its restart.

CALNET_KILLS says how often on each kind of store: a fifth of it, and 3 times without (tests/store/test_kill.py kills a store's own writer as often as it says).
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from websockets.exceptions import WebSocketException

from calnet.errors import CalnetError
from calnet.roles.cli.rest import Rest
from calnet.wire import control
from tests.postgres import Cluster, cluster
from tests.roles.server.client import ControlClient, Machine
from tests.roles.server.processes import ServerProcess, server_process

KILLS = max(3, int(os.environ.get("CALNET_KILLS", "5")) // 5)
WORKERS = 4
LONGEST_COMMIT_S = 0.02
"""The kill falls anywhere in what the server does within so long after an acknowledgement."""

pytestmark = pytest.mark.timeout(120 + 15 * KILLS)


@dataclass
class Told:
    """What the servers acknowledged: key ids, the node that each of them made, by name."""

    keys: set[str] = field(default_factory=set)
    nodes: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    tried: int = 0

    def __len__(self) -> int:
        return len(self.keys) + len(self.nodes)


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


@pytest.fixture(params=["kv", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "postgresql":
        return name
    server: Cluster = request.getfixturevalue("database")
    return server.create("killed")


def test_killed_server_has_after_its_restart_every_key_and_node_that_it_acknowledged(store: str, tmp_path: Path) -> None:
    random, told = Random(9), Told()
    for _ in range(KILLS):
        with server_process(tmp_path / "state", store) as server:
            check_whole(rest_of(server), told)
            asyncio.run(killed_at_work(server, told, random))
    with server_process(tmp_path / "state", store) as server:
        check_whole(rest_of(server), told)


def rest_of(server: ServerProcess) -> Rest:
    return Rest(socket_path=str(server.state / "admin.sock"))


async def killed_at_work(server: ServerProcess, told: Told, random: Random) -> None:
    """Kill the server some moment after it acknowledged so many more keys and nodes to the workers that keep it busy."""
    enough = len(told) + random.randrange(1, 20)
    workers = [asyncio.create_task(make_keys_and_nodes(server, told)) for _ in range(WORKERS)]
    while len(told) < enough:
        assert not all(worker.done() for worker in workers), "nobody is served"
        await asyncio.sleep(0.001)
    await asyncio.sleep(random.uniform(0, LONGEST_COMMIT_S))
    server.process.kill()
    await asyncio.gather(*workers)


async def make_keys_and_nodes(server: ServerProcess, told: Told) -> None:
    """A one-time key, and a node by it, again and again until the server is gone. What it acknowledged counts, even where its answer is read after its end."""
    rest = rest_of(server)
    try:
        while True:
            told.tried += 1
            machine = Machine(f"machine-{told.tried}")
            key: dict[str, Any] = await asyncio.to_thread(rest.send, "POST", "/keys", {})
            if not key:  # its end came between the answer's head and its body, which acknowledges nothing
                break
            told.keys.add(key["id"])
            async with ControlClient(server.url, base64.b64decode(server.control_key), machine) as session:
                answer = await session.register(key["key"])
                assert isinstance(answer, control.Registered), answer
                told.nodes[machine.hostname] = answer.node
                told.used.add(key["id"])
    except (CalnetError, OSError, EOFError, WebSocketException):
        pass
    assert server.process.wait(10) == -signal.SIGKILL


def check_whole(rest: Rest, told: Told) -> None:
    """All that was acknowledged is there, each node with its audit record and its key used up; and nothing that nobody asked for."""
    keys = {row["id"]: row for row in rest.list("/keys")}
    nodes = {row["name"]: row for row in rest.list("/nodes")}
    assert told.keys <= keys.keys()
    assert told.nodes.items() <= {name: row["id"] for name, row in nodes.items()}.items()
    assert all(keys[key]["used"] for key in told.used)
    assert sum(row["used"] is not None for row in keys.values()) == len(nodes)
    made = [row["action"] for row in rest.list("/audit")]
    assert (made.count("nodes.register"), made.count("keys.create")) == (len(nodes), len(keys))
    assert len(nodes) <= len(keys) <= told.tried
    assert len({address for row in nodes.values() for address in row["addresses"]}) == 2 * len(nodes)
