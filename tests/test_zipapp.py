"""The one file as people get it: built once for this module by build_zipapp.py, and run by this Python."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from calnet.store.archive import read_archive
from tests.roles.server.registries import Office
from tests.zipapp import BUILDER, PYTHON, ROOT, build, built_file, calnet, in_mounts, run

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def built() -> Path:
    return built_file()


def index(built: Path) -> dict[str, object]:
    with zipfile.ZipFile(built) as archive:
        document = json.loads(archive.read("index.json"))
    assert isinstance(document, dict)
    return document


def other_python(minor: Sequence[str]) -> str | None:
    """Another Python of one of these versions from PATH, by its own path."""
    for version in minor:
        found = shutil.which(f"python{version}")
        if found is not None:
            asked = run(found, "-c", "import sys; sys.stdout.write(sys.executable)")
            if asked.returncode == 0 and asked.stdout:
                return asked.stdout
    return None


def test_file_asked_for_its_version_says_it(built: Path) -> None:
    done = calnet(built, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"calnet \d+\.\d+\.\d+\n", done.stdout)


def test_file_run_by_its_own_first_line_works(built: Path, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(PYTHON)
    done = run(built, "--version", env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert os.access(built, os.X_OK)


def test_file_asked_for_help_names_every_command(built: Path) -> None:
    done = calnet(built, "--help")
    assert done.returncode == 0
    assert all(f"\n  {word} " in done.stdout for word in ("up", "status", "node", "server", "admin", "demo", "selftest", "licenses"))


def test_status_without_a_daemon_exits_3_in_one_line(built: Path, tmp_path: Path) -> None:
    done = calnet(built, "status", "--socket", tmp_path / "nobody.sock")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1


def test_failure_with_debug_shows_lines_of_source_from_the_file(built: Path, tmp_path: Path) -> None:
    done = calnet(built, "status", "--socket", tmp_path / "nobody.sock", env={"CALNET_DEBUG": "1"}, cwd=tmp_path)
    assert done.returncode == 3
    frames = re.findall(r'  File "calnet\.pyz/calnet/\S+\.py", line \d+, in \w+\n    \S.*', done.stderr)
    assert len(frames) >= 3, done.stderr


def test_traceback_through_a_bundled_package_shows_its_lines(built: Path, tmp_path: Path) -> None:
    script = f"""{ACTIVATE}
import idna
try:
    idna.encode("\\u2260..")
except Exception:
    import traceback
    traceback.print_exc(file=sys.stdout)
"""
    done = run(PYTHON, "-IS", "-c", script, built, cwd=tmp_path)
    assert re.search(r'File "calnet\.pyz/deps/idna/core\.py", line \d+, in encode\n    \S', done.stdout), done.stdout + done.stderr


def test_version_lists_what_the_file_was_built_for(built: Path) -> None:
    document = json.loads(calnet(built, "version", "--json").stdout)
    assert document["built_for"] == [f"{sys.version_info[0]}.{sys.version_info[1]}-{os.uname().machine}"]
    assert document["build"] == index(built)["build"]


@pytest.mark.parametrize("words", [("--version",), ("status", "--socket", "/nonexistent"), ("ip", "--help")], ids=lambda words: str(words[0]))
def test_client_command_imports_no_package_and_opens_no_layer(built: Path, words: tuple[str, ...]) -> None:
    done = run(PYTHON, "-X", "importtime", "-IS", built, *words)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "calnet.roles.cli.main" in loaded
    assert not {module for module in loaded if module.partition(".")[0] in ("asyncio", "ctypes", "ssl", "hashlib", "msgspec", "uvloop", "nacl", "cryptography")}
    assert not {"calnet.roles.cli.native", "calnet.roles.cli.extraction"} & loaded


def test_selftest_passes_and_leaves_no_module_out(built: Path) -> None:
    done = calnet(built, "selftest", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {"ciphers", "keys", "lmdb", "sqlite", "uvloop", "msgspec", "websockets", "http", "netlink"} < checks.keys()
    assert re.fullmatch(r"\d+ imported", checks["all modules"]["note"]), "optional modules belong in the builder's TRIMMED"


def test_selftest_of_a_file_without_a_module_fails_and_names_it(built: Path, tmp_path: Path) -> None:
    broken = tmp_path / "calnet.pyz"
    with zipfile.ZipFile(built) as whole, zipfile.ZipFile(broken, "w") as part:
        for entry in whole.infolist():
            if not entry.filename.endswith("/msgspec._core.so"):
                part.writestr(entry, whole.read(entry))
    done = calnet(broken, "selftest")
    assert done.returncode == 1, done.stdout
    assert "msgspec._core" in done.stdout + done.stderr


def test_selftest_with_no_new_privileges_and_no_capabilities_passes(built: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give its capabilities up")
    done = run("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", PYTHON, "-IS", built, "selftest")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
def test_selftest_on_a_read_only_root_with_nothing_executable_to_write_passes(built: Path, tmp_path: Path) -> None:
    mounts = f"mount -t tmpfs -o noexec,nosuid,nodev none {tmp_path}\nmount -o remount,bind,ro /"
    done = in_mounts(mounts, built, "selftest", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
def test_file_on_a_noexec_mount_runs(built: Path, tmp_path: Path) -> None:
    mounts = f"mount -t tmpfs -o noexec none {tmp_path}\ncp {built} {tmp_path}/calnet.pyz\nmount -o remount,ro,noexec {tmp_path}"
    done = in_mounts(mounts, tmp_path / "calnet.pyz", "selftest")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
def test_selftest_without_proc_unpacks_below_var_cache_and_passes(built: Path) -> None:
    mounts = "mount -t tmpfs -o mode=0755 none /proc\nmkdir -p /var/cache\nmount -t tmpfs -o mode=0755 none /var/cache"
    script = f"{mounts}\n{PYTHON} -IS {built} selftest\nstat -c %a:%u /var/cache/calnet\nls /var/cache/calnet/*"
    done = run("unshare", "--mount", "sh", "-c", f"set -e\nmount --make-rprivate /\n{script}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n700:0\n" in done.stdout
    assert "uvloop.loop.so" in done.stdout


ACTIVATE = """import json, sys, zipfile
sys.path.insert(0, sys.argv[1])
from calnet.roles.cli.bundle import Bundle
with zipfile.ZipFile(sys.argv[1]) as archive:
    build = json.loads(archive.read("index.json"))["build"]
bundle = Bundle(sys.argv[1], build)
bundle.activate()
"""


def test_file_replaced_under_a_running_process_changes_nothing_for_it(built: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "calnet.pyz", tmp_path / "new.pyz"
    shutil.copy(built, path)
    other.write_bytes(b"another build altogether")
    script = f"""{ACTIVATE}
import os
os.replace(sys.argv[2], sys.argv[1])
import calnet.roles.server.main, calnet.tunnel.tunnel, starlette.applications, uvloop, lmdb, cryptography.hazmat.bindings._rust as rust
from pyroute2.iproute import IPRoute
print(*(module.__file__ for module in (calnet.tunnel.tunnel, starlette.applications, uvloop.loop, rust)))
print(len(bundle.licences()))
"""
    done = run(PYTHON, "-IS", "-c", script, path, other)
    assert done.returncode == 0, done.stderr
    assert all(place.startswith("/proc/self/fd/") for place in done.stdout.splitlines()[0].split())
    assert path.read_bytes() == b"another build altogether"


def test_file_replaced_while_it_starts_says_so(built: Path, tmp_path: Path) -> None:
    path, start = tmp_path / "calnet.pyz", tmp_path / "start"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(start, [name for name in archive.namelist() if name.startswith(("calnet/", "__main__.py"))])
    stale = (start / "__main__.py").read_text("ascii").replace(str(index(built)["build"]), "0" * 32)
    with zipfile.ZipFile(built) as whole, zipfile.ZipFile(path, "w") as part:
        for entry in whole.infolist():
            if entry.filename != "__main__.pyc":
                part.writestr(entry, stale if entry.filename == "__main__.py" else whole.read(entry))
    done = calnet(path, "selftest")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "was replaced while it started" in done.stderr


def test_start_is_syntax_that_old_pythons_read(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        ast.parse(archive.read("__main__.py"), feature_version=(3, 4))


PRETEND = """import runpy, sys
sys.version_info = ({version})
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_file_under_a_python_that_is_too_old_says_what_it_needs(built: Path) -> None:
    python = other_python(["3.6", "3.7", "3.8", "3.9", "3.10"])
    command = (PYTHON, "-IS", "-c", PRETEND.format(version="3, 9, 2")) if python is None else (python,)
    done = run(*command, built, "--version")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "Python 3.11 or newer" in done.stderr


def test_role_under_a_python_that_the_file_was_not_built_for_names_the_build_command(built: Path) -> None:
    newer = [f"3.{minor}" for minor in range(11, 15) if minor != sys.version_info[1]]
    python = other_python(newer)
    command = (PYTHON, "-IS", "-c", PRETEND.format(version="3, 99, 0")) if python is None else (python, "-IS")
    for role in ("server", "node", "demo", "selftest"):
        done = run(*command, built, role)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done
        assert "python3 build_zipapp.py" in done.stderr


def test_client_command_under_a_python_that_the_file_was_not_built_for_works(built: Path, tmp_path: Path) -> None:
    python = other_python([f"3.{minor}" for minor in range(11, 15) if minor != sys.version_info[1]])
    if python is None:
        pytest.skip("no other Python from 3.11 on in PATH")
    assert run(python, "-IS", built, "--version").returncode == 0
    assert run(python, "-IS", built, "status", "--socket", tmp_path / "nobody.sock").returncode == 3


def test_licences_of_every_bundled_package_are_printed(built: Path) -> None:
    done = calnet(built, "licenses")
    assert done.returncode == 0
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / "runtime.lock").read_text(), re.MULTILINE)
    titles = re.findall(r"^=+\n(\S+)\n=+$", done.stdout, re.MULTILINE)
    bundled = {title.rpartition("-")[0].replace("_", "-") for title in titles[1:]}
    assert titles[0] == "calnet"
    assert bundled == set(locked) - {"psycopg-binary", "pycparser"}


@pytest.mark.slow
def test_file_built_again_elsewhere_is_the_same_bytes(built: Path, tmp_path: Path) -> None:
    other = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": "2", "HOME": str(tmp_path)}
    before = os.umask(0o077)
    try:
        build(tmp_path / "again.pyz", env=other, cwd=tmp_path)
    finally:
        os.umask(before)
    assert hashlib.sha256((tmp_path / "again.pyz").read_bytes()).digest() == hashlib.sha256(built.read_bytes()).digest()
    assert (tmp_path / "again.pyz").stat().st_mode & 0o777 == 0o755


def test_build_from_the_same_input_leaves_the_file_alone(built: Path) -> None:
    before = built.stat()
    build(built, "--if-stale")
    assert (built.stat().st_ino, built.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.slow
def test_build_with_another_date_gives_entries_of_that_date(built: Path, tmp_path: Path) -> None:
    build(tmp_path / "dated.pyz", env={"SOURCE_DATE_EPOCH": "1700000000"})
    with zipfile.ZipFile(tmp_path / "dated.pyz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}
    assert index(tmp_path / "dated.pyz")["inputs"] != index(built)["inputs"]


def test_build_with_a_package_that_the_lock_does_not_know_fails(built: Path, tmp_path: Path) -> None:
    assert built.exists()
    place = next((ROOT / "build").glob(f"wheels-{sys.version_info[0]}.{sys.version_info[1]}-*"))
    shutil.copytree(place, tmp_path / place.name)
    wheel = next((tmp_path / place.name).glob("idna-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = run(*BUILDER, "--output", tmp_path / "calnet.pyz", "--cache", tmp_path)
    assert done.returncode == 1
    assert "runtime.lock" in done.stderr
    assert not (tmp_path / "calnet.pyz").exists()


def test_lock_names_no_place_and_gives_every_package_hashes() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text("ascii")
        assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|^/", text, re.MULTILINE), lock
        packages = re.split(r"\n(?=\S)", text.strip())
        assert all("--hash=sha256:" in package for package in packages if not package.startswith("#")), lock


def test_file_works_on_a_store_whose_server_is_away(built: Path, tmp_path: Path) -> None:
    office = Office(tmp_path / "office")
    (tmp_path / "archive").write_bytes(office.registry.backup())
    office.registry.close()
    state, copy = tmp_path / "state", tmp_path / "copy"
    done = calnet(built, "admin", "--state-dir", state, "restore", tmp_path / "archive", "--yes", "--store", "sqlite")
    assert done.returncode == 0, done.stderr
    assert calnet(built, "admin", "--state-dir", state, "backup", copy).returncode == 0
    assert read_archive(copy.read_bytes()).records == read_archive((tmp_path / "archive").read_bytes()).records
