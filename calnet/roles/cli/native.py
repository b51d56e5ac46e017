"""Native modules from memory: each is copied to a sealed memfd when it is first imported, and loaded from there.

The descriptors stay open for ever: the dynamic linker tells libraries apart by path, and a re-used number would give the wrong one.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Protocol

    from calnet.roles.cli.bundle import Bundle

    class Place(Protocol):
        """Where entries of the bundle get a path."""

        def put(self, entry: str) -> str: ...


MFD_NOEXEC_SEAL = 0x0008
"""Since Linux 6.3 (Python has no name for it); where vm.memfd_noexec is 2 no memfd can be made without it, and libraries load from one with it."""


class Memory:
    """A Place in memfds."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._descriptors: list[int] = []

    def put(self, entry: str) -> str:
        """A path to a sealed copy of the entry, good for as long as this process lives."""
        descriptor = sealed_memfd(os.path.basename(entry), self._bundle.need(entry))
        self._descriptors.append(descriptor)
        return f"/proc/self/fd/{descriptor}"


def sealed_memfd(name: str, data: bytes) -> int:
    """A descriptor of an anonymous file that holds `data` and can't be changed by anybody. OSError where the kernel has none."""
    import fcntl

    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | MFD_NOEXEC_SEAL)
    except OSError:  # before Linux 6.3
        descriptor = os.memfd_create(name, flags)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def place_for(bundle: Bundle) -> Place:
    """Memory where this machine has memfds and /proc, else a directory."""
    try:
        probe = sealed_memfd("calnet", b"")
    except (OSError, AttributeError):
        probe = -1
    if probe >= 0:
        seen = os.path.exists(f"/proc/self/fd/{probe}")
        os.close(probe)
        if seen:
            return Memory(bundle)
    from calnet.roles.cli.extraction import Directory

    return Directory(bundle)


class NativeModules:
    """A finder for sys.meta_path: {module: entry} from a Place."""

    def __init__(self, modules: dict[str, str], place: Place) -> None:
        self._modules, self._place = modules, place

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """importlib's protocol."""
        entry = self._modules.get(name)
        if entry is None or name in sys.modules:
            return None
        where = self._place.put(entry)
        return spec_from_file_location(name, where, loader=ExtensionFileLoader(name, where))
