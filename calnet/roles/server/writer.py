"""The one writer: plans are computed one after the other on the newest state, those that wait share one durable commit, and only then is it published.

A plan is a function from a Snapshot to (changes, result). It raises a CalnetError to refuse, and then nothing of it is done. If the commit fails, every plan
in it fails and the snapshot stays what the store holds.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from calnet.errors import StateError
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Change, Store

MAX_BATCH: Final = 512
"""Plans that share a commit at most."""

Result = TypeVar("Result")
Plan = Callable[[Snapshot], tuple[Sequence[Change], Result]]
Published = Callable[[Snapshot, Snapshot, Sequence[Change]], None]


class Writer:
    """See the module. `published(before, after, changes)` is called on the writer's thread after each durable batch, before its futures are done."""

    def __init__(self, store: Store, snapshot: Snapshot, published: Published) -> None:
        self._store = store
        self._snapshot = snapshot
        self._published = published
        self._queue: queue.SimpleQueue[tuple[Plan[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="calnet-writer", daemon=True)
        self._thread.start()

    def submit(self, plan: Plan[Result]) -> Future[Result]:
        """Compute `plan` and commit it: the future has its result once it is durable."""
        future: Future[Result] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(StateError("the server stops"))
            else:
                self._queue.put((plan, future))
        return future

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
            self._perform([(plan, future) for plan, future in batch if future.set_running_or_notify_cancel()])

    def _perform(self, batch: list[tuple[Plan[Any], Future[Any]]]) -> None:
        draft = self._snapshot.copy()
        changes: list[Change] = []
        results: list[tuple[Future[Any], Any]] = []
        for plan, future in batch:
            try:
                planned, result = plan(draft)
            except Exception as error:  # noqa: BLE001  the boundary of one plan: a defect in one must not stop the writer for all others
                future.set_exception(error)
            else:
                draft.apply(planned)
                changes.extend(planned)
                results.append((future, result))
        try:
            if changes:
                self._store.commit(changes)
                before, self._snapshot = self._snapshot, draft
                self._published(before, draft, changes)
        except Exception as error:  # noqa: BLE001  the boundary of one batch: those who wait must be told, and the next batch may succeed
            for future, _ in results:
                future.set_exception(error)
        else:
            for future, result in results:
                future.set_result(result)
