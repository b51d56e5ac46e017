"""What each verb of `admin` asks of the REST API: the operation's name, and its requests."""

from __future__ import annotations

import os
import sys

from calnet.errors import CalnetError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from calnet.roles.cli.api import Api

    Verb = Callable[[Api, Namespace], object]

MAX_POLICY = 512 * 1024
"""Characters of a policy, as the server takes them."""


def _policy_text(path: str) -> str:
    """The policy file's text, whole; `-` is stdin."""
    try:
        if path == "-":
            text = sys.stdin.read(MAX_POLICY + 1)
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read(MAX_POLICY + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > MAX_POLICY:
        raise UsageError(f"{'stdin' if path == '-' else path} is too long for a policy: at most {MAX_POLICY} characters")
    return text


def _create_key(api: Api, args: Namespace) -> object:
    return api.create_key(user=args.user, reusable=args.reusable, ephemeral=args.ephemeral, expires_s=args.expires, tags=args.tag or [])


def _create_token(api: Api, args: Namespace) -> object:
    return api.create_token(name=args.name, user=args.user, scopes=args.scope or [], expires_s=args.expires)


def _set_settings(api: Api, args: Namespace) -> object:
    wishes: dict[str, object] = {}
    for word in args.values:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r}: write NAME=VALUE, as `settings show` has them")
        wishes[name] = _setting_value(name, text)
    return api.send("PATCH", "/settings", wishes)


def _setting_value(name: str, text: str) -> object:
    """Seconds where the name ends in `_s`, else yes or no, as `settings show` writes it, or true or false."""
    if not name.endswith("_s"):
        try:
            return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
        except KeyError:
            raise UsageError(f"{name}={text}: write yes or no (names that end in _s take a time, such as 90d); `settings show` has all there are") from None
    from calnet.roles.cli.values import duration

    try:
        return duration(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _list_audit(api: Api, args: Namespace) -> object:
    if args.follow:
        return _follow(api, args)
    return api.list_audit(limit=args.limit, actor=args.actor, action=args.action)


def _follow(api: Api, args: Namespace) -> object:
    from calnet.roles.cli.admin_commands import followed

    followed(api, args)
    return None


def _backup(api: Api, args: Namespace) -> object:
    data = api.raw("POST", "/local/backup")
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


def _restore(api: Api, args: Namespace) -> object:
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("restore replaces all that the server holds: say so with --yes")
        print("This replaces all that the server holds. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CalnetError("nothing was changed")
    return _take_in(api, args, "/local/restore")


def _take_in(api: Api, args: Namespace, path: str) -> object:
    import json

    try:
        with open(args.file, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"{args.file} can't be read: {error.strerror or error}") from None
    return json.loads(api.raw("POST", path, data))


def _node_routes(api: Api, args: Namespace) -> object:
    return api.list_routes() if args.node is None else api.node_routes(args.node)


def _approve_routes(api: Api, args: Namespace) -> object:
    """Also says which of them hold addresses of other nodes' routes: that may be meant, and shows nowhere else."""
    from calnet.roles.cli.node_commands import tell

    node = api.approve_routes(args.node, routes=args.routes)
    for row in api.node_routes(args.node):
        for other in row["overlaps"] if row["route"] in args.routes else ():
            tell({"say": f"{row['route']} overlaps {other['route']} of {other['name']}: where both hold an address, the longer prefix wins"})
    return node


ARCHIVES = frozenset(("backup", "export", "restore", "import"))
"""What can be done to a store without its server."""
VERBS: dict[str, Verb] = {
    "users.create": lambda api, args: api.create_user(name=args.name, role=args.role),
    "users.list": lambda api, _: api.list_users(),
    "users.rename": lambda api, args: api.update_user(args.user, name=args.name),
    "users.role": lambda api, args: api.update_user(args.user, role=args.role),
    "users.suspend": lambda api, args: api.update_user(args.user, suspended=True),
    "users.resume": lambda api, args: api.update_user(args.user, suspended=False),
    "users.delete": lambda api, args: api.delete_user(args.user),
    "keys.create": _create_key,
    "keys.list": lambda api, _: api.list_keys(),
    "keys.revoke": lambda api, args: api.revoke_key(args.id),
    "nodes.list": lambda api, _: api.list_nodes(),
    "nodes.show": lambda api, args: api.show_node(args.node),
    "nodes.rename": lambda api, args: api.update_node(args.node, name=args.name),
    "nodes.tag": lambda api, args: api.update_node(args.node, tags=args.tags),
    "nodes.approve": lambda api, args: api.approve_node(args.code_or_node, user=args.user),
    "nodes.disable": lambda api, args: api.disable_node(args.node),
    "nodes.enable": lambda api, args: api.enable_node(args.node),
    "nodes.expire": lambda api, args: api.expire_node(args.node),
    "nodes.delete": lambda api, args: api.delete_node(args.node),
    "nodes.routes.list": _node_routes,
    "nodes.routes.approve": _approve_routes,
    "nodes.routes.revoke": lambda api, args: api.revoke_routes(args.node, routes=args.routes),
    "policy.show": lambda api, _: api.show_policy(),
    "policy.set": lambda api, args: api.set_policy(text=_policy_text(args.file), etag=args.etag),
    "policy.check": lambda api, args: api.check_policy(text=_policy_text(args.file)),
    "policy.test": lambda api, args: api.test_policy(text=None if args.file is None else _policy_text(args.file)),
    "policy.diff": lambda api, args: api.diff_policy(text=_policy_text(args.file)),
    "policy.reset": lambda api, _: api.reset_policy(),
    "tokens.create": _create_token,
    "tokens.list": lambda api, _: api.list_tokens(),
    "tokens.revoke": lambda api, args: api.revoke_token(args.id),
    "sessions.list": lambda api, _: api.list_sessions(),
    "sessions.end": lambda api, args: api.end_session(args.id),
    "settings.show": lambda api, _: api.show_settings(),
    "settings.set": _set_settings,
    "relays.list": lambda api, _: api.list_relays(),
    "audit.list": _list_audit,
    "audit.at": lambda api, args: api.audit_at(time=args.time),
    "events.follow": _follow,
    "backup": _backup,
    "export": _backup,
    "restore": _restore,
    "import": lambda api, args: _take_in(api, args, "/local/import"),
}
