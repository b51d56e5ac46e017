"""The admin socket's operations: the nouns and verbs of `calnet admin`, each one call of the registry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from calnet.errors import UsageError
from calnet.roles.server.durable import durable
from calnet.roles.server.registry import Registry

Arguments = dict[str, object]
_FOR_EVER_S: Final = 1e15
"""More than anything may last, and still a float: JSON's whole numbers know no bound."""

Operation = Callable[[Registry, Arguments], Awaitable[object]]


class Request(Protocol):
    """What is needed of a local request."""

    @property
    def op(self) -> str: ...
    @property
    def args(self) -> Arguments: ...


class AdminHandler:
    """Handles the requests of admin.sock. Who can open the socket may do everything."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, request: Request) -> object:
        """The operation's result; UsageError for an unknown one and for wrong arguments, RefusedError where the registry refuses."""
        operation = OPERATIONS.get(request.op)
        if operation is None:
            raise UsageError(f"unknown operation {request.op[:64]!r}: is this command newer than the server?")
        return await operation(self._registry, request.args)


def _text(args: Arguments, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is missing")
    return value


def _maybe(args: Arguments, name: str) -> str | None:
    return None if args.get(name) in (None, "") else _text(args, name)


def _flag(args: Arguments, name: str) -> bool:
    value = args.get(name, False)
    if not isinstance(value, bool | None):
        raise UsageError(f"{name} is yes or no")
    return bool(value)


def _texts(args: Arguments, name: str) -> tuple[str, ...]:
    value = args.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{name} is a list of words")
    return tuple(value)


def _seconds(args: Arguments, name: str, default: float) -> float:
    value = args.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{name} is a number of seconds above 0")
    return float(min(value, _FOR_EVER_S))


async def _users_create(registry: Registry, args: Arguments) -> object:
    return await durable(registry.create_user(_text(args, "name")))


async def _users_list(registry: Registry, _: Arguments) -> object:
    return registry.users()


async def _users_rename(registry: Registry, args: Arguments) -> object:
    return await durable(registry.rename_user(_text(args, "user"), _text(args, "name")))


async def _users_delete(registry: Registry, args: Arguments) -> object:
    await durable(registry.delete_user(_text(args, "user")))
    return {}


async def _keys_create(registry: Registry, args: Arguments) -> object:
    made = registry.create_key(
        user=_maybe(args, "user"),
        reusable=_flag(args, "reusable"),
        ephemeral=_flag(args, "ephemeral"),
        expires_s=_seconds(args, "expires_s", 86_400.0),
        tags=_texts(args, "tags"),
    )
    return await durable(made)


async def _keys_list(registry: Registry, _: Arguments) -> object:
    return registry.keys()


async def _keys_revoke(registry: Registry, args: Arguments) -> object:
    await durable(registry.revoke_key(_text(args, "id")))
    return {}


async def _nodes_list(registry: Registry, _: Arguments) -> object:
    return registry.nodes()


async def _nodes_show(registry: Registry, args: Arguments) -> object:
    return registry.node(_text(args, "node"))


async def _nodes_rename(registry: Registry, args: Arguments) -> object:
    return await durable(registry.rename_node(_text(args, "node"), _text(args, "name")))


async def _nodes_tag(registry: Registry, args: Arguments) -> object:
    return await durable(registry.tag_node(_text(args, "node"), _texts(args, "tags")))


async def _nodes_approve(registry: Registry, args: Arguments) -> object:
    return await durable(registry.approve_node(_text(args, "code_or_node"), _maybe(args, "user")))


async def _nodes_disable(registry: Registry, args: Arguments) -> object:
    return await durable(registry.disable_node(_text(args, "node")))


async def _nodes_enable(registry: Registry, args: Arguments) -> object:
    return await durable(registry.enable_node(_text(args, "node")))


async def _nodes_expire(registry: Registry, args: Arguments) -> object:
    return await durable(registry.expire_node(_text(args, "node")))


async def _nodes_delete(registry: Registry, args: Arguments) -> object:
    await durable(registry.delete_node(_text(args, "node")))
    return {}


async def _routes_list(registry: Registry, args: Arguments) -> object:
    return registry.routes(_maybe(args, "node"))


async def _routes_approve(registry: Registry, args: Arguments) -> object:
    return await durable(registry.approve_routes(_text(args, "node"), _texts(args, "routes")))


async def _routes_revoke(registry: Registry, args: Arguments) -> object:
    return await durable(registry.revoke_routes(_text(args, "node"), _texts(args, "routes")))


async def _policy_show(registry: Registry, _: Arguments) -> object:
    return registry.policy()


OPERATIONS: dict[str, Operation] = {
    "users.create": _users_create,
    "users.list": _users_list,
    "users.rename": _users_rename,
    "users.delete": _users_delete,
    "keys.create": _keys_create,
    "keys.list": _keys_list,
    "keys.revoke": _keys_revoke,
    "nodes.list": _nodes_list,
    "nodes.show": _nodes_show,
    "nodes.rename": _nodes_rename,
    "nodes.tag": _nodes_tag,
    "nodes.approve": _nodes_approve,
    "nodes.disable": _nodes_disable,
    "nodes.enable": _nodes_enable,
    "nodes.expire": _nodes_expire,
    "nodes.delete": _nodes_delete,
    "nodes.routes.list": _routes_list,
    "nodes.routes.approve": _routes_approve,
    "nodes.routes.revoke": _routes_revoke,
    "policy.show": _policy_show,
}
