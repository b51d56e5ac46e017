"""The local API's lines: what the CLI and a daemon (or the server's admin socket) say to each other over a Unix stream socket.

One JSON object a line, UTF-8, at most MAX_LINE bytes with its newline. One request a connection:

    → {"op": "status", "args": {…}}
    ← {"event": {…}}                                    any number: progress
    ← {"result": …}  or  {"error": {"code": "not-permitted", "text": "…"}}      exactly one, then the server closes

Pure, and the standard library alone; `typing` is not imported at run time, as the CLI's start-up counts every millisecond.
"""

from __future__ import annotations

import json

from calnet.errors import CalnetError, WireError, by_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    Answer = tuple[Literal["event"], dict[str, object]] | tuple[Literal["result"], object] | tuple[Literal["error"], CalnetError]

MAX_LINE: Final = 1 << 20
"""Bytes of the longest line, newline included."""


class LineBuffer:
    """Cuts a byte stream into lines. Error contract: WireError ends the stream; nothing more may be fed."""

    __slots__ = ("_pending", "_scanned")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scanned = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their newlines; WireError once a line is longer than MAX_LINE."""
        self._pending += data
        lines: list[bytes] = []
        while (end := self._pending.find(b"\n", self._scanned)) >= 0:
            lines.append(bytes(self._pending[:end]))
            del self._pending[: end + 1]
            self._scanned = 0
            if end >= MAX_LINE:
                raise WireError(f"a line of {end + 1} bytes is longer than {MAX_LINE}")
        self._scanned = len(self._pending)
        if self._scanned >= MAX_LINE:
            raise WireError(f"a line is longer than {MAX_LINE} bytes")
        return lines

    def pending(self) -> int:
        """Bytes of a line that has begun and not ended."""
        return len(self._pending)


def encode_request(op: str, args: dict[str, object]) -> bytes:
    """A request's line. WireError for args that JSON can't carry or that are too long."""
    return _encode({"op": op, "args": args})


def encode_event(event: dict[str, object]) -> bytes:
    """A progress line."""
    return _encode({"event": event})


def encode_result(result: object) -> bytes:
    """The closing line of a request that was carried out."""
    return _encode({"result": result})


def encode_error(error: CalnetError) -> bytes:
    """The closing line of a request that failed."""
    return _encode({"error": {"code": error.code, "text": str(error)}})


def decode_request(line: bytes) -> tuple[str, dict[str, object]]:
    """Operation and arguments of a request's line (without its newline). WireError for anything else."""
    document = _decode(line)
    op, args = document.get("op"), document.get("args", {})
    if not isinstance(op, str) or not op or not isinstance(args, dict):
        raise WireError("a request needs a string op and an object args")
    return op, args


def decode_answer(line: bytes) -> Answer:
    """What a server's line says: ("event", object), ("result", value) or ("error", the exception it names). WireError for anything else."""
    document = _decode(line)
    if "result" in document:
        return "result", document["result"]
    event, error = document.get("event"), document.get("error")
    if isinstance(event, dict):
        return "event", event
    if isinstance(error, dict):
        code, text = error.get("code"), error.get("text")
        if isinstance(code, str) and isinstance(text, str):
            return "error", by_code(code, text)
    raise WireError("an answer needs an event, a result or an error")


def _encode(document: dict[str, object]) -> bytes:
    try:
        line = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"not to be written as JSON: {error}") from None
    if len(line) > MAX_LINE:
        raise WireError(f"a line of {len(line)} bytes is longer than {MAX_LINE}")
    return line


def _decode(line: bytes) -> dict[str, object]:
    try:
        document = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise WireError("a line that is not JSON") from None
    if not isinstance(document, dict):
        raise WireError("a line that is not a JSON object")
    return document


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
