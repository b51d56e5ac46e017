"""Connections to the server: URLs, names, refusals, TLS, and no proxy whatever the environment says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from calnet.errors import InvalidError, ProtocolError, UnreachableError
from calnet.model import Endpoint
from calnet.roles.node import underlay
from calnet.roles.node.underlay import connect_marked, fetch_server_key, parse_server, resolve, websocket_dial
from tests.roles.node.fakes import until


@pytest.mark.parametrize(
    ("text", "url", "websocket"),
    [
        ("http://192.0.2.1:8080", "http://192.0.2.1:8080", "ws://192.0.2.1:8080/control/ws"),
        ("https://calnet.example.org/", "https://calnet.example.org", "wss://calnet.example.org/control/ws"),
        ("calnet.example.org", "http://calnet.example.org", "ws://calnet.example.org/control/ws"),
        ("host:8080", "http://host:8080", "ws://host:8080/control/ws"),
        ("http://[2001:db8::1]:8080/base/", "http://[2001:db8::1]:8080/base", "ws://[2001:db8::1]:8080/base/control/ws"),
        ("wss://host:443", "https://host", "wss://host/control/ws"),
    ],
)
def test_parse_server_gives_one_form(text: str, url: str, websocket: str) -> None:
    server = parse_server(text)
    assert (server.url(), server.socket_url("/control/ws")) == (url, websocket)
    assert parse_server(server.url()) == server


@pytest.mark.parametrize(
    "text", ["", "://", "ftp://host", "http://u:p@host", "http://host?x", "http://host#x", "http://ho st", "http://[::1", "http://host:0x50"]
)
def test_parse_server_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_server(text)


def serving(answer: bytes, script: Callable[[int], Awaitable[None]]) -> None:
    """Run `script(port)` beside a server on loopback that answers everything with `answer`."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, asyncio.timeout(30):
            await script(server.sockets[0].getsockname()[1])

    asyncio.run(main())


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_fetch_server_key_reads_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    body = json.dumps({"control_key": "ERERERERERERERERERERERERERERERERERERERERERE=", "protocol": 1}).encode()

    async def script(port: int) -> None:
        assert await fetch_server_key(parse_server(f"http://127.0.0.1:{port}"), 0) == b"\x11" * 32

    serving(http("200 OK", body), script)


@pytest.mark.parametrize(
    "answer",
    [http("404 Not Found", b"{}"), http("200 OK", b"<html>"), http("200 OK", b"[]"), http("200 OK", b'{"control_key": 7}'), http("200 OK", b"[" * 4000)],
)
def test_fetch_server_key_of_another_service_says_so(answer: bytes) -> None:
    async def script(port: int) -> None:
        with pytest.raises(ProtocolError, match="is no Calnet server"):
            await fetch_server_key(parse_server(f"http://127.0.0.1:{port}"), 0)

    serving(answer, script)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"\0" * 100])
def test_fetch_server_key_of_something_that_is_no_http_is_unreachable(answer: bytes) -> None:
    async def script(port: int) -> None:
        with pytest.raises(UnreachableError):
            await fetch_server_key(parse_server(f"http://127.0.0.1:{port}"), 0)

    serving(answer, script)


@pytest.mark.parametrize("answer", [b"", http("404 Not Found", b""), http("200 OK", b"hello"), b"\0" * 100])
def test_dial_of_something_that_is_no_websocket_is_unreachable(answer: bytes) -> None:
    async def script(port: int) -> None:
        with pytest.raises(UnreachableError, match=f"127.0.0.1 port {port}"):
            await websocket_dial(0)(f"ws://127.0.0.1:{port}/control/ws", 1000)

    serving(answer, script)


def test_dial_with_tls_of_a_plain_server_is_unreachable() -> None:
    async def script(port: int) -> None:
        with pytest.raises(UnreachableError):
            await websocket_dial(0)(f"wss://127.0.0.1:{port}/control/ws", 1000)

    serving(b"HTTP/1.1 400 Bad Request\r\n\r\n", script)


def test_websocket_that_is_dropped_is_gone_at_once_though_the_other_side_says_nothing() -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            key = next(line.partition(b":")[2].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            writer.write(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            await over.wait()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, asyncio.timeout(30):
            opened = await websocket_dial(0)(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/control/ws", 1000)
            opened.drop()
            opened.drop()
            with pytest.raises(UnreachableError):
                await opened.receive()
            over.set()

    asyncio.run(main())


def test_reconnecting_told_of_another_network_starts_its_backoff_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has now may take a moment to work: the next try comes soon too."""
    asked: list[int] = []
    monkeypatch.setattr(underlay, "backoff", lambda attempt, fraction: asked.append(attempt) or (60.0 if len(asked) == 5 else 0.0))

    async def main() -> None:
        reconnecting = underlay.Reconnecting(Random(1).randbytes)

        async def connection() -> None:
            raise UnreachableError("the name server.test does not resolve")

        task = asyncio.create_task(reconnecting.run(connection, lambda error: None))
        await until(lambda: len(asked) == 5)
        reconnecting.now()
        await until(lambda: len(asked) > 7)
        reconnecting.stop()
        task.cancel()

    asyncio.run(main())
    assert asked[:8] == [0, 1, 2, 3, 4, 0, 1, 2]


def test_connect_to_a_closed_port_names_host_and_reason() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"127.0.0.1 port {port}"):
        asyncio.run(connect_marked("127.0.0.1", port, 0))


def test_connect_to_a_name_that_does_not_resolve_says_so() -> None:
    with pytest.raises(UnreachableError, match="does not resolve"):
        asyncio.run(connect_marked("nobody.invalid", 80, 0))


def test_resolve_leaves_out_what_is_none() -> None:
    assert asyncio.run(resolve(("192.0.2.1:3478", "[2001:db8::1]:3478", "nonsense", "x.invalid:1", "192.0.2.2:port"))) == (
        Endpoint("192.0.2.1", 3478),
        Endpoint("2001:db8::1", 3478),
    )
