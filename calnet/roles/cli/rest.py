"""The REST client: one request after the other, over the server's admin socket or to a remote server with a token. The standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from contextlib import contextmanager
from urllib.parse import quote, urlencode, urlsplit

from calnet.errors import CalnetError, NotPermittedError, TimedOutError, UnreachableError, by_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, object]

TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
PAGE = 1000
MAX_ANSWER = 1 << 30


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("calnet")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(self._path)


class Rest:
    """A server's REST API. Failures are the errors that the server names, UnreachableError where it does not answer, TimedOutError where it takes too long."""

    def __init__(self, *, socket_path: str = "", url: str = "", token: str = "") -> None:
        """Either the admin socket's path, or a server's URL with a token."""
        self._socket_path, self._url, self._token = socket_path, url.rstrip("/"), token
        self._base = urlsplit(self._url).path if url else ""
        self.where = url or socket_path

    def is_nobody_there(self) -> bool:
        """Whether no server listens on the admin socket: the file is missing, or left behind."""
        connection = self._connection()
        try:
            connection.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False
        finally:
            connection.close()
        return False

    def get(self, path: str, **query: object) -> Any:
        """The document at `path` below /api/v1; query values that are None are left out."""
        return self._document("GET", path, None, query)

    def list(self, path: str, **query: object) -> Any:
        """All rows of a listing, page after page."""
        rows: list[Json] = []
        cursor: object = None
        while True:
            page = self.get(path, limit=PAGE, cursor=cursor, **query)
            items = page.get("items")
            rows += [row for row in items if isinstance(row, dict)] if isinstance(items, list) else []
            cursor = page.get("next")
            if not cursor:
                return rows

    def newest(self, path: str, limit: int | None, **query: object) -> Any:
        """Of a log the newest rows, at most `limit`, page after page; None for as many as the server gives at once."""
        rows: list[Json] = []
        before: object = None
        while True:
            page = self.get(path, limit=None if limit is None else min(PAGE, limit - len(rows)), before=before, **query)
            items = page.get("items")
            rows += [row for row in items if isinstance(row, dict)] if isinstance(items, list) else []
            before = page.get("next")
            if limit is None or not before or len(rows) >= limit:
                return rows

    def send(self, method: str, path: str, body: Json | None = None, *, etag: str | None = None) -> Any:
        """Change something; the answer's document, empty without one. `etag` is what it must still have."""
        return self._document(method, path, body, {}, {} if etag is None else {"If-Match": f'"{etag}"'})

    def raw(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A request outside /api/v1 with a body of bytes; the answer's body."""
        with self._answer(method, path, body, {"Content-Type": "application/octet-stream"}, timeout_s=600.0) as answer:
            return _whole(answer)

    def events(self, last: str | None = None) -> Iterator[tuple[str, str, Json]]:
        """(id, event, data) of each live event, as they come, until the server ends the stream; an event without a name tells where the stream begins."""
        headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
        with self._answer("GET", "/api/v1/events", None, headers) as answer:
            fields: dict[str, str] = {}
            for line in _lines(answer):
                text = line.decode().rstrip("\n")
                if text:
                    name, _, value = text.partition(": ")
                    fields[name] = value
                elif fields.keys() & {"id", "data"}:
                    yield fields.get("id", ""), fields.get("event", ""), json.loads(fields.get("data", "{}"))
                    fields = {}

    def _document(self, method: str, path: str, body: Json | None, query: dict[str, object], headers: dict[str, str] | None = None) -> Json:
        words = {name: _text(value) for name, value in query.items() if value is not None}
        full = f"/api/v1{path}" + (f"?{urlencode(words)}" if words else "")
        data = None if body is None else json.dumps(body).encode()
        sent = (headers or {}) | ({} if data is None else {"Content-Type": "application/json"})
        with self._answer(method, full, data, sent) as answer:
            raw = _whole(answer)
        try:
            document = json.loads(raw) if raw else {}
        except ValueError:
            raise CalnetError(f"{self.where} did not answer as a Calnet server; is it one?") from None
        return document if isinstance(document, dict) else {}

    @contextmanager
    def _answer(self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float = TIMEOUT_S) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            answer = self._asked(connection, method, path, body, headers, timeout_s)
            with answer:
                if answer.status >= 300:
                    raise self._refusal(answer)
                yield answer
        finally:
            connection.close()

    def _asked(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, self._base + path, body, headers | ({"Authorization": f"Bearer {self._token}"} if self._token else {}))
            return connection.getresponse()
        except TimeoutError:
            raise TimedOutError(f"the server at {self.where} gave no answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise UnreachableError(f"the certificate of {self.where} is not to be trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._nobody_there(error) from None

    def _connection(self) -> http.client.HTTPConnection:
        if self._socket_path:
            return _UnixConnection(self._socket_path)
        parts = urlsplit(self._url)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S, context=ssl.create_default_context())
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)

    def _refusal(self, answer: http.client.HTTPResponse) -> CalnetError:
        if answer.status < 400:
            return CalnetError(f"{self.where} redirects: give the URL that it redirects to, or check --server")
        try:
            problem = json.loads(_whole(answer))
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            if answer.status in (502, 503, 504):
                return UnreachableError(f"{self.where} answered {answer.status} {answer.reason}: the server behind it can't be reached")
            return CalnetError(f"{self.where} answered {answer.status} {answer.reason}; is it a Calnet server?")
        return by_code(str(problem.get("code", "")), str(problem.get("detail", "")) or f"the server answered {answer.status}")

    def _nobody_there(self, error: Exception) -> CalnetError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if not self._socket_path:
            return UnreachableError(f"the server at {self.where} can't be reached: {reason}")
        if os.geteuid() != 0 and not os.access(self._socket_path, os.R_OK | os.W_OK) and _hidden(self._socket_path):
            return NotPermittedError(f"{self._socket_path} can be opened by root or the server's user alone: try it with sudo")
        hint = "is it running on this machine? (calnet.pyz install server; another state directory: --state-dir; a remote server: --server URL --token TOKEN)"
        return UnreachableError(f"the Calnet server can't be reached at {self._socket_path}: {reason}; {hint}")


def given(values: dict[str, object]) -> Json:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def quoted(part: object) -> str:
    """A part of a path."""
    return quote(str(part), safe=":")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole(answer: http.client.HTTPResponse) -> bytes:
    try:
        body = answer.read(MAX_ANSWER)
        if answer.length:  # so many bytes of it are missing; `read` with a limit doesn't mind
            raise UnreachableError("the connection broke before the answer's end")
        return body
    except TimeoutError:
        raise TimedOutError("the server's answer did not come to its end in time") from None
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"the connection broke: {error}") from None


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"the connection broke: {error}") from None


def _hidden(path: str) -> bool:
    """Whether this user may not even look whether `path` is there, or may not open it."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
