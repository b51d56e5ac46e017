"""What each verb of `admin` asks of the REST API: the operation's name, and its requests."""

from __future__ import annotations

import os
import sys

from calnet.errors import CalnetError, UsageError
from calnet.roles.cli.rest import Rest, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    Verb = Callable[[Rest, Namespace], object]

MAX_POLICY = 512 * 1024


def _given(args: Namespace, *names: str) -> dict[str, object]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _policy_text(path: str) -> str:
    """The policy file's text; `-` is stdin."""
    try:
        if path == "-":
            return sys.stdin.read(MAX_POLICY)
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_POLICY)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None


def _node(args: Namespace, verb: str = "") -> str:
    return f"/nodes/{quoted(args.node)}{verb}"


def _create_key(rest: Rest, args: Namespace) -> object:
    body = _given(args, "user") | {"reusable": args.reusable, "ephemeral": args.ephemeral, "expires_s": args.expires, "tags": args.tag or []}
    return rest.send("POST", "/keys", body)


def _create_token(rest: Rest, args: Namespace) -> object:
    return rest.send("POST", "/tokens", _given(args, "user") | {"name": args.name, "scopes": args.scope or [], "expires_s": args.expires})


def _set_settings(rest: Rest, args: Namespace) -> object:
    wishes: dict[str, object] = {}
    for word in args.values:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r}: write NAME=VALUE, as `settings show` has them")
        wishes[name] = _setting_value(name, text)
    return rest.send("PATCH", "/settings", wishes)


def _setting_value(name: str, text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        if name.endswith("_s"):
            from calnet.roles.cli.values import duration

            try:
                return duration(text)
            except ValueError as error:
                raise UsageError(str(error)) from None
        return text


def _list_audit(rest: Rest, args: Namespace) -> object:
    if args.follow:
        return _follow(rest, args)
    page = rest.get("/audit", limit=args.limit, actor=args.actor, action=args.action)
    return page.get("items")


def _follow(rest: Rest, args: Namespace) -> object:
    from calnet.roles.cli.admin_commands import followed

    followed(rest, args)
    return None


def _backup(rest: Rest, args: Namespace) -> object:
    data = rest.raw("POST", "/local/backup")
    _write_private(args.file, data)
    print(f"{args.file}: {len(data)} bytes; it holds the server's keys, so keep it where only you can read it", file=sys.stderr)
    return {"file": args.file, "bytes": len(data)}


def _write_private(path: str, data: bytes) -> None:
    """0600, whole or not at all, and never through a symbolic link."""
    fresh = f"{path}.{os.getpid()}.new"
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
    except OSError as error:
        raise CalnetError(f"{path} can't be written: {error.strerror or error}") from None


def _restore(rest: Rest, args: Namespace) -> object:
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("restore replaces all that the server holds: say so with --yes")
        print("This replaces all that the server holds. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CalnetError("nothing was changed")
    return _take_in(rest, args, "/local/restore")


def _take_in(rest: Rest, args: Namespace, path: str) -> object:
    import json

    try:
        with open(args.file, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"{args.file} can't be read: {error.strerror or error}") from None
    return json.loads(rest.raw("POST", path, data))


VERBS: dict[str, Verb] = {
    "users.create": lambda rest, args: rest.send("POST", "/users", {"name": args.name} | _given(args, "role")),
    "users.list": lambda rest, _: rest.list("/users"),
    "users.rename": lambda rest, args: rest.send("PATCH", f"/users/{quoted(args.user)}", {"name": args.name}),
    "users.role": lambda rest, args: rest.send("PATCH", f"/users/{quoted(args.user)}", {"role": args.role}),
    "users.suspend": lambda rest, args: rest.send("PATCH", f"/users/{quoted(args.user)}", {"suspended": True}),
    "users.resume": lambda rest, args: rest.send("PATCH", f"/users/{quoted(args.user)}", {"suspended": False}),
    "users.delete": lambda rest, args: rest.send("DELETE", f"/users/{quoted(args.user)}"),
    "keys.create": _create_key,
    "keys.list": lambda rest, _: rest.list("/keys"),
    "keys.revoke": lambda rest, args: rest.send("DELETE", f"/keys/{quoted(args.id)}"),
    "nodes.list": lambda rest, _: rest.list("/nodes"),
    "nodes.show": lambda rest, args: rest.get(_node(args)),
    "nodes.rename": lambda rest, args: rest.send("PATCH", _node(args), {"name": args.name}),
    "nodes.tag": lambda rest, args: rest.send("PATCH", _node(args), {"tags": args.tags}),
    "nodes.approve": lambda rest, args: rest.send("POST", f"/nodes/{quoted(args.code_or_node)}/approve", _given(args, "user")),
    "nodes.disable": lambda rest, args: rest.send("POST", _node(args, "/disable")),
    "nodes.enable": lambda rest, args: rest.send("POST", _node(args, "/enable")),
    "nodes.expire": lambda rest, args: rest.send("POST", _node(args, "/expire")),
    "nodes.delete": lambda rest, args: rest.send("DELETE", _node(args)),
    "nodes.routes.list": lambda rest, args: rest.list("/routes" if args.node is None else _node(args, "/routes")),
    "nodes.routes.approve": lambda rest, args: rest.send("POST", _node(args, "/routes/approve"), {"routes": args.routes}),
    "nodes.routes.revoke": lambda rest, args: rest.send("POST", _node(args, "/routes/revoke"), {"routes": args.routes}),
    "policy.show": lambda rest, _: rest.get("/policy"),
    "policy.set": lambda rest, args: rest.send("PUT", "/policy", {"text": _policy_text(args.file)}, etag=args.etag),
    "policy.check": lambda rest, args: rest.send("POST", "/policy/check", {"text": _policy_text(args.file)}),
    "policy.test": lambda rest, args: rest.send("POST", "/policy/test", {} if args.file is None else {"text": _policy_text(args.file)}),
    "policy.diff": lambda rest, args: rest.send("POST", "/policy/diff", {"text": _policy_text(args.file)}),
    "policy.reset": lambda rest, _: rest.send("DELETE", "/policy"),
    "tokens.create": _create_token,
    "tokens.list": lambda rest, _: rest.list("/tokens"),
    "tokens.revoke": lambda rest, args: rest.send("DELETE", f"/tokens/{quoted(args.id)}"),
    "sessions.list": lambda rest, _: rest.list("/sessions"),
    "sessions.end": lambda rest, args: rest.send("DELETE", f"/sessions/{quoted(args.id)}"),
    "settings.show": lambda rest, _: rest.get("/settings"),
    "settings.set": _set_settings,
    "relays.list": lambda rest, _: rest.list("/relays"),
    "audit.list": _list_audit,
    "audit.at": lambda rest, args: rest.get("/audit/at", time=args.time),
    "events.follow": _follow,
    "backup": _backup,
    "export": _backup,
    "restore": _restore,
    "import": lambda rest, args: _take_in(rest, args, "/local/import"),
}
