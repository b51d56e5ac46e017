"""Private files: modes, symlinks, atomic replacement, clear errors."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from calnet import files
from calnet.errors import StateError
from tests.small_disk import mounted_small_disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MiB."""
    with mounted_small_disk(tmp_path) as path:
        yield path


@pytest.fixture(params=[0o022, 0o000, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_directory_is_0700_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    files.private_directory(tmp_path / "state")
    assert mode(tmp_path / "state") == 0o700


def test_private_directory_with_missing_parents_makes_them(tmp_path: Path) -> None:
    files.private_directory(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700


def test_private_directory_open_to_others_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(0o755)
    files.private_directory(path)
    files.private_directory(path)
    assert mode(path) == 0o700


def test_private_directory_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StateError, match="symbolic link"):
        files.private_directory(tmp_path / "link")
    assert mode(tmp_path / "real") == 0o755


def test_private_directory_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="not a directory"):
        files.private_directory(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_anything_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(0o700)
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(StateError, match="belongs to user id 12345"):
        files.private_directory(tmp_path / "state")
    files.write_private(tmp_path / "key", b"k")
    os.chown(tmp_path / "key", 12345, 12345)
    with pytest.raises(StateError, match="belongs to user id 12345"):
        files.read_private(tmp_path / "key")


def test_write_private_is_0600_whatever_the_umask_and_reads_back(tmp_path: Path, umask: int) -> None:
    files.write_private(tmp_path / "key", b"secret")
    assert mode(tmp_path / "key") == 0o600
    assert files.read_private(tmp_path / "key") == b"secret"


def test_write_private_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    files.write_private(tmp_path / "key", b"long secret")
    files.write_private(tmp_path / "key", b"short")
    assert files.read_private(tmp_path / "key") == b"short"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_write_private_over_a_leftover_of_a_killed_writer_succeeds(tmp_path: Path) -> None:
    (tmp_path / f".key.{os.getpid()}-{threading.get_native_id()}.new").write_bytes(b"half")
    files.write_private(tmp_path / "key", b"whole")
    assert files.read_private(tmp_path / "key") == b"whole"


def test_write_private_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / "key").symlink_to(tmp_path / "target")
    files.write_private(tmp_path / "key", b"ours")
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert not (tmp_path / "key").is_symlink()


def test_write_private_into_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="its directory is missing"):
        files.write_private(tmp_path / "nowhere" / "key", b"k")


def test_write_private_over_a_directory_leaves_no_new_file(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(StateError, match="it is a directory"):
        files.write_private(tmp_path / "key", b"k")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_write_private_on_a_full_disk_keeps_the_old_content(small_disk: Path) -> None:
    files.write_private(small_disk / "key", b"old")
    with pytest.raises(StateError, match="no space left on that disk"):
        files.write_private(small_disk / "key", bytes(8 * 1024 * 1024))
    assert files.read_private(small_disk / "key") == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["key"]


def test_read_private_missing_is_none(tmp_path: Path) -> None:
    assert files.read_private(tmp_path / "key") is None


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_read_private_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    files.write_private(tmp_path / "key", b"k")
    (tmp_path / "key").chmod(bits)
    with pytest.raises(StateError, match="chmod 600"):
        files.read_private(tmp_path / "key")


def test_read_private_symlink_fifo_and_directory_are_refused(tmp_path: Path) -> None:
    files.write_private(tmp_path / "real", b"k")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    with pytest.raises(StateError, match="symbolic link"):
        files.read_private(tmp_path / "link")
    for name in ("fifo", "directory"):
        with pytest.raises(StateError, match="not a regular file"):
            files.read_private(tmp_path / name)


def test_read_private_huge_file_is_refused(tmp_path: Path) -> None:
    files.write_private(tmp_path / "key", b"")
    os.truncate(tmp_path / "key", files.READ_LIMIT + 1)
    with pytest.raises(StateError, match="damaged"):
        files.read_private(tmp_path / "key")


def test_remove_private_removes_and_forgives_absence(tmp_path: Path) -> None:
    files.write_private(tmp_path / "key", b"k")
    files.remove_private(tmp_path / "key")
    files.remove_private(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "directory").mkdir()
    with pytest.raises(StateError, match="can't remove"):
        files.remove_private(tmp_path / "directory")


def test_private_lock_second_holder_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    lock = files.PrivateLock(tmp_path / "lock", "another one has it")
    with pytest.raises(StateError, match="another one has it"):
        files.PrivateLock(tmp_path / "lock", "another one has it")
    lock.close()
    lock.close()
    files.PrivateLock(tmp_path / "lock", "another one has it").close()
    assert mode(tmp_path / "lock") == 0o600


def test_private_lock_in_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="its directory is missing"):
        files.PrivateLock(tmp_path / "nowhere" / "lock", "held")
