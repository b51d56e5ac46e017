"""Two servers, each a process of its own, on one PostgreSQL: one network, also while one of them is killed. From the checkout, and as the one file."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import WebSocketException

from calnet.model import Endpoint, Netmap, NodeId
from calnet.wire import control
from tests.postgres import Cluster, cluster
from tests.roles.server.client import ControlClient, Machine
from tests.roles.server.processes import CHECKOUT, ServerProcess, server_process
from tests.roles.server.relay_client import RelayClient
from tests.zipapp import PYTHON, built_file

pytestmark = pytest.mark.timeout(240)
SOON_S = 30.0
Row = dict[str, Any]


@dataclass
class Office:
    """The servers that share a database, and where another would keep its state."""

    database: str
    directory: Path
    stack: ExitStack
    one: ServerProcess
    two: ServerProcess

    def another(self) -> ServerProcess:
        return self.stack.enter_context(server_process(self.directory / f"server-{os.urandom(4).hex()}", self.database))


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Sequence[str]:
    """From the checkout, where a test asks for nothing else."""
    return (PYTHON, "-IS", str(built_file())) if getattr(request, "param", "checkout") == "one file" else CHECKOUT


@pytest.fixture
def office(database: Cluster, tmp_path: Path, program: Sequence[str]) -> Iterator[Office]:
    url = database.create(f"office{os.urandom(4).hex()}")
    with ExitStack() as stack:
        one, two = (stack.enter_context(server_process(tmp_path / name, url, program)) for name in ("one", "two"))
        yield Office(url, tmp_path, stack, one, two)


def client(server: ServerProcess, machine: Machine) -> ControlClient:
    return ControlClient(server.url, base64.b64decode(server.control_key), machine)


def relay(server: ServerProcess, machine: Machine) -> RelayClient:
    return RelayClient(server.url, base64.b64decode(server.control_key), machine.node)


async def admin(server: ServerProcess, *words: str) -> str:
    return await asyncio.to_thread(server.admin, *words)


async def nodes(server: ServerProcess) -> dict[str, Row]:
    """The server's nodes by name."""
    rows: list[Row] = json.loads(await admin(server, "nodes", "list", "--json"))
    return {row["name"]: row for row in rows}


async def comes_back(session: ControlClient) -> NodeId:
    """What a node does that lost its server: it registers as what it is, without a key, and subscribes."""
    answer = await session.register()
    assert isinstance(answer, control.Registered), answer
    await session.subscribe()
    return NodeId(answer.node)


def online(node: NodeId) -> Any:
    return lambda netmap: any(peer.id == node and peer.online for peer in netmap.peers)


async def exchange(here: RelayClient, there: RelayClient, text: bytes) -> None:
    """A datagram each way. The first ones may be lost while the servers make their way to each other."""
    for sender, receiver in ((here, there), (there, here)):
        received: list[tuple[bytes, bytes]] = []
        async with asyncio.timeout(SOON_S):
            while (sender.key, text) not in received:
                await sender.send(receiver.key, text)
                try:
                    async with asyncio.timeout(0.5):
                        received = await receiver.datagrams(1)
                except TimeoutError:
                    continue


@pytest.mark.parametrize("program", ["checkout", "one file"], indirect=True)
def test_nodes_of_two_processes_are_one_network(office: Office) -> None:
    async def scenario() -> None:
        key = await admin(office.one, "keys", "create", "--reusable")
        alice, bob = Machine("alice"), Machine("bob")
        async with client(office.one, alice) as first, client(office.two, bob) as second:
            one, two = await first.join(key), await second.join(key)
            await first.until(online(two))
            await second.until(online(one))
            for server in (office.one, office.two):
                seen = await nodes(server)
                assert {name: row["online"] for name, row in seen.items()} == {"alice": True, "bob": True}
                assert seen["alice"]["addresses"] != seen["bob"]["addresses"]
            for sender, receiver, ids, port in ((first, second, (one, two), 1), (second, first, (two, one), 2)):
                await sender.say(control.Publish((f"192.0.2.7:{port}",)))
                await receiver.until(lambda netmap, port=port: any(Endpoint("192.0.2.7", port) in peer.endpoints for peer in netmap.peers))
                await sender.say(control.Candidates(ids[1], (f"192.0.2.9:{port}",)))
                passed = await receiver.expect(control.Candidates)
                assert (passed.peer, passed.endpoints) == (ids[0], (f"192.0.2.9:{port}",))
            async with relay(office.one, alice) as here, relay(office.two, bob) as there:
                await exchange(here, there, b"between two processes")

    asyncio.run(scenario())


def test_what_an_admin_says_to_one_process_reaches_nodes_of_the_other(office: Office) -> None:
    async def scenario() -> None:
        key = await admin(office.one, "keys", "create", "--reusable")
        async with client(office.one, Machine("alice")) as first, client(office.two, Machine("bob")) as second:
            one, two = await first.join(key), await second.join(key)
            await second.until(online(one))
            await admin(office.one, "nodes", "rename", "alice", "anna")
            await second.until(lambda netmap: [peer.name for peer in netmap.peers] == ["anna"])
            await admin(office.two, "nodes", "disable", "anna")
            assert (await first.expect(control.Bye)).code == "disabled"
            await second.until(lambda netmap: netmap.peers == ())
            await admin(office.one, "nodes", "delete", str(two))
            assert (await second.expect(control.Bye)).code
            assert list(await nodes(office.two)) == ["anna"]
        actions = [row["action"] for row in json.loads(await admin(office.two, "audit", "list", "--json"))]
        assert {"nodes.rename", "nodes.disable", "nodes.delete"} <= set(actions)

    asyncio.run(scenario())


def test_node_of_a_killed_process_goes_on_at_the_other(office: Office) -> None:
    async def scenario() -> None:
        key = await admin(office.two, "keys", "create", "--reusable")
        alice, bob, carol = Machine("alice"), Machine("bob"), Machine("carol")
        async with client(office.one, alice) as first:
            one = await first.join(key)
            async with relay(office.one, alice) as here:
                async with client(office.two, bob) as lost:
                    two = await lost.join(key)
                    await first.until(online(two))
                    held = await lost.until(online(one))
                    async with relay(office.two, bob) as there:
                        await exchange(here, there, b"before")
                    await asyncio.to_thread(office.two.kill)
                    await lost.closed()
                async with client(office.one, bob) as again:
                    again.netmap = held
                    assert await comes_back(again) == two
                    assert same_network(again.netmap, held)
                    await first.until(online(two))
                    await first.say(control.Candidates(two, ("192.0.2.9:99",)))
                    assert (await again.expect(control.Candidates)).peer == one
                    async with relay(office.one, bob) as there:
                        await exchange(here, there, b"after")
                    await again.say(control.Publish(("192.0.2.8:5",)))
                    await first.until(lambda netmap: any(Endpoint("192.0.2.8", 5) in peer.endpoints for peer in netmap.peers))
                    await admin(office.one, "nodes", "rename", "alice", "anna")
                    await again.until(lambda netmap: [peer.name for peer in netmap.peers] == ["anna"])
                    third = await asyncio.to_thread(office.another)
                    async with client(third, carol) as newcomer:
                        number = await newcomer.join(key)
                        await again.until(online(number))
                        await newcomer.until(online(two))
        assert sorted(await nodes(third)) == ["anna", "bob", "carol"]

    asyncio.run(scenario())


def same_network(mine: Netmap | None, before: Netmap) -> bool:
    return mine is not None and (mine.self.id, mine.self.addresses) == (before.self.id, before.self.addresses)


def test_registrations_that_a_killed_process_was_at_are_made_once_and_whole_by_the_other(office: Office) -> None:
    machines = [Machine(f"machine-{number}") for number in range(12)]

    async def register(server: ServerProcess, machine: Machine, key: str) -> int | None:
        """The node; None where the server went before it answered."""
        try:
            async with client(server, machine) as session:
                answer = await session.register(key)
                return answer.node if isinstance(answer, control.Registered) else None
        except (OSError, EOFError, WebSocketException):
            return None

    async def scenario() -> None:
        keys = [await admin(office.one, "keys", "create") for _ in machines]
        tasks = [asyncio.create_task(register(office.two, machine, key)) for machine, key in zip(machines, keys, strict=True)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(office.two.kill)
        told = await asyncio.gather(*tasks)
        assert any(told)
        again = [await register(office.one, machine, key) for machine, key in zip(machines, keys, strict=True)]
        assert None not in again
        assert all(before in (None, now) for before, now in zip(told, again, strict=True))
        rows = (await nodes(office.one)).values()
        assert sorted(row["hostname"] for row in rows) == sorted(machine.hostname for machine in machines)
        assert len({tuple(row["addresses"]) for row in rows}) == len(machines)

    asyncio.run(scenario())


def test_relay_finds_a_node_that_moved_from_a_killed_process_to_a_third(office: Office) -> None:
    """The sender's server heard of the killed one first, and has not forgotten it yet."""

    async def scenario() -> None:
        key = await admin(office.one, "keys", "create", "--reusable")
        alice, bob = Machine("alice"), Machine("bob")
        third = await asyncio.to_thread(office.another)
        async with client(office.one, alice) as first:
            await first.join(key)
            async with relay(office.one, alice) as here:
                async with client(office.two, bob) as lost:
                    two = await lost.join(key)
                    await first.until(online(two))
                    async with relay(office.two, bob) as there:
                        await exchange(here, there, b"before")
                    await asyncio.to_thread(office.two.kill)
                async with client(third, bob) as again:
                    assert await comes_back(again) == two
                    async with relay(third, bob) as there:
                        await exchange(here, there, b"after")
                    assert office.two.url.removeprefix("http") in await admin(office.one, "relays", "list"), "it took until the killed one was forgotten"

    asyncio.run(scenario())
