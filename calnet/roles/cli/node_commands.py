"""The commands that speak to the daemon on this machine, by its socket."""

from __future__ import annotations

import sys

from calnet.errors import CalnetError, LoginNeededError, NotFoundError, TimedOutError, UnreachableError, UsageError
from calnet.roles.cli import client, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

QUICK_S = 15.0
"""Seconds without a line after which a daemon that only has to look something up is taken for stuck."""
CHANGE_S = 60.0
SLACK_S = 10.0
"""How much longer than the daemon's own time-out the CLI waits for its verdict."""


def ask(args: Namespace, op: str, words: show.Json | None = None, *, on_event: client.OnEvent | None = None, timeout_s: float | None = QUICK_S) -> object:
    """The daemon's result; UnreachableError names how to start one."""
    try:
        return client.request(args.socket, op, words or {}, on_event=on_event or tell, timeout_s=timeout_s)
    except client.NobodyThereError as error:
        raise UnreachableError(f"{error}; is it running? Install and start it with: calnet.pyz install node (or, in the foreground: calnet.pyz node)") from None


def tell(event: show.Json) -> None:
    """Print what the daemon wants a person to know meanwhile, to stderr."""
    if "login_url" in event:
        _say(f"to log in, open: {show.clean(event['login_url'])}")
        if event.get("user_code"):
            _say(f"and enter the code: {show.clean(event['user_code'])}")
        lines = event.get("qr")
        for line in lines if isinstance(lines, list) else ():
            _say(show.clean(line))
    if "say" in event:
        _say(show.clean(event["say"]))
    elif "approve_code" in event:
        _say(f"waiting for approval; on the server run: calnet.pyz admin nodes approve {show.clean(event['approve_code'])}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def up(args: Namespace) -> int:
    """`up`."""
    return _log_in(args, "up")


def login(args: Namespace) -> int:
    """`login`."""
    return _log_in(args, "login")


def _log_in(args: Namespace, op: str) -> int:
    words = _given(args, "server", "hostname", "advertise_routes", "accept_routes")
    if args.auth_key is not None:
        from calnet.roles.cli.values import secret

        words["auth_key"] = secret(args.auth_key)
    words["timeout_s"] = args.timeout
    if args.qr:
        words["qr"] = True
    waiting: list[str] = []

    def on_event(event: show.Json) -> None:
        waiting.extend(name for name in ("approve_code", "login_url") if name in event)
        tell(event)

    try:
        state = show.mapping(ask(args, op, words, on_event=on_event, timeout_s=None)).get("state")
    except KeyboardInterrupt:
        if not waiting:
            raise
        what = "approval" if waiting[-1] == "approve_code" else "login"
        raise LoginNeededError(f"still waiting for {what}; it goes on once that is done, or run calnet.pyz up again") from None
    _print_state(args, state)
    return _verdict(state)


def _verdict(state: object) -> int:
    if state == "running":
        return 0
    if state in ("needs-login", "needs-approval"):
        return LoginNeededError.exit_code
    return TimedOutError.exit_code if state == "starting" else CalnetError.exit_code


def down(args: Namespace) -> int:
    """`down`."""
    return _change(args, "down")


def logout(args: Namespace) -> int:
    """`logout`."""
    return _change(args, "logout")


def _change(args: Namespace, op: str) -> int:
    _print_state(args, show.mapping(ask(args, op, timeout_s=CHANGE_S)).get("state"))
    return 0


def _print_state(args: Namespace, state: object) -> None:
    if args.json:
        print_json({"state": state})
    elif state == "running":
        _say("Calnet is up")
    else:
        _say(show.STATE_LINES.get(str(state), f"state: {show.clean(state)}"))


def set_(args: Namespace) -> int:
    """`set`."""
    words = _given(args, "hostname", "advertise_routes", "accept_routes", "snat_routes", "guess_ports", "map_ports", "path", "operator", "pin", "unpin")
    if not words:
        raise UsageError("set what? Name at least one setting (see: calnet.pyz set --help)")
    result = ask(args, "set", words, timeout_s=CHANGE_S)
    if args.json:
        print_json(result)
    return 0


def get(args: Namespace) -> int:
    """`get [NAME]`."""
    document = show.mapping(ask(args, "get"))
    if args.name is not None:
        name = args.name.replace("-", "_")
        if name not in document:
            raise NotFoundError(f"there is no setting {args.name!r}; there are: {', '.join(sorted(document))}")
        document = {name: document[name]}
    if args.json:
        print_json(document)
    elif args.name is not None:
        print(*("" if value in (None, []) else show.cell(value) for value in document.values()))
    else:
        print_lines(show.facts(document))
    return 0


def status(args: Namespace) -> int:
    """`status`, once or again and again."""
    while True:
        document = show.mapping(ask(args, "status"))
        if args.json:
            print_json(document, one_line=args.watch)
        else:
            print_lines(show.status_lines(document))
            for line in show.health_lines(document):
                _say(line)
            if document.get("state") == "running" and not document.get("peers"):
                _say("no peers yet")
        if not args.watch:
            return 0
        _pause(args)


def _pause(args: Namespace) -> None:
    import time

    sys.stdout.flush()
    time.sleep(1.0)
    if not args.json:
        print()


def ping(args: Namespace) -> int:
    """`ping PEER`: a line an answer, or one document."""
    pongs: list[show.Json] = []

    def on_event(event: show.Json) -> None:
        pong = event.get("pong")
        if not isinstance(pong, dict):
            tell(event)
            return
        pongs.append(pong)
        if not args.json:
            print(show.pong_line(pong), flush=True)

    words = {"peer": args.peer, "count": args.c or 0, "until_direct": args.until_direct, "timeout_s": args.timeout}
    failure: CalnetError | None = None
    try:
        ask(args, "ping", words, on_event=on_event, timeout_s=args.timeout + SLACK_S)
    except TimedOutError as error:
        failure = error
    except KeyboardInterrupt:
        if not pongs:
            raise
    if args.json:
        print_json({**(pongs[-1] if pongs else {"peer": args.peer}), "pongs": pongs})
    if failure is not None:
        raise failure
    return 0


def ip(args: Namespace) -> int:
    """`ip [-4|-6]`."""
    four, six = vars(args)["4"], vars(args)["6"]
    if four and six:
        raise UsageError("-4 or -6, not both")
    found = show.mapping(ask(args, "ip")).get("ips")
    ips = [str(ip) for ip in found if not (six and ":" not in str(ip)) and not (four and ":" in str(ip))] if isinstance(found, list) else []
    if not ips:
        raise NotFoundError("this node has no such address")
    if args.json:
        print_json({"ips": ips})
    else:
        print_lines([show.clean(ip) for ip in ips])
    return 0


def whois(args: Namespace) -> int:
    """`whois IP`."""
    return _print(args, ask(args, "whois", {"ip": args.ip}))


def netcheck(args: Namespace) -> int:
    """`netcheck`."""
    return _print(args, ask(args, "netcheck", timeout_s=CHANGE_S))


def why(args: Namespace) -> int:
    """`why PEER`."""
    document = show.mapping(ask(args, "why", {"peer": args.peer}))
    if args.json:
        print_json(document)
    else:
        print_lines(show.why_lines(document))
    return 0


def metrics(args: Namespace) -> int:
    """`metrics`."""
    print(str(show.mapping(ask(args, "metrics")).get("text", "")), end="")
    return 0


def bugreport(args: Namespace) -> int:
    """`bugreport`."""
    print_json(ask(args, "bugreport", timeout_s=CHANGE_S))
    return 0


def wait(args: Namespace) -> int:
    """`wait [--timeout]`."""
    words = {} if args.timeout is None else {"timeout_s": args.timeout}
    result = ask(args, "wait", words, timeout_s=None if args.timeout is None else args.timeout + SLACK_S)
    if args.json:
        print_json(result)
    return 0


def _given(args: Namespace, *names: str) -> show.Json:
    """The flags that were given, by name."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _print(args: Namespace, document: object) -> int:
    if args.json:
        print_json(document)
    else:
        print_lines(show.facts(show.mapping(document)))
    return 0


def print_json(document: object, *, one_line: bool = False) -> None:
    """One document; ASCII alone, so that no terminal is told anything."""
    import json

    print(json.dumps(document, indent=None if one_line else 2), flush=one_line)


def print_lines(lines: list[str]) -> None:
    """Lines made by show.py."""
    if lines:
        print("\n".join(lines))
