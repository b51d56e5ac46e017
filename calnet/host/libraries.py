"""Where a shared library of ours may be: the system's, or the one that calnet.pyz brings."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from calnet.crypto.ipsec_mb import NAMES

BUNDLED = "libIPSec_MB"
"""What build_zipapp.py calls it among the native modules."""


def batch_libraries() -> Iterator[str]:
    """Names and paths of the library for batches, in the order to try them. The system's is preferred, as it is kept current and its memory is shared; the
    bundled one is only copied to memory when its turn comes."""
    yield from NAMES
    spec = find_spec(BUNDLED)
    if spec is not None and spec.origin:
        yield spec.origin
