"""What `metrics` and `bugreport` print of a running daemon: figures in Prometheus's format, and all that helps whoever looks into a fault, without secrets."""

from __future__ import annotations

import contextlib
import platform
import re
import sys
from collections import Counter
from typing import Final

from calnet import __version__
from calnet.errors import TimedOutError, UnreachableError
from calnet.metrics import Metric, rendered, single
from calnet.roles.node import log_format
from calnet.roles.node.daemon import Daemon
from calnet.roles.node.overview import status, statuses_of
from calnet.roles.node.status import Json

_SECRET: Final = re.compile(r"calnet-(?:token-)?[A-Za-z0-9_-]{20,}")
"""Pre-auth keys and API tokens: no log line holds one, and should one ever, it goes no further."""


async def metrics_text(daemon: Daemon) -> str:
    """All families, as they are now; without the data path's where it does not answer."""
    netmap = daemon.control.netmap
    peers = () if netmap is None else netmap.peers
    statuses = (await statuses_of(daemon, peers)).values()
    up, figures = daemon.engine is not None, None
    if daemon.engine is not None:
        with contextlib.suppress(UnreachableError, TimedOutError):
            figures = await daemon.engine.figures()
    paths = Counter(found.path for found in statuses)
    families = [
        Metric("calnet_build_info", "gauge", "Always 1; the label is the version.", {(("version", __version__),): 1}),
        single("calnet_up", "gauge", "Whether the tunnel is up.", up),
        single("calnet_server_connected", "gauge", "Whether the control session stands.", daemon.control.connected),
        single("calnet_relay_connected", "gauge", "Whether the relay can be used.", daemon.relay.down_s() is None and up),
        Metric("calnet_peers", "gauge", "Peers by the path to them.", {(("path", path),): paths[path] for path in ("direct", "relay", "none")}),
        single("calnet_peers_online", "gauge", "Peers that the server sees.", sum(peer.online for peer in peers)),
        single("calnet_received_bytes_total", "counter", "Bytes of tunnel datagrams received.", sum(found.rx_bytes for found in statuses)),
        single("calnet_sent_bytes_total", "counter", "Bytes of tunnel datagrams sent.", sum(found.tx_bytes for found in statuses)),
    ]
    if figures is not None:
        changes: dict[tuple[tuple[str, str], ...], float] = {(("to", way),): count for way, count in sorted(figures.path_changes.items())}
        families += [
            Metric("calnet_path_changes_total", "counter", "Changes of peers' paths, by what they changed to.", changes),
            single("calnet_dropped_packets_total", "counter", "Packets that could not go, or might not come in.", figures.dropped),
        ]
    return rendered(families)


async def bug_report(daemon: Daemon) -> Json:
    """One document. Nobody's keys but public ones are in it."""
    relay_rtt = await daemon.relay.measure()
    view = daemon.setup.view
    return {
        "calnet": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "status": await status(daemon),
        "preferences": {
            "hostname": daemon.state.prefs.hostname,
            "advertise_routes": list(daemon.state.prefs.advertise_routes),
            "accept_routes": daemon.state.prefs.accept_routes,
            "snat_routes": daemon.state.prefs.snat_routes,
            "map_ports": daemon.state.prefs.map_ports,
            "guess_ports": daemon.state.prefs.guess_ports,
            "paths": [list(way) for way in daemon.state.prefs.ways],
            "pinned": [pin.name for pin in daemon.state.prefs.pins],
        },
        "interfaces": [
            {"name": interface.name, "up": interface.up, "addresses": [str(address) for address in interface.addresses]} for interface in view.interfaces
        ],
        "gateways": [f"{gateway.address or 'direct'} by {gateway.interface}" for gateway in view.gateways],
        "port_mapping": None if daemon.mapper.lease is None else f"{daemon.mapper.lease.protocol} {daemon.mapper.lease.endpoint}",
        "relay_rtt_ms": None if relay_rtt is None else round(relay_rtt * 1000, 2),
        "metrics": (await metrics_text(daemon)).splitlines(),
        "log": [_SECRET.sub("[removed]", line) for line in log_format.recent()],
    }
