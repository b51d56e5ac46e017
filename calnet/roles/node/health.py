"""What commonly breaks, said in sentences: a pure function over facts. `error` keeps traffic from flowing, `warning` may or will, `info` is to be known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from calnet.host.interfaces import Interface
from calnet.model import Prefix
from calnet.roles.node.escape import shown
from calnet.roles.node.routes import Finding
from calnet.wire.endpoints import overlaps

CLOCK_LIMIT_S: Final = 60.0
EXPIRY_WARNING_S: Final = 7 * 86_400.0
SERVER_PATIENCE_S: Final = 10.0
"""A server or relay away for less is not worth a line: it restarts."""
TEXT_LIMIT: Final = 600
"""Characters of a text that others may have had a hand in."""
_SHARED: Final = ip_network("100.64.0.0/10")
_TAILSCALE: Final = "tailscale"

ERROR_CODES: Final = frozenset({"server-key-changed", "key-expired", "disabled", "host", "data-path", "pinned-key-changed", "stamps", "state"})
INFO_CODES: Final = frozenset({"route-attached", "peer-key-renewed", "gso", "udp-no-segmentation"})


@dataclass(frozen=True, slots=True)
class HealthLine:
    """One line of `status`."""

    code: str
    severity: str
    text: str

    def document(self) -> dict[str, str]:
        return {"code": self.code, "severity": self.severity, "text": self.text}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment. Times are Unix seconds in server time; `…_down_s` None means connected or not wanted."""

    tun: str
    now: float
    overlay: tuple[Prefix, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    dropping_chain: str | None = None
    strict_rp_filter: tuple[str, ...] = ()
    clock_offset: float = 0.0
    """Server time minus this machine's."""
    advertising: tuple[Prefix, ...] = ()
    forwarding_off: tuple[str, ...] = ()
    accepting: tuple[Prefix, ...] = ()
    """Routes of peers in use."""
    server_down_s: float | None = None
    server_reason: str = ""
    server_key_wrong: str = ""
    relay_down_s: float | None = None
    relay_reason: str = ""
    key_expires: float | None = None
    findings: tuple[Finding, ...] = ()
    """What other parts noticed, as they word it."""


def health(facts: Facts) -> list[HealthLine]:
    """The lines for these facts, the gravest first."""
    order = {"error": 0, "warning": 1, "info": 2}
    lines = [*_connections(facts), *_key(facts), *_host(facts), *_router(facts), *_findings(facts.findings)]
    return sorted(lines, key=lambda line: order[line.severity])


def _connections(facts: Facts) -> Iterator[HealthLine]:
    if facts.server_key_wrong:
        yield HealthLine("server-key-changed", "error", facts.server_key_wrong)
    elif facts.server_down_s is not None and facts.server_down_s >= SERVER_PATIENCE_S:
        text = f"the server has been out of reach for {facts.server_down_s:.0f} s: {facts.server_reason}; live tunnels go on, changes don't arrive"
        yield HealthLine("server-unreachable", "warning", text)
    if facts.relay_down_s is not None and facts.relay_down_s >= SERVER_PATIENCE_S:
        text = f"the relay has been out of reach for {facts.relay_down_s:.0f} s: {facts.relay_reason}; peers without a direct path can't be reached"
        yield HealthLine("relay-unreachable", "warning", text)
    if abs(facts.clock_offset) > CLOCK_LIMIT_S:
        way = "behind" if facts.clock_offset > 0 else "ahead of"
        yield HealthLine("clock", "warning", f"this machine's clock is {abs(facts.clock_offset):.0f} s {way} the server's: set it right (an NTP service)")


def _key(facts: Facts) -> Iterator[HealthLine]:
    if facts.key_expires is None:
        return
    left = facts.key_expires - facts.now
    if left <= 0:
        yield HealthLine("key-expired", "error", "this node's key has expired: `calnet login`")
    elif left < EXPIRY_WARNING_S:
        yield HealthLine("key-expires", "warning", f"this node's key expires in {_span(left)}: `calnet login` renews it without a break")


def _span(seconds: float) -> str:
    for size, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} seconds"


def _host(facts: Facts) -> Iterator[HealthLine]:
    tailscale = any(interface.name.startswith(_TAILSCALE) and interface.up for interface in facts.interfaces)
    if tailscale and any(overlaps(_SHARED, prefix) for prefix in facts.overlay):
        text = "Tailscale runs on this machine and drops packets of 100.64.0.0/10 from other interfaces: stop it, or give the server a --prefix elsewhere"
        yield HealthLine("tailscale", "warning", text)
    for interface in facts.interfaces:
        if interface.name == facts.tun or interface.loopback or not interface.up:
            continue
        for assigned in interface.addresses:
            inside = next((prefix for prefix in facts.overlay if overlaps(assigned.network, prefix)), None)
            if inside is not None:
                text = f"{interface.name} has {assigned} inside the overlay's {inside}: hosts of that network can't be reached while Calnet is up"
                yield HealthLine("prefix-conflict", "warning", text)
    if facts.dropping_chain is not None:
        text = f"the firewall's chain {facts.dropping_chain} drops what comes from {facts.tun}: accept iifname {facts.tun} there"
        yield HealthLine("firewall", "warning", text)
    if facts.strict_rp_filter and facts.accepting:
        names = ", ".join(facts.strict_rp_filter)
        text = f"strict reverse path filtering on {names} can drop tunnel packets of routed peers: sysctl -w net.ipv4.conf.all.rp_filter=2"
        yield HealthLine("rp-filter", "warning", text)


def _router(facts: Facts) -> Iterator[HealthLine]:
    for name in facts.forwarding_off if facts.advertising else ():
        routes = ", ".join(str(route) for route in facts.advertising)
        yield HealthLine("ip-forward", "warning", f"this node advertises {routes} but does not forward packets: sysctl -w {name}=1")


def _findings(findings: Iterable[Finding]) -> Iterator[HealthLine]:
    for finding in dict.fromkeys(findings):
        severity = "error" if finding.code in ERROR_CODES else "info" if finding.code in INFO_CODES else "warning"
        yield HealthLine(finding.code, severity, shown(finding.text, TEXT_LIMIT))
