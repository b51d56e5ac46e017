"""What `status` says of a running daemon: its facts gathered, and given to the pure functions of health.py and status.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

from calnet.errors import TimedOutError, UnreachableError
from calnet.host.probes import forwarding_off
from calnet.model import NodeId, Peer
from calnet.roles.node.daemon import NO_STATUS, Daemon
from calnet.roles.node.engine import PeerStatus
from calnet.roles.node.health import Facts, HealthLine, health
from calnet.roles.node.routes import Finding, rerouted
from calnet.roles.node.status import Json, SelfFacts, ServerFacts, status_document

Statuses = Mapping[NodeId, PeerStatus]


async def statuses_of(daemon: Daemon, peers: Iterable[Peer]) -> Statuses:
    """How these peers are reached. NO_STATUS for all while there is no data path, or one that does not answer (which is in the health lines)."""
    ids = [peer.id for peer in peers]
    known: Statuses = {}
    if daemon.engine is not None:
        with contextlib.suppress(UnreachableError, TimedOutError):
            known = await daemon.engine.statuses(ids)
    return {peer: known.get(peer, NO_STATUS) for peer in ids}


async def health_lines(daemon: Daemon) -> list[HealthLine]:
    """The lines under health."""
    return health_of(daemon, await statuses_of(daemon, () if daemon.trusted is None else daemon.trusted.peers))


def health_of(daemon: Daemon, statuses: Statuses) -> list[HealthLine]:
    """The same, where it is known how the peers are reached."""
    netmap, probed, up = daemon.control.netmap, daemon.setup.probed, daemon.engine is not None
    advertising = () if netmap is None or not up else netmap.self.advertised_routes
    findings = daemon.notices.findings()
    if up:
        findings += [*daemon.trust_findings, *daemon.setup.findings]
        findings += rerouted(() if daemon.trusted is None else daemon.trusted.peers, lambda peer: statuses.get(peer, NO_STATUS).carries)
    if daemon.control.standing == "disabled":
        findings.append(Finding("disabled", "an admin disabled this node"))
    return health(
        Facts(
            tun=daemon.setup.tun,
            now=daemon.now(),
            overlay=() if netmap is None else netmap.prefixes,
            interfaces=daemon.setup.view.interfaces,
            dropping_chain=probed.dropping_chain if up else None,
            strict_rp_filter=probed.strict_rp_filter,
            clock_offset=daemon.control.clock_offset,
            advertising=advertising,
            forwarding_off=forwarding_off(route.version for route in advertising),  # read at each question: no event tells that it was set
            accepting=daemon.setup.accepted,
            server_down_s=daemon.control.down_s(),
            server_reason="" if daemon.control.error is None else str(daemon.control.error),
            server_key_wrong="" if daemon.control.key_error is None else str(daemon.control.key_error),
            relay_down_s=daemon.relay.down_s(),
            relay_reason=daemon.relay.reason,
            key_expires=None if netmap is None else netmap.self.key_expires,
            findings=tuple(findings),
        )
    )


async def status(daemon: Daemon) -> Json:
    """The status document."""
    netmap = daemon.control.netmap if daemon.state.prefs.want_up else None
    statuses = await statuses_of(daemon, () if netmap is None else netmap.peers)
    client = daemon.control.client
    heard = client.last_heard if client is not None else 0.0
    last_seen = asyncio.get_running_loop().time() - heard if heard else None
    endpoints = daemon.control.endpoints or daemon.local_endpoints()
    own = SelfFacts(daemon.state.keys.node.public, daemon.machine.os, daemon.hostname(), daemon.udp_port(), endpoints)
    return status_document(
        daemon.state_name(),
        ServerFacts(daemon.state.server_url, client is not None and client.connected, last_seen),
        own,
        netmap,
        lambda peer: statuses.get(peer, NO_STATUS),
        health_of(daemon, statuses),
        now=daemon.now(),
        version=daemon.machine.version,
    )
