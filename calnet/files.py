"""Private files: 0600 in 0700 directories whatever the umask, no symlink followed at the last step, written whole and durably or not at all.

The one module at the bottom of the house that touches the disk: store, host and roles import it; nothing below them does. Every failure is a
StateError whose text names the path and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from pathlib import Path
from typing import Final

from calnet.errors import StateError

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
READ_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that `read_private` reads at most: state files are small, and a damaged one must not eat the memory."""


def private_directory(path: Path) -> None:
    """Make `path` a directory of ours that nobody else can enter (0700); missing parents are made 0755. StateError if it is a symlink, not a directory,
    or another user's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, DIRECTORY_MODE)
            _sync_directory(path.parent)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _explained(error, path, "use") from error
    try:
        found = os.fstat(descriptor)
        _check_owner(found, path)
        if stat.S_IMODE(found.st_mode) != DIRECTORY_MODE:
            os.fchmod(descriptor, DIRECTORY_MODE)
    except OSError as error:
        raise _explained(error, path, "use") from error
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by a file of exactly `data`, 0600, durable on return. On StateError (no space left, say) the old content stands untouched.

    A symlink at `path` is replaced, not followed.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.new")
    try:
        try:
            _write_new(fresh, data)
            os.replace(fresh, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _explained(error, path, "write") from error


def read_private(path: Path) -> bytes | None:
    """The content of `path`, or None where there is no such file. StateError if it is no regular file of ours, is a symlink, or others may read it."""
    try:
        descriptor = open_private(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        try:
            data = file.read(READ_LIMIT + 1)
        except OSError as error:
            raise _explained(error, path, "read") from error
    if len(data) > READ_LIMIT:
        raise StateError(f"{path} is damaged: it is over {READ_LIMIT // 1024 // 1024} MiB; restore it from a backup")
    return data


def remove_private(path: Path) -> None:
    """Remove `path` durably; nothing happens where there is no such file. A symlink is removed itself."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            _sync_directory(path.parent)
    except OSError as error:
        raise _explained(error, path, "remove") from error


def rename_private(path: Path, name: Path) -> None:
    """Give `path` the name `name` in its directory, durably, in place of what has that name."""
    try:
        os.replace(path, name)
        _sync_directory(name.parent)
    except OSError as error:
        raise _explained(error, path, "rename") from error


def open_private(path: Path, flags: int) -> int:
    """A descriptor of `path` opened with `flags` (close-on-exec, never through a symlink; with O_CREAT the file is made 0600 whatever the umask).

    FileNotFoundError where it is missing and not to be made; StateError for any other failure, and for a file that is not private to us.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _explained(error, path, "open") from error
    try:
        found = os.fstat(descriptor)
        _check_private(found, path)
        if flags & os.O_CREAT and stat.S_IMODE(found.st_mode) != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)  # a umask that takes the owner's own bits
    except StateError:
        os.close(descriptor)
        raise
    return descriptor


class PrivateLock:
    """An exclusive lock of this process, held from the constructor to `close` or the process's end. The lock file stays."""

    def __init__(self, path: Path, held: str) -> None:
        """Lock `path`, made where missing. StateError with the text `held` where another process (or another lock of this one) has it."""
        self._descriptor: int | None = None
        try:
            descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError as error:
            raise _explained(error, path, "open") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StateError(held) from None
        except OSError as error:
            os.close(descriptor)
            raise _explained(error, path, "lock") from error
        self._descriptor = descriptor

    def close(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _write_new(path: Path, data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        os.fchmod(descriptor, FILE_MODE)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_owner(found: os.stat_result, path: Path) -> None:
    if found.st_uid != os.geteuid():
        raise StateError(f"{path} belongs to user id {found.st_uid}, not to {os.geteuid()} who runs this: chown it, or choose another --state-dir")


def _check_private(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StateError(f"{path} is not a regular file: move it away")
    _check_owner(found, path)
    if found.st_mode & 0o077:
        raise StateError(f"{path} can be read or written by others (mode {stat.S_IMODE(found.st_mode):04o}): make sure it is yours, then chmod 600 it")


def _explained(error: OSError, path: Path, verb: str) -> StateError:
    """What the user reads instead of `error`."""
    reason = {
        errno.ENOSPC: "no space left on that disk; free some and try again",
        errno.EDQUOT: "the disk quota is used up; free some and try again",
        errno.EROFS: "that file system is read-only",
        errno.EACCES: "permission denied; run as the user it belongs to, or as root",
        errno.EPERM: "permission denied; run as the user it belongs to, or as root",
        errno.ELOOP: "it is a symbolic link, which is not followed; put the real one in its place",
        errno.ENOTDIR: "it, or what should hold it, is not a directory (symbolic links are not followed)",
        errno.EISDIR: "it is a directory",
        errno.ENOENT: "its directory is missing",
        errno.ENXIO: "it is not a regular file",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
    return StateError(f"can't {verb} {path}: {reason}")
