"""install and uninstall, by the built file, below a directory of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import pytest

from calnet.errors import HostError, NotPermittedError
from calnet.roles.setup import main as setup
from calnet.roles.setup.units import NODE, SERVER

Result = subprocess.CompletedProcess[str]


def run(pyz: Path, root: Path, *words: str) -> Result:
    command = [sys.executable, "-IS", str(pyz), *words, "--root", str(root)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """{path: (mode, content or link's target)} of all files."""
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.lstat().st_mode), os.readlink(path).encode() if path.is_symlink() else path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_install_places_file_links_pages_and_unit(pyz: Path, root: Path) -> None:
    done = run(pyz, root, "install", "node")
    assert done.returncode == 0, done.stderr
    found = tree(root)
    build = found["usr/local/lib/calnet/current"][1].decode()
    assert found[f"usr/local/lib/calnet/{build}/calnet.pyz"] == (0o755, pyz.read_bytes())
    assert found["usr/local/bin/calnet"][1] == b"/usr/local/lib/calnet/current/calnet.pyz"
    assert found["usr/local/share/man/man1/calnet-up.1"][0] == 0o644
    assert found["etc/systemd/system/calnet-node.service"][0] == 0o644
    assert "etc/systemd/system/calnet-server.service" not in found


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_install_twice_changes_nothing_whatever_the_umask(pyz: Path, root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert run(pyz, root, "install", "server").returncode == 0
        first = tree(root)
        assert run(pyz, root, "install", "server").returncode == 0
    finally:
        os.umask(before)
    assert tree(root) == first
    assert stat.S_IMODE((root / "usr/local/lib/calnet").stat().st_mode) == 0o755


def test_install_of_another_build_swaps_the_link_and_keeps_the_one_before(pyz: Path, root: Path) -> None:
    library = root / "usr/local/lib/calnet"
    for name in ("older", "old"):
        (library / name).mkdir(parents=True)
    (library / "current").symlink_to("old")
    assert run(pyz, root, "install", "node").returncode == 0
    build = os.readlink(library / "current")
    assert {path.name for path in library.iterdir()} == {"current", "old", build}


def test_install_over_something_that_is_not_its_own_is_refused(pyz: Path, root: Path) -> None:
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/calnet").write_text("someone else's")
    done = run(pyz, root, "install", "node")
    assert done.returncode == 1
    assert "was not made by install" in done.stderr
    assert (root / "usr/local/bin/calnet").read_text() == "someone else's"


def test_install_into_a_symlinked_library_is_refused(pyz: Path, root: Path, tmp_path: Path) -> None:
    (root / "usr/local/lib").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (root / "usr/local/lib/calnet").symlink_to(tmp_path / "elsewhere")
    assert run(pyz, root, "install", "node").returncode == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_uninstall_leaves_the_other_role_and_the_state(pyz: Path, root: Path) -> None:
    for role in ("node", "server"):
        assert run(pyz, root, "install", role).returncode == 0
    (root / "var/lib/calnet").mkdir(parents=True)
    done = run(pyz, root, "uninstall", "node")
    assert done.returncode == 0
    assert "--purge" in done.stderr
    found = tree(root)
    assert "etc/systemd/system/calnet-server.service" in found
    assert "usr/local/bin/calnet" in found
    assert (root / "var/lib/calnet").is_dir()
    assert run(pyz, root, "uninstall", "server").returncode == 0
    assert tree(root) == {}


def test_uninstall_purge_removes_the_state_and_can_be_repeated(pyz: Path, root: Path) -> None:
    assert run(pyz, root, "install", "server").returncode == 0
    (root / "var/lib/calnet-server").mkdir(parents=True)
    (root / "var/lib/calnet-server/keys").write_text("x")
    for _ in range(2):
        assert run(pyz, root, "uninstall", "server", "--purge").returncode == 0
    assert tree(root) == {}
    assert not (root / "var/lib/calnet-server").exists()


def test_uninstall_of_what_is_not_there_says_so(pyz: Path, root: Path) -> None:
    done = run(pyz, root, "uninstall", "node")
    assert (done.returncode, done.stderr) == (0, "there is no calnet-node.service\n")


def test_uninstall_refuses_while_one_runs_that_systemd_did_not_start(pyz: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="calnet-setup-") as short, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        root = Path(short)
        assert run(pyz, root, "install", "server").returncode == 0
        state = root / "var/lib/calnet-server"
        state.mkdir(parents=True)
        listener.bind(str(state / "admin.sock"))
        listener.listen()
        refused = run(pyz, root, "uninstall", "server", "--purge")
        assert refused.returncode == 1
        assert "stop it" in refused.stderr
        assert state.is_dir()
        assert (root / "etc/systemd/system/calnet-server.service").is_file()


def test_uninstall_purge_does_not_follow_a_symlink(pyz: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/calnet").symlink_to(tmp_path / "precious")
    assert run(pyz, root, "uninstall", "node", "--purge").returncode == 0
    assert (tmp_path / "precious").is_dir()


def test_installed_file_runs_through_its_link(pyz: Path, root: Path) -> None:
    assert run(pyz, root, "install", "node").returncode == 0
    shutil.copyfile(pyz, root / "copy.pyz")
    library = root / "usr/local/lib/calnet/current/calnet.pyz"
    done = subprocess.run([sys.executable, "-IS", str(library), "--version"], check=False, capture_output=True, text=True)
    assert done.stdout.startswith("calnet ")


def test_checkout_cannot_be_installed() -> None:
    with pytest.raises(HostError, match="built file"):
        setup.install(Namespace(bundle=None, what="node", root=None))


def test_without_root_it_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermittedError):
        setup.uninstall(Namespace(bundle=None, what="node", root=None, purge=False))


@pytest.mark.parametrize("changed", [False, True])
def test_where_systemd_runs_the_service_is_started(monkeypatch: pytest.MonkeyPatch, changed: bool) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(setup, "_systemd_runs", lambda args: True)
    monkeypatch.setattr(setup, "_systemctl", lambda *words, needed=True: asked.append(words))
    setup._start(Namespace(root=None), NODE, changed=changed)
    assert asked == [("daemon-reload",), ("enable", "calnet-node.service"), ("restart" if changed else "start", "calnet-node.service")]


def test_where_systemd_does_not_run_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(setup, "_systemd_runs", lambda args: False)
    setup._start(Namespace(root=None), SERVER, changed=True)
    assert "start it yourself with: calnet server" in capsys.readouterr().err
