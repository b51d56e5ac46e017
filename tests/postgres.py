"""A real PostgreSQL for tests: a cluster of its own in a temporary directory, on loopback, started without systemd and stopped at the end.

Debian keeps the server's programs out of PATH, and they refuse to run as root: there, the user `postgres` runs them. Where they are missing, tests that need
them are skipped with the reason, or fail where CALNET_REQUIRE_POSTGRES=1.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

OPTIONS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=40 -c shared_buffers=16MB"
WAIT_S = 60


@dataclass(frozen=True)
class Cluster:
    """A running server. `restart` and `crash` are for tests of what a server's loss does."""

    programs: Path
    data: Path
    port: int

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """A new empty database; its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"'.encode())
        return self.url(database)

    def start(self) -> None:
        run_as_postgres([str(self.programs / "pg_ctl"), "start", "-w", "-D", str(self.data), "-l", str(self.data / "log"), "-o", f"{OPTIONS} -p {self.port}"])

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends connections and writes everything; `immediate` is a crash."""
        run_as_postgres([str(self.programs / "pg_ctl"), "stop", "-m", mode, "-D", str(self.data)])


def programs() -> Path:
    """Where initdb and pg_ctl are; skips (or fails) where they are not."""
    found = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions and found is None:
        reason = "PostgreSQL is not installed here (Debian's package postgresql)"
        if os.environ.get("CALNET_REQUIRE_POSTGRES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return versions[-1].parent if versions else Path(str(found)).parent


def run_as_postgres(words: list[str]) -> None:
    """Run to its end, as the user postgres where we are root."""
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(words, user=user, group=user, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/", timeout=WAIT_S, check=False)
        output.seek(0)
        assert done.returncode == 0, output.read().decode(errors="replace")


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A server that lives as long as the context."""
    where = programs()
    with tempfile.TemporaryDirectory(prefix="calnet-postgres-") as directory:
        data = Path(directory) / "data"
        if os.geteuid() == 0:
            postgres = pwd.getpwnam("postgres")
            os.chown(directory, postgres.pw_uid, postgres.pw_gid)
        run_as_postgres([str(where / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"])
        server = Cluster(where, data, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
