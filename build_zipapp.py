#!/usr/bin/env python3
"""Build calnet.pyz: `python3 build_zipapp.py [--output calnet.pyz]`, for the Python and machine that run it.

Needs the standard library, pip (for the packages of requirements/runtime.lock, each checked against its hash) and, if it is there, binutils' strip. The
file's layout is described where it is read, in calnet/roles/cli/bundle.py. The same sources, Python, packages and strip give the same bytes: entries are
sorted, dates come from SOURCE_DATE_EPOCH, modes are fixed, and this script starts itself again with a fixed hash seed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import marshal
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LOCK = ROOT / "requirements" / "runtime.lock"
CACHE = ROOT / "build" / "wheels"
SHEBANG = b"#!/usr/bin/env -S python3 -IS\n"
EPOCH_1980 = 315_532_800
HASH_SEED = "0"

NOT_BUNDLED = {
    "pycparser": "only for parsing C declarations, which the compiled modules don't do",
}
TRIMMED = {
    "cffi/": "the compiled modules need _cffi_backend alone",
    "playhouse/": "peewee's extensions: none is used",
    "pwiz.py": "a tool",
    "peewee-stubs/": "types",
    "anyio/pytest_plugin.py": "needs pytest",
    "anyio/_backends/_trio.py": "needs trio",
    "uvicorn/workers.py": "needs gunicorn",
    "click/_winconsole.py": "Windows",
    "click/testing.py": "tests",
    "starlette/middleware/opentelemetry.py": "needs OpenTelemetry",
    "starlette/templating.py": "needs Jinja",
    "starlette/testclient.py": "tests",
    "pyroute2/bsd/": "another system",
    "pyroute2/iproute/bsd.py": "another system",
    "pyroute2/config/eventlet.py": "not used",
    "pyroute2/plan9/": "another protocol",
    "pyroute2/fixtures/": "tests",
    "pyroute2/dhcp/": "not used",
    "pyroute2/ndb/": "not used",
    "pyroute2/ipdb/": "not used",
    "pyroute2/nslink/": "not used",
}
REPLACED = {"pyroute2/__init__.py": b'"""Empty: the real one imports all of pyroute2, which costs 245 ms. Import pyroute2.iproute and the like."""\n'}
CHOSEN_LICENCES = {"pyroute2": ("LICENSE.Apache-2.0", "pyroute2 is offered under GPL-2.0-or-later or Apache-2.0; Calnet uses it under Apache-2.0.")}

MAIN = """\
import sys

if sys.version_info < (3, 11) or not sys.platform.startswith("linux"):
    sys.stderr.write(
        "calnet: this needs Linux and Python 3.11 or newer; this is Python %d.%d on %s. Run it with another one: python3.11 %s\\n"
        % (sys.version_info[0], sys.version_info[1], sys.platform, " ".join(sys.argv))
    )
    sys.exit(1)

try:
    import os

    from calnet.roles.cli.bundle import Bundle
    from calnet.roles.cli.main import run

    code = run(bundle=Bundle(os.path.dirname(__file__), "{build}"))
except KeyboardInterrupt:
    code = 130
sys.exit(code)
"""


class BuildError(Exception):
    """Why there is no file, and what to do."""


def main() -> int:
    """Parse the arguments, build, say what was built."""
    parser = argparse.ArgumentParser(description="Build calnet.pyz for this Python and machine.")
    parser.add_argument("--output", type=Path, default=ROOT / "calnet.pyz", metavar="FILE")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="where downloaded packages are kept (default: build/wheels)")
    parser.add_argument("--no-strip", action="store_true", help="leave the native modules' symbols in")
    args = parser.parse_args()
    started = time.monotonic()
    try:
        check_python()
        strip = None if args.no_strip else shutil.which("strip")
        if strip is None and not args.no_strip:
            tell("strip is not there (apt install binutils): the file will be larger")
        entries = collect(wheels(args.cache), strip)
        write(args.output, entries)
    except BuildError as error:
        tell(f"error: {error}")
        return 1
    tell(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB for CPython {target()}, in {time.monotonic() - started:.1f} s")
    return 0


def tell(text: str) -> None:
    print(f"build_zipapp: {text}", file=sys.stderr, flush=True)


def check_python() -> None:
    if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
        raise BuildError(f"it takes CPython 3.11 or newer to build, this is {platform.python_implementation()} {platform.python_version()}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise BuildError("free-threaded builds of Python are not supported: use the ordinary one")
    if not sys.platform.startswith("linux"):
        raise BuildError("Calnet runs on Linux: build it there")


def target() -> str:
    """This Python and machine, as bundle.py names them."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}-{os.uname().machine}"


def wheels(cache: Path) -> list[Path]:
    """The packages of the lock as wheels for this Python, downloaded unless the cache has them."""
    name = f"{target()}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"
    place = cache / name
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as fresh:
            download(Path(fresh) / "wheels")
            try:
                os.rename(Path(fresh) / "wheels", place)
            except OSError:
                if not place.is_dir():
                    raise
    found = sorted(place.glob("*.whl"), key=lambda path: path.name.lower())
    return [path for path in found if distribution(path) not in NOT_BUNDLED]


def download(place: Path) -> None:
    tell("downloading the packages of requirements/runtime.lock …")
    if importlib.util.find_spec("pip") is None:
        raise BuildError("this Python has no pip: apt install python3-pip, or use ./dev build, which makes a virtual environment")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    done = subprocess.run([*command, "--requirement", str(LOCK), "--dest", str(place)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"pip could not download the packages:\n{done.stderr.strip()}")


def distribution(wheel: Path) -> str:
    """The package's name out of the wheel's file name."""
    return wheel.name.partition("-")[0].lower().replace("_", "-")


def collect(packages: list[Path], strip: str | None) -> dict[str, bytes]:
    """All entries of the file but __main__.py."""
    tell(f"putting {len(packages)} packages together …")
    pure: dict[str, bytes] = {}
    native: dict[str, str] = {}
    entries: dict[str, bytes] = {}
    for wheel in packages:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if not is_wanted(name):
                    continue
                if name.endswith(".so"):
                    module = module_name(name)
                    native[module] = f"native/{cache_tag()}-{os.uname().machine}/{module}.so"
                    entries[native[module]] = stripped(archive.read(name), strip)
                else:
                    pure[name] = REPLACED.get(name) or archive.read(name)
        entries[f"licenses/{wheel_title(wheel)}.txt"] = licence(wheel)
    deps = f"deps/{cache_tag()}.zip"
    entries[deps] = deps_zip(pure)
    licences = sorted(entry for entry in entries if entry.startswith("licenses/"))
    entries["licenses/calnet.txt"] = (ROOT / "LICENSE").read_bytes()
    entries |= own_modules() | {f"man/{page.name}": page.read_bytes() for page in sorted((ROOT / "man").glob("*.1"))}
    hashes = {entry: hashlib.sha256(entries[entry]).hexdigest() for entry in sorted([deps, *native.values()])}
    index = {
        "build": build_id(entries),
        "targets": {target(): {"deps": deps, "native": dict(sorted(native.items()))}},
        "sha256": hashes,
        "licenses": ["licenses/calnet.txt", *licences],
        "pages": sorted(entry for entry in entries if entry.startswith("man/")),
    }
    entries["index.json"] = json.dumps(index, indent=1, sort_keys=True).encode()
    return entries


def cache_tag() -> str:
    return f"cp{sys.version_info[0]}{sys.version_info[1]}"


def is_wanted(name: str) -> bool:
    """Whether an entry of a wheel is needed at run time."""
    if ".dist-info/" in name or name.endswith(("/", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h", ".md", "py.typed", ".rst")) or "/tests/" in name:
        return False
    return not name.startswith(tuple(TRIMMED))


def module_name(path: str) -> str:
    """`httptools/parser/parser.cpython-311-x86_64-linux-gnu.so` is `httptools.parser.parser`."""
    directory, _, file = path.rpartition("/")
    return ".".join([*directory.split("/"), file.partition(".")[0]]).lstrip(".")


def stripped(data: bytes, strip: str | None) -> bytes:
    """A shared library without what only debuggers need."""
    if strip is None:
        return data
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "module.so"
        path.write_bytes(data)
        done = subprocess.run([strip, "--strip-unneeded", str(path)], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"strip failed ({done.stderr.strip()}): try --no-strip")
        return path.read_bytes()


def wheel_title(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2])


def licence(wheel: Path) -> bytes:
    """The licence texts that a wheel carries, and what its metadata says."""
    chosen, note = CHOSEN_LICENCES.get(distribution(wheel), ("", ""))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in sorted(archive.namelist()) if ".dist-info/" in name]
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
        stated = [line for line in metadata.partition("\n\n")[0].splitlines() if line.lower().startswith(("license:", "license-expression:"))]
        texts = [name for name in names if is_licence(name) and (not chosen or name.endswith(chosen))]
        parts = [note, *stated, *(archive.read(name).decode("utf-8", "replace").strip() for name in texts)]
    return "\n\n".join(part for part in parts if part).encode() + b"\n"


def is_licence(name: str) -> bool:
    words = ("licen", "copying", "notice", "authors")
    return not name.endswith("/") and any(word in name.rpartition(".dist-info/")[2].lower() for word in words)


def own_modules() -> dict[str, bytes]:
    """Calnet itself: the source, for tracebacks and other Pythons, and its bytecode."""
    entries: dict[str, bytes] = {}
    for path in sorted((ROOT / "calnet").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        source = path.read_bytes()
        entries[name] = source
        entries[f"{name}c"] = bytecode(source, name)
    return entries


def bytecode(source: bytes, name: str) -> bytes:
    """A .pyc that is never compared with its source (PEP 552, unchecked hash)."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little") + importlib.util.source_hash(source) + marshal.dumps(code)


def deps_zip(pure: dict[str, bytes]) -> bytes:
    """The pure packages: bytecode in place of source, data files as they are."""
    compiled = {(f"{name}c" if name.endswith(".py") else name): (bytecode(data, name) if name.endswith(".py") else data) for name, data in pure.items()}
    file = io.BytesIO()
    write_zip(file, compiled)
    return file.getvalue()


def build_id(entries: dict[str, bytes]) -> str:
    """A hash over all names and contents."""
    digest = hashlib.sha256()
    for name in sorted(entries):
        digest.update(b"%d:%s%d:" % (len(name), name.encode(), len(entries[name])) + entries[name])
    return digest.hexdigest()[:32]


def write(output: Path, entries: dict[str, bytes]) -> None:
    """The file, executable, in place of an old one by one rename."""
    build = json.loads(entries["index.json"])["build"]
    file = io.BytesIO(SHEBANG)
    file.seek(0, io.SEEK_END)
    write_zip(file, {"__main__.py": MAIN.replace("{build}", build).encode(), **entries})
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        fresh.write_bytes(file.getvalue())
        fresh.chmod(0o755)
        os.replace(fresh, output)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise BuildError(f"{output} can't be written: {error.strerror}") from None


def write_zip(file: io.BytesIO, entries: dict[str, bytes]) -> None:
    """Sorted, dated by SOURCE_DATE_EPOCH, with fixed modes; a zip inside stays uncompressed, as its entries are."""
    date = time.gmtime(max(int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH_1980)), EPOCH_1980))[:6]
    with zipfile.ZipFile(file, "a") as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, date)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".zip") else zipfile.ZIP_DEFLATED
            archive.writestr(info, entries[name], compresslevel=9)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": HASH_SEED})
    sys.exit(main())
