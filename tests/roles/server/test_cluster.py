"""Two servers on one PostgreSQL: nodes of each see, find and reach the other's, and what an admin does on one holds on both."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from calnet.model import Endpoint, NodeId
from calnet.roles.server.users import UserWish
from calnet.wire import control
from tests.postgres import Cluster, cluster
from tests.roles.server.client import ControlClient, Machine
from tests.roles.server.registries import done
from tests.roles.server.relay_client import RelayClient
from tests.roles.server.running import Running, running

SOON_S = 20.0


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


@dataclass
class Pair:
    one: Running
    two: Running

    def key(self) -> str:
        return str(done(self.one.registry.create_key(reusable=True))["key"])


@pytest.fixture
def pair(database: Cluster, tmp_path: Path) -> Iterator[Pair]:
    url = database.create(f"pair{os.urandom(4).hex()}")
    with ExitStack() as stack:
        yield Pair(*(stack.enter_context(running(tmp_path / name, store=url)) for name in ("one", "two")))


async def until(holds: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < limit, f"it did not come to pass that {what}"
        await asyncio.sleep(0.02)


def online(server: Running, node: NodeId) -> bool:
    """Whether the server knows of the node, and that it is connected somewhere."""
    return any(row["id"] == node and row["online"] for row in server.registry.nodes())


def client(server: Running, machine: Machine) -> ControlClient:
    return ControlClient(server.url, server.registry.control_key.public, machine)


def test_both_servers_are_one_network_with_one_key(pair: Pair) -> None:
    assert pair.one.registry.control_key.public == pair.two.registry.control_key.public
    assert pair.one.registry.prefixes == pair.two.registry.prefixes
    done(pair.one.registry.create_user("anna"))
    limit = time.monotonic() + SOON_S
    while "anna" not in [user["name"] for user in pair.two.registry.users()]:
        assert time.monotonic() < limit
    assert [record["action"] for record in pair.two.registry.audit(newest_first=False)] == ["server.start", "users.create"]


def test_nodes_of_two_servers_see_each_other_come_publish_and_go(pair: Pair) -> None:
    async def scenario() -> None:
        alice, bob = Machine("alice"), Machine("bob")
        async with client(pair.one, alice) as first, client(pair.two, bob) as second:
            one, two = await first.join(pair.key()), await second.join(pair.key())
            await first.subscribe()
            await second.subscribe()
            await first.until(lambda netmap: any(peer.id == two and peer.online for peer in netmap.peers))
            await second.until(lambda netmap: any(peer.id == one and peer.online for peer in netmap.peers))
            await second.say(control.Publish(("192.0.2.7:1234",)))
            await first.until(lambda netmap: any(Endpoint("192.0.2.7", 1234) in peer.endpoints for peer in netmap.peers))
            await first.say(control.Candidates(two, ("192.0.2.9:99",)))
            passed = await second.expect(control.Candidates)
            assert (passed.peer, passed.endpoints) == (one, ("192.0.2.9:99",))
            await second.socket.close()
            await first.until(lambda netmap: all(not peer.online for peer in netmap.peers))

    asyncio.run(scenario())


def test_relay_carries_between_nodes_of_two_servers_and_tells_of_one_that_is_gone(pair: Pair) -> None:
    async def scenario() -> None:
        alice, bob = Machine("alice"), Machine("bob")
        async with client(pair.one, alice) as first, client(pair.two, bob) as second:
            await first.join(pair.key())
            two = await second.join(pair.key())
            await until(lambda: online(pair.one, two), "the first server knows where the second node is")
            key = pair.one.registry.control_key.public
            async with RelayClient(pair.one.url, key, alice.node) as here, RelayClient(pair.two.url, key, bob.node) as there:
                assert here.refused is None
                received: list[tuple[bytes, bytes]] = []
                while not received:
                    await here.send(there.key, b"over the mesh")
                    try:
                        async with asyncio.timeout(1.0):
                            received = await there.datagrams(1)
                    except TimeoutError:
                        continue
                assert received[0] == (here.key, b"over the mesh")
                await there.send(here.key, b"and back")
                assert (await here.datagrams(1))[0] == (there.key, b"and back")

    asyncio.run(scenario())


def test_what_an_admin_does_on_one_server_holds_on_the_other(pair: Pair) -> None:
    async def scenario() -> None:
        bob = Machine("bob")
        async with client(pair.two, bob) as session:
            node = await session.join(pair.key())
            await until(lambda: online(pair.one, node), "the other server knows the node")
            done(pair.one.registry.disable_node(str(node)))
            assert (await session.expect(control.Bye)).code == "disabled"

    asyncio.run(scenario())
    done(pair.one.registry.create_user("eve", role="admin"))
    done(pair.two.registry.update_user("eve", UserWish(suspended=True)))
    limit = time.monotonic() + SOON_S
    while not pair.one.registry.user("eve")["suspended"]:
        assert time.monotonic() < limit


def test_server_that_stops_is_forgotten_with_its_nodes(database: Cluster, tmp_path: Path) -> None:
    url = database.create("leaving")

    async def scenario(one: Running, two: Running, leave: Callable[[], None]) -> None:
        key = str(done(one.registry.create_key(reusable=True))["key"])
        async with client(two, Machine("bob")) as session:
            node: NodeId = await session.join(key)
            await until(lambda: online(one, node), "the node is seen")
            await asyncio.to_thread(leave)
        await until(lambda: not online(one, node), "its server's end is its own, until it is elsewhere")

    with running(tmp_path / "one", store=url) as one, ExitStack() as stack:
        two = stack.enter_context(running(tmp_path / "two", store=url))
        asyncio.run(scenario(one, two, stack.close))


def test_attack_16_stranger_can_not_join_the_mesh(pair: Pair) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    from calnet.crypto.keys import PrivateKey
    from calnet.roles.server.mesh import PROLOGUE
    from calnet.wire.channel import Channel

    async def scenario() -> None:
        stranger = PrivateKey.generate(os.urandom)
        channel = Channel.client(stranger, pair.one.registry.control_key.public, PrivateKey.generate(os.urandom), PROLOGUE)
        async with connect(pair.one.url.replace("http", "ws", 1) + "/relay/mesh", proxy=None) as socket:
            await socket.send(channel.opening())
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(SOON_S):
                    await socket.recv()

    asyncio.run(scenario())
