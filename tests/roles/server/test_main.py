"""The server as a process: the ready line, signals, what it says when it can't start, its memory."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
READY = re.compile(r"calnet server ready: url=(\S+) control-key=(\S+)")


def command(directory: Path, **flags: object) -> list[str]:
    chosen = {"state_dir": directory / "state", "listen": "127.0.0.1:0", "stun_listen": "127.0.0.1:0"} | flags
    return [sys.executable, "-m", "tests.roles.server.serve", *(f"{name}={value}" for name, value in chosen.items())]


@contextlib.contextmanager
def serving(directory: Path, environment: dict[str, str] | None = None, **flags: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process once it is ready, and its URL."""
    process = subprocess.Popen(command(directory, **flags), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {}))
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := READY.search(line):
                assert len(base64.b64decode(found[2])) == 32
                yield process, found[1]
                break
        else:
            raise AssertionError(f"it did not get ready: {''.join(lines)}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def fails(directory: Path, **flags: object) -> tuple[int, str]:
    done = subprocess.run(command(directory, **flags), cwd=ROOT, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr.strip()


def fetch(url: str, context: ssl.SSLContext | None = None) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_server_when_ready_serves_and_ends_on_sigterm_with_0(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, url):
        assert fetch(f"{url}/readyz") == "ready\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - started < 5
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_server_restarted_keeps_its_control_key(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with serving(tmp_path) as (process, url):
            keys.append(fetch(f"{url}/control/key"))
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
    assert keys[0] == keys[1]


def test_server_makes_its_state_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with serving(tmp_path):
            state = tmp_path / "state"
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
            assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {0o600}
            assert (state / "admin.sock").is_socket()
    finally:
        os.umask(before)


def test_server_with_a_taken_port_says_so_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, text = fails(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "taken" in text
    assert "--listen" in text
    assert "\n" not in text


def test_server_with_a_taken_stun_port_says_so_in_one_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        code, text = fails(tmp_path, stun_listen=f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "--stun-listen" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        ({"listen": "nowhere"}, 2, "--listen"),
        ({"listen": "192.0.2.1:0"}, 1, "does not have that address"),
        ({"listen": "no-such-host.invalid:0"}, 1, "no address"),
        ({"store": "paper"}, 1, "--store"),
        ({"prefix": "10.0.0.1/8"}, 2, "--prefix"),
        ({"url": "ftp://x"}, 2, "--url"),
        ({"tls_cert": "/nonexistent", "tls_key": "/nonexistent"}, 1, "certificate"),
        ({"tls_cert": "/dev/null", "tls_key": "/dev/null"}, 1, "certificate"),
    ],
)
def test_server_that_can_not_start_says_why_in_one_line(tmp_path: Path, flags: dict[str, str], code: int, word: str) -> None:
    found, text = fails(tmp_path, **flags)
    assert found == code
    assert word in text
    assert "\n" not in text


def test_second_server_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path):
        code, text = fails(tmp_path)
        assert code == 1
        assert "another server" in text


def test_server_listens_on_both_families_by_default_addresses(tmp_path: Path) -> None:
    with serving(tmp_path, listen="[::]:0", stun_listen="[::]:0") as (_, url):
        assert fetch(f"{url}/healthz") == "ok\n"
        if socket.has_dualstack_ipv6():
            assert fetch(url.replace("127.0.0.1", "[::1]") + "/healthz") == "ok\n"


def test_server_tells_the_service_manager(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        with serving(tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "notify")}) as (process, _):
            assert manager.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(10) == 0


def test_server_uses_less_than_90_mb(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, url):
        fetch(f"{url}/control/key")
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 90_000


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 whose common name is `name`: (certificate, key)."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} -addext subjectAltName=IP:127.0.0.1".split()
    subprocess.run(["openssl", *words, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def served_name(url: str) -> str:
    host, _, port = url.removeprefix("https://").partition(":")
    found = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=ssl.get_server_certificate((host, int(port))), capture_output=True, text=True, check=True
    )
    return found.stdout.strip().rpartition("=")[2].strip()


def test_server_with_a_certificate_speaks_tls_and_reads_it_anew_on_sighup(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "first")
    with serving(tmp_path, tls_cert=cert, tls_key=key) as (process, url):
        assert url.startswith("https://")
        assert fetch(f"{url}/healthz", ssl.create_default_context(cafile=str(cert))) == "ok\n"
        assert served_name(url) == "first"
        certificate(tmp_path, "second")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "configuration_reloaded" in process.stderr.readline()
        assert served_name(url) == "second"
        key.write_text("damaged")
        process.send_signal(signal.SIGHUP)
        assert "configuration_not_reloaded" in process.stderr.readline()
        assert served_name(url) == "second"
