"""Several servers on one store, in one process: a store that tells its other users of each commit, as PostgreSQL does, but on the thread that committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from calnet.errors import StateError
from calnet.store.interface import AuditRecord, Change, Commit, Record, Store


class SharedStore:
    """One user's side. `deaf` keeps it from hearing of commits; `forgetful` makes the change log too short for it; `intrusion` happens before each replace."""

    shared = False
    """Each server plans on what it was told, so that it is late often."""

    def __init__(self, store: Store, others: list[SharedStore], lock: threading.RLock) -> None:
        self._store = store
        self._all = others
        self._lock = lock
        self._all.append(self)
        self._committed: Callable[[], None] | None = None
        self.deaf = self.forgetful = False
        self.intrusion: Callable[[], object] = lambda: None
        self.stale = 0

    def load(self) -> tuple[Commit, Sequence[Record]]:
        with self._lock:
            return self._store.load()

    def commit(self, changes: Sequence[Change], *, audit: Sequence[AuditRecord] = (), version: int | None = None) -> Commit:
        try:
            with self._lock:
                commit = self._store.commit(changes, audit=audit, version=version)
        except Exception:
            self.stale += 1
            raise
        self._tell()
        return commit

    def replace(self, records: Sequence[Record], audit: Sequence[AuditRecord], *, version: int) -> Commit:
        self.intrusion()
        with self._lock:
            commit = self._store.replace(records, audit, version=version)
        self._tell()
        return commit

    def _tell(self) -> None:
        for other in self._all:
            if other is not self and other._committed is not None and not other.deaf:
                other._committed()

    def changes_since(self, version: int) -> tuple[Commit, Sequence[Change]]:
        if self.forgetful:
            raise StateError("the log does not reach back so far")
        with self._lock:
            return self._store.changes_since(version)

    def audit(self, *, after: int = 0, before: int | None = None, limit: int = 100, newest_first: bool = False) -> Sequence[AuditRecord]:
        with self._lock:
            return self._store.audit(after=after, before=before, limit=limit, newest_first=newest_first)

    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        self._committed = committed

    def send(self, message: bytes) -> None:
        pass

    def close(self) -> None:
        self._committed = None
