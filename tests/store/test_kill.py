"""A process killed in mid-write, and a database server that crashes: what was acknowledged is there, and nothing is there by half.

CALNET_KILLS says how often (5 times without; CI asks for 50).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

from calnet.store.interface import SettingRecord
from calnet.store.opening import open_store
from tests.postgres import Cluster

KILLS = int(os.environ.get("CALNET_KILLS", "5"))


def run_and_kill(kind: str, directory: Path, commits: int) -> int:
    """Let a process commit, kill it after `commits` acknowledgements: the last acknowledged number."""
    with subprocess.Popen([sys.executable, "-m", "tests.store.committing_process", kind, str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(commits):
            process.stdout.readline()
        process.kill()
        rest = process.stdout.read().split()
    return int(rest[-1]) if rest else -1


def test_killed_writer_leaves_every_acknowledged_commit_and_no_half_one(kind: str, tmp_path: Path) -> None:
    random = Random(7)
    for _ in range(KILLS):
        acknowledged = run_and_kill(kind, tmp_path, random.randrange(1, 20))
        check_whole(kind, tmp_path, acknowledged)


def check_whole(kind: str, directory: Path, acknowledged: int) -> None:
    """All that was acknowledged is there, at most one commit more, and each commit as a whole with its audit record."""
    store = open_store(kind, directory)
    commit, records = store.load()
    audited = sum(1 for _ in store.audit(limit=10**6))
    store.close()
    values = {record.id: record.value for record in records if isinstance(record, SettingRecord)}
    count = int(values.pop("count"))
    assert count in (acknowledged, acknowledged + 1) or acknowledged == -1
    assert values.keys() == {f"{side}.{number}" for side in ("left", "right") for number in range(count + 1)}
    assert all(values[f"left.{number}"] == values[f"right.{number}"] for number in range(count + 1))
    assert commit == (count + 1, count + 1)
    assert audited == count + 1


def test_crashed_database_server_leaves_every_acknowledged_commit_and_no_half_one(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.create("crashes")
    random = Random(8)
    for _ in range(max(1, KILLS // 5)):
        with subprocess.Popen([sys.executable, "-m", "tests.store.committing_process", url, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(random.randrange(1, 20)):
                process.stdout.readline()
            postgres.stop("immediate")
            rest = process.stdout.read().split()
        postgres.start()
        check_whole(url, tmp_path, int(rest[-1]) if rest else -1)
