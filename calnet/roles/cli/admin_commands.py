"""`admin` and `can`: requests to the server's REST API, and their answers as tables, short lines, or JSON."""

from __future__ import annotations

import os
import sys

from calnet.errors import CalnetError, InvalidError, NotFoundError, StateError, TimedOutError, UnreachableError, UsageError
from calnet.roles.cli import show
from calnet.roles.cli.api import Api
from calnet.roles.cli.node_commands import print_json, print_lines, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from calnet.roles.cli.api import EndRow, Verdict

COLUMNS = {
    "users.list": ("id", "name", "role", "suspended", "email", "created"),
    "keys.list": ("id", "user", "tags", "reusable", "ephemeral", "expires", "used", "valid"),
    "nodes.list": ("id", "name", "user", "tags", "addresses", "state", "online", "last_seen", "code"),
    "nodes.routes.list": ("node", "name", "route", "advertised", "approved", "primary", "online", "overlaps"),
    "tokens.list": ("id", "name", "user", "scopes", "expires", "valid"),
    "sessions.list": ("id", "user", "created", "expires", "checked"),
    "relays.list": ("url", "connected"),
}


FOLLOW_AGAIN_S = 2.0
"""Between a stream of events that ended and the next."""


def connection(args: Namespace) -> Api:
    """The server that the flags name."""
    if args.server:
        if not args.token:
            raise UsageError("--server needs --token: `calnet.pyz admin tokens create NAME` on the server makes one")
        from calnet.roles.cli.values import secret

        return Api(url=args.server, token=secret(args.token))
    if args.token:
        raise UsageError("--token needs --server: on the server's own machine the admin socket is used, without a token")
    return Api(socket_path=args.socket or os.path.join(args.state_dir, "admin.sock"))


class Offline(Api):
    """Instead of a server that does not run: archives out of its store and into it. Loads the server's packages, so only when it is needed."""

    def __init__(self, args: Namespace) -> None:
        super().__init__(socket_path=args.state_dir)
        self._args = args

    def raw(self, method: str, path: str, body: bytes = b"") -> bytes:
        """As Rest.raw, for /local."""
        import importlib
        from pathlib import Path

        args = self._args
        if args.bundle is not None:
            args.bundle.activate()
        directory = Path(args.state_dir)
        tell({"say": f"no server runs on {directory}: its store is opened here"})
        answer: bytes = importlib.import_module("calnet.roles.server.offline").answer(path, body, directory=directory, store=args.store)
        return answer


def admin(args: Namespace) -> int:
    """Any noun and verb. `args.op` names the operation."""
    from calnet.roles.cli.admin_verbs import ARCHIVES, VERBS

    api = connection(args)
    if args.op in ARCHIVES and not (args.server or args.socket) and api.is_nobody_there():
        api = Offline(args)
    result = VERBS[args.op](api, args)
    result = {} if result is None else result
    if args.json:
        print_json(result)
    else:
        _print(args, result)
    failed = isinstance(result, dict) and result.get("ok") is False
    return CalnetError.exit_code if failed else 0


def _print(args: Namespace, result: object) -> None:
    printer = _PRINTERS.get(args.op)
    if printer is not None:
        printer(args, result)
    elif isinstance(result, list):
        print_lines(_table(args.op, show.listing(result)))
    elif args.op.endswith((".show", ".at")):
        print_lines(show.facts(show.mapping(result)))
    else:
        _say(_confirmation(args, show.mapping(result)))


def _table(op: str, rows: list[show.Json]) -> list[str]:
    return show.table(rows, COLUMNS.get(op) or (tuple(rows[0]) if rows else ("id",)))


def _say(text: str) -> None:
    print(show.clean(text), file=sys.stderr)


_DONE = {
    "create": "made",
    "rename": "renamed",
    "delete": "deleted",
    "revoke": "revoked",
    "approve": "approved",
    "tag": "tagged",
    "disable": "disabled",
    "enable": "enabled",
    "expire": "expired",
    "role": "changed",
    "suspend": "suspended",
    "resume": "resumed",
    "set": "in force",
    "reset": "back to the built-in policy",
    "end": "ended",
}


def _confirmation(args: Namespace, row: show.Json) -> str:
    noun, verb = args.op.split(".")[0], args.op.rsplit(".", 1)[1]
    named = row.get("name") or getattr(args, "node", None) or getattr(args, "user", None) or getattr(args, "id", None)
    what = {"policy": "the policy", "settings": "the settings"}.get(noun, f"{noun.removesuffix('s')} {show.cell(named)}")
    return f"{what}: {_DONE.get(verb, 'done')}"


# --- what is printed otherwise than the rest


def _print_secret(args: Namespace, result: object) -> None:
    row = show.mapping(result)
    print(show.clean(row.get("key") or row.get("token") or ""))


def _print_policy(args: Namespace, result: object) -> None:
    print_lines([show.clean(line) for line in str(show.mapping(result).get("text", "")).splitlines()])


def _print_check(args: Namespace, result: object) -> None:
    document = show.mapping(result)
    problems, tests = show.listing(document.get("problems")), show.listing(document.get("tests"))
    lines = [f"{args.file}:{row.get('line')}:{row.get('column')}: {show.clean(row.get('text'))}" for row in problems]
    lines += [f"line {row.get('line')}: {'passed' if row.get('passed') else 'FAILED'}: {show.clean(row.get('text'))}" for row in tests]
    if document.get("ok"):
        lines.append("all is well" if not tests else f"all is well, {len(tests)} tests passed")
    print_lines(lines)


def _print_diff(args: Namespace, result: object) -> None:
    document = show.mapping(result)
    lines = []
    for word, sign in (("gained", "+"), ("lost", "-")):
        for row in show.listing(document.get(word)):
            parts = [_comma(row.get(name)) for name in ("sources", "destinations", "services")]
            between = {"own": ", among each user's own", "others": ", between different users"}.get(str(row.get("between")), "")
            lines.append(f"{sign} {parts[0]} -> {parts[1]}: {parts[2]}{between}")
    print_lines(lines or ["nobody gains or loses anything"])


def _comma(value: object) -> str:
    return ", ".join(show.clean(item) for item in value) if isinstance(value, list) else ""


def _print_audit(args: Namespace, result: object) -> None:
    for row in show.listing(result):
        print(audit_line(row))


def audit_line(row: show.Json) -> str:
    """One change on one line: when, who, what, and what became of which values."""
    actor = show.mapping(row.get("actor"))
    source = f" from {actor.get('source')}" if actor.get("source") else ""
    who = f"{actor.get('kind')} {actor.get('name')}".strip()
    changes = "; ".join(_change_text(change) for change in show.listing(row.get("changes")))
    return show.clean(f"{row.get('seq')}  {row.get('at')}  {who}{source}  {row.get('action')}  {changes}")


def _change_text(change: show.Json) -> str:
    before, after = change.get("before"), change.get("after")
    what = f"{change.get('kind')} {change.get('id')}"
    old, new = show.mapping(before), show.mapping(after)
    if before is None or after is None:
        name = (new or old).get("name")
        return f"{what}{f' ({name})' if name else ''} {'made' if before is None else 'deleted'}"
    moved = [f"{name}: {_brief(old.get(name))} -> {_brief(new.get(name))}" for name in new if old.get(name) != new.get(name)]
    return f"{what} {', '.join(moved)}"


def _brief(value: object) -> str:
    text = show.cell(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _print_past(args: Namespace, result: object) -> None:
    configuration = show.mapping(show.mapping(result).get("configuration"))
    for kind, rows in configuration.items():
        for name, row in sorted(show.mapping(rows).items()):
            print(show.clean(f"{kind} {name}: " + ", ".join(f"{key}={_brief(value)}" for key, value in show.mapping(row).items())))


def _print_routes_approved(args: Namespace, result: object) -> None:
    """An approved route has no effect until its node advertises just that one: a slip in its length shows nowhere else."""
    node = show.mapping(result)
    _say(f"node {show.cell(node.get('name'))}: routes approved")
    advertised = show.mapping(node.get("routes")).get("advertised")
    for route in args.routes:
        if isinstance(advertised, list) and route not in advertised:
            tell({"say": f"{route} is approved, but {show.cell(node.get('name'))} does not advertise it; it does: {show.cell(advertised)}"})


def _print_routes(args: Namespace, result: object) -> None:
    rows = [row | {"overlaps": [f"{other.get('route')} of {other.get('name')}" for other in show.listing(row.get("overlaps"))]} for row in show.listing(result)]
    print_lines(_table(args.op, rows))


def _print_settings(args: Namespace, result: object) -> None:
    """As `settings set` takes them."""
    print_lines([show.clean(f"{name}={show.cell(value)}") for name, value in show.mapping(result).items() if name != "etag"])


def _print_nothing(args: Namespace, result: object) -> None:
    """The verb has printed what there is."""


def _print_restored(args: Namespace, result: object) -> None:
    again = show.mapping(result).get("restart_needed")
    _say("restored" + ("; restart the server now: it has another key or overlay" if again else ""))


_PRINTERS = {
    "keys.create": _print_secret,
    "tokens.create": _print_secret,
    "policy.show": _print_policy,
    "policy.check": _print_check,
    "policy.test": _print_check,
    "policy.diff": _print_diff,
    "audit.list": _print_audit,
    "audit.at": _print_past,
    "nodes.routes.list": _print_routes,
    "nodes.routes.approve": _print_routes_approved,
    "settings.show": _print_settings,
    "events.follow": _print_nothing,
    "backup": _print_nothing,
    "export": _print_nothing,
    "restore": _print_restored,
    "import": _print_restored,
}


def can(args: Namespace) -> int:
    """`can SRC DST PROTO/PORT|icmp`: 0 allowed, 1 denied, 2 for a name that is none."""
    protocol, slash, port = args.service.partition("/")
    if slash and not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise UsageError(f"{args.service!r}: write tcp/443, udp/53 or icmp")
    try:
        verdict = connection(args).can(source=args.source, destination=args.destination, protocol=protocol, port=int(port) if slash else None)
    except (NotFoundError, InvalidError) as error:
        raise UsageError(str(error)) from None
    if args.json:
        print_json(verdict)
    else:
        print_lines(_verdict_lines(args, verdict))
    return 0 if verdict["allowed"] else CalnetError.exit_code


def _verdict_lines(args: Namespace, verdict: Verdict) -> list[str]:
    source, destination = verdict["source"], verdict["destination"]
    lines = [f"{'allowed' if verdict['allowed'] else 'denied'} {args.service} from {_end(source)} to {_end(destination)}", f"  {verdict['reason']}"]
    route = destination["route"]
    if route is not None:
        lines.append(f"  {route['prefix']} is routed by {route['router']}")
    return [show.clean(line) for line in lines]


def _end(end: EndRow) -> str:
    facts = [end["node"]] if end["node"] not in (None, end["name"]) else []
    known = [fact for fact in (*facts, end["user"], *end["tags"]) if fact]
    return end["name"] + (f" ({', '.join(known)})" if known else "")


def followed(api: Api, args: Namespace) -> None:
    """Print events as they come; a stream that breaks is taken up again where it was. Only the first time a server that is not there ends it."""
    import time

    last: str | None = None
    while True:
        try:
            for number, event, data in api.events(last):
                last = number or last
                if _is_wanted(args, event, data):
                    _print_event(args, event, data)
        except (UnreachableError, TimedOutError, StateError) as error:
            if last is None:
                raise
            tell({"say": f"{error}; trying again"})
        time.sleep(FOLLOW_AGAIN_S)


def _is_wanted(args: Namespace, event: str, data: show.Json) -> bool:
    """Whether it was asked for: `audit list` follows changes alone, those that it would list."""
    if args.op != "audit.list" or event != "change":
        return event == "reset" or (bool(event) and args.op != "audit.list")
    actor, action = show.mapping(data.get("actor")), str(data.get("action"))
    names = (actor.get("name"), f"{actor.get('kind')}:{actor.get('id')}", actor.get("kind"))
    return args.actor in (None, *names) and (args.action in (None, action) or action.startswith(f"{args.action}."))


def _print_event(args: Namespace, event: str, data: show.Json) -> None:
    if args.json:
        print_json({"event": event, **data}, one_line=True)
    elif event == "reset":
        tell({"say": "the server's log is not the one that was followed so far: what changed in between is not shown"})
    elif event == "presence":
        print(show.clean(f"{data.get('name')} {'came' if data.get('online') else 'went'}"), flush=True)
    else:
        print(audit_line(data), flush=True)
