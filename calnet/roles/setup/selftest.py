"""`calnet selftest`: imports every package of this file and makes the ones Calnet rests on do something. What a build trimmed too far shows here.

Works in a checkout too, on the packages that are installed there (then without the list of all modules).
"""

from __future__ import annotations

import asyncio
import ctypes.util
import importlib
import io
import os
import socket
import sys
import tempfile
import time
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from calnet.errors import CalnetError

Check = Callable[[], str | None]
"""Raises for what is wrong; what it gives back is said beside the `ok`."""
TEXT: Final = b"attack at dawn, said nobody"
SEALED: Final = "79cc3650ce8d86b067413800d82d62078bd09a91c1c3343e839c85842e601937e822c81602dd28e89b53f4"
"""TEXT under ChaCha20-Poly1305 with the key 00 … 1f, a nonce of zeros and the header `header`."""
AGREED: Final = "4274a32e953acb8314d0f09bcbcb5193c5ef799ddcd0036f8c4682e5801dac73"
"""X25519 of the private keys 00 … 1f and 01 … 20."""


class SelftestError(CalnetError):
    """A bundled package doesn't do what Calnet needs of it."""

    code = "selftest"


def run(args: Namespace) -> int:
    """Run all checks and print a line each; 1 if one failed."""
    results = [_tried(name, check) for name, check in CHECKS.items()]
    bundle = getattr(args, "bundle", None)
    if bundle is not None:
        results.append(_tried("all modules", lambda: _import_all(bundle)))
    failed = [result for result in results if result["error"] is not None]
    if args.json:
        import json

        print(json.dumps({"ok": not failed, "checks": results}, indent=2))
    else:
        for result in results:
            outcome = "ok" if result["error"] is None else f"FAILED: {result['error']}"
            print(f"{result['name']:<12}  {outcome}  ({result['ms']} ms){'' if result['note'] is None else '; ' + result['note']}")
    return 1 if failed else 0


def _tried(name: str, check: Check) -> dict[str, Any]:
    started = time.perf_counter()
    error = note = None
    try:
        note = check()
    except Exception as failure:  # noqa: BLE001 - whatever a package does wrong is this command's result
        error = f"{type(failure).__name__}: {failure}"
        if os.environ.get("CALNET_DEBUG"):
            import traceback

            traceback.print_exc()
    return {"name": name, "error": error, "note": note, "ms": round((time.perf_counter() - started) * 1000)}


def _need(holds: object, what: str) -> None:
    if not holds:
        raise SelftestError(what)


def _ciphers() -> None:
    """Both AEAD backends give the known answer, open it again, and refuse a forged one."""
    from calnet.crypto.aead import backend

    nonce = bytes(12)
    for name in ("cryptography", "sodium"):
        kind, forged = backend(name)
        cipher = kind(bytes(range(32)))
        sealed, opened = bytearray(len(TEXT) + 16), bytearray(len(TEXT))
        cipher.seal_into(nonce, TEXT, b"header", sealed)
        cipher.open_into(nonce, sealed, b"header", opened)
        _need(opened == TEXT, f"{name} does not open what it sealed")
        _need(sealed.hex() == SEALED, f"{name} does not give the known answer")
        sealed[-1] ^= 1
        try:
            cipher.open_into(nonce, sealed, b"header", opened)
        except forged:
            continue
        raise SelftestError(f"{name} took a forged message")


def _batches() -> str:
    """Whole batches, sealed and opened; says by which library."""
    from calnet.crypto.batch import NONCE_STEP, Places
    from calnet.crypto.choice import choose, load_library
    from calnet.host.libraries import batch_libraries

    choice = choose(time.perf_counter, load_library(batch_libraries()))
    for aead in choice.by:
        buffer = memoryview(bytearray(TEXT * 40))
        places = Places(buffer, memoryview(bytearray(NONCE_STEP * 8)), start=3, step=80, length=60, most=8)
        cipher, before = choice.new_batch(bytes(32), aead), bytes(buffer[3:63])
        cipher.seal_all(places, 0, 8, 50)
        buffer[3 + 2 * 80] ^= 1
        _need(buffer[3:63] != before and cipher.open_all(places, 0, 8, 50) == [2], f"batches of {aead.value} are not what they were")
        _need(buffer[3:63] == before, f"batches of {aead.value} are not opened")
    return ", ".join(f"{aead.value} by {by}" for aead, by in choice.by.items())


def _keys() -> None:
    """X25519, from both sides."""
    from calnet.crypto.keys import PrivateKey

    one, other = PrivateKey(bytes(range(32))), PrivateKey(bytes(range(1, 33)))
    _need(one.exchange(other.public) == other.exchange(one.public) == bytes.fromhex(AGREED), "a key agreement does not give the known answer")


def _lmdb() -> None:
    with tempfile.TemporaryDirectory() as directory:
        lmdb = importlib.import_module("lmdb")
        environment = lmdb.open(directory, map_size=1 << 20)
        with environment.begin(write=True) as change:
            change.put(b"key", TEXT)
        with environment.begin() as view:
            _need(view.get(b"key") == TEXT, "LMDB lost a value")
        environment.close()


def _sqlite() -> None:
    import peewee

    database: Any = peewee.SqliteDatabase(":memory:")
    database.execute_sql("create table t (v blob)")
    database.execute_sql("insert into t values (?)", (TEXT,))
    _need(database.execute_sql("select v from t").fetchone() == (TEXT,), "SQLite lost a value")
    database.close()


def _uvloop() -> None:
    import uvloop

    async def later() -> int:
        await asyncio.sleep(0)
        return 7

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        _need(runner.run(later()) == 7, "uvloop does not run a coroutine")


def _msgspec() -> None:
    import msgspec

    document = {"a": [1, None, "ü"], "b": TEXT}
    _need(msgspec.msgpack.decode(msgspec.msgpack.encode(document)) == document, "msgspec changed a document")


def _websockets() -> None:
    from websockets.client import ClientProtocol
    from websockets.frames import Frame, Opcode
    from websockets.speedups import apply_mask
    from websockets.uri import parse_uri

    _need(apply_mask(apply_mask(TEXT, b"mask"), b"mask") == TEXT, "masking is not its own inverse")
    ClientProtocol(parse_uri("ws://127.0.0.1/relay")).send_request(ClientProtocol(parse_uri("ws://127.0.0.1/relay")).connect())
    _need(TEXT in Frame(Opcode.BINARY, TEXT).serialize(mask=False), "a frame does not hold its data")


def _http() -> None:
    """A Starlette application on uvicorn and uvloop answers a request and echoes a WebSocket message, on loopback."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(_served(), LOOPBACK_S))


async def _served() -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute
    from uvicorn.config import Config
    from uvicorn.server import Server

    async def health(_: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def echo(peer: Any) -> None:
        await peer.accept()
        await peer.send_bytes(await peer.receive_bytes())
        await peer.close()

    application = Starlette(routes=[Route("/healthz", health), WebSocketRoute("/echo", echo)])
    server = Server(Config(application, http="httptools", ws="websockets-sansio", lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await _asked(f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            await serving


async def _asked(authority: str) -> None:
    from websockets.asyncio.client import connect

    async with connect(f"ws://{authority}/echo", proxy=None) as peer:
        await peer.send(TEXT)
        _need(await peer.recv() == TEXT, "a WebSocket changed a message")
    host, _, port = authority.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: calnet\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    _need(answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok"), f"the server answers {answer[:40]!r}")


def _netlink() -> None:
    from pyroute2.iproute import IPRoute

    with IPRoute() as route:
        names = [link.get_attr("IFLA_IFNAME") for link in route.get_links()]
    _need("lo" in names, f"netlink lists no loopback interface: {names}")


CHECKS: Final[dict[str, Check]] = {
    "ciphers": _ciphers,
    "batches": _batches,
    "keys": _keys,
    "lmdb": _lmdb,
    "sqlite": _sqlite,
    "uvloop": _uvloop,
    "msgspec": _msgspec,
    "websockets": _websockets,
    "http": _http,
    "netlink": _netlink,
}


def _import_all(bundle: Any) -> str:
    """Import each module of the file. One that asks for a package which isn't in the file is an optional part: it is named, and left out."""
    with zipfile.ZipFile(io.BytesIO(bundle.need(bundle.deps_entry()))) as archive:
        pure = _modules(archive)
    with zipfile.ZipFile(bundle.path) as archive:
        own = [module for module in _modules(archive) if module.startswith("calnet")]
    modules = [module for module in (*own, *pure, *bundle.native_modules()) if not module.endswith("__main__")]
    bundled = {module.partition(".")[0] for module in modules}
    optional: list[str] = []
    problems: list[str] = []
    for module in modules:
        try:
            _import(module)
        except ModuleNotFoundError as error:
            asked = (error.name or "").partition(".")[0]
            ours = asked in bundled or asked in sys.stdlib_module_names - ABSENT_HERE or module.startswith("calnet")
            (problems if ours else optional).append(f"{module}: {error}" if ours else f"{module} (for {asked})")
        except ImportError as error:
            without = module.partition(".")[0] == "psycopg" or module == "calnet.store.postgres"
            asks_for_libpq = without and ctypes.util.find_library("pq") is None
            (optional if asks_for_libpq else problems).append(f"{module} (for libpq5)" if asks_for_libpq else f"{module}: {error}")
        except Exception as error:  # noqa: BLE001 - any failure of an import is the finding
            problems.append(f"{module}: {type(error).__name__}: {error}")
    _need(not problems, "; ".join(problems))
    left_out = f"; optional, not for here: {', '.join(optional)}" if optional else ""
    return f"{len(modules) - len(optional)} imported{left_out}"


def _modules(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".pyc").removesuffix("/__init__").replace("/", ".") for name in archive.namelist() if name.endswith(".pyc")]


def _import(module: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(module)


LOOPBACK_S: Final = 10.0
ABSENT_HERE: Final = frozenset({"msvcrt", "winreg", "_winapi", "nt"})
"""Standard modules of other systems."""
