"""`sim`: a network from a file, played and told."""

from __future__ import annotations

import json
from pathlib import Path

from tests.roles.cli.daemon import Cli
from tests.sim.test_topology import EVENTS, NETWORK


def test_command_plays_a_file(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    path.write_text(NETWORK + EVENTS)
    outcome = cli("sim", str(path))
    assert outcome.code == 0, outcome.err
    assert "laptop to desk: first packet after" in outcome.out
    document = json.loads(cli("sim", str(path), "--json", "--seed", "3").out)
    assert document["pairs"][0]["source"] == "laptop"
    path.write_text(NETWORK.replace('kind = "linux"', 'kind = "linux"\nudp = false\ntcp = false'))
    assert cli("sim", str(path)).code == 1  # somebody never hears anything
    missing = cli("sim", str(tmp_path / "none"))
    assert missing.code != 0
    assert "can't be read" in missing.err
