"""`admin` and `can` against a whole server, over its socket and by URL and token: what is done, what is printed, how they exit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from calnet.roles.cli import rest
from calnet.roles.cli.admin_parser import ARCHIVES, NOUNS, ROUTES
from calnet.roles.cli.admin_verbs import VERBS
from calnet.store.interface import UserRecord
from calnet.store.opening import open_store
from tests.roles.cli.daemon import Cli, Outcome
from tests.roles.server.registries import Machine, Office, done
from tests.roles.server.running import Running, running

ROOT = Path(__file__).resolve().parents[3]
POLICY = """{
  // the web is for members
  "tagOwners": {"tag:web": ["autogroup:admin"]},
  "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:80"]}],
  "tests": [{"src": "admin@", "accept": ["tag:web:80"], "deny": ["tag:web:22"]}],
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server") / "state") as found:
        yield found


class Admin:
    """`calnet admin …` over the socket."""

    def __init__(self, cli: Cli, server: Running) -> None:
        self._cli, self._server = cli, server

    def __call__(self, *words: str) -> Outcome:
        return self._cli("admin", "--socket", str(self._server.socket), *words)

    def json(self, *words: str) -> object:
        outcome = self(*words, "--json")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    def can(self, *words: str) -> Outcome:
        return self._cli("can", "--socket", str(self._server.socket), *words)


@pytest.fixture
def admin(cli: Cli, server: Running) -> Admin:
    return Admin(cli, server)


@pytest.fixture
def node(server: Running) -> Iterator[str]:
    """A tagged node with a route, admitted; its name."""
    key = done(server.registry.create_key(tags=("tag:web",)))["key"]
    standing = done(server.registry.register(Machine(Random(os.urandom(8)), "web").request(key, ("192.168.1.0/24",))))
    yield str(server.registry.node(str(standing.node))["name"])
    done(server.registry.delete_node(str(standing.node)))


def test_every_verb_has_its_requests_and_every_request_a_verb() -> None:
    verbs = {f"{noun}.{verb}" for noun, (_, verbs) in NOUNS.items() for verb in verbs} | {f"nodes.routes.{verb}" for verb in ROUTES} | set(ARCHIVES)
    assert verbs == set(VERBS)


def test_user_is_made_listed_renamed_given_a_role_suspended_and_deleted(admin: Admin) -> None:
    assert admin("users", "create", "Bob", "--role", "auditor") == Outcome(0, "", "user bob: made\n")
    lines = admin("users", "list").out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "ROLE", "SUSPENDED", "EMAIL", "CREATED"]
    assert lines[2].split()[1:4] == ["bob", "auditor", "no"]
    assert admin("users", "rename", "bob", "rob").code == 0
    assert admin("users", "role", "rob", "admin").code == 0
    assert admin("users", "suspend", "rob").err == "user rob: suspended\n"
    row = next(row for row in admin.json("users", "list") if row["name"] == "rob")  # type: ignore[attr-defined]
    assert (row["role"], row["suspended"]) == ("admin", True)
    assert admin("users", "resume", "rob").code == 0
    assert admin("users", "delete", "rob").code == 0
    assert "rob" not in admin("users", "list").out


def test_refusals_have_their_exit_code_and_one_line(admin: Admin) -> None:
    assert admin("users", "delete", "nobody") == Outcome(1, "", "calnet: no user 'nobody': `calnet.pyz admin users list` shows them\n")
    assert admin("users", "delete", "admin").code == 1
    assert admin("users", "create", "x", "--role", "king").code == 2


def test_key_is_printed_alone_and_revoked(admin: Admin) -> None:
    outcome = admin("keys", "create", "--reusable", "--expires", "7d", "--tag", "tag:a")
    assert re.fullmatch(r"calnet-[a-z2-7]+\n", outcome.out)
    assert outcome.err == ""
    made = admin.json("keys", "create")
    assert set(made) == {"key", "id"}  # type: ignore[call-overload]
    assert admin("keys", "revoke", made["id"]).code == 0  # type: ignore[index]
    (row,) = [row for row in admin.json("keys", "list") if row["id"] == made["id"]]  # type: ignore[attr-defined, index]
    assert row["valid"] is False


def test_node_verbs(admin: Admin, node: str) -> None:
    assert admin("nodes", "rename", node, "shop").code == 0
    assert admin("nodes", "tag", "shop", "tag:web", "tag:a").code == 0
    for verb in ("disable", "enable"):
        assert admin("nodes", verb, "shop").err == f"node shop: {verb}d\n"
    shown = admin("nodes", "show", "shop").out
    assert re.search(r"^tags +tag:a, tag:web$", shown, re.MULTILINE)
    assert re.search(r"^routes +advertised: 192.168.1.0/24; approved: -$", shown, re.MULTILINE)
    assert admin("nodes", "expire", "shop").code == 0
    assert admin("nodes", "approve", "shop").code == 0
    assert admin("nodes", "rename", "shop", node).code == 0


def test_routes_approve_warns_of_a_route_that_is_not_advertised(admin: Admin, node: str) -> None:
    told = admin("nodes", "routes", "approve", node, "192.168.1.0/24", "192.168.1.0/32")
    assert told.code == 0
    assert f"192.168.1.0/32 is approved, but {node} does not advertise it; it does: 192.168.1.0/24" in told.err
    rows = {row["route"]: row for row in admin.json("nodes", "routes", "list", node)}  # type: ignore[attr-defined]
    assert rows["192.168.1.0/24"]["primary"] is True
    assert admin("nodes", "routes", "revoke", node, "192.168.1.0/32").code == 0
    assert "192.168.1.0/32" not in admin("nodes", "routes", "list").out


def test_routes_that_overlap_another_nodes_are_shown_and_warned_of(admin: Admin, node: str, server: Running) -> None:
    key = done(server.registry.create_key(tags=("tag:web",)))["key"]
    other = done(server.registry.register(Machine(Random(77), "wide").request(key, ("192.168.0.0/16", "10.0.0.0/8")))).node
    assert "overlaps" not in admin("nodes", "routes", "approve", "wide", "192.168.0.0/16", "10.0.0.0/8").err
    told = admin("nodes", "routes", "approve", node, "192.168.1.0/24")
    assert (told.code, told.err.count("overlaps")) == (0, 1)
    assert "192.168.1.0/24 overlaps 192.168.0.0/16 of wide: where both hold an address, the longer prefix wins" in told.err
    shown = [line.split() for line in admin("nodes", "routes", "list").out.splitlines()]
    assert shown[0][-1] == "OVERLAPS"
    assert {line[2]: " ".join(line[7:]) for line in shown[1:]} == {
        "192.168.1.0/24": "192.168.0.0/16 of wide",
        "192.168.0.0/16": f"192.168.1.0/24 of {node}",
        "10.0.0.0/8": "-",
    }
    done(server.registry.delete_node(str(other)))


def test_policy_is_checked_compared_set_tested_asked_and_reset(admin: Admin, node: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.hujson", tmp_path / "bad.hujson"
    good.write_text(POLICY)
    bad.write_text(POLICY.replace('"src": ["autogroup:member"]', '"src": ["group:none"]'))
    outcome = admin("policy", "check", str(bad))
    assert outcome.code == 1
    assert outcome.out.startswith(f"{bad}:4:41: there is no group:none in groups\n")
    assert admin("policy", "check", str(good)).out.endswith("all is well, 2 tests passed\n")
    assert admin.can("admin@", node, "tcp/22").code == 0
    assert f"- admin@ -> {node}" not in admin("policy", "diff", str(good)).out
    assert admin("policy", "set", str(bad)).code == 1
    assert admin("policy", "show").out.startswith("# The built-in policy")
    assert admin("policy", "set", str(good)).code == 0
    assert admin("policy", "show").out == POLICY
    assert admin("policy", "test").code == 0
    allowed, denied = admin.can("admin@", node, "tcp/80"), admin.can("admin@", "tag:web", "tcp/22")
    assert (allowed.code, allowed.out.split()[0]) == (0, "allowed")
    assert "line 4" in allowed.out
    assert (denied.code, denied.out.split()[0]) == (1, "denied")
    assert admin.can("nobody", node, "icmp").code == 2
    assert admin.can("admin@", node, "tcp/99999").code == 2
    assert admin("policy", "set", str(good), "--etag", "0" * 24).code == 1
    assert admin("policy", "reset").code == 0


def test_token_opens_the_api_by_url_and_not_once_revoked(admin: Admin, cli: Cli, server: Running, tmp_path: Path) -> None:
    made = admin.json("tokens", "create", "ci", "--scope", "users:read", "--expires", "1h")
    (tmp_path / "token").write_text(made["token"] + "\n")  # type: ignore[index]
    (tmp_path / "token").chmod(0o600)
    remote = ("--server", server.url, "--token", f"file:{tmp_path / 'token'}")
    assert "admin" in cli("admin", *remote, "users", "list").out
    refused = cli("admin", *remote, "nodes", "list")
    assert (refused.code, "nodes:read" in refused.err) == (5, True)
    assert admin("tokens", "revoke", made["id"]).code == 0  # type: ignore[index]
    assert cli("admin", *remote, "users", "list").code == 5
    assert cli("admin", "--server", server.url, "users", "list").code == 2
    assert cli("admin", "--server", "http://127.0.0.1:1", "--token", "x", "users", "list").code == 3


def test_settings_are_shown_as_they_are_set(admin: Admin) -> None:
    assert admin("settings", "set", "node_key_lifetime_s=90d", "require_approval=true").code == 0
    assert admin("settings", "show").out == "node_key_lifetime_s=7776000.0\nrequire_approval=yes\n"
    assert admin("settings", "set", "color=red").code == 2
    assert admin("settings", "set", "color=yes").code == 1
    assert admin("settings", "set", "node_key_lifetime_s=180d", "require_approval=false").code == 0


@pytest.mark.parametrize(("text", "value"), [("yes", "yes"), ("true", "yes"), ("Yes", "yes"), ("no", "no"), ("false", "no"), ("NO", "no")])
def test_settings_are_taken_as_they_are_shown(admin: Admin, text: str, value: str) -> None:
    assert admin("settings", "set", f"require_approval={text}").code == 0
    assert f"require_approval={value}\n" in admin("settings", "show").out
    shown = admin("settings", "show").out.split()
    assert admin("settings", "set", *shown).code == 0
    assert admin("settings", "show").out.split() == shown
    assert admin("settings", "set", "require_approval=no").code == 0


@pytest.mark.parametrize("word", ["require_approval=maybe", "require_approval=", "require_approval=1", "node_key_lifetime_s=soon", "node_key_lifetime_s=yes"])
def test_setting_that_can_not_be_says_what_can(admin: Admin, word: str) -> None:
    outcome = admin("settings", "set", word)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert "write" in outcome.err


def test_tagging_with_nothing_is_refused_and_the_help_says_how_to_untag(admin: Admin, node: str) -> None:
    assert admin("nodes", "tag", node).code == 2
    text = " ".join(admin("nodes", "tag", "--help").out.split())
    assert "none for none" not in text
    assert "approve NODE --user USER" in text


def test_audit_lists_as_many_as_are_asked_for(admin: Admin, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(admin.json("audit", "list", "--limit", "5000")) == server.registry.newest_audit()  # type: ignore[arg-type]
    monkeypatch.setattr(rest, "PAGE", 3)
    for limit in (1, 3, 4, 7):
        rows = admin.json("audit", "list", "--limit", str(limit))
        newest = server.registry.newest_audit()
        assert [row["seq"] for row in rows] == list(range(newest, max(0, newest - limit), -1))  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["check", "set", "diff", "test"])
def test_policy_that_is_too_long_is_refused_and_not_cut(admin: Admin, tmp_path: Path, verb: str) -> None:
    file = tmp_path / "long.hujson"
    file.write_text('{"acls": []}\n' + "// more\n" * (512 * 1024 // 8) + "nonsense")
    outcome = admin("policy", verb, str(file))
    assert (outcome.code, outcome.out) == (2, "")
    assert "too long for a policy: at most 524288 characters" in outcome.err
    file.write_text('{"acls": []}' + " " * (512 * 1024 - 12))
    assert admin("policy", "check", str(file)).code == 0


def test_audit_names_who_what_before_and_after(admin: Admin) -> None:
    admin("users", "create", "eve")
    admin("users", "rename", "eve", "eva")
    line = admin("audit", "list", "--limit", "1").out
    assert re.search(r"local root  users.update  user \d+ name: eve -> eva$", line)
    assert admin("audit", "list", "--action", "keys", "--actor", "nobody").out == ""
    assert admin("audit", "at", "2001-01-01").out == ""
    assert "eva" in admin("audit", "at", "2100-01-01").out
    assert admin("audit", "at", "yesterday").code == 1
    admin("users", "delete", "eva")


def test_backup_is_private_and_restores_what_was(admin: Admin, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    admin("users", "create", "before")
    assert admin("backup", str(file)).code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    admin("users", "create", "after")
    assert admin("restore", str(file)).code == 2
    assert admin("import", str(file)).code == 1
    assert admin("restore", str(file), "--yes") == Outcome(0, "", "restored\n")
    names = admin("users", "list").out
    assert "before" in names
    assert "after" not in names
    file.write_bytes(b"not an archive")
    assert admin("restore", str(file), "--yes").code == 1
    assert "before" in admin("users", "list").out


def a_store(directory: Path, *users: str) -> None:
    """A store whose server has stopped."""
    office = Office(directory)
    for user in users:
        done(office.registry.create_user(user))
    office.registry.close()


def users_in(directory: Path, kind: str = "kv") -> list[str]:
    store = open_store(kind, directory)
    try:
        return sorted(record.name for record in store.load()[1] if isinstance(record, UserRecord))
    finally:
        store.close()


def test_archives_need_no_server(cli: Cli, tmp_path: Path) -> None:
    here, new, file = tmp_path / "here", tmp_path / "new", tmp_path / "backup"
    a_store(here, "anna")
    outcome = cli("admin", "--state-dir", str(here), "backup", str(file))
    assert outcome.code == 0, outcome.err
    assert "no server runs" in outcome.err
    assert file.stat().st_mode & 0o777 == 0o600
    for words, kind in ((("import", str(file), "--store", "sqlite"), "sqlite"), (("restore", str(file), "--yes"), "sqlite")):
        assert cli("admin", "--state-dir", str(new), *words).code == 0
        assert users_in(new, kind) == ["admin", "anna"]
    assert cli("admin", "--state-dir", str(here), "import", str(file)).code == 1  # there is something to lose
    assert cli("admin", "--state-dir", str(here), "restore", str(file)).code == 2  # without --yes
    assert users_in(here) == ["admin", "anna"]


def test_archive_of_nothing_is_refused_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    nowhere, file = tmp_path / "nowhere", tmp_path / "backup"
    outcome = cli("admin", "--state-dir", str(nowhere), "backup", str(file))
    assert outcome.code != 0
    assert "--state-dir" in outcome.err
    file.write_bytes(b"no archive")
    assert cli("admin", "--state-dir", str(nowhere), "restore", str(file), "--yes").code != 0
    assert not nowhere.exists()
    assert cli("admin", "--socket", str(tmp_path / "admin.sock"), "backup", str(file)).code == 3  # the socket is named: its server is meant


def test_store_that_a_server_uses_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        server.socket.unlink()
        outcome = cli("admin", "--state-dir", str(tmp_path / "state"), "backup", str(tmp_path / "file"))
        assert outcome.code != 0
        assert "another server uses" in outcome.err
    assert not (tmp_path / "file").exists()


def test_socket_is_in_the_state_directory(cli: Cli, server: Running) -> None:
    assert cli("admin", "--state-dir", str(server.socket.parent), "users", "list").code == 0


def test_no_server_exits_3_and_says_how_to_name_another(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("admin", "--state-dir", str(tmp_path), "users", "list")
    assert outcome.code == 3
    assert "--state-dir" in outcome.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_exits_5(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    modules = "calnet.roles.cli.admin_commands, calnet.roles.cli.admin_verbs, calnet.roles.cli.show, calnet.roles.cli.admin_parser, importlib, locale, os, sys"
    script = f"import {modules}; from calnet.roles.cli.main import run; os.setuid(65534); sys.exit(run(['admin', '--state-dir', sys.argv[1], 'users', 'list']))"
    command = [sys.executable, "-c", script, str(tmp_path / "state")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 5, done.stderr
    assert "sudo" in done.stderr
