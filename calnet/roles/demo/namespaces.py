"""Network namespaces, and what runs in them: commands, long-lived processes, and forked tasks that answer in JSON lines.

A namespace's name carries the pid of its owner, so that a later start can sweep away what a killed owner left behind. Nothing here touches the
machine's own network: interfaces are created inside namespaces, nft runs only inside them.

Error contract: a command that fails, a namespace that can't be made or entered, and a task that raised are HostError; a wait that ran out is TimedOutError.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from calnet.errors import HostError, TimedOutError

NAME_PREFIX: Final = "calnet-lab-"
RUN_NETNS: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)

Json = Mapping[str, object]
Emit = Callable[[Json], None]
TaskFunction = Callable[["StopSignal", Emit], None]


def _die_with_parent() -> None:
    """In a child: be killed when the starting process dies, however it dies. (Linux: prctl PR_SET_PDEATHSIG, kept across exec.)"""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_command(*command: str, stdin: str | None = None, check: bool = True, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command of this machine and capture its text; with `check`, a failure is a HostError that quotes its first line."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, start_new_session=True)
    except FileNotFoundError as missing:
        raise HostError(f"the program {command[0]!r} is not installed") from missing
    except subprocess.TimeoutExpired as late:
        raise TimedOutError(f"{' '.join(command)} did not end within {timeout:.0f} s") from late
    if check and done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise HostError(f"{' '.join(command)}: {lines[0]}")
    return done


class Process:
    """A long-lived child whose output goes to a file."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        """What it has written so far to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        if self.alive:
            self._popen.send_signal(number)

    def wait(self, within: float) -> int:
        """Its exit status; TimedOutError if it still runs after `within` seconds."""
        try:
            return self._popen.wait(within)
        except subprocess.TimeoutExpired as late:
            raise TimedOutError(f"{self.name} (pid {self.pid}) still runs after {within:.0f} s") from late

    def stop(self, patience: float = 6.0) -> int:
        """SIGTERM, then SIGKILL after `patience` seconds; returns the exit status (negative: the signal)."""
        self.signal(signal.SIGTERM)
        try:
            return self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self._popen.wait(10)


class StopSignal:
    """How a task learns that it should finish: the descriptor becomes readable."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def wait(self, seconds: float) -> bool:
        """True as soon as the task should finish, False after `seconds`."""
        return bool(select.select([self._fd], [], [], max(0.0, seconds))[0])


class Task:
    """A function running in a forked child inside a namespace. It emits JSON objects; `result` ends it and returns the last one."""

    def __init__(self, name: str, pid: int, stop_fd: int, events_fd: int) -> None:
        self.name = name
        self._pid = pid
        self._stop_fd = stop_fd
        self._events = os.fdopen(events_fd, "rb", buffering=0)
        self._buffer = b""
        self._closed = False
        self.seen: list[dict[str, object]] = []

    def next_event(self, within: float) -> dict[str, object] | None:
        """The next object it emits; None once it has ended; TimedOutError if neither happens within `within` seconds."""
        deadline = time.monotonic() + within
        while b"\n" not in self._buffer:
            if not select.select([self._events], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimedOutError(f"{self.name} said nothing for {within:.0f} s")
            chunk = self._events.read(65536)
            if not chunk:
                return None
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        event: dict[str, object] = json.loads(line)
        if "failed" in event:
            raise HostError(f"{self.name}: {event['failed']}")
        self.seen.append(event)
        return event

    def request_stop(self) -> None:
        """Tell the function to finish; further events still come."""
        if self._stop_fd >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._stop_fd, b"\0")  # tasks forked later have copies of the descriptor, so that closing it says nothing
            os.close(self._stop_fd)
            self._stop_fd = -1

    def result(self, within: float = 15.0, *, stop: bool = True) -> dict[str, object]:
        """The last object it emitted, once it has ended; with `stop` it is told to finish first."""
        if stop:
            self.request_stop()
        while self.next_event(within) is not None:
            pass
        self.close()
        if not self.seen:
            raise HostError(f"{self.name} ended without a result")
        return self.seen[-1]

    def close(self) -> None:
        """End the child if it still runs, and forget it."""
        if self._closed:
            return
        self._closed = True
        self.request_stop()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._events.close()


@dataclass
class Namespace:
    """One named network namespace and what was started in it."""

    name: str
    directory: Path
    processes: list[Process] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    def create(self) -> None:
        run_command("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        with self.inside():
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")

    def ip(self, batch: str) -> None:
        """Run lines of `ip -batch` in this namespace."""
        run_command("ip", "-n", self.name, "-batch", "-", stdin=batch.strip() + "\n")

    def nft(self, ruleset: str) -> None:
        """Load an nft script in this namespace, all of it or nothing."""
        self.run("nft", "-f", "-", stdin=ruleset)

    def run(self, *command: str, stdin: str | None = None, check: bool = True, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        return run_command("ip", "netns", "exec", self.name, *command, stdin=stdin, check=check, timeout=timeout)

    def sysctl(self, name: str, value: str, *, optional: bool = False) -> None:
        """Set one, its parts divided by slashes. `optional`: a kernel without it is all right."""
        with self.inside():
            path = Path("/proc/sys", name)
            if path.exists() or not optional:
                path.write_text(value)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the namespace meanwhile; a socket made there belongs to it for life."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._enter()
            try:
                yield
            finally:
                _set_namespace(home, "this machine's own network namespace")
        finally:
            os.close(home)

    def _enter(self) -> None:
        try:
            there = os.open(RUN_NETNS / self.name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as refused:
            raise HostError(f"network namespace {self.name}: {refused.strerror}") from refused
        try:
            _set_namespace(there, self.name)
        finally:
            os.close(there)

    def start(self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, user: int | None = None) -> Process:
        """Start a long-lived process; its output goes to `NAME.log` in the lab's directory (appended to)."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                user=user,
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def task(self, name: str, function: TaskFunction) -> Task:
        """Fork; the child enters the namespace and calls `function(stop, emit)`."""
        stop_read, stop_write = os.pipe()
        events_read, events_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(stop_write)
            os.close(events_read)
            self._child(function, stop_read, events_write)
        os.close(stop_read)
        os.close(events_write)
        task = Task(name, pid, stop_write, events_read)
        self.tasks.append(task)
        return task

    def _child(self, function: TaskFunction, stop_fd: int, events_fd: int) -> NoReturn:
        """The forked side: never returns to the caller's code."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _die_with_parent()
            self._enter()
            function(StopSignal(stop_fd), lambda event: _write_event(events_fd, event))
            status = 0
        except BaseException as failure:  # noqa: BLE001 - the boundary of the child: whatever it was goes to the parent as a line
            with contextlib.suppress(OSError):
                _write_event(events_fd, {"failed": f"{type(failure).__name__}: {failure}"})
        finally:
            os._exit(status)

    def close(self) -> None:
        """End what runs here, newest first, and remove the namespace."""
        for task in reversed(self.tasks):
            task.close()
        for process in reversed(self.processes):
            process.signal(signal.SIGTERM)
        for process in reversed(self.processes):
            process.stop()
        self.tasks.clear()
        self.processes.clear()
        run_command("ip", "netns", "del", self.name, check=False)


def _set_namespace(fd: int, name: str) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise HostError(f"can't enter {name}: {os.strerror(ctypes.get_errno())}; run as root")


def _write_event(fd: int, event: Json) -> None:
    data = json.dumps(event).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def lab_directory() -> Path:
    """A fresh private directory named after this process."""
    return Path(tempfile.mkdtemp(prefix=f"{NAME_PREFIX}{os.getpid()}-"))


def owner_of(name: str) -> int | None:
    """The pid in a namespace's or directory's name; None where it isn't one of ours."""
    owner = name.removeprefix(NAME_PREFIX).split("-", 1)[0]
    return int(owner) if name.startswith(NAME_PREFIX) and owner.isdecimal() else None


def sweep() -> list[str]:
    """Remove namespaces (and what runs in them) and directories whose owner is dead; returns their names."""
    swept = []
    for entry in sorted(RUN_NETNS.iterdir()) if RUN_NETNS.is_dir() else []:
        if _is_orphan(entry.name):
            for pid in run_command("ip", "netns", "pids", entry.name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run_command("ip", "netns", "del", entry.name, check=False)
            swept.append(entry.name)
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{NAME_PREFIX}*")):
        if _is_orphan(path.name) and path.lstat().st_uid == os.getuid() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
    return swept


def _is_orphan(name: str) -> bool:
    owner = owner_of(name)
    return owner is not None and not Path(f"/proc/{owner}").exists()
