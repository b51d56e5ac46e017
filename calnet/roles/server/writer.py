"""The one writer: plans are computed one after the other on the newest state, those that wait share one durable commit, and only then is it published.

A plan is a function from a Snapshot to (changes, result). It raises a CalnetError to refuse, and then nothing of it is done. What a plan with a deed changes
is audited in the same commit. If the commit fails, every plan in it fails and the snapshot stays what the store holds. Where another server on the store
committed first, what it did is taken in and published, and the batch is planned anew: plans are pure, so nothing of the first time is left.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

from calnet.errors import CalnetError, StaleError, StateError
from calnet.roles.server.audit import Deed, audit_of
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import AuditRecord, Change, Commit, Delete, Put, Record, Store, key_of

log = logging.getLogger(__name__)

MAX_BATCH: Final = 512
"""Plans that share a commit at most."""

Result = TypeVar("Result")
Plan = Callable[[Snapshot], tuple[Sequence[Change], Result]]
Published = Callable[[Snapshot, Snapshot, Sequence[Change]], None]
Told = Callable[[Commit], None]


class _Job(NamedTuple):
    plan: Plan[Any]
    future: Future[Any]
    deed: Deed | None


class Writer:
    """See the module. On the writer's thread, after each durable batch (this server's or another's) and before its futures are done: `published(before,
    after, changes)`, and `audited(commit)` where audit records were written."""

    def __init__(self, store: Store, snapshot: Snapshot, commit: Commit, published: Published, audited: Told, clock: Callable[[], float]) -> None:
        """`snapshot` is what the store held at `commit`."""
        self._store = store
        self._snapshot = snapshot
        self._commit = commit
        self._published = published
        self._audited = audited
        self._clock = clock
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._behind = threading.Event()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="calnet-writer", daemon=True)
        self._thread.start()

    def submit(self, plan: Plan[Result], deed: Deed | None = None) -> Future[Result]:
        """Compute `plan` and commit it: the future has its result once it is durable. Without a deed nothing is audited."""
        future: Future[Result] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(StateError("the server stops"))
            else:
                self._queue.put(_Job(plan, future, deed))
        return future

    def catch_up(self) -> None:
        """Take in soon what other servers committed; for the store's thread."""
        if not self._behind.is_set():
            self._behind.set()
            self.submit(lambda _: ([], None))

    def close(self) -> None:
        """Finish what was submitted and stop. A second call does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            batch = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                if len(batch) == MAX_BATCH or self._queue.empty():
                    break
                item = self._queue.get()
            going = item is not None
            if self._behind.is_set() or self._store.shared:  # what is planned here may rest on what an admin did elsewhere a moment ago
                self._behind.clear()
                self._follow()
            self._perform([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _perform(self, batch: list[_Job]) -> None:
        try:
            while True:
                try:
                    outcomes = self._attempt(batch)
                    break
                except StaleError:
                    self._take_in()
        except Exception as error:  # noqa: BLE001  the boundary of one batch: those who wait must be told, and the next batch may succeed
            for job in batch:
                job.future.set_exception(error)
            return
        for job, (failed, result) in zip(batch, outcomes, strict=True):
            if failed is not None:
                job.future.set_exception(failed)
            else:
                job.future.set_result(result)

    def _attempt(self, batch: list[_Job]) -> list[tuple[Exception | None, Any]]:
        """(its refusal, or its result) of each plan, all that hold committed and published. StaleError where another server was first."""
        draft = self._snapshot.copy()
        now = round(self._clock(), 3)  # what people are shown names it exactly
        changes: list[Change] = []
        audit: list[AuditRecord] = []
        outcomes: list[tuple[Exception | None, Any]] = []
        for job in batch:
            try:
                planned, result = job.plan(draft)
                record = audit_of(draft, planned, job.deed, now) if job.deed is not None else None
            except Exception as error:  # noqa: BLE001  the boundary of one plan: a defect in one must not stop the writer for all others
                outcomes.append((error, None))
            else:
                draft.apply(planned)
                changes.extend(planned)
                audit += [] if record is None else [record]
                outcomes.append((None, result))
        if changes:
            self._publish(draft, self._store.commit(changes, audit=audit, version=self._commit.version), changes)
        return outcomes

    def _publish(self, after: Snapshot, commit: Commit, changes: Sequence[Change]) -> None:
        before, was, self._snapshot, self._commit = self._snapshot, self._commit, after, commit
        self._published(before, after, changes)
        if commit.audit != was.audit:
            self._audited(commit)

    def _follow(self) -> None:
        try:
            self._take_in()
        except CalnetError as error:  # the database is away: the next commit, or its return, tries again
            log.error("store_not_followed reason=%s", error)

    def _take_in(self) -> None:
        """Publish what others committed. Where the store no longer knows what changed, compare all it holds."""
        try:
            commit, changes = self._store.changes_since(self._commit.version)
        except StateError:
            commit, records = self._store.load()
            changes = difference(self._snapshot, records)
        if commit != self._commit:
            draft = self._snapshot.copy()
            draft.apply(changes)
            self._publish(draft, commit, changes)


def difference(state: Snapshot, records: Sequence[Record]) -> list[Change]:
    """The changes that make `state` hold `records` and nothing else."""
    wanted = {key_of(record): record for record in records}
    held = {key_of(record): record for record in state.everything()}
    gone: list[Change] = [Delete(key) for key in held.keys() - wanted.keys()]
    return [*gone, *(Put(record) for key, record in wanted.items() if held.get(key) != record)]
