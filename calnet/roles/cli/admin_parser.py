"""The words of `admin`: nouns, verbs, and the operation (admin_verbs.py) that each stands for."""

from __future__ import annotations

from calnet.roles.cli import values
from calnet.roles.cli.commands import SERVER_STATE, add_debug
from calnet.roles.cli.parser import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable

    Add = Callable[[Parser], None]


TOKEN_HELP = (
    "API token for --server: file:PATH, - (a line of stdin), or the token itself; careful: other users then see it in the list of processes, "
    "and it stays in the shell's history"
)


def add_connection(parser: Parser) -> None:
    """Which server, and how it is reached."""
    parser.value("--socket", str, "the server's admin socket", metavar="PATH", shown="admin.sock in the state directory")
    parser.value("--state-dir", str, "the server's state directory", metavar="DIR", default=SERVER_STATE)
    parser.value("--server", values.url, "a server elsewhere, by its URL", metavar="URL", shown="the one on this machine")
    parser.value("--token", str, TOKEN_HELP, metavar="TOKEN", environment=False)


def _none(_parser: Parser) -> None:
    pass


def _user(parser: Parser) -> None:
    parser.word("user", values.word, "name or id", metavar="USER")


def _name(parser: Parser) -> None:
    parser.word("name", values.hostname, "letters, digits and hyphens", metavar="NAME")


def _user_name(parser: Parser) -> None:
    _user(parser)
    _name(parser)


def _node(parser: Parser) -> None:
    parser.word("node", values.word, "name, id or address", metavar="NODE")


def _node_name(parser: Parser) -> None:
    _node(parser)
    _name(parser)


def _node_tags(parser: Parser) -> None:
    _node(parser)
    parser.word("tags", values.tag, "the tags it has from now on, such as tag:web (`approve NODE --user USER` takes them away)", metavar="TAG", many="+")


def _approve(parser: Parser) -> None:
    parser.word("code_or_node", values.word, "the code that `up` printed, or the node", metavar="CODE|NODE")
    parser.value("--user", values.word, "the user who owns it", metavar="USER", shown="admin", environment=False)


def _node_routes(parser: Parser) -> None:
    _node(parser)
    parser.word("routes", values.prefix, "networks that it advertises", metavar="CIDR", many="+")


def _maybe_node(parser: Parser) -> None:
    parser.word("node", values.word, "of this node alone", metavar="NODE", many="?")


def _key(parser: Parser) -> None:
    parser.switch("--reusable", "for any number of nodes; without it the first use is the last", environment=False)
    parser.switch("--ephemeral", "nodes made with it are removed when they have been away for a while", environment=False)
    parser.value("--expires", values.duration, "how long it can be used", metavar="TIME", default=86_400.0, shown="24h", environment=False)
    parser.values("--tag", values.tag, "tag for its nodes, which then have no owner; may be given again", metavar="tag:NAME")
    parser.value("--user", values.word, "owner of its nodes", metavar="USER", shown="admin", environment=False)


def _key_id(parser: Parser) -> None:
    parser.word("id", values.word, "as `keys list` shows it", metavar="ID")


def _new_user(parser: Parser) -> None:
    _name(parser)
    parser.value("--role", values.role, "what the user may do", metavar="ROLE", shown="user", environment=False)


def _user_role(parser: Parser) -> None:
    _user(parser)
    parser.word("role", values.role, "owner, admin, auditor or user", metavar="ROLE")


def _file(parser: Parser) -> None:
    parser.word("file", str, "the policy file; - for stdin", metavar="FILE")


def _policy_file(parser: Parser) -> None:
    _file(parser)
    parser.value("--etag", values.word, "refuse if the policy in force is no longer the one with this etag", metavar="ETAG", environment=False)


def _maybe_file(parser: Parser) -> None:
    parser.word("file", str, "the policy file instead of the policy in force", metavar="FILE", many="?")


def _token(parser: Parser) -> None:
    parser.word("name", values.word, "what it is for", metavar="NAME")
    parser.value("--user", values.word, "on whose rights it acts", metavar="USER", shown="you; admin on the socket", environment=False)
    parser.values("--scope", values.word, "limit it: read, write, or NOUN:read, NOUN:write; may be given again", metavar="SCOPE")
    parser.value("--expires", values.duration, "how long it can be used", metavar="TIME", default=90 * 86_400.0, shown="90d", environment=False)


def _id(parser: Parser) -> None:
    parser.word("id", values.word, "as `list` shows it", metavar="ID")


def _settings(parser: Parser) -> None:
    parser.word("values", values.word, "a setting and its value, such as node_key_lifetime_s=90d or require_approval=yes", metavar="NAME=VALUE", many="+")


def _audit(parser: Parser) -> None:
    parser.value("--limit", values.count, "at most so many", metavar="N", default=100, environment=False)
    parser.value("--actor", values.word, "those of this user, token or kind of actor", metavar="NAME", environment=False)
    parser.value("--action", values.word, "those of this action, such as nodes or nodes.rename", metavar="ACTION", environment=False)
    parser.switch("--follow", "print each change as it happens, from now on", environment=False)


def _time(parser: Parser) -> None:
    parser.word("time", values.word, "such as 2026-01-31T12:00:00Z", metavar="TIME")


def _archive(parser: Parser) -> None:
    parser.word("file", str, "the archive's file", metavar="FILE")
    help_text = "the server's --store, where it does not run: then the store is opened here"
    parser.value("--store", values.store, help_text, metavar="KIND", shown="what the state directory holds", environment=False)


def _restored(parser: Parser) -> None:
    _archive(parser)
    parser.switch("--yes", "don't ask", environment=False)


USERS: dict[str, tuple[str, Add]] = {
    "create": ("make a user", _new_user),
    "list": ("list users", _none),
    "rename": ("give a user another name", _user_name),
    "role": ("give a user another role", _user_role),
    "suspend": ("shut a user out, with its nodes, tokens and sessions", _user),
    "resume": ("let a suspended user in again", _user),
    "delete": ("remove a user who owns nothing", _user),
}
KEYS: dict[str, tuple[str, Add]] = {
    "create": ("make a pre-auth key and print it; it is shown this once", _key),
    "list": ("list keys", _none),
    "revoke": ("make a key useless for new nodes", _key_id),
}
NODES: dict[str, tuple[str, Add]] = {
    "list": ("list nodes", _none),
    "show": ("show all about a node", _node),
    "rename": ("give a node another name", _node_name),
    "tag": ("set a node's tags", _node_tags),
    "approve": ("let a waiting node in", _approve),
    "disable": ("shut a node out until it is enabled again", _node),
    "enable": ("let a disabled node in again", _node),
    "expire": ("end a node's login now", _node),
    "delete": ("remove a node", _node),
}
ROUTES: dict[str, tuple[str, Add]] = {
    "list": ("list advertised and approved routes", _maybe_node),
    "approve": ("let a node route networks for the others", _node_routes),
    "revoke": ("end that", _node_routes),
}
POLICY: dict[str, tuple[str, Add]] = {
    "show": ("print the policy in force", _none),
    "set": ("put a policy in force", _policy_file),
    "check": ("say what is wrong with a policy file", _file),
    "test": ("run a policy's own tests", _maybe_file),
    "diff": ("say who would gain and lose what under a policy file", _file),
    "reset": ("go back to the built-in policy", _none),
}
TOKENS: dict[str, tuple[str, Add]] = {
    "create": ("make an API token and print it; it is shown this once", _token),
    "list": ("list API tokens", _none),
    "revoke": ("make a token useless", _id),
}
SESSIONS: dict[str, tuple[str, Add]] = {"list": ("list browsers that are signed in", _none), "end": ("sign a browser out", _id)}
SETTINGS: dict[str, tuple[str, Add]] = {"show": ("print the settings", _none), "set": ("change settings", _settings)}
RELAYS: dict[str, tuple[str, Add]] = {"list": ("list relays", _none)}
AUDIT: dict[str, tuple[str, Add]] = {
    "list": ("list changes: who, what, before and after, from where", _audit),
    "at": ("print the configuration as it was at a time", _time),
}
EVENTS: dict[str, tuple[str, Add]] = {"follow": ("print changes, and nodes that come and go, as it happens", _none)}
NOUNS = {
    "users": ("people who own nodes", USERS),
    "keys": ("pre-auth keys", KEYS),
    "nodes": ("machines", NODES),
    "policy": ("who may reach whom", POLICY),
    "tokens": ("API tokens", TOKENS),
    "sessions": ("browser sessions", SESSIONS),
    "settings": ("what can be changed while the server runs", SETTINGS),
    "relays": ("relays", RELAYS),
    "audit": ("what was changed", AUDIT),
    "events": ("what happens", EVENTS),
}
ARCHIVES: dict[str, tuple[str, Add]] = {
    "backup": ("write all that the server holds to a file, whether it runs or not", _archive),
    "restore": ("replace all that the server holds by a backup", _restored),
    "export": ("write all that the server holds to a file, for another kind of store", _archive),
    "import": ("take an export into a server that is new", _archive),
}


def add_admin(parser: Parser) -> None:
    """Nouns and verbs as subcommands. The verb's own parser ends up in the namespace as `leaf`, its operation as `op`."""
    add_connection(parser)
    add_debug(parser)
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True, title="nouns")
    _add_verbs(nouns, "", ARCHIVES, parser.prefix)
    for noun, (summary, verbs) in NOUNS.items():
        below = nouns.add_parser(noun, help=summary, description=f"Manage {summary}.", prefix=parser.prefix)
        actions = below.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
        _add_verbs(actions, noun, verbs, parser.prefix)
        if noun == "nodes":
            routes = actions.add_parser("routes", help="manage routes", description="Manage the networks behind nodes.", prefix=parser.prefix)
            _add_verbs(routes.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs"), "nodes.routes", ROUTES, parser.prefix)


def _add_verbs(actions: _SubParsersAction[Parser], noun: str, verbs: dict[str, tuple[str, Add]], prefix: str) -> None:
    """`noun` is empty for words that are noun and verb in one."""
    for verb, (summary, add) in verbs.items():
        leaf = actions.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", prefix=prefix)
        add(leaf)
        add_connection(leaf)
        leaf.json()
        add_debug(leaf)
        leaf.set_defaults(leaf=leaf, op=f"{noun}.{verb}" if noun else verb)
