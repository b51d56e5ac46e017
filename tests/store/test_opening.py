"""Opening a store: locks, modes, damage, kinds."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from calnet.errors import ConfigError, StateError
from calnet.store.interface import Put, SettingRecord
from calnet.store.opening import FILE_NAMES, open_store
from tests.store.samples import user


def filled(embedded: str, directory: Path) -> Path:
    """A closed store with some records; its file."""
    store = open_store(embedded, directory)
    store.commit([Put(user())] + [Put(SettingRecord(f"some.{number}", bytes([number]) * 2000)) for number in range(100)])
    store.close()
    return directory / FILE_NAMES[embedded]


def test_open_unknown_kind_is_refused(tmp_path: Path) -> None:
    for kind in ("csv", "mysql://db/calnet"):
        with pytest.raises(ConfigError, match="no store of kind"):
            open_store(kind, tmp_path)


def test_open_a_directory_with_the_other_kind_alone_is_refused(tmp_path: Path) -> None:
    filled("kv", tmp_path)
    with pytest.raises(ConfigError, match="holds a store of kind kv, not sqlite"):
        open_store("sqlite", tmp_path)
    open_store("kv", tmp_path).close()


def test_open_twice_in_one_process_is_refused(embedded: str, tmp_path: Path) -> None:
    store = open_store(embedded, tmp_path)
    with pytest.raises(StateError, match="another server uses this directory"):
        open_store(embedded, tmp_path)
    store.close()
    open_store(embedded, tmp_path).close()


def test_open_in_another_process_is_refused(embedded: str, tmp_path: Path) -> None:
    store = open_store(embedded, tmp_path)
    script = "import sys, pathlib\nfrom calnet.store.opening import open_store\nopen_store(sys.argv[1], pathlib.Path(sys.argv[2]))"
    answer = subprocess.run([sys.executable, "-c", script, embedded, str(tmp_path)], capture_output=True, text=True, check=False)
    store.close()
    assert answer.returncode == 1
    assert "StateError: another server uses this directory" in answer.stderr


def test_files_are_0600_in_0700_whatever_the_umask(embedded: str, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(embedded, tmp_path / "state")
        store.commit([Put(user())])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert FILE_NAMES[embedded] in modes
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_symlink_in_place_of_the_file_is_not_followed(embedded: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE_NAMES[embedded]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="symbolic link"):
        open_store(embedded, tmp_path / "state")
    assert (tmp_path / "elsewhere").read_bytes() == b""


@pytest.mark.parametrize("damage", ["garbage", "cut", "cut-page", "zeroed", "flipped"])
def test_damaged_file_is_one_clear_line_and_releases_the_lock(embedded: str, tmp_path: Path, damage: str) -> None:
    path = filled(embedded, tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(b"not a database at all, " * 1000)
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "cut-page":
        del data[-4096:]
    elif damage == "zeroed":
        data[8192:] = bytes(len(data) - 8192)
    else:
        for at in range(8192, len(data), 4096):
            data[at : at + 32] = bytes(255 - byte for byte in data[at : at + 32])
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(StateError) as raised:
            list(open_store(embedded, tmp_path).load()[1])
        assert "restore it from a backup" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)
