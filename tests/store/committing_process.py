"""Commits forever and acknowledges each commit on stdout: `python -m tests.store.committing_process KIND DIRECTORY`. For killing in mid-write.

With a NUMBER behind it, it lies about that one: it acknowledges it before the commit, and stands still in between. A check that is worth its name finds out.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from calnet.errors import StateError
from calnet.store.interface import AuditRecord, Put, SettingRecord
from calnet.store.opening import open_store


def main() -> None:
    store = open_store(sys.argv[1], Path(sys.argv[2]))
    lie = int(sys.argv[3]) if len(sys.argv) > 3 else None
    number = sum(record.id.startswith("left.") for record in store.load()[1] if isinstance(record, SettingRecord))
    while True:
        if number == lie:
            acknowledge(number)
            signal.pause()
        filler = bytes((number % 251,)) * (number * 997 % 9000)
        changes = [Put(SettingRecord(f"left.{number}", filler)), Put(SettingRecord("count", b"%d" % number)), Put(SettingRecord(f"right.{number}", filler))]
        try:
            store.commit(changes, audit=[AuditRecord(float(number), "system", "", "", "", "test", ())])
        except StateError:  # the database server is gone
            return
        acknowledge(number)
        number += 1


def acknowledge(number: int) -> None:
    """One write to a pipe, so that the line comes whole or not at all."""
    os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    main()
