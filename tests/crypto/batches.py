"""What seals and opens batches here: both ways, for tests that hold of either."""

from __future__ import annotations

import os
from functools import cache

import pytest

from calnet.crypto.batch import NewBatch, portable_batch
from calnet.crypto.choice import load_library
from calnet.crypto.ipsec_mb import Library

WAYS = ("portable", "library")


@cache
def library() -> Library | None:
    """The machine's library for batches."""
    return load_library()


def new_batch_by(way: str) -> NewBatch:
    """`NewBatch` by one of WAYS. Without the library its tests are skipped, or fail where CALNET_REQUIRE_BATCHES=1."""
    if way == "portable":
        return portable_batch
    found = library()
    if found is None and os.environ.get("CALNET_REQUIRE_BATCHES") == "1":
        pytest.fail("libIPSec_MB is not here: apt install libipsec-mb1, or libipsec-mb2")
    if found is None:
        pytest.skip("libIPSec_MB is not here (apt install libipsec-mb1, or libipsec-mb2)")
    return found.new_batch
