"""The admin socket: every operation through the real socket, and what wrong arguments are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from calnet.errors import CalnetError, ConflictError, NotFoundError, UsageError
from calnet.roles.cli.client import request
from calnet.wire import control
from tests.roles.server.client import Machine
from tests.roles.server.world import World, in_world


async def ask(world: World, op: str, **args: object) -> Any:
    path = str(world.server.settings.state_dir / "admin.sock")
    return await asyncio.to_thread(request, path, op, args)


@in_world
async def test_users_are_made_listed_renamed_and_deleted(world: World) -> None:
    assert [user["name"] for user in await ask(world, "users.list")] == ["admin"]
    assert (await ask(world, "users.create", name="ann"))["name"] == "ann"
    with pytest.raises(ConflictError):
        await ask(world, "users.create", name="ann")
    await ask(world, "users.rename", user="ann", name="anna")
    await ask(world, "users.delete", user="anna")
    assert [user["name"] for user in await ask(world, "users.list")] == ["admin"]


@in_world
async def test_keys_are_made_listed_and_revoked(world: World) -> None:
    made = await ask(world, "keys.create", reusable=True, ephemeral=True, expires_s=60, tags=["tag:x"])
    assert made["key"].startswith("calnet-")
    (row,) = await ask(world, "keys.list")
    assert (row["id"], row["reusable"], row["ephemeral"], row["tags"], row["valid"]) == (made["id"], True, True, ["tag:x"], True)
    assert made["key"] not in str(row)
    await ask(world, "keys.revoke", id=made["id"])
    async with world.control(Machine()) as session:
        assert isinstance(await session.register(made["key"]), control.Refused)


@in_world
async def test_nodes_are_shown_renamed_tagged_expired_and_deleted(world: World) -> None:
    await world.joined("alice")
    assert [node["name"] for node in await ask(world, "nodes.list")] == ["alice"]
    await ask(world, "nodes.rename", node="alice", name="bob")
    await ask(world, "nodes.tag", node="bob", tags=["tag:web"])
    assert (await ask(world, "nodes.show", node="bob"))["tags"] == ["tag:web"]
    await ask(world, "nodes.disable", node="bob")
    assert (await ask(world, "nodes.show", node="bob"))["disabled"]
    await ask(world, "nodes.enable", node="bob")
    await ask(world, "nodes.expire", node="bob")
    assert (await ask(world, "nodes.show", node="bob"))["state"] == "expired"
    await ask(world, "nodes.delete", node="bob")
    with pytest.raises(NotFoundError):
        await ask(world, "nodes.show", node="bob")


@in_world
async def test_pending_node_is_approved_by_its_code(world: World) -> None:
    async with world.control(Machine("alice")) as session:
        answer = await session.register()
        assert isinstance(answer, control.State)
        assert (await ask(world, "nodes.approve", code_or_node=answer.code, user="admin"))["name"] == "alice"


@in_world
async def test_routes_are_listed_approved_and_revoked(world: World) -> None:
    async with world.control(Machine("alice")) as session:
        await session.register(await world.auth_key(), routes=("192.168.7.0/24",))
    assert [row["approved"] for row in await ask(world, "nodes.routes.list")] == [False]
    await ask(world, "nodes.routes.approve", node="alice", routes=["192.168.7.0/24"])
    assert [row["approved"] for row in await ask(world, "nodes.routes.list", node="alice")] == [True]
    await ask(world, "nodes.routes.revoke", node="alice", routes=["192.168.7.0/24"])
    assert [row["approved"] for row in await ask(world, "nodes.routes.list")] == [False]


@in_world
async def test_policy_in_force_is_shown(world: World) -> None:
    assert await ask(world, "policy.show")


@in_world
async def test_wrong_operations_and_arguments_are_usage_errors(world: World) -> None:
    wrong: list[tuple[str, dict[str, object]]] = [
        ("nothing.such", {}),
        ("users.create", {}),
        ("users.create", {"name": 7}),
        ("users.create", {"name": ""}),
        ("keys.create", {"reusable": "yes"}),
        ("keys.create", {"expires_s": "soon"}),
        ("keys.create", {"expires_s": -1}),
        ("keys.create", {"expires_s": True}),
        ("keys.create", {"tags": "tag:x"}),
        ("keys.create", {"tags": [1]}),
        ("keys.create", {"user": 3}),
        ("nodes.show", {"node": None}),
    ]
    for op, args in wrong:
        with pytest.raises(UsageError):
            await ask(world, op, **args)
    with pytest.raises(CalnetError):
        await ask(world, "nodes.routes.list", node="nobody")
