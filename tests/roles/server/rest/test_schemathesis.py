"""The running server against its own OpenAPI document: schemathesis sends what the document allows and what it does not: no answer may be a 5xx or
undocumented, whoever asks, what the document forbids is refused, and nothing is told to who shows no credentials."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from calnet.roles.server.tokens import TokenWish
from tests.roles.server.registries import Machine, done
from tests.roles.server.running import Running, running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
CONFIGURATION = """[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 429]
"""
EXAMPLES = 25
"""Of each operation, as the owner, who gets furthest; FEW as everybody else."""
FEW = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server") / "state") as found:
        registry = found.registry
        for role in ("admin", "auditor", "user"):
            done(registry.create_user(role if role != "admin" else "manager", role=role))
        key = done(registry.create_key(reusable=True))["key"]
        for number in range(3):
            done(registry.register(Machine(Random(number), f"host-{number}").request(key, ("192.168.1.0/24",))))
        done(registry.register(Machine(Random(9), "waiting").request()))
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("who", ["admin", "manager", "auditor", "user", None])
def test_every_answer_is_documented_and_none_a_server_error(server: Running, who: str | None, tmp_path: Path) -> None:
    headers = []
    if who is not None:
        headers = ["-H", f"Authorization: Bearer {done(server.registry.create_token(TokenWish(who, 'schemathesis')))['token']}"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api/v1/openapi.json", *headers, "--exclude-path", "/events", "--no-color"]
    checks, examples = ([*CHECKS, "ignored_auth"], EXAMPLES) if who == "admin" else ([*CHECKS], FEW)
    command += ["--checks", ",".join(checks), "--phases", "coverage,fuzzing", "--max-examples", str(examples), "--seed", "1", "--generation-database", "none"]
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False, env=os.environ | {"COLUMNS": "200"})
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
