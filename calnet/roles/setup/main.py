"""`install node|server` and `uninstall node|server`: this file, its links, manual pages and a systemd unit, and nothing else.

Layout: /usr/local/lib/calnet/BUILD/calnet.pyz, `current` beside it pointing at BUILD (swapped by one rename), /usr/local/bin/calnet and calnet.pyz pointing
through it. Both commands can be repeated; an interrupted one is put right by running it again.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from calnet.errors import HostError, NotPermittedError
from calnet.roles.setup.units import ROLES, Role, unit_text

LIBRARY: Final = "usr/local/lib/calnet"
COMMANDS: Final = ("usr/local/bin/calnet", "usr/local/bin/calnet.pyz")
MANUAL: Final = "usr/local/share/man/man1"
UNITS: Final = "etc/systemd/system"
FILE: Final = "calnet.pyz"


class Bundle(Protocol):
    """What is needed of the file we run from."""

    build_id: str

    def activate(self) -> None: ...
    def whole(self) -> bytes: ...
    def pages(self) -> list[tuple[str, bytes]]: ...


def install(args: Namespace) -> int:
    """`install node|server [--root DIR]`."""
    bundle: Bundle | None = args.bundle
    if bundle is None:
        raise HostError("only the built file can be installed: ./dev build (or python3 build_zipapp.py), then ./calnet.pyz install")
    root, role = _root(args), ROLES[args.what]
    bundle.activate()  # refuses a Python that the service could not run with
    python = os.path.realpath(sys.executable)
    try:
        _place_file(root, bundle)
        changed = _write(root / UNITS / role.unit, unit_text(role, python).encode(), 0o644)
        _place_pages(root, bundle)
    except OSError as error:
        raise HostError(f"{error.filename or root}: {error.strerror}; nothing else was changed, run it again") from None
    _say(f"installed {root / LIBRARY / 'current' / FILE} (calnet) and {root / UNITS / role.unit}")
    _start(args, role, changed=changed)
    return 0


def uninstall(args: Namespace) -> int:
    """`uninstall node|server [--purge] [--root DIR]`."""
    root, role = _root(args), ROLES[args.what]
    if _systemd_runs(args):
        _systemctl("disable", "--now", role.unit, needed=False)
    if _answers(root / role.socket):
        raise HostError(f"a {role.name} that systemd did not start still runs here: stop it, then run this again")
    was_there = (root / UNITS / role.unit).exists()
    state = root / "var/lib" / role.state
    try:
        _remove(root / UNITS / role.unit)
        if not any((root / UNITS / other.unit).exists() for other in ROLES.values()):
            _remove_program(root)
        if args.purge:
            _purge(root, role)
    except OSError as error:
        raise HostError(f"{error.filename or root}: {error.strerror}; run it again") from None
    if _systemd_runs(args):
        _systemctl("daemon-reload", needed=False)
    kept = f"; its state is kept in {state} (--purge removes it)" if state.exists() else ""
    _say(f"{'removed' if was_there else 'there is no'} {role.unit}{kept}")
    return 0


def _answers(path: Path) -> bool:
    """Whether a daemon listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except OSError:  # a path too long for a socket's address too
            return False
    return True


def _root(args: Namespace) -> Path:
    root = Path(args.root or "/").absolute()
    if args.root is None and os.geteuid() != 0:
        raise NotPermittedError("this changes the system: run it as root (sudo), or below another directory with --root DIR")
    return root


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# --- the file -----------------------------------------------------------------------------------------------------------------------------------


def _place_file(root: Path, bundle: Bundle) -> None:
    """Copy, check, then swap: whoever starts `calnet` meanwhile gets the old file or the new one, whole."""
    library = root / LIBRARY
    _directory(library)
    before = _target(library / "current")
    home = library / bundle.build_id
    _directory(home)
    _write(home / FILE, bundle.whole(), 0o755)
    done = subprocess.run([sys.executable, "-IS", str(home / FILE), "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(f"the copy {home / FILE} does not run ({done.stderr.strip()}): is that directory mounted read-only, or its disk full?")
    _link(library / "current", bundle.build_id)
    for command in COMMANDS:
        (root / command).parent.mkdir(parents=True, exist_ok=True)
        _link(root / command, f"/{LIBRARY}/current/{FILE}")
    for old in library.iterdir():
        if old.is_dir() and not old.is_symlink() and old.name not in (bundle.build_id, before):
            shutil.rmtree(old)


def _directory(path: Path) -> None:
    """A directory of ours that others can't write."""
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.geteuid():
        raise HostError(f"{path} is a symlink or another user's: move it away")
    path.chmod(0o755)


def _write(path: Path, data: bytes, mode: int) -> bool:
    """Put a file in place by rename; whether it differs from what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.is_symlink() and path.read_bytes() == data:
        path.chmod(mode)
        return False
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    os.replace(fresh, path)
    return True


def _link(path: Path, target: str) -> None:
    """A symlink, swapped by rename. HostError rather than replace something that isn't one."""
    if path.exists() and not path.is_symlink():
        raise HostError(f"{path} is there already and was not made by install: move it away")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    os.replace(fresh, path)


def _target(path: Path) -> str:
    return os.readlink(path) if path.is_symlink() else ""


def _place_pages(root: Path, bundle: Bundle) -> None:
    for name, page in bundle.pages():
        _write(root / MANUAL / name, page, 0o644)


# --- removing -----------------------------------------------------------------------------------------------------------------------------------


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _remove_program(root: Path) -> None:
    for command in COMMANDS:
        if _target(root / command) == f"/{LIBRARY}/current/{FILE}":
            _remove(root / command)
    for page in (root / MANUAL).glob("calnet*.1"):
        _remove(page)
    if (root / LIBRARY).is_dir() and not (root / LIBRARY).is_symlink():
        shutil.rmtree(root / LIBRARY)


def _purge(root: Path, role: Role) -> None:
    _remove(root / role.environment.lstrip("/"))
    state = root / "var/lib" / role.state
    if state.is_dir() and not state.is_symlink():
        shutil.rmtree(state)


# --- the service --------------------------------------------------------------------------------------------------------------------------------


def _systemd_runs(args: Namespace) -> bool:
    return args.root is None and Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def _start(args: Namespace, role: Role, *, changed: bool) -> None:
    if args.root is not None:
        return
    following = "connect it with: calnet up --server URL --auth-key -" if role.name == "node" else "make a key with: calnet admin keys create"
    if not _systemd_runs(args):
        _say(f"systemd does not run here: start it yourself with: calnet {role.name}; then {following}")
        return
    _systemctl("daemon-reload")
    _systemctl("enable", role.unit)
    _systemctl("restart" if changed else "start", role.unit)
    _say(f"{role.unit} runs; {following}")


def _systemctl(*words: str, needed: bool = True) -> None:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0 and needed:
        raise HostError(f"systemctl {' '.join(words)} failed: {done.stderr.strip() or done.returncode}; see: journalctl -u {words[-1]}")
