"""What the manual is made of. `page` gives argparse-manpage the parser behind calnet(1), `page_up` and its like those behind calnet-up(1) and so on."""

from __future__ import annotations

from calnet.errors import NotFoundError
from calnet.roles.cli.commands import COMMANDS, EXIT_CODES, overview
from calnet.roles.cli.parser import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SETTINGS = (
    "A flag with a value can also be set by the environment: CALNET_ and its name in capitals for a node and the commands (CALNET_SOCKET, CALNET_STATE_DIR), "
    "CALNET_SERVER_ for server and admin. Flags outrank the environment, which outranks the configuration file that node and server take with --config. "
    "Secrets have no variable."
)
EXIT_STATUS = "\n".join(line for code in EXIT_CODES[0].split(" · ") for line in (".TP", code[0], code[2:]))


class Page(Parser):
    """A parser with what argparse-manpage reads of it beside argparse's own: the line under NAME, and further sections."""

    man_short_description = ""
    _manpage: list[dict[str, str]]


def page() -> Parser:
    """The parser behind calnet(1): all commands, each with a page of its own."""
    parser = Page(
        "calnet", description="Calnet is a peer-to-peer encrypted network that people run themselves. One file holds server, relay, node and these commands."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.switch("--debug", "log more, and show tracebacks")
    parser.usage = "calnet [--debug] COMMAND ..."
    parser.man_short_description = "a peer-to-peer encrypted network that people run themselves"
    commands = "\n".join(f".TP\n.BR calnet\\-{command.name} (1)\n{_roff(command.summary)}" for command in COMMANDS.values())
    examples = ("up --server http://192.0.2.1:8080 --auth-key file:/root/key", "status", "ping bob")
    parser._manpage = [{"heading": "commands", "content": commands}, *_sections(examples, "see also the pages of its commands")]
    return parser


def command_page(name: str) -> Parser:
    """The parser behind calnet-NAME(1)."""
    command = COMMANDS[name]
    parser = Page("calnet " + name, prefix=command.prefix, description=f"{command.summary[0].upper()}{command.summary[1:]}.")
    command.fill(parser)
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
    parser.prog = f"calnet-{name}"
    parser.man_short_description = command.summary
    parser._manpage = _sections(command.examples, "")
    return parser


def _sections(examples: Iterable[str], more: str) -> list[dict[str, str]]:
    shown = "\n".join(_roff(f"calnet {example}") for example in examples)
    see = ".BR calnet (1)" if not more else _roff(more)
    return [
        {"heading": "examples", "content": f".nf\n{shown}\n.fi"},
        {"heading": "environment", "content": _roff(SETTINGS)},
        {"heading": "exit status", "content": f"{EXIT_STATUS}\n.PP\n{_roff(EXIT_CODES[1])}"},
        {"heading": "see also", "content": see},
    ]


def _roff(text: str) -> str:
    """Text as troff takes it literally."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


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
