"""A process killed in mid-write, and a database server that crashes: what was acknowledged is there, and nothing is there by half.

CALNET_KILLS says how often (5 times without; CI asks for 50).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from calnet.store.interface import SettingRecord
from calnet.store.opening import open_store
from tests.postgres import Cluster

KILLS = int(os.environ.get("CALNET_KILLS", "5"))
LONGEST_COMMIT_S = 0.01
"""The kill falls anywhere in the commits of so long after an acknowledgement."""

pytestmark = pytest.mark.timeout(120 + 4 * KILLS)


def last_acknowledged(words: list[str], commits: int, end: Callable[[subprocess.Popen[bytes]], None]) -> int:
    """Let a process commit, and `end` it, or what it commits to, after `commits` acknowledgements: the number it acknowledged last, read before or after."""
    with subprocess.Popen([sys.executable, "-m", "tests.store.committing_process", *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(commits)]
        end(process)
        lines += process.stdout.readlines()
    assert all(lines), "the process ended before it was told to"
    return int(lines[-1])


def test_killed_writer_leaves_every_acknowledged_commit_and_no_half_one(kind: str, tmp_path: Path) -> None:
    random = Random(7)

    def kill(process: subprocess.Popen[bytes]) -> None:
        time.sleep(random.uniform(0, LONGEST_COMMIT_S))
        process.kill()

    for _ in range(KILLS):
        check_whole(kind, tmp_path, last_acknowledged([kind, str(tmp_path)], random.randrange(1, 20), kill))


def test_writer_that_acknowledges_before_its_commit_is_found_out(kind: str, tmp_path: Path) -> None:
    acknowledged = last_acknowledged([kind, str(tmp_path), "4"], 5, subprocess.Popen.kill)
    with pytest.raises(AssertionError, match="4 was acknowledged, 3 is there"):
        check_whole(kind, tmp_path, acknowledged)


def check_whole(kind: str, directory: Path, acknowledged: int) -> None:
    """All that was acknowledged is there, at most one commit more, and each commit as a whole with its audit record."""
    store = open_store(kind, directory)
    commit, records = store.load()
    audited = sum(1 for _ in store.audit(limit=10**6))
    store.close()
    values = {record.id: record.value for record in records if isinstance(record, SettingRecord)}
    count = int(values.pop("count"))
    assert count in (acknowledged, acknowledged + 1), f"{acknowledged} was acknowledged, {count} is there"
    assert values.keys() == {f"{side}.{number}" for side in ("left", "right") for number in range(count + 1)}
    assert all(values[f"left.{number}"] == values[f"right.{number}"] for number in range(count + 1))
    assert commit == (count + 1, count + 1)
    assert audited == count + 1


def test_crashed_database_server_leaves_every_acknowledged_commit_and_no_half_one(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.create("crashes")
    random = Random(8)
    for _ in range(max(1, KILLS // 5)):
        acknowledged = last_acknowledged([url, str(tmp_path)], random.randrange(1, 20), lambda _: postgres.stop("immediate"))
        postgres.start()
        check_whole(url, tmp_path, acknowledged)
