"""Attacks by local users on a daemon's socket: none keeps root, or another user, from it."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path

import pytest

from calnet.host import local_socket
from calnet.host.local_socket import LocalRequest, serve_local
from calnet.roles.cli import client


def _connected_as(uid: int, path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5)
    os.seteuid(uid)
    try:
        connection.connect(str(path))
    finally:
        os.seteuid(0)
    return connection


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users for a moment")
def test_attack_40_local_user_with_many_user_ids_keeps_neither_root_nor_others_from_the_socket() -> None:
    async def echo(request: LocalRequest) -> object:
        return {"uid": request.uid}

    async def main() -> None:
        folder.chmod(0o755)
        path = folder / "calnet.sock"
        server = await serve_local(path, echo, mode=0o666)
        held = []
        for uid in range(100_000, 100_008):
            for _ in range(local_socket.MAX_CLIENTS_PER_USER + 4):
                held.append(_connected_as(uid, path))
                await asyncio.sleep(0)
            if uid == 100_000:
                assert await asyncio.to_thread(_ask_as, 100_999, path)
        answer = await asyncio.to_thread(client.request, str(path), "status", {}, timeout_s=5.0)
        assert answer == {"uid": 0}
        for connection in held:
            connection.close()
        await server.close()

    with tempfile.TemporaryDirectory(prefix="calnet-test-") as name:  # pytest's own are root's alone
        folder = Path(name)
        asyncio.run(main())


def _ask_as(uid: int, path: Path) -> bytes:
    with _connected_as(uid, path) as connection:
        connection.sendall(b'{"op": "status", "args": {}}\n')
        return connection.recv(1000)
