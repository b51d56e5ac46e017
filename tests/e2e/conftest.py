"""One network a module: a server and what the module's tests bring up on it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.network import Network, network


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    """A failed test shows the end of every process's log."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for made in getattr(item, "funcargs", {}).values():
            if isinstance(made, Network):
                report.sections.extend(made.logs())
