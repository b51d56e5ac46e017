"""One network a module: a server and what the module's tests bring up on it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.product import Node
from tests.e2e.network import SOON, Network, network, pings


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
def stream(pair: tuple[Node, Node]) -> Iterator[Task]:
    """Pings from alice to bob all through the test, begun by a first reply."""
    task = pings(*pair)
    assert task.next_event(SOON) is not None
    yield task
    task.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    """A failed test shows the end of every process's log."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for made in getattr(item, "funcargs", {}).values():
            if isinstance(made, Network):
                report.sections.extend(made.logs())
