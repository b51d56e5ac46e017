"""A process killed in mid-write: what it acknowledged is there, and nothing is there by half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

from calnet.store.interface import SettingRecord
from calnet.store.opening import open_store


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
    for _ in range(5):
        acknowledged = run_and_kill(kind, tmp_path, random.randrange(5, 60))
        store = open_store(kind, tmp_path)
        values = {record.id: record.value for record in store.load()[1] if isinstance(record, SettingRecord)}
        store.close()
        count = int(values.pop("count"))
        assert count in (acknowledged, acknowledged + 1) or acknowledged == -1
        assert values.keys() == {f"{side}.{number}" for side in ("left", "right") for number in range(count + 1)}
        assert all(values[f"left.{number}"] == values[f"right.{number}"] for number in range(count + 1))
