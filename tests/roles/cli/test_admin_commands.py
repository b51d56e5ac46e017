"""`admin`: what each verb asks of the server, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calnet.errors import NotFoundError
from calnet.roles.cli.admin_parser import KEYS, NODES, NOUNS, POLICY, ROUTES, USERS
from calnet.roles.server.admin import OPERATIONS
from tests.roles.cli.daemon import Cli, scripted

ROOT = Path(__file__).resolve().parents[3]


def test_every_verb_is_an_operation_of_the_server_and_every_operation_a_verb() -> None:
    verbs = {f"users.{verb}" for verb in USERS} | {f"keys.{verb}" for verb in KEYS} | {f"nodes.{verb}" for verb in NODES}
    verbs |= {f"nodes.routes.{verb}" for verb in ROUTES} | {f"policy.{verb}" for verb in POLICY}
    assert verbs == set(OPERATIONS)
    assert set(NOUNS) == {"users", "keys", "nodes", "policy"}


@pytest.mark.parametrize(
    ("words", "op", "args"),
    [
        ("users create Bob", "users.create", {"name": "bob"}),
        ("users rename bob rob", "users.rename", {"user": "bob", "name": "rob"}),
        ("users delete bob", "users.delete", {"user": "bob"}),
        ("keys create", "keys.create", {"reusable": False, "ephemeral": False, "expires_s": 86_400.0}),
        (
            "keys create --reusable --ephemeral --expires 7d --tag tag:a --tag tag:b --user bob",
            "keys.create",
            {"reusable": True, "ephemeral": True, "expires_s": 604_800.0, "tags": ["tag:a", "tag:b"], "user": "bob"},
        ),
        ("keys revoke abc", "keys.revoke", {"id": "abc"}),
        ("nodes show bob", "nodes.show", {"node": "bob"}),
        ("nodes rename bob rob", "nodes.rename", {"node": "bob", "name": "rob"}),
        ("nodes tag bob tag:a", "nodes.tag", {"node": "bob", "tags": ["tag:a"]}),
        ("nodes tag bob", "nodes.tag", {"node": "bob", "tags": []}),
        ("nodes approve ABCD --user bob", "nodes.approve", {"code_or_node": "ABCD", "user": "bob"}),
        ("nodes disable bob", "nodes.disable", {"node": "bob"}),
        ("nodes enable bob", "nodes.enable", {"node": "bob"}),
        ("nodes expire bob", "nodes.expire", {"node": "bob"}),
        ("nodes delete bob", "nodes.delete", {"node": "bob"}),
        ("nodes routes list", "nodes.routes.list", {}),
        ("nodes routes list bob", "nodes.routes.list", {"node": "bob"}),
        ("nodes routes approve bob 10.0.0.0/8", "nodes.routes.approve", {"node": "bob", "routes": ["10.0.0.0/8"]}),
        ("nodes routes revoke bob 10.0.0.0/8", "nodes.routes.revoke", {"node": "bob", "routes": ["10.0.0.0/8"]}),
    ],
)
def test_verb_asks_its_operation_with_what_was_given(cli: Cli, tmp_path: Path, words: str, op: str, args: dict[str, object]) -> None:
    with scripted(tmp_path, {op: {}}) as server:
        assert cli("admin", "--socket", str(server.socket), *words.split()).code == 0
    assert server.asked == [(op, args)]


def test_keys_create_prints_the_secret_alone(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"keys.create": {"key": "calnet-abc", "id": "1"}}) as server:
        assert cli("admin", "--socket", str(server.socket), "keys", "create").out == "calnet-abc\n"
        assert json.loads(cli("admin", "keys", "create", "--json", "--socket", str(server.socket)).out) == {"key": "calnet-abc", "id": "1"}


def test_routes_approve_warns_of_a_route_that_is_not_advertised(cli: Cli, tmp_path: Path) -> None:
    node = {"name": "bob", "routes": {"advertised": ["192.168.1.0/24"], "approved": ["192.168.1.0/24", "192.168.1.0/32"]}}
    with scripted(tmp_path, {"nodes.routes.approve": node}) as server:
        words = ("admin", "--socket", str(server.socket), "nodes", "routes", "approve", "bob")
        told = cli(*words, "192.168.1.0/24", "192.168.1.0")
        assert (told.code, told.err) == (0, "192.168.1.0/32 is approved, but bob does not advertise it; it does: 192.168.1.0/24\n")
        assert cli(*words, "192.168.1.0/24").err == ""


def test_list_is_a_table_and_json_an_array(cli: Cli, tmp_path: Path) -> None:
    rows = [{"id": 1, "name": "admin", "role": "owner", "created": "2026-01-01T00:00:00Z", "more": "unseen"}]
    with scripted(tmp_path, {"users.list": rows}) as server:
        table = cli("admin", "--socket", str(server.socket), "users", "list").out
        assert table == "ID  NAME   ROLE   CREATED\n1   admin  owner  2026-01-01T00:00:00Z\n"
        assert json.loads(cli("admin", "--socket", str(server.socket), "users", "list", "--json").out) == rows


def test_empty_list_is_its_heading(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"keys.list": []}) as server:
        assert cli("admin", "--socket", str(server.socket), "keys", "list").out.startswith("ID  USER")


def test_show_prints_facts_with_what_is_nested(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"nodes.show": {"name": "bob", "routes": {"advertised": ["10.0.0.0/8"], "approved": []}}}) as server:
        assert cli("admin", "--socket", str(server.socket), "nodes", "show", "bob").out == "name    bob\nroutes  advertised: 10.0.0.0/8; approved: -\n"


def test_policy_show_prints_its_text(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"policy.show": {"source": "built-in", "text": "one\ntwo\x1b[31m\n"}}) as server:
        assert cli("admin", "--socket", str(server.socket), "policy", "show").out == "one\ntwo\\x1b[31m\n"


def test_socket_is_in_the_state_directory(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"users.list": []}) as server:
        server.socket.rename(tmp_path / "admin.sock")
        assert cli("admin", "--state-dir", str(tmp_path), "users", "list").code == 0
        (tmp_path / "admin.sock").rename(server.socket)


def test_error_of_the_server_is_its_exit_code(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"nodes.delete": NotFoundError("no node 'x'")}) as server:
        outcome = cli("admin", "--socket", str(server.socket), "nodes", "delete", "x")
    assert (outcome.code, outcome.err) == (1, "calnet: no node 'x'\n")


def test_no_server_exits_3_and_says_how_to_name_another(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("admin", "--state-dir", str(tmp_path), "users", "list")
    assert outcome.code == 3
    assert "--state-dir" in outcome.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_exits_5(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    modules = "calnet.roles.cli.admin_commands, calnet.roles.cli.show, calnet.roles.cli.admin_parser, importlib, locale, os, sys"
    script = f"import {modules}; from calnet.roles.cli.main import run; os.setuid(65534); sys.exit(run(['admin', '--state-dir', sys.argv[1], 'users', 'list']))"
    command = [sys.executable, "-c", script, str(tmp_path / "state")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 5, done.stderr
    assert "sudo" in done.stderr
