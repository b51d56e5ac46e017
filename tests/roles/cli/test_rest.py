"""The REST client against servers that break off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from calnet.errors import UnreachableError
from calnet.roles.cli.rest import Rest

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def breaking(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server that answers one request with these bytes, and is gone. It has read all of it, in one piece or two: what it had not would reset the
    connection, answer included."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                asked = b""
                while not asked.endswith(b"\r\n\r\n{}"):
                    asked += connection.recv(65536)
                connection.sendall(request.param)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    "breaking",
    [HEAD + b"Content-Length: 100\r\n\r\n", HEAD + b'Content-Length: 100\r\n\r\n{"items"', HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"],
    indirect=True,
)
def test_answer_that_is_not_whole_is_none(breaking: str) -> None:
    """A backup cut short would be kept as one; an empty document would be taken for success."""
    with pytest.raises(UnreachableError, match="broke"):
        Rest(url=breaking, token="t").send("POST", "/users", {})


@pytest.mark.parametrize("breaking", [HEAD + b"Content-Length: 2\r\n\r\n{}", HEAD + b'\r\n{"a": 1}'], indirect=True)
def test_answer_that_is_whole_is_taken(breaking: str) -> None:
    assert Rest(url=breaking, token="t").send("POST", "/users", {}) in ({}, {"a": 1})
