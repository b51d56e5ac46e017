"""Live events (Server-Sent Events, WHATWG HTML section 9.2): changes from the audit log, which can be resumed, and the coming and going of nodes.

A stream begins with the number of the newest change, so that a client that has heard of none can come back too. One that names a change that this log does not
have (it was restored from elsewhere) is told so, by `reset`, and begins as a new one. A client that reads too slowly is cut off, and goes on from the last
event it has when it comes back. Each stream looks again, every so often and with each change of users, tokens and sessions, whether its principal may still see
what it sees.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from calnet.errors import CalnetError, InvalidError, StateError
from calnet.model import NodeId
from calnet.roles.server.actors import Principal, Role
from calnet.roles.server.audit import audit_row
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest.serving import SECURITY_HEADERS, BusyError, compact
from calnet.store.interface import AuditRecord

HEARTBEAT_S: Final = 15.0
MAX_WAITING: Final = 1000
"""Events that wait for one client."""
MAX_STREAMS: Final = 256
PAGE: Final = 200
_OF_PRINCIPALS: Final = frozenset(("user", "token", "session"))
"""Kinds of records on which a principal's rights rest."""

Authorise = Callable[[Request], Awaitable[Principal]]


class Events:
    """All streams of this server. One event loop owns it; the registry calls on other threads."""

    def __init__(self, registry: Registry, authorise: Authorise, loop: asyncio.AbstractEventLoop, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._registry = registry
        self._authorise = authorise
        self._loop = loop
        self._heartbeat_s = heartbeat_s
        self._streams: set[_Stream] = set()
        self._closed = False
        registry.subscribe_audit(lambda records: self._on_loop(self._changed, records))
        registry.subscribe_presence(lambda node, online: self._on_loop(self._present, node, online))

    def close(self) -> None:
        """End all streams, and begin no more."""
        self._closed = True
        for stream in self._streams:
            stream.end()

    async def endpoint(self, request: Request) -> Response:
        """GET /api/v1/events."""
        principal = await self._authorise(request)
        last = request.headers.get("last-event-id")
        if last is not None and not (last.isascii() and last.isdigit() and len(last) <= 18):
            raise InvalidError("Last-Event-ID is the id of an event of this stream")
        if self._closed:
            raise StateError("the server stops")
        if len(self._streams) >= MAX_STREAMS:
            raise BusyError(f"{MAX_STREAMS} streams are open: close some")
        stream = _Stream(None if last is None else int(last))
        return StreamingResponse(
            self._events(stream, request, principal), headers=SECURITY_HEADERS | {"x-accel-buffering": "no"}, media_type="text/event-stream"
        )

    async def _events(self, stream: _Stream, request: Request, principal: Principal) -> AsyncIterator[str]:
        self._streams.add(stream)
        try:
            yield ": calnet events\nretry: 2000\n\n"
            newest = await asyncio.to_thread(self._registry.newest_audit)
            if stream.seq is None or stream.seq > newest:
                yield f"id: {newest}\n\n" if stream.seq is None else f"id: {newest}\nevent: reset\ndata: {compact({'seq': newest})}\n\n"
                stream.seq = newest
            async for missed in self._missed(stream, principal):
                yield missed
            async for event in self._live(stream, request, principal):
                yield event
        except CalnetError:  # its principal may see nothing any more, or the store is away
            return
        finally:
            self._streams.discard(stream)

    async def _live(self, stream: _Stream, request: Request, principal: Principal) -> AsyncIterator[str]:
        """What happens, until the stream is ended. CalnetError once the principal may not hear of it."""
        look_at = self._loop.time() + self._heartbeat_s
        while not stream.ended:
            for event in stream.take():
                if _is_of_principals(event):
                    principal = await self._authorise(request)
                if (text := self._text(event, stream, principal)) is not None:
                    yield text
            if not await stream.wait(look_at - self._loop.time()):
                yield ": \n\n"
            if self._loop.time() >= look_at:
                principal = await self._authorise(request)
                look_at = self._loop.time() + self._heartbeat_s

    async def _missed(self, stream: _Stream, principal: Principal) -> AsyncIterator[str]:
        """What was committed since the event the client names; from then on the live ones, none twice."""
        while True:
            records = await asyncio.to_thread(self._registry.audit_records, after=stream.seq or 0, limit=PAGE)
            for record in records:
                if (text := self._text(record, stream, principal)) is not None:
                    yield text
                stream.seq = record.seq
            if len(records) < PAGE:
                return

    def _text(self, event: _Event, stream: _Stream, principal: Principal) -> str | None:
        """The event's text for this principal; None where it may not see it, or has it."""
        own = principal.role is Role.USER
        if isinstance(event, AuditRecord):
            if stream.seq is not None and event.seq <= stream.seq:
                return None
            stream.seq = event.seq
            return None if own and not self._is_own_change(event, principal) else f"id: {event.seq}\nevent: change\ndata: {compact(audit_row(event))}\n\n"
        node, online = event
        name, user = self._registry.name_and_owner(node)
        if own and (user is None or user != principal.user):
            return None
        return f"event: presence\ndata: {compact({'node': node, 'name': name, 'online': online})}\n\n"

    def _is_own_change(self, record: AuditRecord, principal: Principal) -> bool:
        """Whether all of a change is about the user's own nodes."""
        return bool(record.changes) and all(
            change.kind == "node" and {(side or {}).get("user") for side in (change.before, change.after) if side} == {principal.user}
            for change in record.changes
        )

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    def _changed(self, records: Sequence[AuditRecord]) -> None:
        for stream in self._streams:
            for record in records:
                stream.put(record)

    def _present(self, node: NodeId, online: bool) -> None:
        for stream in self._streams:
            stream.put((node, online))


_Event = AuditRecord | tuple[NodeId, bool]


def _is_of_principals(event: _Event) -> bool:
    return isinstance(event, AuditRecord) and not _OF_PRINCIPALS.isdisjoint(change.kind for change in event.changes)


class _Stream:
    """One client's queue. `seq` is the last change it has, None where it begins with what comes."""

    def __init__(self, seq: int | None) -> None:
        self.seq = seq
        self.ended = False
        self._queue: deque[_Event] = deque()
        self._wake = asyncio.Event()

    def put(self, event: _Event) -> None:
        if len(self._queue) >= MAX_WAITING:
            self.end()
            return
        self._queue.append(event)
        self._wake.set()

    def take(self) -> list[_Event]:
        found = list(self._queue)
        self._queue.clear()
        self._wake.clear()
        return found

    async def wait(self, seconds: float) -> bool:
        """Whether something came before the time was up."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        self.ended = True
        self._wake.set()
