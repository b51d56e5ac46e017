"""The in-memory twin of netlink.py's `Network`: remembers what was asked, and lets a test change the machine under a daemon."""

from __future__ import annotations

from collections.abc import Callable

from calnet.errors import HostError
from calnet.host.interfaces import NetworkView
from calnet.host.netlink import LinkConfig, Numbers


class _MemoryWatch:
    def __init__(self, watchers: list[Callable[[], None]], changed: Callable[[], None]) -> None:
        self._watchers, self._changed = watchers, changed
        watchers.append(changed)

    def close(self) -> None:
        if self._changed in self._watchers:
            self._watchers.remove(self._changed)


class MemoryNetwork:
    """`configured` is what stands now (None: nothing); `refuse`, when set, is raised by `configure`; `change` tells the watchers."""

    def __init__(self, present: NetworkView | None = None) -> None:
        self.present = present or NetworkView(())
        self.configured: LinkConfig | None = None
        self.removed: list[tuple[Numbers, str]] = []
        self.notes: tuple[str, ...] = ()
        self.refuse: HostError | None = None
        self._watchers: list[Callable[[], None]] = []

    async def configure(self, wanted: LinkConfig) -> tuple[str, ...]:
        if self.refuse is not None:
            raise self.refuse
        self.configured = wanted
        return self.notes

    async def remove(self, numbers: Numbers, name: str) -> None:
        self.removed.append((numbers, name))
        self.configured = None

    async def view(self) -> NetworkView:
        return self.present

    def watch(self, changed: Callable[[], None]) -> _MemoryWatch:
        return _MemoryWatch(self._watchers, changed)

    def change(self, present: NetworkView) -> None:
        """The machine's interfaces are `present` from now on."""
        self.present = present
        for changed in list(self._watchers):
            changed()
