"""How long packets may be on a peer's direct path: searched for with probes as long as data would be, and watched while long packets flow. Pure.

Theory of operation (RFC 8899, with sizes of IP packets inside the tunnel). A path starts at BASE, which is assumed. While data flows the search tries the
interface's own MTU first, since most paths take it, and then halves what is left of SIZES. Settled, it tries for more every ten minutes, and while packets
longer than BASE are sent it asks every CONFIRM whether they still pass: where some probes in a row get no answer though the path itself answers, longer
packets than BASE stop at once and the search begins anew below. Where not even BASE passes, the path is thin: no good for data.

A probe is lost for other reasons too: one that fails counts only if the path was heard since its first try.

Error contract: nothing raises.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from calnet.model import Endpoint
from calnet.paths import constants as c

BASE: Final = 1280
"""IPv6's least MTU: the inside of a tunnel may not be smaller (RFC 8200, section 5)."""
ETHERNET: Final = 1420
"""What fits with our headers into 1,500 bytes, over IPv6 too: what paths are probed for, unless the interface's own MTU is set higher."""
SIZES: Final = (1312, 1344, 1376, 1392, 1408, 2048, 4352, 8912)
"""Between BASE and the interface's MTU; multiples of 16, as data is padded."""
TRIES: Final = 3
TRIES_BASE: Final = 5
"""Where BASE itself is in question, since that costs the path."""
RETRY: Final = 0.5
CONFIRM: Final = 1.0
RETRY_CONFIRM: Final = 0.3
RAISE: Final = 600.0


class PathMtu:
    """See the module. `limit` is the longest packet to send directly now."""

    __slots__ = (
        "_confirmed_at",
        "_first_try_at",
        "_high",
        "_low",
        "_next_at",
        "_raise_at",
        "_sizes",
        "_tries",
        "_trying",
        "_used_at",
        "endpoint",
        "settled",
        "thin",
    )

    def __init__(self, ceiling: int) -> None:
        """`ceiling` is the longest that is of interest."""
        self._sizes = (min(BASE, ceiling), *(size for size in SIZES if size < ceiling), ceiling) if ceiling > BASE else (ceiling,)
        self.endpoint: Endpoint | None = None
        self._begin()

    def _begin(self) -> None:
        self._low, self._high = 0, len(self._sizes)
        self.settled = self.thin = False
        self._confirmed_at = self._used_at = self._first_try_at = c.LONG_AGO
        self._raise_at = float("inf")
        self._trying: int | None = None
        self._tries = 0
        self._next_at = c.LONG_AGO

    @property
    def limit(self) -> int:
        """The longest packet, in bytes, that is proven to get through, or BASE, which is assumed."""
        return self._sizes[self._low]

    # --- events

    def use_path(self, endpoint: Endpoint) -> None:
        """Data goes to `endpoint` from now on."""
        if endpoint != self.endpoint:
            self.endpoint = endpoint
            self._begin()

    def forget(self) -> None:
        """The network changed: what was found may not hold."""
        self._begin()

    def used(self, now: float) -> None:
        """A packet longer than BASE was sent, or should have been."""
        self._used_at = now

    def answered(self, size: int, now: float) -> None:
        """The peer answered a probe as long as a packet of `size`."""
        found = bisect_left(self._sizes, size)
        if found == len(self._sizes) or self._sizes[found] != size:
            return
        self.thin = False
        self._confirmed_at = now
        if found > self._low:
            self._low = found
            self._high = max(self._high, found + 1)
        if self._trying is not None and self._trying <= size:
            self._trying, self._next_at = None, now

    def deadline(self) -> float | None:
        """When `on_timer` has something to do while data flows."""
        if self._trying is not None or not self.settled:
            return self._next_at
        return min(self._raise_at, self._confirmed_at + CONFIRM if self._is_in_doubt() else float("inf"))

    def on_timer(self, now: float, heard_at: float) -> int | None:
        """The size to probe now, if any. `heard_at`: when anything authentic last came by this path."""
        if self._trying is not None:
            if now < self._next_at:
                return None
            if self._tries < (TRIES if self._trying > BASE else TRIES_BASE):
                return self._try_again(now)
            if heard_at <= self._first_try_at:
                return self._try(self._trying, now)  # the path itself is silent: that says nothing
            self._failed(self._trying, now)
        if self.settled and now >= self._raise_at:
            self.settled, self._high = False, len(self._sizes)
        if not self.settled:
            return self._search(now)
        if self._is_in_doubt() and now >= self._confirmed_at + CONFIRM:
            return self._try(self.limit, now)
        return None

    # --- inside

    def _is_in_doubt(self) -> bool:
        return self._low > 0 and self._used_at > self._confirmed_at

    def _search(self, now: float) -> int | None:
        if self._high - self._low > 1:
            fresh = self._high == len(self._sizes)
            return self._try(self._sizes[self._high - 1 if fresh else (self._low + self._high) // 2], now)
        if self._low == 0 and self._confirmed_at == c.LONG_AGO and not self.thin:
            return self._try(self.limit, now)
        self.settled = True
        self._raise_at = now + RAISE if self._low < len(self._sizes) - 1 else float("inf")
        return None

    def _try(self, size: int, now: float) -> int:
        self._trying, self._tries, self._first_try_at = size, 0, now
        return self._try_again(now)

    def _try_again(self, now: float) -> int:
        assert self._trying is not None
        self._tries += 1
        self._next_at = now + (RETRY_CONFIRM if self.settled else RETRY)
        return self._trying

    def _failed(self, size: int, now: float) -> None:
        self._trying = None
        failed = bisect_left(self._sizes, size)
        if failed == 0:
            self.thin, self.settled = True, True
            self._raise_at = now + RAISE
        elif failed <= self._low:  # it held, and does no more
            self._low, self._high, self.settled, self._confirmed_at = 0, failed, False, c.LONG_AGO
        else:
            self._high = failed
