"""Handshake timestamps on disk: what survives a crash, what is damage, and what a full disk changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from calnet.errors import StateError
from calnet.roles.node import handshake_log
from calnet.roles.node.handshake_log import HEADER, RECORD_SIZE, HandshakeLog, build_record
from tests.roles.node.full_disk import fill_up

A, B = b"a" * 32, b"b" * 32


def stamp(number: int) -> bytes:
    return number.to_bytes(12, "big")


def reopened(path: Path) -> HandshakeLog:
    log = HandshakeLog(path)
    log.close()
    return log


def persist_many(log: HandshakeLog) -> None:
    """More than the room that is left in the file's last page."""
    for number in range(2, 300):
        log.persist(A, stamp(number), sent=False)


def test_log_reopened_holds_the_greatest_stamps(tmp_path: Path) -> None:
    log = HandshakeLog(tmp_path / "stamps")
    for number in (1, 3, 2):
        log.persist(A, stamp(number), sent=False)
    log.persist(A, stamp(9), sent=True)
    log.persist(B, stamp(5), sent=True)
    log.close()
    again = reopened(tmp_path / "stamps")
    assert again.accepted == {A: stamp(3)}
    assert again.sent == {A: stamp(9), B: stamp(5)}


def test_log_sent_stamp_may_go_back_after_a_clock_was_set_right(tmp_path: Path) -> None:
    log = HandshakeLog(tmp_path / "stamps")
    log.persist(A, stamp(900), sent=True)
    log.persist(A, stamp(100), sent=True)
    log.close()
    assert reopened(tmp_path / "stamps").sent == {A: stamp(100)}


@pytest.mark.parametrize("cut", range(1, RECORD_SIZE))
def test_log_cut_in_its_last_record_forgets_that_record_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "stamps"
    log = HandshakeLog(path)
    log.persist(A, stamp(1), sent=False)
    log.persist(B, stamp(2), sent=False)
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = HandshakeLog(path)
    assert again.accepted == {A: stamp(1)}
    again.persist(B, stamp(3), sent=False)
    again.close()
    assert reopened(path).accepted == {A: stamp(1), B: stamp(3)}


def test_log_damaged_in_the_middle_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    data = HEADER + build_record(A, stamp(1), False) + build_record(B, stamp(2), False)
    damaged = bytearray(data)
    damaged[len(HEADER) + 40] ^= 1
    path.write_bytes(damaged)
    path.chmod(0o600)
    with pytest.raises(StateError, match=r"stamps is damaged .*move it away"):
        HandshakeLog(path)
    assert path.read_bytes() == damaged


def test_log_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    path.write_bytes(b"something else entirely")
    path.chmod(0o600)
    with pytest.raises(StateError, match="damaged"):
        HandshakeLog(path)


@pytest.mark.parametrize("length", range(1, len(HEADER)))
def test_log_with_half_a_header_begins_anew(tmp_path: Path, length: int) -> None:
    path = tmp_path / "stamps"
    path.write_bytes(HEADER[:length])
    path.chmod(0o600)
    assert reopened(path).accepted == {}
    assert path.read_bytes() == HEADER


def test_log_grown_long_is_compacted_at_start_and_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake_log, "COMPACT_OVER", 8)
    path = tmp_path / "stamps"
    log = HandshakeLog(path)
    for number in range(100):
        log.persist(A, stamp(number), sent=False)
    assert path.stat().st_size <= len(HEADER) + RECORD_SIZE * 10
    log.persist(B, stamp(7), sent=True)
    log.close()
    again = reopened(path)
    assert (again.accepted, again.sent) == ({A: stamp(99)}, {B: stamp(7)})


def test_log_on_a_full_disk_says_so_and_stays_whole(small_disk: Path) -> None:
    path = small_disk / "stamps"
    log = HandshakeLog(path)
    log.persist(A, stamp(1), sent=False)
    fill_up(small_disk / "fill")
    with pytest.raises(StateError, match=r"can't write .*stamps"):
        persist_many(log)
    kept = log.accepted[A]
    (small_disk / "fill").unlink()
    log.persist(B, stamp(1), sent=False)
    log.close()
    assert reopened(path).accepted == {A: kept, B: stamp(1)}
