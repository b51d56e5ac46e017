"""What every test shares: the end-to-end part is skipped, with its reason, where it can't run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("calnet", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calnet")  # the same draws each time, and no clock: a busy machine fails no test

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell leaves to background jobs: the programs under test would inherit it


def _missing() -> str | None:
    """Why end-to-end tests can't run here; None if they can."""
    if os.geteuid() != 0:
        return "end-to-end tests need root (run as root, or with sudo)"
    if not Path("/dev/net/tun").exists():
        return "end-to-end tests need /dev/net/tun (modprobe tun)"
    absent = [program for program in ("ip", "nft", "ping") if shutil.which(program) is None]
    return f"end-to-end tests need {', '.join(absent)} (apt install iproute2 nftables iputils-ping)" if absent else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _missing()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("e2e"):
                item.add_marker(pytest.mark.skip(reason=reason))
