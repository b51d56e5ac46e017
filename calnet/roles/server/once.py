"""Creates that are carried out once, however often they are asked for: the kept answers behind REST's Idempotency-Key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from calnet.errors import InvalidError
from calnet.roles.server.actors import Once, Replay
from calnet.roles.server.snapshot import Snapshot
from calnet.roles.server.writer import Plan
from calnet.store.interface import Change, Delete, IdempotencyRecord, Key, Put

KEPT_S: Final = 86_400.0
MAX_ANSWERS: Final = 10_000

Result = TypeVar("Result")


def carried_out(state: Snapshot, plan: Plan[Result], wish: Once, now: float) -> tuple[Sequence[Change], Any]:
    """The plan with its answer kept beside; a Replay where that stands already. InvalidError where the key was used for something else."""
    kept = state.answers.get(wish.id)
    if kept is not None and kept.created_at + KEPT_S > now:
        if kept.request_hash != wish.request_hash:
            raise InvalidError("that Idempotency-Key was used for another request: choose a new one")
        return [], Replay(kept.status, kept.body)
    if len(state.answers) >= MAX_ANSWERS:
        raise InvalidError("too many answers are kept for Idempotency-Keys now: leave the header out, or try later")
    changes, result = plan(state)
    status, body = wish.render(result)
    return [*changes, Put(IdempotencyRecord(wish.id, wish.request_hash, status, wish.seal(body), now))], result


def stale_answers(state: Snapshot, now: float) -> list[Change]:
    """Deletions of answers that were kept long enough."""
    return [Delete(Key(IdempotencyRecord, answer.id)) for answer in state.answers.values() if answer.created_at + KEPT_S <= now]
