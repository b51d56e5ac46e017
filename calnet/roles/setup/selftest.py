"""`calnet selftest`: imports every package of this file and makes the ones Calnet rests on do something. What a build trimmed too far shows here.

Works in a checkout too, on the packages that are installed there (then without the list of all modules).
"""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import sys
import tempfile
import time
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, Final

from calnet.errors import CalnetError

Check = Callable[[], None]
TEXT: Final = b"attack at dawn, said nobody"


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
            print(f"{result['name']:<12}  {outcome}  ({result['ms']} ms)")
    return 1 if failed else 0


def _tried(name: str, check: Check) -> dict[str, Any]:
    started = time.perf_counter()
    error = None
    try:
        check()
    except Exception as failure:  # noqa: BLE001 - whatever a package does wrong is this command's result
        error = f"{type(failure).__name__}: {failure}"
        if os.environ.get("CALNET_DEBUG"):
            import traceback

            traceback.print_exc()
    return {"name": name, "error": error, "ms": round((time.perf_counter() - started) * 1000)}


def _need(holds: object, what: str) -> None:
    if not holds:
        raise SelftestError(what)


def _ciphers() -> None:
    """Both AEAD backends seal and open the same bytes, and refuse a forged one."""
    from calnet.crypto.aead import backend

    nonce, seen = bytes(12), set()
    for name in ("cryptography", "sodium"):
        kind, forged = backend(name)
        cipher = kind(bytes(range(32)))
        sealed, opened = bytearray(len(TEXT) + 16), bytearray(len(TEXT))
        cipher.seal_into(nonce, TEXT, b"header", sealed)
        cipher.open_into(nonce, sealed, b"header", opened)
        _need(opened == TEXT, f"{name} does not open what it sealed")
        seen.add(bytes(sealed))
        sealed[-1] ^= 1
        try:
            cipher.open_into(nonce, sealed, b"header", opened)
        except forged:
            continue
        raise SelftestError(f"{name} took a forged message")
    _need(len(seen) == 1, "the two backends differ")


def _keys() -> None:
    """X25519 and the sealed box."""
    from calnet.crypto.keys import PrivateKey

    one, other = PrivateKey(bytes(range(32))), PrivateKey(bytes(range(1, 33)))
    _need(one.exchange(other.public) == other.exchange(one.public), "the two sides of a key agreement differ")


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
    """Starlette, its router and uvicorn's protocols, with a request through the parser."""
    import httptools
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from uvicorn.config import Config

    class Seen:
        url = b""

        def on_url(self, url: bytes) -> None:
            self.url += url

    seen = Seen()
    httptools.HttpRequestParser(seen).feed_data(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    _need(seen.url == b"/healthz", "httptools lost the path")
    application = Starlette(routes=[Route("/healthz", lambda _: PlainTextResponse("ok"))])
    Config(application, http="httptools", ws="websockets-sansio", loop="uvloop", log_config=None).load()


def _netlink() -> None:
    from pyroute2.iproute import IPRoute

    with IPRoute() as route:
        names = [link.get_attr("IFLA_IFNAME") for link in route.get_links()]
    _need("lo" in names, f"netlink lists no loopback interface: {names}")


CHECKS: Final[dict[str, Check]] = {
    "ciphers": _ciphers,
    "keys": _keys,
    "lmdb": _lmdb,
    "sqlite": _sqlite,
    "uvloop": _uvloop,
    "msgspec": _msgspec,
    "websockets": _websockets,
    "http": _http,
    "netlink": _netlink,
}


def _import_all(bundle: Any) -> None:
    """Import each module of the file. One that asks for a package which isn't in the file is an optional part, and left out."""
    with zipfile.ZipFile(io.BytesIO(bundle.need(bundle.deps_entry()))) as archive:
        pure = [name.removesuffix(".pyc").removesuffix("/__init__").replace("/", ".") for name in archive.namelist() if name.endswith(".pyc")]
    with zipfile.ZipFile(bundle.path) as archive:
        own = [
            name.removesuffix(".pyc").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if name.startswith("calnet/") and name.endswith(".pyc")
        ]
    modules = [*own, *pure, *bundle.native_modules()]
    bundled = {module.partition(".")[0] for module in modules}
    problems = [problem for module in modules if not module.endswith("__main__") and (problem := _import_problem(module, bundled)) is not None]
    _need(not problems, "; ".join(problems))


def _import_problem(module: str, bundled: Iterable[str]) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        asked = (error.name or "").partition(".")[0]
        return f"{module}: {error}" if asked in bundled or asked in sys.stdlib_module_names - ABSENT_HERE else None
    except Exception as error:  # noqa: BLE001 - any failure of an import is the finding
        return f"{module}: {type(error).__name__}: {error}"
    return None


ABSENT_HERE: Final = frozenset({"msvcrt", "winreg", "_winapi", "nt"})
"""Standard modules of other systems."""
