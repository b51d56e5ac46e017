"""Everything that goes through Outbound and Inbound is tried with each way of sealing and opening batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crypto.batches import WAYS, new_batch_by
from tests.tunnel import ends

BOTH_WAYS = {"test_chunks", "test_inbound", "test_outbound", "test_forgery"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_WAYS:
        metafunc.parametrize("batches", WAYS, indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def batches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Batches are done so, for all tests of a module."""
    before = ends.new_batch
    ends.new_batch = new_batch_by(getattr(request, "param", WAYS[0]))
    yield
    ends.new_batch = before
