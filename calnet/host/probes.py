"""Questions to this machine that health needs: sysctls, the firewall, the host's name. Small reads; nothing is changed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SYSCTL_ROOT: Final = Path("/proc/sys")
STRICT: Final = 1
"""rp_filter's strict mode (RFC 3704)."""

_HOOK: Final = re.compile(r"type filter hook input priority [^;]*;\s*policy drop;")
_BLOCK: Final = re.compile(r"^\s*(table|chain) (.+) \{$")
_NAME: Final = re.compile(r"[^a-z0-9-]+")


def read_sysctl(name: str, root: Path = SYSCTL_ROOT) -> str | None:
    """The value of a sysctl written with dots between parts and slashes within (`net.ipv4.conf.eth0/1.rp_filter`), or None."""
    path = root.joinpath(*(part.replace("/", ".") for part in name.split(".")))
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def strict_rp_filter(interfaces: Iterable[str], root: Path = SYSCTL_ROOT) -> tuple[str, ...]:
    """Those of `interfaces` whose reverse path filter is strict: the kernel takes the greater of `all` and the interface's own value."""
    everywhere = _number(read_sysctl("net.ipv4.conf.all.rp_filter", root))
    found = []
    for name in interfaces:
        own = _number(read_sysctl(f"net.ipv4.conf.{name.replace('.', '/')}.rp_filter", root))
        if max(everywhere, own) == STRICT:
            found.append(name)
    return tuple(found)


def forwarding_off(versions: Iterable[int], root: Path = SYSCTL_ROOT) -> tuple[str, ...]:
    """The sysctls that have to be 1 for a router of these IP versions, and are not."""
    names = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
    return tuple(names[version] for version in sorted(set(versions)) if read_sysctl(names[version], root) != "1")


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def dropping_chain(ruleset: str, tun: str) -> str | None:
    """The input chain of `nft list ruleset`'s text that drops by policy and whose table never names `tun`, as `inet filter input`; None where none does.

    iptables' own rules stand there too (as `ip filter INPUT`), where iptables works through nftables.
    """
    table = chain = ""
    suspects: dict[str, str] = {}
    for line in ruleset.splitlines():
        block = _BLOCK.match(line)
        if block is not None:
            table, chain = (block[2], "") if block[1] == "table" else (table, block[2])
        elif _HOOK.search(line):
            suspects.setdefault(table, f"{table} {chain}")
        elif f'"{tun}"' in line or _matches_wildcard(line, tun):
            suspects[table] = ""
    return next((where for where in suspects.values() if where), None)


def _matches_wildcard(line: str, tun: str) -> bool:
    return any(tun.startswith(stem) for stem in re.findall(r'"([^"*]+)\*"', line))


def host_name() -> str:
    """This machine's name as a node's: the first label, lower case, letters, digits and hyphens; `node` where nothing is left of it."""
    return clean_name(socket.gethostname())


def clean_name(name: str) -> str:
    """The first label of `name` as a DNS-safe one of at most 63 characters, or `node`."""
    return _NAME.sub("-", name.split(".")[0].lower()).strip("-")[:63].rstrip("-") or "node"


def missing_capability() -> str | None:
    """What this process lacks to run the node (`CAP_NET_ADMIN`), or None."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None if os.geteuid() == 0 else "CAP_NET_ADMIN"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return None if found is None or int(found[1], 16) >> 12 & 1 else "CAP_NET_ADMIN"
