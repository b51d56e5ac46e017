"""The one nftables table of the daemon: packets for this node's overlay addresses from outside are dropped, and a router's clients get source NAT.

The whole table is replaced atomically by `nft -f -`. Table `inet calnet` for the default interface, `inet calnet_NAME` for another, so that two
daemons of one host keep apart.

Rules, and why:
    prerouting   to one of our overlay addresses, by another interface than the tunnel's, from a source that is not this machine: dropped
                 (CVE-2019-14899: a neighbour on the underlay probing connections inside the tunnel)
    postrouting  from the overlay to an advertised prefix, leaving by another interface than the tunnel's: source NAT to this machine's address,
                 so that hosts behind the router need no route back
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from calnet.errors import HostError
from calnet.host.tun import check_interface_name
from calnet.model import Address, Prefix

TIMEOUT_S: Final = 10.0
_SYSTEM_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the table should say. `overlay` and `routes` may be empty: no source NAT then."""

    tun: str
    addresses: tuple[Address, ...]
    overlay: tuple[Prefix, ...] = ()
    routes: tuple[Prefix, ...] = ()


class Nftables(Protocol):
    """The packet filter of this machine; `MemoryNftables` is the twin."""

    async def install(self, rules: Ruleset) -> None:
        """Make the table say `rules`. HostError where that fails, or where there is no nft."""

    async def remove(self, tun: str) -> None:
        """Remove the table; nothing there is no error."""


def table_name(tun: str) -> str:
    """The table of the daemon on interface `tun`."""
    return "calnet" if tun == "calnet0" else "calnet_" + re.sub(r"[^A-Za-z0-9]", "_", tun)


def render(rules: Ruleset) -> str:
    """The script for `nft -f -`: the table made anew. HostError for an interface name that could be read as something else."""
    table = table_name(check_interface_name(rules.tun))
    guard = [f'        iifname != "{rules.tun}" {_word(address)} daddr {address} fib saddr type != local drop' for address in rules.addresses]
    nat = [
        f'        oifname != "{rules.tun}" {_word(source)} saddr {source} {_word(route)} daddr {route} masquerade'
        for route in rules.routes
        for source in rules.overlay
        if source.version == route.version
    ]
    lines = [f"table inet {table} {{}}", f"delete table inet {table}", f"table inet {table} {{"]
    lines += ["    chain guard {", "        type filter hook prerouting priority raw; policy accept;", *guard, "    }"]
    if nat:
        lines += ["    chain source_nat {", "        type nat hook postrouting priority srcnat; policy accept;", *nat, "    }"]
    return "\n".join([*lines, "}", ""])


def render_removal(tun: str) -> str:
    """The script that removes the table whether or not it is there."""
    table = table_name(tun)
    return f"table inet {table} {{}}\ndelete table inet {table}\n"


def _word(value: Address | Prefix) -> str:
    return "ip" if value.version == 4 else "ip6"


class KernelNftables:
    """`Nftables` by the program `nft`, looked for in the system's directories alone."""

    async def install(self, rules: Ruleset) -> None:
        await _run(render(rules))

    async def remove(self, tun: str) -> None:
        if find_nft() is not None:  # else none of ours was ever made
            await _run(render_removal(tun))

    async def dump(self) -> str:
        """The whole ruleset as text, for the health probe; empty where there is no nft or it may not be read."""
        program = find_nft()
        if program is None:
            return ""
        status, out, _ = await _call([program, "--stateless", "list", "ruleset"], b"")
        return out if status == 0 else ""


def find_nft() -> str | None:
    """Where `nft` is, or None."""
    return shutil.which("nft", path=_SYSTEM_PATH)


async def _run(script: str) -> None:
    program = find_nft()
    if program is None:
        raise HostError("the program nft is not there: install it (apt install nftables)")
    status, _, complaint = await _call([program, "-f", "-"], script.encode())
    if status != 0:
        first = complaint.strip().splitlines()[0] if complaint.strip() else f"exit status {status}"
        raise HostError(f"nft refused the table {script.split()[2]}: {first}")


async def _call(command: Sequence[str], data: bytes) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a program that gets `data`; killed and HostError after TIMEOUT_S.

    In a thread: uvloop's subprocess transport raises where the program ends before its input is written.
    """
    try:
        done = await asyncio.to_thread(
            subprocess.run, command, input=data, capture_output=True, timeout=TIMEOUT_S, env={"PATH": _SYSTEM_PATH, "LC_ALL": "C"}, check=False
        )
    except OSError as error:
        raise HostError(f"can't run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{command[0]} did not answer in {TIMEOUT_S:.0f} s") from error
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


class MemoryNftables:
    """The in-memory twin: `installed` is what stands; `refuse`, when set, is raised."""

    def __init__(self) -> None:
        self.installed: Ruleset | None = None
        self.refuse: HostError | None = None

    async def install(self, rules: Ruleset) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.installed = rules

    async def remove(self, tun: str) -> None:
        self.installed = None
