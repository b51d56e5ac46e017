"""The server's figures, for /metrics."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from calnet import __version__
from calnet.metrics import Metric, single
from calnet.roles.server.control_hub import ControlHub
from calnet.roles.server.registry import Registry
from calnet.roles.server.relay_hub import RelayHub


def figures(registry: Registry, control: ControlHub, relay: RelayHub) -> Iterator[Metric]:
    """All families, as they are now."""
    nodes = registry.nodes()
    states = Counter(str(node["state"]) for node in nodes)
    yield Metric("calnet_build_info", "gauge", "Always 1; the label is the version.", {(("version", __version__),): 1})
    yield Metric("calnet_nodes", "gauge", "Nodes by state.", {(("state", state),): count for state, count in sorted(states.items())})
    yield single("calnet_nodes_online", "gauge", "Nodes with a control session.", sum(node["online"] for node in nodes))
    yield single("calnet_users", "gauge", "Users.", len(registry.users()))
    yield single("calnet_control_sessions", "gauge", "Control sessions on this server.", len(control))
    yield single("calnet_relay_connections", "gauge", "Relay connections on this server.", len(relay))
    yield single("calnet_relay_queued_bytes", "gauge", "Bytes that wait for relay clients.", relay.queued)
    yield single("process_resident_memory_bytes", "gauge", "Resident memory of the server.", _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
