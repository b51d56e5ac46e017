"""What the manual is made of. `pages.page_up` and its like are functions that give argparse-manpage the parser of one page; `page` that of calnet(1)."""

from __future__ import annotations

from calnet.errors import NotFoundError
from calnet.roles.cli.commands import COMMANDS, EXIT_CODES, overview
from calnet.roles.cli.parser import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = (
    "A flag can also be set by the environment: CALNET_ and its name in capitals for a node and the commands (CALNET_SOCKET, CALNET_STATE_DIR), "
    "CALNET_SERVER_ for server and admin. Flags outrank the environment, which outranks the configuration file of --config. Secrets have no variable."
)


def page() -> Parser:
    """The parser behind calnet(1): all commands, without their flags, which have pages of their own."""
    parser = Parser("calnet", description=f"A peer-to-peer encrypted network that people run themselves.\n\n{SETTINGS}\n\nExit codes: {' '.join(EXIT_CODES)}")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.switch("--debug", "log more, and show tracebacks")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS.values():
        commands.add_parser(command.name, help=command.summary, description=f"{command.summary}; see calnet-{command.name}(1)")
    return parser


def command_page(name: str) -> Parser:
    """The parser behind calnet-NAME(1)."""
    parser = COMMANDS[name].parser("calnet")
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
    parser.prog = f"calnet-{name}"
    return parser


def text_page(name: str | None, program: str) -> str:
    """A page as plain text, for machines without man."""
    return overview(program) if name is None else COMMANDS[name].parser(program).format_help().rstrip()


def __getattr__(name: str) -> Callable[[], Parser]:
    command = name.removeprefix("page_")
    if command not in COMMANDS:
        raise AttributeError(name)
    return lambda: command_page(command)


def known(name: str) -> str:
    """`name` if it has a page; NotFoundError if not."""
    if name not in COMMANDS:
        raise NotFoundError(f"there is no page {name!r}; there are: {', '.join(COMMANDS)}")
    return name
