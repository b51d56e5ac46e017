"""`admin`: one request to the server's admin socket, and its answer as a table, facts, or JSON."""

from __future__ import annotations

import os

from calnet.errors import NotPermittedError, UnreachableError
from calnet.roles.cli import client, show
from calnet.roles.cli.node_commands import print_json, print_lines, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

TIMEOUT_S = 60.0
COLUMNS = {
    "users.list": ("id", "name", "role", "created"),
    "keys.list": ("id", "user", "tags", "reusable", "ephemeral", "expires", "used", "valid"),
    "nodes.list": ("id", "name", "user", "tags", "addresses", "state", "online", "last_seen", "code"),
    "nodes.routes.list": ("node", "name", "route", "advertised", "approved"),
}
ARGUMENTS = ("name", "user", "id", "node", "code_or_node", "tags", "routes", "reusable", "ephemeral")


def admin(args: Namespace) -> int:
    """Any noun and verb. `args.op` names the operation."""
    result = _ask(args.socket or os.path.join(args.state_dir, "admin.sock"), args.op, arguments(args))
    if args.json:
        print_json(result)
    elif args.op == "keys.create":
        print(show.clean(show.mapping(result).get("key", "")))
    elif args.op == "policy.show":
        print_lines([show.clean(line) for line in str(show.mapping(result).get("text", result)).splitlines()])
    else:
        print_lines(_lines(args.op, result))
    if args.op == "nodes.routes.approve":
        _tell_of_unadvertised(args.routes, show.mapping(result))
    return 0


def _tell_of_unadvertised(routes: list[str], node: show.Json) -> None:
    """An approved route has no effect until its node advertises just that one: a slip in its length shows nowhere else."""
    advertised = show.mapping(node.get("routes")).get("advertised")
    for route in routes:
        if isinstance(advertised, list) and route not in advertised:
            tell({"say": f"{route} is approved, but {show.cell(node.get('name'))} does not advertise it; it does: {show.cell(advertised)}"})


def arguments(args: Namespace) -> show.Json:
    """The operation's arguments out of the flags: those that the verb has and that were given."""
    given = vars(args)
    words = {name: given[name] for name in ARGUMENTS if given.get(name) is not None}
    if "expires" in given:
        words["expires_s"] = given["expires"]
    if given.get("tag"):
        words["tags"] = given["tag"]
    return words


def _ask(path: str, op: str, words: show.Json) -> object:
    try:
        return client.request(path, op, words, on_event=tell, timeout_s=TIMEOUT_S, who="the Calnet server")
    except client.NobodyThereError as error:
        if os.geteuid() != 0 and not os.access(path, os.R_OK | os.W_OK) and _hidden(path):
            raise NotPermittedError(f"{path} can be opened by root or the server's user alone: try it with sudo") from None
        raise UnreachableError(f"{error}; is it running on this machine? (calnet.pyz install server; another state directory: --state-dir)") from None


def _hidden(path: str) -> bool:
    """Whether this user may not even look whether `path` is there, or may not open it."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _lines(op: str, result: object) -> list[str]:
    if isinstance(result, list):
        rows = show.listing(result)
        return show.table(rows, COLUMNS.get(op) or tuple(rows[0]) if rows else COLUMNS.get(op, ("id",)))
    return show.facts(show.mapping(result))
