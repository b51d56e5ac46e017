"""Calnet's own processes in the lab: a server and nodes, started as anybody would start them, and asked as anybody would ask them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from calnet.errors import CalnetError, HostError, TimedOutError, UnreachableError
from calnet.roles.demo.lab import Host
from calnet.roles.demo.namespaces import Process
from calnet.wire import local

Value = TypeVar("Value")
Program = Sequence[str]

PORT: Final = 8080
READY_MARK: Final = "calnet server ready:"
_READY_S: Final = 30.0
_ANSWER_S: Final = 45.0
_POLL_S: Final = 0.05


def eventually(condition: Callable[[], Value], within: float, what: str = "", every: float = _POLL_S) -> Value:
    """The first true value that `condition` gives; TimedOutError, naming `what` and the last value, after `within` seconds without one."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimedOutError(f"{what or condition}: not within {within:g} s (last: {value!r})")
        time.sleep(every)
    return value


def as_user(user: int) -> list[str]:
    """The words that run a command as another user, who may read all files: a checkout below /root can't be read otherwise."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command did."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, object]:
        """Its one JSON document; HostError if it isn't one object."""
        try:
            document = json.loads(self.out)
        except ValueError as bad:
            raise HostError(f"not JSON (exit {self.status}): {self.out!r} {self.err!r}") from bad
        if not isinstance(document, dict):
            raise HostError(f"not one JSON object: {self.out!r}")
        return document


def ask(path: Path, op: str, args: dict[str, object] | None = None, *, timeout: float = _ANSWER_S) -> object:
    """One request over a local socket, without the cost of a CLI process: for polling."""
    lines = local.LineBuffer()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(local.encode_request(op, args or {}))
            while data := connection.recv(65536):
                for line in lines.feed(data):
                    kind, value = local.decode_answer(line)
                    if isinstance(value, CalnetError):
                        raise value
                    if kind == "result":
                        return value
    except OSError as gone:
        raise UnreachableError(f"{path}: {gone}") from gone
    raise UnreachableError(f"{path} closed the connection without an answer")


class Party:
    """A product process on a host, with its state in a directory of its own below the lab's."""

    def __init__(self, host: Host, program: Program, role: str) -> None:
        self.host = host
        self.program = tuple(program)
        self.directory = host.namespace.directory / host.name
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.role = role
        self.process: Process | None = None

    @property
    def title(self) -> str:
        return f"the {self.role} on {self.host.name}"

    @property
    def log(self) -> Path:
        return self.host.namespace.directory / f"{self.host.name}-{self.role}.log"

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str] | None) -> Process:
        command = [*self.program, self.role, *arguments]
        self.process = self.host.namespace.start(f"{self.host.name}-{self.role}", command, environment={**_environment(), **(environment or {})})
        return self.process

    def stop(self, patience: float = 8.0) -> int:
        """SIGTERM and wait; its exit status."""
        return self.process.stop(patience) if self.process else 0

    def kill(self) -> None:
        if self.process:
            self.process.kill()

    def command(self, *arguments: str, timeout: float = _ANSWER_S, user: int | None = None, stdin: str | None = None) -> Answer:
        """Run `calnet ARGUMENTS` on the party's host; never raises for its exit status."""
        command = ["ip", "netns", "exec", self.host.namespace.name, *self._as(user), *self.program, *arguments]
        try:
            done = subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=timeout, check=False, env=_environment())
        except subprocess.TimeoutExpired as late:
            raise TimedOutError(f"calnet {' '.join(arguments)}: no end within {timeout:g} s; log:\n{self._tail()}") from late
        return Answer(done.returncode, done.stdout, done.stderr)

    @staticmethod
    def _as(user: int | None) -> list[str]:
        return [] if user is None else as_user(user)

    def _await(self, ready: Callable[[], bool], within: float = _READY_S) -> None:
        def settled() -> bool:
            return ready() or self.process is None or not self.process.alive

        try:
            eventually(settled, within, f"{self.title} is ready")
        except TimedOutError as late:
            raise TimedOutError(f"{late}; its log ends:\n{self._tail()}") from None
        if not ready():
            raise HostError(f"{self.title} ended at once; its log ends:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:]) if self.log.exists() else "(none)"


class Server(Party):
    """`calnet server` on a public host."""

    def __init__(self, host: Host, program: Program) -> None:
        super().__init__(host, program, "server")

    @property
    def url(self) -> str:
        return f"http://{self.host.ipv4}:{PORT}"

    def url_for(self, host: Host) -> str:
        """Its URL for a host, which may have IPv6 alone."""
        if any(":" not in address for address in host.addresses):
            return self.url
        return f"http://[{self.host.ipv6}]:{PORT}"

    @property
    def socket(self) -> Path:
        return self.directory / "admin.sock"

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it and wait for its ready line."""
        before = self.log.stat().st_size if self.log.exists() else 0
        self._start(["--state-dir", str(self.directory), *arguments], environment)
        self._await(lambda: READY_MARK in self.log.read_bytes()[before:].decode(errors="replace"))

    def admin(self, *words: str, timeout: float = _ANSWER_S) -> Answer:
        return self.command("admin", "--state-dir", str(self.directory), *words, timeout=timeout)

    def create_key(self, *flags: str) -> str:
        """A fresh pre-auth key."""
        answer = self.admin("keys", "create", *flags)
        if answer.status != 0 or not answer.out.startswith("calnet-"):
            raise HostError(f"no key was made (exit {answer.status}): {answer.err or answer.out}")
        return answer.out.strip()


class Node(Party):
    """`calnet node` on any host."""

    def __init__(self, host: Host, program: Program) -> None:
        super().__init__(host, program, "node")

    @property
    def socket(self) -> Path:
        return self.directory / "calnet.sock"

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start the daemon and wait until its socket answers."""
        self.launch(*arguments, environment=environment)
        self.await_ready()

    def launch(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start the daemon, and go on meanwhile: `await_ready` waits."""
        self._start(["--state-dir", str(self.directory / "state"), "--socket", str(self.socket), *arguments], environment)

    def await_ready(self) -> None:
        """Wait until its socket answers."""
        self._await(self._answers)

    def _answers(self) -> bool:
        try:
            ask(self.socket, "version")
        except UnreachableError:
            return False
        return True

    def cli(self, word: str, *arguments: str, timeout: float = _ANSWER_S, user: int | None = None, stdin: str | None = None) -> Answer:
        """Run a CLI command against this daemon."""
        return self.command(word, "--socket", str(self.socket), *arguments, timeout=timeout, user=user, stdin=stdin)

    def up(self, server: Server, *flags: str, key: str | None = None) -> Answer:
        """`calnet up`, with the key over stdin."""
        words = ["--server", server.url_for(self.host), *(("--auth-key", "-") if key else ()), *flags]
        return self.cli("up", *words, stdin=f"{key}\n" if key else None)

    def status(self) -> dict[str, object]:
        """The status document, from the socket."""
        document = ask(self.socket, "status")
        if not isinstance(document, dict):
            raise HostError(f"not a status document: {document!r}")
        return document

    def state(self) -> object:
        """The state word of the status document."""
        return self.status().get("state")

    def own(self) -> dict[str, object]:
        """`self` of the status document; empty before login."""
        own = self.status().get("self")
        return own if isinstance(own, dict) else {}

    def peer(self, name: str) -> dict[str, object] | None:
        """The peer of that name in the status document."""
        peers = self.status().get("peers")
        return next((p for p in peers if p.get("name") == name), None) if isinstance(peers, list) else None

    def path_to(self, name: str) -> object:
        """`direct`, `relay` or `none`; None for an unknown peer."""
        return (self.peer(name) or {}).get("path")

    def address(self, version: int = 4) -> str:
        """Its overlay address; HostError if it has none."""
        ips = self.own().get("ips")
        for ip in ips if isinstance(ips, list) else []:
            if (":" in ip) == (version == 6):
                return str(ip)
        raise HostError(f"{self.host.name} has no IPv{version} address in the overlay")


def _environment() -> dict[str, str]:
    """This process's environment without Calnet's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CALNET_") or name == "CALNET_DEBUG"}
