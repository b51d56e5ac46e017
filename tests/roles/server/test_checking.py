"""`calnet server check` without sign-in: what it finds wrong is what the server refuses."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from calnet.errors import ConfigError
from calnet.roles.server.checking import check
from calnet.roles.server.registry import Registry
from calnet.roles.server.settings import HostPort, ServerSettings
from calnet.store.opening import open_store

ANY = HostPort("127.0.0.1", 0)


@pytest.mark.parametrize("prefix", ["127.0.0.0/24", "224.0.0.0/16", "100.70.0.0/31", "0.0.0.0/4", "169.254.0.0/16", "240.0.0.0/8"])
def test_prefix_that_the_server_refuses_is_wrong(tmp_path: Path, prefix: str) -> None:
    settings = ServerSettings(state_dir=tmp_path / "state", listen=ANY, stun_listen=ANY, prefix=IPv4Network(prefix))
    found = {finding.what: finding for finding in check(settings)}
    with pytest.raises(ConfigError) as refused:
        Registry(open_store("kv", tmp_path / "other"), clock=time.time, random=os.urandom, prefix=settings.prefix)
    assert (found["prefix"].ok, found["prefix"].text) == (False, str(refused.value))
    assert all(finding.ok for finding in check(replace(settings, prefix=IPv4Network("100.64.0.0/10"))))
    assert all(finding.ok for finding in check(replace(settings, prefix=None)))
