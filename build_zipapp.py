#!/usr/bin/env python3
"""Build calnet.pyz: `python3 build_zipapp.py [--output calnet.pyz]`, for the Python and machine that run it.

Needs the standard library, pip (for the packages of requirements/runtime.lock, each checked against its hash; a Python without pip gets a virtual
environment below build/) and, if it is there, binutils' strip. The file's layout is described where it is read, in calnet/roles/cli/bundle.py.

The same sources, Python, packages and strip give the same bytes: entries are sorted, dates come from SOURCE_DATE_EPOCH (1980 without it), modes are
fixed, and bytecode is made by a fresh interpreter with a fixed hash seed and nothing else in it, as marshal's output depends on what is interned.

Commands of the CLI import from the file all the time, so what they need is stored uncompressed: that saves zlib's import and a tenth of each start.
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
CACHE = ROOT / "build"
SHEBANG = b"#!/usr/bin/env -S python3 -IS\n"
EPOCH_1980 = 315_532_800
STORED = (
    "__main__",
    "index.json",
    "deps/",
    "calnet/__init__",
    "calnet/errors",
    "calnet/wire/__init__",
    "calnet/wire/local",
    "calnet/roles/__init__",
    "calnet/roles/cli/",
)

NOT_BUNDLED = {
    "pycparser": "only for parsing C declarations, which the compiled modules don't do",
    "psycopg-binary": "brings 9 MB of shared libraries, OpenSSL and Kerberos among them: psycopg uses the system's libpq, where PostgreSQL is the store",
}
TRIMMED = {
    "cffi/": "the compiled modules need _cffi_backend alone",
    "playhouse/": "peewee's extensions: none is used",
    "pwiz.py": "a tool",
    "peewee-stubs/": "types",
    "anyio/pytest_plugin.py": "needs pytest",
    "anyio/_backends/_trio.py": "needs trio",
    "uvicorn/workers.py": "needs gunicorn",
    "lmdb/cffi.py": "for PyPy",
    "starlette/middleware/sessions.py": "needs itsdangerous",
    "uvicorn/loops/zuvloop.py": "another event loop",
    "uvicorn/protocols/http/auto_zttp_impl.py": "another parser",
    "uvicorn/protocols/http/zttp_": "another parser",
    "uvicorn/protocols/websockets/wsproto_impl.py": "another implementation",
    "uvicorn/supervisors/watchfilesreload.py": "for development",
    "websockets/trio/": "needs trio",
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
    "psycopg/_dns.py": "needs dnspython",
    "psycopg/types/shapely.py": "needs Shapely",
    "ecdsa/test_": "tests",
    "httpcore/_async/http2.py": "needs h2",
    "httpcore/_sync/http2.py": "needs h2",
    "httpcore/_async/socks_proxy.py": "needs socksio",
    "httpcore/_sync/socks_proxy.py": "needs socksio",
    "httpcore/_backends/trio.py": "needs trio",
    "segno/cli.py": "a tool",
    "rsa/cli.py": "a tool",
}
REPLACED = {"pyroute2/__init__.py": b'"""Empty: the real one imports all of pyroute2, which costs 245 ms. Import pyroute2.iproute and the like."""\n'}
SHOWN_AS = "calnet.pyz"
"""Tracebacks name files below this; no such file exists anywhere, so the lines come from the source in the file."""
BATCHES = "libIPSec_MB"
"""The system's library that seals and opens batches (calnet/crypto/ipsec_mb.py), put into the file where this machine has it."""
BATCHES_PACKAGES = {"libIPSec_MB.so.2": "libipsec-mb2", "libIPSec_MB.so.1": "libipsec-mb1"}
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
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


COMPILER = """
import importlib.util, marshal, sys
def compiled(name, source):
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + b"\\1\\0\\0\\0" + importlib.util.source_hash(source) + marshal.dumps(code)
marshal.dump([compiled(*item) for item in marshal.load(sys.stdin.buffer)], sys.stdout.buffer)
"""
"""Sources in, .pyc files out that are never compared with their source (PEP 552, unchecked hash)."""


class BuildError(Exception):
    """Why there is no file, and what to do."""


def main() -> int:
    """Parse the arguments, build, say what was built."""
    parser = argparse.ArgumentParser(description="Build calnet.pyz for this Python and machine.")
    parser.add_argument("--output", type=Path, default=ROOT / "calnet.pyz", metavar="FILE")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="where downloaded packages are kept (default: build)")
    parser.add_argument("--no-strip", action="store_true", help="leave the native modules' symbols in")
    parser.add_argument("--if-stale", action="store_true", help="leave the file alone if it was built from the very same input")
    args = parser.parse_args()
    started = time.monotonic()
    try:
        check_python()
        strip = None if args.no_strip else shutil.which("strip")
        inputs = inputs_hash(strip)
        if args.if_stale and built_from(args.output) == inputs:
            return 0
        if batches_library() is None and os.uname().machine == "x86_64":
            tell(f"without {BATCHES} (apt install libipsec-mb1, or libipsec-mb2): nodes use the slower way, unless they have it themselves")
        if strip is None and not args.no_strip:
            tell("strip is not there (apt install binutils): the file will be twice as large")
        write(args.output, collect(wheels(args.cache), strip, inputs))
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


def build_date() -> int:
    try:
        return max(int(os.environ.get("SOURCE_DATE_EPOCH") or EPOCH_1980), EPOCH_1980)
    except ValueError:
        raise BuildError("SOURCE_DATE_EPOCH has to be a number of seconds") from None


def inputs_hash(strip: str | None) -> str:
    """A hash over all that decides about the file's bytes."""
    about_strip = "none" if strip is None else subprocess.run([strip, "--version"], check=True, capture_output=True, text=True).stdout
    library = batches_library()
    about_batches = "none" if library is None else hashlib.sha256(library.read_bytes()).hexdigest()
    digest = hashlib.sha256(f"{sys.version}\n{os.uname().machine}\n{build_date()}\n{about_strip}\n{about_batches}".encode())
    for path in [Path(__file__), LOCK, ROOT / "LICENSE", *own_files(), *pages()]:
        digest.update(f"\n{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def built_from(output: Path) -> str | None:
    """The inputs' hash of a file built before, None where there is none."""
    try:
        with zipfile.ZipFile(output) as archive:
            return str(json.loads(archive.read("index.json")).get("inputs"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def wheels(cache: Path) -> list[Path]:
    """The packages of the lock as wheels for this Python, downloaded unless the cache has them, and checked against the lock's hashes either way."""
    name = f"wheels-{target()}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"
    place = cache / name
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as fresh:
            download(Path(fresh) / "wheels", cache)
            try:
                os.rename(Path(fresh) / "wheels", place)
            except OSError:
                if not place.is_dir():
                    raise
    found = sorted(place.glob("*.whl"), key=lambda path: path.name.lower())
    known = LOCK.read_text("ascii")
    for path in found:
        if f"--hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" not in known:
            raise BuildError(f"{path} is not what requirements/runtime.lock names: remove {place}")
    return [path for path in found if distribution(path) not in NOT_BUNDLED]


def download(place: Path, cache: Path) -> None:
    tell("downloading the packages of requirements/runtime.lock …")
    command = [python_with_pip(cache), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(LOCK), "--dest", str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise BuildError(f"pip could not download the packages:\n{done.stderr.strip()}")


def python_with_pip(cache: Path) -> str:
    """This Python, or one of the same version in a virtual environment of its own where this one has no pip."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    if importlib.util.find_spec("ensurepip") is None:
        raise BuildError(f"this Python has neither pip nor ensurepip: apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv")
    place = cache / f"pip-{cache_tag()}"
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        raise BuildError(f"no virtual environment for pip: {made.stdout.strip() or made.stderr.strip()}")
    return str(place / "bin" / "python")


def distribution(wheel: Path) -> str:
    """The package's name out of the wheel's file name."""
    return wheel.name.partition("-")[0].lower().replace("_", "-")


def collect(packages: list[Path], strip: str | None, inputs: str) -> dict[str, bytes]:
    """All entries of the file."""
    tell(f"putting {len(packages)} packages together …")
    pure: dict[str, bytes] = {}
    native: dict[str, str] = {}
    libraries: dict[str, str] = {}
    entries: dict[str, bytes] = {}
    for wheel in packages:
        for name, data in wanted(wheel):
            if name.endswith(".so"):
                module = module_name(name)
                native[module] = f"native/{cache_tag()}-{os.uname().machine}/{module}.so"
                entries[native[module]] = stripped(data, strip)
            else:
                pure[name] = REPLACED.get(name, data)
        entries[f"licenses/{wheel_title(wheel)}.txt"] = licence(wheel)
    licences = sorted(entry for entry in entries if entry.startswith("licenses/"))
    if (library := batches_library()) is not None:
        libraries[BATCHES] = f"native/{cache_tag()}-{os.uname().machine}/{BATCHES}.so"
        entries[libraries[BATCHES]] = stripped(library.read_bytes(), strip)
        entries[f"licenses/{BATCHES}.txt"] = library_licence(library)
    deps = f"deps/{cache_tag()}.zip"
    entries[deps] = zipped(pure | bytecode(pure, f"{SHOWN_AS}/deps"), compress=True)
    entries["licenses/calnet.txt"] = (ROOT / "LICENSE").read_bytes()
    own = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in own_files()}
    entries |= own | bytecode(own, SHOWN_AS) | {f"man/{page.name}": page.read_bytes() for page in pages()}
    index = {
        "build": build_id(entries),
        "inputs": inputs,
        "targets": {target(): {"deps": deps, "native": dict(sorted(native.items())), "libraries": libraries}},
        "sha256": {entry: hashlib.sha256(entries[entry]).hexdigest() for entry in sorted([deps, *native.values(), *libraries.values()])},
        "licenses": ["licenses/calnet.txt", *licences],
        "pages": sorted(entry for entry in entries if entry.startswith("man/")),
    }
    entries["index.json"] = json.dumps(index, indent=1, sort_keys=True).encode()
    start = {"__main__.py": MAIN.replace("{build}", str(index["build"])).encode()}
    return entries | start | bytecode(start, SHOWN_AS)


def batches_library() -> Path | None:
    """The system's library for batches, None where it has none (or not with its licence)."""
    if os.uname().machine != "x86_64":
        return None
    found = [Path(folder) / name for name in BATCHES_PACKAGES for folder in LIBRARY_FOLDERS]
    return next((path for path in found if path.is_file() and licence_of(path).is_file()), None)


def licence_of(library: Path) -> Path:
    return Path("/usr/share/doc") / BATCHES_PACKAGES[library.name] / "copyright"


def library_licence(library: Path) -> bytes:
    return f"{library.resolve().name}, as Debian's {BATCHES_PACKAGES[library.name]} has it.\n\n".encode() + licence_of(library).read_bytes()


def wanted(wheel: Path) -> list[tuple[str, bytes]]:
    """The entries of a wheel that are needed at run time."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in sorted(archive.namelist()) if is_wanted(name)]
        if any(".libs/" in name for name in names):
            raise BuildError(f"{wheel.name} brings shared libraries of its own, which can't be loaded from memory")
        return [(name, archive.read(name)) for name in names]


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
        if not texts:
            raise BuildError(f"{wheel.name} carries no licence text: it can't be bundled as it is")
        parts = [note, *stated, *(archive.read(name).decode("utf-8", "replace").strip() for name in texts)]
    return "\n\n".join(part for part in parts if part).encode() + b"\n"


def is_licence(name: str) -> bool:
    words = ("licen", "copying", "notice", "authors")
    return not name.endswith("/") and any(word in name.rpartition(".dist-info/")[2].lower() for word in words)


def own_files() -> list[Path]:
    """Calnet itself: the source is there for tracebacks and for other Pythons, and bytecode stands beside it."""
    return [path for path in sorted((ROOT / "calnet").rglob("*")) if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"]


def pages() -> list[Path]:
    return sorted((ROOT / "man").glob("*.1"))


def bytecode(files: dict[str, bytes], shown_below: str) -> dict[str, bytes]:
    """A .pyc for each .py among `files`."""
    names = sorted(name for name in files if name.endswith(".py"))
    sources = marshal.dumps([(f"{shown_below}/{name}", files[name]) for name in names])
    done = subprocess.run([sys.executable, "-sSP", "-c", COMPILER], input=sources, env={"PYTHONHASHSEED": "0"}, check=False, capture_output=True)
    if done.returncode != 0:
        raise BuildError(f"a module does not compile: {done.stderr.decode(errors='replace').strip()}")
    return {f"{name}c": data for name, data in zip(names, marshal.loads(done.stdout), strict=True)}


def build_id(entries: dict[str, bytes]) -> str:
    """A hash over all names and contents."""
    digest = hashlib.sha256()
    for name in sorted(entries):
        digest.update(b"%d:%s%d:" % (len(name), name.encode(), len(entries[name])) + entries[name])
    return digest.hexdigest()[:32]


def write(output: Path, entries: dict[str, bytes]) -> None:
    """The file, executable, in place of an old one by one rename."""
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        fresh.write_bytes(zipped(entries, compress=False, start=SHEBANG))
        fresh.chmod(0o755)
        os.replace(fresh, output)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise BuildError(f"{output} can't be written: {error.strerror}") from None


def zipped(entries: dict[str, bytes], *, compress: bool, start: bytes = b"") -> bytes:
    """A zip after `start`, sorted, dated, with fixed modes. What stands in STORED is compressed only with `compress`."""
    file = io.BytesIO(start)
    date = time.gmtime(build_date())[:6]
    with zipfile.ZipFile(file, "a") as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, date)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if compress or not name.startswith(STORED) else zipfile.ZIP_STORED
            archive.writestr(info, entries[name], compresslevel=9)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
