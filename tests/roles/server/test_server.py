"""The composed server: what time brings, what a reload changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import uvloop

from calnet.model import NodeId
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.standing import NodeState
from calnet.roles.server.timing import Timing
from calnet.wire import control
from tests.roles.server.client import Machine
from tests.roles.server.world import World, eventually, in_world, running


class Clock:
    """The time now, and what was added."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def test_server_when_a_key_expires_tells_the_node_and_its_peers(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, timing=Timing(housekeeping_s=0.05), clock=clock) as world:
            key = await world.auth_key()
            async with world.control(Machine("alice")) as alice:
                node = await alice.join(key)
                clock.ahead = 170 * 86_400.0
                async with world.control(Machine("bob")) as bob:
                    await bob.join(await world.auth_key())
                    clock.ahead = 181 * 86_400.0
                    assert (await alice.expect(control.State)).state == "expired"
                    await alice.closed()
                    await bob.until(lambda netmap: all(peer.id != node for peer in netmap.peers))

    uvloop.run(scenario())


@in_world
async def test_ephemeral_node_that_logs_out_is_forgotten(world: World) -> None:
    async with world.control(Machine("alice")) as session:
        node = await session.join(await world.auth_key(ephemeral=True))
        await session.request(control.Logout)
        await session.closed()
    await eventually(lambda: world.registry.standing_of(NodeId(node)).state is NodeState.UNREGISTERED)


@in_world
async def test_reload_with_another_url_tells_every_node(world: World) -> None:
    async with world.control(Machine("alice")) as session:
        await session.join(await world.auth_key())
        left = world.server.reload(replace(world.server.settings, url=PublicUrl("https", "new.example.org"), store="sqlite"))
        assert left == ("store",)
        await session.until(lambda netmap: netmap.relays[0].url == "wss://new.example.org/relay")


@in_world
async def test_stopped_server_ends_every_session_with_a_reason(world: World) -> None:
    (relayed,) = await world.joined("relayed")
    async with world.control(Machine("alice")) as session, world.relay(relayed.node) as relay:
        await session.join(await world.auth_key())
        started = time.monotonic()
        stopping = asyncio.create_task(world.server.stop())
        assert (await session.expect(control.Bye)).code == "shutdown"
        assert await relay.closed() is not None
        await stopping
        assert time.monotonic() - started < 5
