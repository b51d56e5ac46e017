"""The one file on PostgreSQL: it bundles psycopg, and finds libpq where Debian's package libpq5 puts it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import Cluster, cluster
from tests.roles.server.client import ControlClient, Machine
from tests.roles.server.processes import ServerProcess, server_process, server_words
from tests.zipapp import PYTHON, built_file, in_mounts, run

pytestmark = pytest.mark.timeout(240)
Program = tuple[str, ...]


@pytest.fixture(scope="module")
def built() -> Path:
    return built_file()


@pytest.fixture
def program(built: Path) -> Program:
    return (PYTHON, "-IS", str(built))


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


def new_database(database: Cluster) -> str:
    return database.create(f"file{os.urandom(4).hex()}")


def names(server: ServerProcess, noun: str) -> list[str]:
    return [row["name"] for row in json.loads(server.admin(noun, "list", "--json"))]


def joins(server: ServerProcess, machine: Machine, key: str) -> int:
    async def session() -> int:
        async with ControlClient(server.url, base64.b64decode(server.control_key), machine) as client:
            return await client.join(key)

    return asyncio.run(session())


def test_file_serves_from_postgresql_and_finds_all_again(program: Program, database: Cluster, tmp_path: Path) -> None:
    url = new_database(database)
    with server_process(tmp_path / "first", url, program) as server:
        server.admin("users", "create", "anna")
        key = server.admin("keys", "create", "--user", "anna")
        assert joins(server, Machine("laptop"), key) == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        control_key = server.control_key
    assert not list((tmp_path / "first").glob("*.mdb"))
    with server_process(tmp_path / "second", url, program) as server:
        assert server.control_key == control_key
        assert names(server, "users") == ["admin", "anna"]
        (row,) = json.loads(server.admin("nodes", "list", "--json"))
        assert (row["name"], row["user"]) == ("laptop", "anna")


def test_file_checks_a_database_before_anything_is_started(program: Program, database: Cluster, tmp_path: Path) -> None:
    done = run(*program, *server_words(tmp_path / "state", new_database(database)), "check", "--json")
    found = {finding["what"]: finding["ok"] for finding in json.loads(done.stdout)["findings"]}
    assert found["store"] is True, done.stdout


def test_file_whose_database_goes_away_says_so_and_goes_on_when_it_is_back(program: Program, database: Cluster, tmp_path: Path) -> None:
    with server_process(tmp_path / "state", new_database(database), program) as server:
        server.admin("users", "create", "anna")
        database.stop()
        try:
            refused = run(*program, "admin", "--state-dir", str(server.state), "users", "create", "bob")
            assert names(server, "users") == ["admin", "anna"]
        finally:
            database.start()
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1), refused.stderr
        assert "postgresql://" in refused.stderr
        assert "Traceback" not in server.state.with_suffix(".stderr").read_text()
        server.admin("users", "create", "carol")
        assert names(server, "users") == ["admin", "anna", "carol"]


@pytest.mark.parametrize(
    ("url", "word"),
    [
        (lambda database: "postgresql://postgres@127.0.0.1:1/calnet", "is PostgreSQL running there"),
        (lambda database: database.url("no-such-database"), "createdb"),
        (lambda database: database.url("postgres").replace("postgres@", "nobody@"), "createuser"),
        (lambda database: "postgresql://postgres@no-such-host.invalid/calnet", "no-such-host.invalid"),
        (lambda database: "postgresql://127.0.0.1", "postgresql://USER@HOST/DATABASE"),
    ],
    ids=["nobody listens", "no database", "no user", "no host", "no URL"],
)
def test_file_without_a_database_says_why_in_one_line(program: Program, database: Cluster, tmp_path: Path, url: Callable[[Cluster], str], word: str) -> None:
    done = run(*program, *server_words(tmp_path / "state", url(database)))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert word in done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("mounts", "environment"),
    [("mount --bind /dev/null /etc/ld.so.cache", {"PATH": "/nonexistent"}), ('mount --bind /dev/null "$(ldconfig -p | sed -n "s/.*libpq.so.5 .*=> //p")"', {})],
    ids=["not there", "damaged"],
)
def test_file_without_libpq_names_the_package_in_one_line(built: Path, tmp_path: Path, mounts: str, environment: dict[str, str]) -> None:
    script = f"{mounts}\n" + "".join(f"export {name}={value}\n" for name, value in environment.items())
    done = in_mounts(script, built, *server_words(tmp_path / "state", "postgresql://postgres@127.0.0.1:1/calnet"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert "apt install libpq5" in done.stderr
    assert "psycopg" not in done.stderr
