"""The one file we run from: what is in it, and how its packages become importable without being unpacked.

Commands of the CLI need nothing of this: Calnet's own modules are imported from the file by Python itself. A role that needs the bundled packages
calls `activate` first. It copies the pure ones (a zip inside the file) to a sealed memfd on sys.path, and answers imports of native modules from memfds
of their own. From then on all comes through the descriptor that was opened at the start, so that replacing the file under a running daemon mixes
nothing. Where there is no /proc or no memfd, the same is done from a directory that nobody else can write (extraction.py).

The file's layout, as build_zipapp.py writes it: `calnet/…` (source and bytecode), `index.json`, `deps/cp311.zip`, `native/cp311-x86_64/NAME.so`,
`man/…`, `licenses/…`. The index:

    {"build": hash,
     "targets": {"3.11-x86_64": {"deps": entry, "native": {module: entry}, "libraries": {name: entry}}}, "sha256": {entry: hash},
     "licenses": [entry, …], "pages": [entry, …]}
"""

from __future__ import annotations

import os
import sys

from calnet.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zipimport import zipimporter


def this_target() -> str:
    """This Python and machine, as the index names them."""
    free_threaded = "t" if "t" in getattr(sys, "abiflags", "") else ""
    return f"{sys.version_info[0]}.{sys.version_info[1]}{free_threaded}-{os.uname().machine}"


class Bundle:
    """An opened calnet.pyz. `build_id` is the one of the code that runs; the file's own has to be the same."""

    def __init__(self, path: str, build_id: str) -> None:
        self.path = os.path.abspath(path)
        self.build_id = build_id
        self._started_as = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._archive: zipimporter | None = None
        self._index: dict[str, object] = {}
        self._active = False

    @property
    def built_for(self) -> list[str]:
        """The targets, such as `3.11-x86_64`."""
        self._open()
        return sorted(self._targets())

    def read(self, entry: str) -> bytes | None:
        """An entry's bytes, None if there is no such entry."""
        try:
            return self._open().get_data(entry)
        except OSError:
            return None

    def need(self, entry: str) -> bytes:
        """The same for one that has to be there; HostError where the file is damaged."""
        data = self.read(entry)
        if data is None:
            raise HostError(f"{self.path} is damaged: {entry} is missing; build or copy it again")
        return data

    def licences(self) -> list[tuple[str, str]]:
        """(package and version, text) of Calnet and each bundled package."""
        self._open()
        names = self._index.get("licenses")
        entries = [str(name) for name in names] if isinstance(names, list) else []
        return [(os.path.basename(entry).removesuffix(".txt"), self.need(entry).decode("utf-8", "replace")) for entry in entries]

    def pages(self) -> list[tuple[str, bytes]]:
        """(file name, source) of each manual page."""
        self._open()
        names = self._index.get("pages")
        return [(os.path.basename(str(entry)), self.need(str(entry))) for entry in names] if isinstance(names, list) else []

    def again(self) -> tuple[str, int]:
        """(a path, a descriptor): a process that has the descriptor too, and runs what the path names, runs this same file, replaced meanwhile or not."""
        by_descriptor = f"/proc/self/fd/{self._descriptor}"
        return by_descriptor if os.path.exists(by_descriptor) else self.path, self._descriptor

    def whole(self) -> bytes:
        """The file itself, as it was opened at the start."""
        found = bytearray()
        while part := os.pread(self._descriptor, 1 << 20, len(found)):
            found += part
        return bytes(found)

    def sha256(self, entry: str) -> str:
        """The hash of an entry, as the index has it."""
        hashes = self._index.get("sha256")
        return str(hashes[entry]) if isinstance(hashes, dict) else ""

    def native_modules(self) -> dict[str, str]:
        """{module: entry} for this Python and machine."""
        native = self._target()["native"]
        return dict(native) if isinstance(native, dict) else {}

    def libraries(self) -> dict[str, str]:
        """{name: entry} of shared libraries that are no modules, but found as if they were (host/libraries.py)."""
        libraries = self._target().get("libraries")
        return dict(libraries) if isinstance(libraries, dict) else {}

    def deps_entry(self) -> str:
        """The zip of pure packages for this Python."""
        return str(self._target()["deps"])

    def activate(self) -> None:
        """Makes the bundled packages importable. HostError where this file wasn't built for this Python or machine, or was replaced meanwhile."""
        if self._active:
            return
        archive = self._open()
        self._target()
        from calnet.roles.cli.native import NativeModules, place_for

        place = place_for(self)
        self._import_through(archive.archive)
        sys.path.insert(1, place.put(self.deps_entry()))
        sys.meta_path.insert(0, NativeModules(self.native_modules() | self.libraries(), place))
        self._active = True

    def _open(self) -> zipimporter:
        if self._archive is None:
            import json
            from zipimport import ZipImportError, zipimporter

            by_descriptor = f"/proc/self/fd/{self._descriptor}"
            try:
                self._archive = zipimporter(by_descriptor if os.path.exists(by_descriptor) else self.path)
                self._index = json.loads(self._archive.get_data("index.json"))
            except (ZipImportError, OSError, ValueError) as error:
                raise HostError(f"{self.path} is damaged ({error}): build or copy it again") from None
            if self._index.get("build") != self.build_id:
                raise HostError(f"{self.path} was replaced while it started: run it again")
        return self._archive

    def _targets(self) -> dict[str, dict[str, object]]:
        targets = self._index.get("targets")
        return targets if isinstance(targets, dict) else {}

    def _target(self) -> dict[str, object]:
        self._open()
        found = self._targets().get(this_target()) if _has_glibc() else None
        if found is None:
            built, here = ", ".join(self.built_for), this_target() + ("" if _has_glibc() else " without glibc")
            raise HostError(f"this file was built for CPython {built}, not for {here}: build one here with python3 build_zipapp.py, or run it with that Python")
        return found

    def _import_through(self, archive: str) -> None:
        """Later imports of Calnet's own modules come from `archive` too."""
        sys.path[:] = [archive if entry == self._started_as else entry for entry in sys.path]
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "calnet" and hasattr(module, "__path__"):
                module.__path__ = [os.path.join(archive, *name.split("."))]


def _has_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False
