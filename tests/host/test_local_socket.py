"""The local socket: credentials, one request a connection, cancellation, and what may stand at its path."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from calnet.errors import CalnetError, HostError, NotPermittedError, TimedOutError, UnreachableError
from calnet.host.local_socket import Handler, LocalRequest, serve_local
from calnet.roles.cli import client
from calnet.wire import local


async def echo(request: LocalRequest) -> object:
    return {"op": request.op, "args": request.args, "uid": request.uid, "pid": request.pid}


def with_server(path: Path, handler: Handler, body: Callable[[], Awaitable[None]], *, mode: int = 0o600) -> None:
    async def main() -> None:
        server = await serve_local(path, handler, mode=mode)
        try:
            await asyncio.wait_for(body(), 20)
        finally:
            await server.close()

    asyncio.run(main())
    assert not path.exists()


async def ask(path: Path, op: str = "status", **more: object) -> object:
    return await asyncio.to_thread(lambda: client.request(str(path), op, more, timeout_s=10))


async def converse(path: Path, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    return answer


def test_request_answered_carries_the_callers_credentials(tmp_path: Path) -> None:
    async def body() -> None:
        answer = await ask(tmp_path / "s", "status", a=1)
        assert answer == {"op": "status", "args": {"a": 1}, "uid": os.getuid(), "pid": os.getpid()}

    with_server(tmp_path / "s", echo, body)


def test_events_arrive_in_order_before_the_result(tmp_path: Path) -> None:
    async def handler(request: LocalRequest) -> object:
        for number in range(3):
            await request.emit({"say": number})
        return "done"

    async def body() -> None:
        events: list[dict[str, object]] = []
        result = await asyncio.to_thread(lambda: client.request(str(tmp_path / "s"), "up", {}, on_event=events.append))
        assert (events, result) == ([{"say": 0}, {"say": 1}, {"say": 2}], "done")

    with_server(tmp_path / "s", handler, body)


def test_error_raised_by_the_handler_is_raised_at_the_client(tmp_path: Path) -> None:
    async def handler(request: LocalRequest) -> object:
        raise NotPermittedError("only root may")

    async def body() -> None:
        with pytest.raises(NotPermittedError, match="only root may"):
            await ask(tmp_path / "s")

    with_server(tmp_path / "s", handler, body)


def test_defect_in_the_handler_becomes_an_error_and_the_server_lives(tmp_path: Path) -> None:
    async def handler(request: LocalRequest) -> object:
        return 1 // len(request.args)

    async def body() -> None:
        with pytest.raises(CalnetError, match="internal error"):
            await ask(tmp_path / "s")
        assert await ask(tmp_path / "s", x=1) == 1

    with_server(tmp_path / "s", handler, body)


def test_result_json_cannot_carry_becomes_an_error(tmp_path: Path) -> None:
    async def handler(request: LocalRequest) -> object:
        return {1, 2}

    async def body() -> None:
        with pytest.raises(CalnetError):
            await ask(tmp_path / "s")

    with_server(tmp_path / "s", handler, body)


@pytest.mark.parametrize("sent", [b"\n", b"nonsense\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b"x" * (local.MAX_LINE + 10)])
def test_request_malformed_is_answered_by_an_error(tmp_path: Path, sent: bytes) -> None:
    async def body() -> None:
        answer = await converse(tmp_path / "s", sent)
        assert local.decode_answer(answer.rstrip(b"\n"))[0] == "error"
        assert await ask(tmp_path / "s")

    with_server(tmp_path / "s", echo, body)


def test_request_a_byte_at_a_time_is_answered(tmp_path: Path) -> None:
    async def body() -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        for byte in local.encode_request("slow", {}):
            writer.write(bytes([byte]))
            await writer.drain()
        assert b"slow" in await reader.read()
        writer.close()

    with_server(tmp_path / "s", echo, body)


def test_client_that_closes_cancels_its_handler(tmp_path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: LocalRequest) -> object:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    async def body() -> None:
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(local.encode_request("wait", {}))
        await begun.wait()
        writer.close()
        await cancelled.wait()

    with_server(tmp_path / "s", handler, body)


def test_close_while_a_handler_runs_cancels_it(tmp_path: Path) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def handler(request: LocalRequest) -> object:
            begun.set()
            await asyncio.Event().wait()
            return None

        server = await serve_local(tmp_path / "s", handler, mode=0o600)
        asking = asyncio.create_task(ask(tmp_path / "s"))
        await begun.wait()
        await server.close()
        with pytest.raises(UnreachableError):
            await asking

    asyncio.run(asyncio.wait_for(main(), 20))


def test_client_without_an_answer_in_time_times_out(tmp_path: Path) -> None:
    async def handler(request: LocalRequest) -> object:
        await asyncio.Event().wait()
        return None

    async def body() -> None:
        with pytest.raises(TimedOutError):
            await asyncio.to_thread(lambda: client.request(str(tmp_path / "s"), "status", {}, timeout_s=0.1))

    with_server(tmp_path / "s", handler, body)


def test_client_without_a_server_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=str(tmp_path / "none")):
        client.request(str(tmp_path / "none"), "status", {})


@pytest.mark.parametrize("path", ["x" * 200, "a\0b"])
def test_client_given_an_impossible_path_raises_unreachable(path: str) -> None:
    with pytest.raises(UnreachableError):
        client.request(path, "status", {})


def scripted(path: Path, answer: bytes) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(answer)
        connection.close()
        listener.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("answer", [b"", b"{", b'{"event": {}}\n'])
def test_client_cut_off_before_the_result_raises_unreachable(tmp_path: Path, answer: bytes) -> None:
    thread = scripted(tmp_path / "s", answer)
    with pytest.raises(UnreachableError):
        client.request(str(tmp_path / "s"), "status", {}, timeout_s=10)
    thread.join(10)


def test_client_answered_with_nonsense_raises_a_clear_error(tmp_path: Path) -> None:
    thread = scripted(tmp_path / "s", b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(CalnetError, match="another version"):
        client.request(str(tmp_path / "s"), "status", {}, timeout_s=10)
    thread.join(10)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_socket_file_has_its_mode_whatever_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    async def body() -> None:
        assert stat.S_IMODE(os.lstat(tmp_path / "s").st_mode) == mode

    previous = os.umask(umask)
    try:
        with_server(tmp_path / "s", echo, body, mode=mode)
    finally:
        os.umask(previous)


def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))

    async def body() -> None:
        assert await ask(tmp_path / "s")

    with_server(tmp_path / "s", echo, body)


def test_second_daemon_on_one_path_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(HostError, match="another daemon is running"):
            await serve_local(tmp_path / "s", echo, mode=0o600)
        assert await ask(tmp_path / "s")

    with_server(tmp_path / "s", echo, body)


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("kept"), lambda p: p.mkdir(), lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("nowhere")]
)
def test_path_that_is_not_a_socket_is_refused_and_left(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "s")
    before = os.lstat(tmp_path / "s")
    with pytest.raises(HostError, match="not a socket"):
        asyncio.run(serve_local(tmp_path / "s", echo, mode=0o600))
    assert os.lstat(tmp_path / "s") == before


def test_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="directory is not there"):
        asyncio.run(serve_local(tmp_path / "none" / "s", echo, mode=0o600))


def test_path_too_long_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="too long"):
        asyncio.run(serve_local(tmp_path / ("x" * 150), echo, mode=0o600))


def test_socket_file_replaced_by_another_is_not_removed_at_close(tmp_path: Path) -> None:
    async def main() -> None:
        server = await serve_local(tmp_path / "s", echo, mode=0o600)
        (tmp_path / "s").unlink()
        (tmp_path / "s").write_text("another's")
        await server.close()

    asyncio.run(main())
    assert (tmp_path / "s").read_text() == "another's"
