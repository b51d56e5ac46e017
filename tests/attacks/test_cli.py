"""Attacks 40 (the socket's half), 42 and 43: local users, secrets and escapes, names."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from calnet.errors import HostError, NotPermittedError, UsageError
from calnet.host.local_socket import MAX_CLIENTS_PER_USER, LocalRequest, serve_local
from calnet.roles.cli import client
from calnet.roles.cli.commands import COMMANDS
from calnet.roles.cli.main import run
from calnet.wire import local
from tests.roles.cli.conftest import cli
from tests.roles.cli.daemon import Cli, scripted

__all__ = ["cli"]

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
EVIL = "bob\r\n100.70.0.9  root  admin@\x1b[2J\x1b]0;owned\x07\u202e\x9b31m"
KEY = "calnet-verysecretverysecretverysecret"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")


def as_nobody(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as an unprivileged user, with Calnet's client imported while it still could be."""
    prelude = (
        "import os, sys, socket; from calnet.roles.cli import client; from calnet.wire import local; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    )
    return subprocess.run([sys.executable, "-c", prelude + script, *words], check=False, capture_output=True, text=True, cwd=ROOT, timeout=30)


def public_directory() -> Path:
    """Where other users can come."""
    path = Path(f"/tmp/calnet-cli-attack-{os.getpid()}")
    path.mkdir(mode=0o755, exist_ok=True)
    path.chmod(0o755)
    return path


# --- 40


@needs_root
def test_attack_40_the_kernel_says_who_asks_whatever_the_request_says() -> None:
    async def handler(request: LocalRequest) -> object:
        if request.uid != 0:
            raise NotPermittedError(f"uid {request.uid} may not")
        return "done"

    async def main() -> None:
        directory = public_directory()
        server = await serve_local(directory / "s", handler, mode=0o666)
        try:
            script = "client.request(sys.argv[1], 'down', {'uid': 0, 'gid': 0, 'pid': 1})"
            done = await asyncio.to_thread(as_nobody, script, str(directory / "s"))
            assert f"uid {NOBODY} may not" in done.stderr
            assert await asyncio.to_thread(client.request, str(directory / "s"), "down", {}) == "done"
        finally:
            await server.close()
            directory.rmdir()

    asyncio.run(main())


@needs_root
def test_attack_40_a_socket_of_mode_0600_is_closed_to_others() -> None:
    async def handler(request: LocalRequest) -> object:
        return "done"

    async def main() -> None:
        directory = public_directory()
        server = await serve_local(directory / "s", handler, mode=0o600)
        try:
            done = await asyncio.to_thread(as_nobody, "client.request(sys.argv[1], 'status', {})", str(directory / "s"))
            assert "may not open that socket" in done.stderr
        finally:
            await server.close()
            directory.rmdir()

    asyncio.run(main())


@needs_root
def test_attack_40_one_user_cannot_lock_the_others_out() -> None:
    async def handler(request: LocalRequest) -> object:
        return "done"

    async def main() -> None:
        directory = public_directory()
        server = await serve_local(directory / "s", handler, mode=0o666)
        script = "held = [socket.socket(socket.AF_UNIX) for _ in range(200)]\n"
        script += "for each in held: each.connect(sys.argv[1])\nprint('held', flush=True)\nsys.stdin.read()"
        prelude = "import os, sys, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        flood = await asyncio.create_subprocess_exec(
            sys.executable, "-c", prelude + script, str(directory / "s"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        try:
            assert flood.stdout is not None
            assert await flood.stdout.readline() == b"held\n"
            assert await asyncio.to_thread(client.request, str(directory / "s"), "status", {}, timeout_s=20) == "done"
            assert len(server._clients) <= MAX_CLIENTS_PER_USER + 1
        finally:
            flood.kill()
            await flood.wait()
            await server.close()
            directory.rmdir()

    asyncio.run(main())


@pytest.mark.parametrize("target", ["/etc/passwd", "elsewhere"])
def test_attack_40_a_symlink_where_the_socket_belongs_is_not_followed(tmp_path: Path, target: str) -> None:
    async def handler(request: LocalRequest) -> object:
        return None

    (tmp_path / "s").symlink_to(target)
    with pytest.raises(HostError):
        asyncio.run(serve_local(tmp_path / "s", handler, mode=0o600))
    assert os.readlink(tmp_path / "s") == target
    assert not (tmp_path / "elsewhere").exists()


def test_attack_40_the_daemon_is_never_told_a_file_to_read(cli: Cli, tmp_path: Path) -> None:
    """`file:PATH` is read by the caller with the caller's rights; no path travels to the root daemon."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    with scripted(tmp_path, {"up": {"state": "running"}}) as daemon:
        assert cli("up", "--socket", str(daemon.socket), "--auth-key", f"file:{tmp_path / 'key'}").code == 0
        assert cli("up", "--socket", str(daemon.socket), "--auth-key", "file:/nonexistent").code == 2
    assert len(daemon.asked) == 1
    assert "file:" not in json.dumps(daemon.asked)


# --- 42


def test_attack_42_escapes_in_names_from_elsewhere_reach_no_terminal(cli: Cli, tmp_path: Path) -> None:
    peer = {
        "id": 2,
        "name": EVIL,
        "user": EVIL,
        "os": EVIL,
        "ip": EVIL,
        "online": True,
        "path": "direct",
        "endpoint": EVIL,
        "tx_bytes": EVIL,
        "rx_bytes": 0,
        "tags": [EVIL],
    }
    pong = {"pong": {"peer": EVIL, "ip": EVIL, "path": EVIL, "endpoint": EVIL, "rtt_ms": 1}}
    script: dict[str, object] = {
        "status": {"state": "running", "peers": [peer, {**peer, "user": None}], "health": [{"severity": EVIL, "text": EVIL}]},
        "ping": [pong, {"say": EVIL}, {}],
        "whois": {"name": EVIL, EVIL: [EVIL]},
        "up": [{"approve_code": EVIL}, {"login_url": EVIL, "user_code": EVIL}, {"state": EVIL}],
        "version": {"version": EVIL},
        "get": {"hostname": EVIL},
        "ip": {"ips": [EVIL]},
        "users.list": [{"id": 1, "name": EVIL}],
        "keys.create": {"key": EVIL},
        "down": NotPermittedError(EVIL),
    }
    commands = [
        "status",
        "status --json",
        "ping bob",
        "ping bob --json",
        "whois 1.2.3.4",
        "whois 1.2.3.4 --json",
        "up",
        "up --json",
        "version",
        "get",
        "get hostname",
        "ip",
        "down",
    ]
    with scripted(tmp_path, script) as daemon:
        outcomes = [cli(*words.split(), "--socket", str(daemon.socket)) for words in commands]
        outcomes += [cli("admin", "--socket", str(daemon.socket), *words.split()) for words in ("users list", "users list --json", "keys create")]
    for outcome in outcomes:
        for text in (outcome.out, outcome.err):
            assert all(line.isprintable() for line in text.split("\n"))
            assert "100.70.0.9  root" not in [line[:16] for line in text.split("\n")]


@pytest.mark.parametrize(
    "words", [["\x1b[31mred"], ["up", "--\x1b[2J"], ["ping", EVIL], ["up", "--server", EVIL], ["status", "--socket", "/nonexistent/\x1b[2J\n"]]
)
def test_attack_42_escapes_in_words_are_not_echoed(cli: Cli, words: list[str]) -> None:
    outcome = cli(*words)
    assert outcome.code in (2, 3)
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_attack_42_a_key_is_in_no_argument_list_and_no_environment(tmp_path: Path, how: str) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "key").chmod(0o600)
    given = f"file:{tmp_path / 'key'}" if how == "file" else "-"
    seen: list[bytes] = []

    async def looks(request: LocalRequest) -> object:
        seen.extend(Path(f"/proc/{request.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        return {"state": "running"}

    with scripted(tmp_path, {"up": looks}) as daemon:
        command = [sys.executable, str(ROOT / "calnet.py"), "up", "--socket", str(daemon.socket), "--auth-key", given]
        done = subprocess.run(command, check=False, input=f"{KEY}\n", capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert daemon.asked[0][1]["auth_key"] == KEY
    assert len(seen) == 2
    for text in (*seen, done.stdout.encode(), done.stderr.encode()):
        assert KEY.encode() not in text


def test_attack_42_help_warns_of_a_key_by_value_and_no_variable_takes_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "list of processes" in " ".join(cli("up", "--help").out.split())
    for name in ("CALNET_AUTH_KEY", "CALNET_TOKEN", "CALNET_SERVER_TOKEN"):
        monkeypatch.setenv(name, KEY)
    with scripted(tmp_path, {"up": {"state": "running"}}) as daemon:
        cli("up", "--socket", str(daemon.socket))
    assert "auth_key" not in daemon.asked[0][1]


def test_attack_42_no_error_and_no_traceback_shows_the_key(cli: Cli, tmp_path: Path) -> None:
    for words in (["up", "--auth-key", KEY, "--socket", str(tmp_path / "none"), "--debug"], ["up", "--auth-key", KEY, "--nonsense"]):
        outcome = cli(*words)
        assert outcome.code in (2, 3)
        assert KEY not in outcome.out + outcome.err


def test_attack_42_a_config_file_with_a_secret_that_others_can_read_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('store = "postgresql://calnet:hidden@db/calnet"\n')
    (tmp_path / "c.toml").chmod(0o644)
    outcome = cli("server", "--config", str(tmp_path / "c.toml"))
    assert outcome.code == 1
    assert "chmod 600" in outcome.err
    assert "hidden" not in outcome.err


# --- 43

INTERFACES = ["../x", "x" * 16, "%d", "calnet%d", "a b", "", ".", "..", "a/b", "-x", "a\n", "é", "all", "default"]
HOSTNAMES = ["a.b", "../etc", "a/b", "ä", "-a", "a b", "a" * 64, "%s", "a\n", "a\x1b[m"]


@pytest.mark.parametrize("name", INTERFACES)
def test_attack_43_an_interface_name_is_refused_by_flag_variable_and_file(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert cli("node", f"--tun={name}").code == 2
    monkeypatch.setenv("CALNET_TUN", name)
    assert cli("node").code == 2
    monkeypatch.delenv("CALNET_TUN")
    (tmp_path / "c.toml").write_text(f"tun = {json.dumps(name)}\n")
    assert cli("node", "--config", str(tmp_path / "c.toml")).code == 1


@pytest.mark.parametrize("name", HOSTNAMES)
def test_attack_43_a_host_name_is_refused_before_anything_hears_of_it(cli: Cli, tmp_path: Path, name: str) -> None:
    with scripted(tmp_path, {"up": {}, "set": {}}) as daemon:
        for word in ("up", "set"):
            assert cli(word, f"--hostname={name}", "--socket", str(daemon.socket)).code == 2
    assert daemon.asked == []


@pytest.mark.parametrize("name", HOSTNAMES)
def test_attack_43_user_and_node_names_are_refused_too(cli: Cli, tmp_path: Path, name: str) -> None:
    for words in (["users", "create"], ["users", "rename", "bob"], ["nodes", "rename", "bob"]):
        assert cli("admin", "--socket", str(tmp_path / "none"), *words, f"{name}").code == 2


def test_attack_43_tags_and_prefixes_are_refused(cli: Cli, tmp_path: Path) -> None:
    for words in (["nodes", "tag", "bob", "tag:../x"], ["nodes", "routes", "approve", "bob", "10.0.0.1/8"], ["keys", "create", "--tag", "tag:a b"]):
        assert cli("admin", "--socket", str(tmp_path / "none"), *words).code == 2


def test_attack_43_the_entry_needs_no_terminal_and_knows_every_command() -> None:
    with pytest.raises(UsageError):
        COMMANDS["node"].parser("calnet").parse_args(["--tun", "../x"])
    assert run(["node", "--tun", "../x"]) == 2


def test_attack_40_a_flood_of_bytes_without_a_line_is_cut_off(tmp_path: Path) -> None:
    async def handler(request: LocalRequest) -> object:
        return None

    async def main() -> bytes:
        server = await serve_local(tmp_path / "s", handler, mode=0o600)

        def flood() -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(20)
                connection.connect(str(tmp_path / "s"))
                try:
                    for _ in range(64):
                        connection.sendall(b"x" * 65536)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                try:
                    return connection.recv(65536)
                except ConnectionResetError:
                    return b""

        answer = await asyncio.to_thread(flood)
        await server.close()
        return answer

    answer = asyncio.run(main())
    assert answer == b"" or local.decode_answer(answer.strip())[0] == "error"
