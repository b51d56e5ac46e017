"""Two sites whose NATs give each destination another port: they stay on the relay, unless a router is asked for a port. The router is a real miniupnpd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from calnet.roles.demo.lab import Site
from calnet.roles.demo.namespaces import Process
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers, await_direct, bring_up, pings, send_file

PROGRAM = shutil.which("miniupnpd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(PROGRAM is None, reason="there is no miniupnpd here (Debian: miniupnpd-nftables); ./dev test installs it"),
]

OUTSIDE = "45.45.45.45"
"""The router's: miniupnpd takes addresses of documentation ranges, like the lab's, for private ones. It never leaves the namespaces."""
CHAINS = """
table inet upnp {
    chain forwarding { type filter hook forward priority 0; policy accept; jump mapped; }
    chain mapped { }
    chain incoming { type nat hook prerouting priority -110; policy accept; jump incoming_mapped; }
    chain incoming_mapped { }
    chain outgoing { type nat hook postrouting priority 90; policy accept; jump outgoing_mapped; }
    chain outgoing_mapped { }
}
"""


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    """(node behind the router that is asked, node behind another symmetric NAT); the first has not been up."""
    net.join("far", NatKind.SYMMETRIC)
    return net.node("near", NatKind.SYMMETRIC), net.nodes["far"]


@pytest.fixture(params=["pcp", "upnp"])
def router(request: pytest.FixtureRequest, net: Network, pair: tuple[Node, Node]) -> Iterator[tuple[str, Site]]:
    """(the one protocol that is spoken, the site)."""
    site = net.sites["near"]
    assert site.router is not None
    site.router.nft("table inet upnp\ndelete table inet upnp" + CHAINS)
    site.router.ip(f"address replace {OUTSIDE}/32 dev wan")
    net.lab.core.ip(f"route replace {OUTSIDE}/32 via {site.public_ipv4}")
    network = site.host.ipv4.rsplit(".", 1)[0] + ".0/24"
    configuration = net.lab.directory / "miniupnpd.conf"
    options = {
        "ext_ifname": "wan",
        "ext_ip": OUTSIDE,
        "listening_ip": "lan",
        "port": "0",
        "enable_natpmp": "yes" if request.param == "pcp" else "no",
        "enable_upnp": "yes" if request.param == "upnp" else "no",
        "secure_mode": "yes",
        "upnp_table_name": "upnp",
        "upnp_nat_table_name": "upnp",
        "upnp_forward_chain": "mapped",
        "upnp_nat_chain": "incoming_mapped",
        "upnp_nat_postrouting_chain": "outgoing_mapped",
        "uuid": "00000000-0000-0000-0000-000000000001",
    }
    rules = f"allow 1024-65535 {network} 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
    configuration.write_text("".join(f"{name}={value}\n" for name, value in options.items()) + rules)
    process: Process = site.router.start("miniupnpd", [str(PROGRAM), "-d", "-f", str(configuration), "-P", str(net.lab.directory / "miniupnpd.pid")])
    try:
        eventually(lambda: "istening " in process.output() or not process.alive, SOON, "miniupnpd listens")
        yield request.param, site
    finally:
        process.stop()


def _mapped(site: Site) -> bool:
    assert site.router is not None
    return "dnat" in site.router.run("nft", "list", "chain", "inet", "upnp", "incoming_mapped").stdout


def test_port_of_the_router_makes_the_path_direct_until_it_is_given_back(net: Network, pair: tuple[Node, Node], router: tuple[str, Site]) -> None:
    near, far = pair
    protocol, site = router
    if near.state() != "needs-login":
        assert near.cli("up").status == 0
    else:
        bring_up(net.server, near)
    net.acquaint("near", "far")
    eventually(lambda: near.cli("netcheck", "--json").json()["port_mapping"] == [protocol], 2 * SOON, "the router gave a port", every=0.5)
    assert _mapped(site)
    await_direct(near, far)
    assert str((far.peer("near") or {}).get("endpoint")).startswith(f"{OUTSIDE}:")
    eventually(lambda: answers(far, near.address()), SOON, "far has a session with near, who forgot the one before it went down")
    stream = pings(far, near)
    for source, target in ((near, far), (far, near)):
        assert send_file(source, target, os.urandom(1_000_003))
    assert stream.result()["lost"] == []
    assert near.cli("set", "--no-map-ports").status == 0
    eventually(lambda: not _mapped(site), SOON, "the port is given back")
    assert near.cli("netcheck", "--json").json()["port_mapping"] == []
    assert near.cli("set", "--map-ports").status == 0
    eventually(lambda: _mapped(site), 2 * SOON, "the router gave a port again")
    assert near.cli("down").status == 0
    eventually(lambda: not _mapped(site), SOON, "the port is given back")
