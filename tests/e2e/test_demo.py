"""The demo as a person runs it: whole, interrupted, and where it can't run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from calnet.roles.demo import namespaces
from calnet.roles.demo.product import as_user, eventually
from tests.e2e.network import PROGRAM, SOON

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def _leftovers(pid: int) -> list[str]:
    names = [entry.name for entry in namespaces.RUN_NETNS.iterdir()] if namespaces.RUN_NETNS.is_dir() else []
    names += [path.name for path in Path("/tmp").glob(f"{namespaces.NAME_PREFIX}*")]
    return [name for name in names if namespaces.owner_of(name) == pid]


def test_demo_shows_all_of_it_in_under_a_minute_and_cleans_up() -> None:
    demo = subprocess.Popen([*PROGRAM, "demo", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, told = demo.communicate(timeout=180)
    assert demo.returncode == 0, told + out
    figures = json.loads(out)
    assert figures["file"]["whole"] is True
    assert figures["direct"]["lost"] == 0
    assert min(figures["throughput_mbit_s"].values()) > 0
    assert figures["total_s"] < 60
    for what in ("server", "alice", "bob", "first ping", "direct", "throughput", "file", "clean"):
        assert what in told
    assert "\x1b" not in told, "escape sequences where it isn't a terminal"
    assert _leftovers(demo.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_cleans_up(tmp_path: Path, number: int) -> None:
    told = tmp_path / "told"
    with told.open("wb") as output:
        demo = subprocess.Popen([*PROGRAM, "demo"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    eventually(lambda: "server" in told.read_text() and "ready" in told.read_text(), SOON, "the demo is under way")
    demo.send_signal(number)
    assert demo.wait(SOON) == 130, told.read_text()
    assert "Traceback" not in told.read_text()
    assert _leftovers(demo.pid) == []


def test_demo_without_root_says_so() -> None:
    refused = subprocess.run([*as_user(65534), *PROGRAM, "demo"], capture_output=True, text=True, check=False)
    assert refused.returncode == 5, refused
    assert "root" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_demo_without_nft_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "ip").symlink_to(shutil.which("ip") or "/sbin/ip")
    refused = subprocess.run([*PROGRAM, "demo"], capture_output=True, text=True, check=False, env={**os.environ, "PATH": str(tmp_path)})
    assert refused.returncode == 1, refused
    assert "apt-get install nftables" in refused.stderr
