"""The built file's loader: memfds, the fallback directory, another Python, a file replaced or damaged."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from calnet.errors import HostError
from calnet.roles.cli import bundle as bundles
from calnet.roles.cli import extraction, native
from calnet.roles.cli.bundle import Bundle, this_target


def build_of(pyz: Path) -> str:
    with zipfile.ZipFile(pyz) as archive:
        return str(json.loads(archive.read("index.json"))["build"])


@pytest.fixture
def opened(pyz: Path) -> Bundle:
    return Bundle(str(pyz), build_of(pyz))


def run(pyz: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-IS", str(pyz), *words], check=False, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def test_built_for_this_python_and_machine(opened: Bundle) -> None:
    assert opened.built_for == [this_target()]


def test_entries_pages_and_licences_can_be_read(opened: Bundle) -> None:
    assert opened.read("nothing/there") is None
    with pytest.raises(HostError, match="damaged"):
        opened.need("nothing/there")
    assert {name for name, _ in opened.pages()} >= {"calnet.1", "calnet-up.1"}
    titles = [name for name, _ in opened.licences()]
    assert titles[0] == "calnet"
    assert any(title.startswith("cryptography") for title in titles)
    assert all(text.strip() for _, text in opened.licences())


def test_another_python_is_told_how_to_build(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "this_target", lambda: "3.99-riscv")
    with pytest.raises(HostError, match=r"python3 build_zipapp\.py"):
        opened.activate()


def test_machine_without_glibc_is_told_so(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_has_glibc", lambda: False)
    with pytest.raises(HostError, match="without glibc"):
        opened.activate()


def test_file_of_another_build_is_refused(pyz: Path) -> None:
    with pytest.raises(HostError, match="replaced"):
        Bundle(str(pyz), "0" * 32).activate()


def test_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calnet.pyz").write_bytes(b"no zip at all")
    with pytest.raises(HostError, match="damaged"):
        Bundle(str(tmp_path / "calnet.pyz"), "0" * 32).activate()


def test_file_is_read_whole_from_the_descriptor_after_it_was_replaced(pyz: Path, tmp_path: Path) -> None:
    copy = tmp_path / "calnet.pyz"
    shutil.copyfile(pyz, copy)
    bundle = Bundle(str(copy), build_of(copy))
    copy.unlink()
    copy.write_bytes(b"another")
    assert bundle.whole() == pyz.read_bytes()
    assert bundle.built_for == [this_target()]


def test_memfd_is_sealed_and_holds_the_bytes() -> None:
    descriptor = native.sealed_memfd("test", b"bytes")
    try:
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == b"bytes"
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        with pytest.raises(OSError, match=r"."):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def test_memfd_is_made_on_kernels_without_noexec_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def old_kernel(name: str, flags: int) -> int:
        if flags & native.MFD_NOEXEC_SEAL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_kernel)
    os.close(native.sealed_memfd("test", b""))


def test_without_memfd_a_directory_takes_its_place(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", none)
    assert isinstance(native.place_for(opened), extraction.Directory)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory that is trusted all the way down, as /tmp is not: its parents are made to seem so by starting the check there."""
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache"


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    real = extraction.make_trusted
    monkeypatch.setattr(extraction, "make_trusted", lambda path: real(path) if Path(path) != base else None)


@pytest.mark.usefixtures("trusting")
def test_extraction_writes_once_and_repairs_what_was_changed(opened: Bundle, base: Path) -> None:
    entry = opened.native_modules()["lmdb.cpython"]
    place = extraction.Directory(opened, str(base))
    path = Path(place.put(entry))
    assert path.read_bytes() == opened.need(entry)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat().st_ino
    assert Path(place.put(entry)).stat().st_ino == before
    path.write_bytes(b"evil")
    assert Path(place.put(entry)).read_bytes() == opened.need(entry)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert not Path(place.put(entry)).is_symlink()


@pytest.mark.parametrize("spoil", [lambda p: p.chmod(0o777), lambda p: (p.rmdir(), p.symlink_to(p.parent)), lambda p: (p.rmdir(), p.write_text(""))])
@pytest.mark.usefixtures("trusting")
def test_extraction_into_a_directory_that_others_could_change_is_refused(opened: Bundle, base: Path, spoil: Callable[[Path], object]) -> None:
    place = base / opened.build_id
    place.mkdir(mode=0o700)
    spoil(place)
    with pytest.raises(HostError, match=r"trusted|Not a directory"):
        extraction.Directory(opened, str(base)).put(opened.deps_entry())


def test_extraction_below_a_world_writable_directory_is_refused(opened: Bundle) -> None:
    with pytest.raises(HostError, match="/tmp can't be trusted"):
        extraction.Directory(opened, "/tmp/calnet-extraction").put(opened.deps_entry())


def test_cache_is_never_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR", "PYTHONPYCACHEPREFIX"):
        monkeypatch.setenv(name, "/tmp/evil")
    assert "/tmp" not in extraction.cache_base()
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert "/tmp" not in extraction.cache_base()


def test_file_run_by_a_python_below_3_11_says_what_it_needs(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        source = archive.read("__main__.py").decode()
    tree = ast.parse(source)
    assert not any(isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr | ast.Match) for node in ast.walk(tree)), "newer syntax than Python 2 reads"
    assert source.index("version_info < (3, 11)") < source.index("from calnet")


def test_version_of_the_file_names_what_it_was_built_for(pyz: Path) -> None:
    document = json.loads(run(pyz, "version", "--json", "--socket", "/nonexistent/s").stdout)
    assert (document["built_for"], document["build"]) == ([this_target()], build_of(pyz))


def test_traceback_of_the_file_shows_source_lines(pyz: Path) -> None:
    done = run(pyz, "status", "--socket", "/nonexistent/s", CALNET_DEBUG="1")
    assert done.returncode == 3
    assert 'raise UnreachableError(f"{error}; is it running?' in done.stderr


def test_man_prints_the_page_from_the_file(pyz: Path) -> None:
    done = run(pyz, "man", "ping", PATH="/nonexistent")
    assert done.returncode == 0
    assert "usage: calnet.pyz ping" in done.stdout
    assert run(pyz, "man", "nonsense").returncode == 1


def test_licenses_of_the_file_are_all_printed(pyz: Path) -> None:
    done = run(pyz, "licenses")
    assert done.returncode == 0
    for name in ("calnet", "pynacl", "uvloop", "pyroute2"):
        assert f"\n{name}" in done.stdout
    assert "GNU GENERAL PUBLIC" not in done.stdout
