"""Where a machine has no memfd or no /proc: the bundled packages in a directory that nobody but root (or this user) can write.

The directory is named by the build's hash. It is never below /tmp and never chosen by the environment; each directory above it has to belong to root or
this user, be no symlink and be closed to other writers; and each file is compared with its hash each time before it is used.
"""

from __future__ import annotations

import hashlib
import os
import stat

from calnet.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from calnet.roles.cli.bundle import Bundle

ROOT_CACHE = "/var/cache/calnet"


class Directory:
    """A Place (see native.py) in files. HostError where the directory can't be trusted or written."""

    def __init__(self, bundle: Bundle, base: str | None = None) -> None:
        self._bundle = bundle
        self.path = os.path.join(base or cache_base(), bundle.build_id)

    def put(self, entry: str) -> str:
        """A path to a file with exactly the entry's bytes."""
        path = os.path.join(self.path, entry.replace("/", "_"))
        try:
            make_trusted(self.path)
            if not self._is_whole(path, entry):
                self._write(path, self._bundle.need(entry))
        except OSError as error:
            raise HostError(f"{path}: {error.strerror or error}; without memfd this file needs that directory to unpack its packages") from None
        return path

    def _is_whole(self, path: str, entry: str) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            return ours and hashlib.sha256(file.read()).hexdigest() == self._bundle.sha256(entry)

    def _write(self, path: str, data: bytes) -> None:
        fresh = f"{path}.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.rename(fresh, path)


def cache_base() -> str:
    """/var/cache/calnet for root; for others the .cache of the home directory that the user database names."""
    if os.geteuid() == 0:
        return ROOT_CACHE
    import pwd

    try:
        return os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".cache", "calnet")
    except KeyError:
        raise HostError("without memfd this file unpacks its packages below the user's home directory, and this user has none") from None


def make_trusted(path: str) -> None:
    """Makes `path` (0700 where it makes a directory), and checks it and each directory above it. HostError for one that others could change."""
    above = os.path.dirname(path)
    if above != path:
        make_trusted(above)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError:
        if not os.path.isdir(path):
            raise
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise HostError(f"{path} can't be trusted: it has to be a directory (no symlink) of root or this user that nobody else can write")
