"""The unit files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from calnet.roles.setup.units import NODE, ROLES, SERVER, Role, unit_text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (apt install systemd)")
@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
def test_unit_is_clean_for_systemd(tmp_path: Path, role: Role) -> None:
    path = tmp_path / role.unit
    path.write_text(unit_text(role, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, [line for line in done.stderr.splitlines() if "calnet" in line]) == (0, "", [])


def test_node_has_the_rights_it_needs_and_no_more() -> None:
    text = unit_text(NODE, "/usr/bin/python3.11")
    for line in (
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW",
        "DeviceAllow=/dev/net/tun rw",
        "Type=notify",
        "StateDirectoryMode=0700",
        "RuntimeDirectoryMode=0755",
    ):
        assert line in text.splitlines()
    assert "ExecStart=/usr/bin/python3.11 -IS /usr/local/lib/calnet/current/calnet.pyz node" in text.splitlines()


def test_server_can_be_reloaded_and_has_no_network_rights() -> None:
    text = unit_text(SERVER, "/usr/bin/python3.11")
    assert "ExecReload=" in text
    assert "CAP_NET_ADMIN" not in text
    assert "ProtectHome=yes" in text


def test_python_in_a_home_directory_stays_readable() -> None:
    assert "ProtectHome=read-only" in unit_text(NODE, "/root/.pyenv/versions/3.11.7/bin/python3.11")
