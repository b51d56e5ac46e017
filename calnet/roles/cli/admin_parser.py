"""The words of `admin`: nouns, verbs, and the operation of the admin socket that each stands for."""

from __future__ import annotations

from calnet.roles.cli import values
from calnet.roles.cli.commands import SERVER_STATE, add_debug
from calnet.roles.cli.parser import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable

    Add = Callable[[Parser], None]


def _connection(parser: Parser) -> None:
    parser.value("--socket", str, "the server's admin socket", metavar="PATH", shown="admin.sock in the state directory")
    parser.value("--state-dir", str, "the server's state directory", metavar="DIR", default=SERVER_STATE)


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
    parser.word("tags", values.tag, "the tags it has from now on, such as tag:web; none for none", metavar="TAG", many="*", default=[])


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


USERS: dict[str, tuple[str, Add]] = {
    "create": ("make a user", _name),
    "list": ("list users", _none),
    "rename": ("give a user another name", _user_name),
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
POLICY: dict[str, tuple[str, Add]] = {"show": ("print the policy in force", _none)}
NOUNS = {"users": ("people who own nodes", USERS), "keys": ("pre-auth keys", KEYS), "nodes": ("machines", NODES), "policy": ("who may reach whom", POLICY)}


def add_admin(parser: Parser) -> None:
    """Nouns and verbs as subcommands. The verb's own parser ends up in the namespace as `leaf`, its operation as `op`."""
    _connection(parser)
    add_debug(parser)
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True, title="nouns")
    for noun, (summary, verbs) in NOUNS.items():
        below = nouns.add_parser(noun, help=summary, description=f"Manage {summary}.", prefix=parser.prefix)
        actions = below.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
        _add_verbs(actions, noun, verbs, parser.prefix)
        if noun == "nodes":
            routes = actions.add_parser("routes", help="manage routes", description="Manage the networks behind nodes.", prefix=parser.prefix)
            _add_verbs(routes.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs"), "nodes.routes", ROUTES, parser.prefix)


def _add_verbs(actions: _SubParsersAction[Parser], noun: str, verbs: dict[str, tuple[str, Add]], prefix: str) -> None:
    for verb, (summary, add) in verbs.items():
        leaf = actions.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", prefix=prefix)
        add(leaf)
        _connection(leaf)
        leaf.json()
        add_debug(leaf)
        leaf.set_defaults(leaf=leaf, op=f"{noun}.{verb}")
