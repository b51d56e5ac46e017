"""The `cli` fixture."""

from __future__ import annotations

import os

import pytest

from tests.roles.cli.daemon import Cli


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in [name for name in os.environ if name.startswith("CALNET_")]:
        monkeypatch.delenv(name)
    return Cli(capsys, monkeypatch)
