"""A machine joins by single sign-on: `calnet up` prints a URL, somebody signs in there with a browser, and the machine runs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from calnet.roles.demo.lab import Lab
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, Server, eventually
from tests.e2e.network import PROGRAM, SOON, Network
from tests.idp.provider import CLIENT_ID, CLIENT_SECRET, Browser, installed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
IDP_PORT = 9400
CONFIG = """
url = "{url}"
[oidc]
issuer = "http://127.0.0.1:{port}"
client_id = "{client}"
client_secret = "{secret}"
redirect_url = "http://127.0.0.1:8080/auth/callback"
admins = ["admins"]
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """A lab whose server trusts a provider on its own machine."""
    place = installed()
    with Lab() as lab:
        host = lab.public_host("server")
        host.namespace.ip("link set lo up")
        environment = {"PATH": os.environ["PATH"], "REDIRECTS": "http://127.0.0.1:8080/auth/callback"}
        idp = host.namespace.start("idp", ["node", str(place / "idp.mjs"), str(IDP_PORT)], environment=environment)
        eventually(lambda: "READY" in idp.output(), SOON, "the provider runs")
        server = Server(host, PROGRAM)
        config = host.namespace.directory / "server.toml"
        config.write_text(CONFIG.format(url=server.url, port=IDP_PORT, client=CLIENT_ID, secret=CLIENT_SECRET))
        config.chmod(0o600)
        server.start("--config", str(config))
        yield Network(lab, server)


def _up(net: Network, node: Node) -> tuple[subprocess.Popen[bytes], Path]:
    said = node.host.namespace.directory / f"{node.host.name}-up.log"
    command = [*PROGRAM, "up", "--qr", "--socket", str(node.socket), "--server", net.server.url, "--hostname", node.host.name]
    with said.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT), said


def test_machine_runs_the_moment_its_user_has_signed_in(net: Network) -> None:
    node = net.node("laptop", NatKind.PORT_RESTRICTED)
    waiting, said = _up(net, node)
    try:
        found = eventually(lambda: re.search(r"to log in, open: (\S+)", said.read_text()), SOON, "up prints the login's URL")
        assert found is not None
        assert "█" in said.read_text()
        assert node.state() == "needs-approval"
        with net.server.host.namespace.inside(), Browser("bob") as browser:
            browser.go(found[1])
        assert waiting.wait(3 * SOON) == 0
    finally:
        waiting.kill()
        waiting.wait()
    assert node.state() == "running"
    assert node.own()["user"] == "bob"
