"""The commands: their words, flags and help, and which function carries each out. All that outsiders type stands here."""

from __future__ import annotations

import os
import sys

from calnet.roles.cli import values
from calnet.roles.cli.parser import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NODE_SOCKET = "/run/calnet/calnet.sock"
NODE_STATE = "/var/lib/calnet"
SERVER_STATE = "/var/lib/calnet-server"
KEY_HELP = (
    "pre-auth key: file:PATH, - (a line of stdin), or the key itself; careful: other users then see it in the list of processes, "
    "and it stays in the shell's history"
)


class Command:
    """One word after `calnet`. `start` is `module:function`, called with the settled flags; `role` says that it needs the bundled packages."""

    __slots__ = ("add", "examples", "group", "name", "prefix", "role", "start", "summary")

    def __init__(
        self,
        name: str,
        group: str,
        summary: str,
        start: str,
        add: Callable[[Parser], None],
        *,
        examples: tuple[str, ...],
        prefix: str = "CALNET_",
        role: bool = False,
    ) -> None:
        self.name, self.group, self.summary, self.start, self.add = name, group, summary, start, add
        self.examples, self.prefix, self.role = examples, prefix, role

    def parser(self, program: str) -> Parser:
        """Its parser, with `--debug` and all its flags."""
        parser = Parser(
            f"{program} {self.name}",
            prefix=self.prefix,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            examples=tuple(f"{program} {example}" for example in self.examples),
        )
        self.fill(parser)
        return parser

    def fill(self, parser: Parser) -> None:
        """Adds all its flags to `parser`."""
        self.add(parser)
        if self.name != "admin":
            add_debug(parser)


def program_name() -> str:
    """How the user calls us: `calnet.pyz`, or `calnet` where that link is used."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name if name in ("calnet", "calnet.py") else "calnet.pyz"


def add_debug(parser: Parser) -> None:
    parser.switch("--debug", "log more, and show tracebacks")


def _server(parser: Parser) -> None:
    parser.word("verb", values.check, "test this configuration, and say what is wrong, instead of serving", metavar="check", many="?")
    parser.json()
    parser.value("--config", str, "configuration file (TOML) with these flags' names as keys", metavar="FILE")
    parser.value("--state-dir", str, "where keys, store and admin.sock are kept", metavar="DIR", default=SERVER_STATE)
    parser.value("--listen", values.host_port, "where to serve HTTP and WebSocket (TCP)", metavar="HOST:PORT", shown="[::]:8080")
    parser.value("--stun-listen", values.host_port, "where to serve STUN (UDP; on the next port as well)", metavar="HOST:PORT", shown="[::]:3478")
    parser.value(
        "--store",
        values.store,
        "kind of store: kv (LMDB), sqlite, or a PostgreSQL database, which several servers may share (its password by ?passfile=FILE)",
        metavar="kv|sqlite|postgresql://…",
        default="kv",
    )
    parser.value(
        "--prefix", values.ipv4_prefix, "IPv4 network of the nodes' addresses; a wider one than before is taken over", metavar="CIDR", shown="100.70.0.0/24"
    )
    parser.value("--url", values.url, "URL by which nodes reach this server", metavar="URL", shown="the one by which each node reached it")
    parser.value("--tls-cert", str, "serve HTTPS with this certificate chain (PEM)", metavar="FILE")
    parser.value("--tls-key", str, "and this private key (PEM)", metavar="FILE")
    parser.values("--trusted-proxy", values.prefix, "believe forwarded headers from there; may be given again", metavar="CIDR")


def _node(parser: Parser) -> None:
    parser.value("--config", str, "configuration file (TOML) with these flags' names as keys", metavar="FILE")
    parser.value("--state-dir", str, "where keys and the last netmap are kept", metavar="DIR", default=NODE_STATE)
    parser.value("--socket", str, "where the local commands reach this daemon", metavar="PATH", default=NODE_SOCKET)
    parser.value("--tun", values.interface, "name of the network interface", metavar="NAME", default="calnet0")
    parser.value("--port", values.port, "UDP port", metavar="PORT", shown="random, and kept until this machine moves to another address")
    parser.value("--mtu", values.mtu, "longest packets at first; raised to what paths are found to take, 1420 as a rule", metavar="BYTES", default=1280)
    parser.value(
        "--processes",
        values.processes,
        "2: packets are carried in a process of their own, beside everything else that the daemon does",
        metavar="N",
        default=1,
    )
    parser.value("--operator", values.user, "a user who may change things as root may", metavar="USER")


def _data_path(parser: Parser) -> None:
    parser.value("--fd", values.descriptor, "the socket to the daemon", metavar="N", environment=False)


def _socket(parser: Parser) -> None:
    parser.value("--socket", str, "the daemon's socket", metavar="PATH", default=NODE_SOCKET)


def _preferences(parser: Parser) -> None:
    parser.value("--hostname", values.hostname, "name to ask for; empty for this machine's own", metavar="NAME")
    parser.value("--advertise-routes", values.prefixes, "networks behind this node to offer, with commas between; empty for none", metavar="CIDR,…")
    parser.choice("--accept-routes", "use the networks that other nodes offer and an admin approved")


def _up(parser: Parser) -> None:
    parser.value("--server", values.url, "the server's URL; kept from then on", metavar="URL")
    parser.value("--auth-key", str, KEY_HELP, metavar="KEY", environment=False)
    parser.switch("--qr", "show the login's URL as a QR code too", environment=False)
    _preferences(parser)
    parser.value("--timeout", values.duration, "give up after this long, counted from the key or the approval", metavar="TIME", default=30.0, shown="30s")
    _socket(parser)
    parser.json()


def _why(parser: Parser) -> None:
    parser.word("peer", values.word, "a peer's name, id or overlay address", metavar="PEER")
    _plain(parser)


def _plain(parser: Parser) -> None:
    _socket(parser)
    parser.json()


def _set(parser: Parser) -> None:
    _preferences(parser)
    parser.choice("--snat-routes", "as a router, reach the offered networks by this machine's own address; without it they need a route back")
    parser.choice("--map-ports", "ask the router for a port that leads here, by PCP, NAT-PMP or UPnP")
    parser.choice("--guess-ports", "where a NAT gives each destination another port, find direct paths by guessing, within bounds")
    parser.value("--operator", values.user, "a user who may change things as root may; empty for none", metavar="USER")
    parser.values(
        "--path", values.way, "the path to a peer: the best, the relay alone, or never the relay; may be given again", metavar="PEER=auto|relay|direct"
    )
    parser.value("--pin", values.word, "refuse any new key of this peer", metavar="PEER", environment=False)
    parser.value("--unpin", values.word, "take this peer's new keys again", metavar="PEER", environment=False)
    _plain(parser)


def _get(parser: Parser) -> None:
    parser.word("name", values.word, "print this one's value alone", metavar="NAME", many="?")
    _plain(parser)


def _status(parser: Parser) -> None:
    parser.switch("--watch", "print it again every second, until Ctrl-C", environment=False)
    _plain(parser)


def _ping(parser: Parser) -> None:
    parser.word("peer", values.word, "its name or overlay address", metavar="PEER")
    parser.value("-c", values.count, "how many pings", metavar="N", shown="1; with --until-direct as many as it takes", environment=False)
    parser.switch("--until-direct", "go on until an answer comes over a direct path", environment=False)
    parser.value("--timeout", values.duration, "how long to wait for each answer, or for the direct path", metavar="TIME", default=5.0, shown="5s")
    _plain(parser)


def _ip(parser: Parser) -> None:
    parser.switch("-4", "IPv4 alone", environment=False)
    parser.switch("-6", "IPv6 alone", environment=False)
    _plain(parser)


def _whois(parser: Parser) -> None:
    parser.word("ip", values.address, "an overlay address, or one behind a node", metavar="IP")
    _plain(parser)


def _wait(parser: Parser) -> None:
    parser.value("--timeout", values.duration, "give up after this long", metavar="TIME", shown="wait as long as it takes")
    _plain(parser)


def _admin(parser: Parser) -> None:
    from calnet.roles.cli.admin_parser import add_admin

    add_admin(parser)


def _can(parser: Parser) -> None:
    from calnet.roles.cli.admin_parser import add_connection

    parser.word("source", values.word, "node name, address, user or tag", metavar="SRC")
    parser.word("destination", values.word, "node name, address (also behind a router), user or tag", metavar="DST")
    parser.word("service", values.word, "tcp/443, udp/53, icmp and the like", metavar="PROTO/PORT|icmp")
    add_connection(parser)
    parser.json()


def _demo(parser: Parser) -> None:
    parser.json()


def _role(parser: Parser) -> None:
    parser.add_argument("what", metavar="node|server", choices=("node", "server"), help="which service")
    parser.value("--root", str, "below this directory instead of /, and touch no running service (for packages and images)", metavar="DIR", environment=False)


def _uninstall(parser: Parser) -> None:
    _role(parser)
    parser.switch("--purge", "remove its state too: keys, store, login", environment=False)


def _man(parser: Parser) -> None:
    parser.word("page", values.word, "the command whose page to show", metavar="COMMAND", many="?")


def _licenses(parser: Parser) -> None:
    pass


_CLIENT, _FILE, _SETUP = "calnet.roles.cli.node_commands:", "calnet.roles.cli.file_commands:", "calnet.roles.setup.main:"
USE, RUN, MANAGE, FILE = "Use the network (on a node)", "Run it", "Manage it (on the server)", "This program"


def _sim(parser: Parser) -> None:
    parser.word("file", str, "the network as TOML; - for stdin (docs/sim.md)", metavar="FILE")
    parser.value("--seed", values.count, "other luck: the same seed gives the same run", metavar="N", shown="the file's", environment=False)
    parser.json()


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("up", USE, "connect this machine", _CLIENT + "up", _up, examples=("up --server http://192.0.2.1:8080 --auth-key file:/root/key", "up")),
        Command("down", USE, "disconnect this machine until the next up; it stays logged in", _CLIENT + "down", _plain, examples=("down",)),
        Command("login", USE, "log this machine in again, with a new node key", _CLIENT + "login", _up, examples=("login --auth-key -",)),
        Command("logout", USE, "disconnect this machine and end its login", _CLIENT + "logout", _plain, examples=("logout",)),
        Command("status", USE, "show this node's state and its peers", _CLIENT + "status", _status, examples=("status", "status --json")),
        Command(
            "ping",
            USE,
            "ask a peer for an answer, and show by which path it came",
            _CLIENT + "ping",
            _ping,
            examples=("ping bob", "ping bob --until-direct --timeout 20s"),
        ),
        Command("ip", USE, "print this node's overlay addresses", _CLIENT + "ip", _ip, examples=("ip -4",)),
        Command("whois", USE, "say which node an overlay address belongs to", _CLIENT + "whois", _whois, examples=("whois 100.70.0.2",)),
        Command("wait", USE, "return once this node is running and connected", _CLIENT + "wait", _wait, examples=("wait --timeout 30s",)),
        Command(
            "why", USE, "say why the path to a peer is direct or not, as both ends see it, and what would help", _CLIENT + "why", _why, examples=("why bob",)
        ),
        Command("metrics", USE, "print this node's figures in Prometheus's format", _CLIENT + "metrics", _socket, examples=("metrics",)),
        Command(
            "bugreport", USE, "print all that helps to look into a fault, without secrets", _CLIENT + "bugreport", _socket, examples=("bugreport >report.json",)
        ),
        Command("netcheck", USE, "say what this machine's network lets through", _CLIENT + "netcheck", _plain, examples=("netcheck --json",)),
        Command(
            "set", USE, "change preferences", _CLIENT + "set_", _set, examples=("set --hostname alice --accept-routes", "set --advertise-routes 192.168.1.0/24")
        ),
        Command("get", USE, "print preferences", _CLIENT + "get", _get, examples=("get", "get hostname")),
        Command(
            "node",
            RUN,
            "run the node daemon in the foreground",
            "calnet.roles.node.main:run",
            _node,
            examples=("node", "node --operator alice --port 41641"),
            role=True,
        ),
        Command(
            "server",
            RUN,
            "run the server: control, relay, STUN",
            "calnet.roles.server.main:run",
            _server,
            examples=("server", "server --url https://calnet.example.org --trusted-proxy 127.0.0.1", "server check --config /etc/calnet/server.toml"),
            prefix="CALNET_SERVER_",
            role=True,
        ),
        Command(
            "install",
            RUN,
            "install this file and a systemd service for a node or a server",
            _SETUP + "install",
            _role,
            examples=("install node", "install server"),
        ),
        Command("uninstall", RUN, "remove what install made; state is kept", _SETUP + "uninstall", _uninstall, examples=("uninstall node --purge",)),
        Command(
            "admin",
            MANAGE,
            "manage users, nodes, keys, policy, tokens, and the rest of the server",
            "calnet.roles.cli.admin_commands:admin",
            _admin,
            examples=(
                "admin keys create --reusable --expires 24h",
                "admin nodes list",
                "admin policy check policy.hujson",
                "admin nodes list --server https://calnet.example.org --token file:t",
            ),
            prefix="CALNET_SERVER_",
        ),
        Command(
            "can",
            MANAGE,
            "say whether policy lets one reach another, and why",
            "calnet.roles.cli.admin_commands:can",
            _can,
            examples=("can alice bob tcp/22", "can alice@ tag:web tcp/443", "can 100.70.0.2 192.168.1.7 icmp"),
            prefix="CALNET_SERVER_",
        ),
        Command(
            "demo",
            FILE,
            "show it all on this machine, in network namespaces of its own (as root)",
            "calnet.roles.demo.main:run",
            _demo,
            examples=("demo",),
            role=True,
        ),
        Command(
            "sim",
            FILE,
            "simulate path finding on a network of your own",
            "calnet.roles.sim.main:run",
            _sim,
            examples=("sim network.toml", "sim network.toml --seed 7 --json"),
            role=True,
        ),
        Command("selftest", FILE, "import and try every bundled package", "calnet.roles.setup.selftest:run", _demo, examples=("selftest",), role=True),
        Command(
            "version",
            FILE,
            "print the version, and which Pythons and machines this file was built for",
            _FILE + "version",
            _plain,
            examples=("version --json",),
        ),
        Command("man", FILE, "show the manual", _FILE + "man", _man, examples=("man", "man up")),
        Command("licenses", FILE, "print the licences of Calnet and of the packages in this file", _FILE + "licenses", _licenses, examples=("licenses",)),
    )
}

INTERNAL: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "node-data-path",
            "",
            "carry packets for the daemon that started this",
            "calnet.roles.node.own_process.child:run",
            _data_path,
            examples=(),
            role=True,
        ),
    )
}
"""What Calnet starts itself: in no overview and no manual."""

EXIT_CODES = (
    "0 done · 1 it failed · 2 wrong words · 3 daemon or server can't be reached · 4 login or approval needed · 5 not permitted · 6 timed out or unanswered",
    "A word of what to do about it stands on stderr; --debug or CALNET_DEBUG=1 adds tracebacks.",
)


def overview(program: str) -> str:
    """`--help`: the commands in groups, with examples."""
    lines = [
        "Calnet: a peer-to-peer encrypted network that people run themselves.",
        "",
        f"usage: {program} [--debug] COMMAND …",
        f"       {program} --version | --help",
    ]
    for group in (USE, MANAGE, RUN, FILE):
        lines += ["", f"{group}:", *(f"  {command.name:<10} {command.summary}" for command in COMMANDS.values() if command.group == group)]
    lines += ["", "Examples:", f"  {program} up --server http://192.0.2.1:8080 --auth-key file:/root/key", f"  {program} status"]
    lines += ["", f"Each command has a --help: {program} up --help. The manual: {program} man [COMMAND]."]
    lines += [
        "",
        "Flags can be set in the environment too: CALNET_SOCKET=PATH, for server and admin CALNET_SERVER_STATE_DIR=DIR.",
        "",
        "Exit codes: " + EXIT_CODES[0],
        EXIT_CODES[1],
    ]
    return "\n".join(lines)
