"""What the daemon sets up on this machine beyond the TUN itself: addresses, routes, rule, nft table; and what it knows of the machine, for health.

One call at a time. What is about to stand is noted in the state directory first, so that the next start can undo what a crash left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from calnet.errors import HostError
from calnet.host import probes
from calnet.host.interfaces import Interface, NetworkView, attached_prefixes, candidate_addresses, underlay
from calnet.host.netlink import LinkConfig, Network, numbers_for
from calnet.host.nft import Nftables, Ruleset
from calnet.model import Address, Netmap, Prefix
from calnet.roles.node.routes import Finding, plan_routes
from calnet.roles.node.state import StateDirectory

log = logging.getLogger(__name__)


class RulesetReader(Protocol):
    """Where the firewall's rules can be read."""

    async def dump(self) -> str:
        """The ruleset as text; empty where it can't be read."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the last look at this machine found."""

    dropping_chain: str | None = None
    strict_rp_filter: tuple[str, ...] = ()


class HostSetup:
    """See the module's docstring. `findings` is what the last `apply` left out; `accepted` the peers' routes in use."""

    def __init__(self, directory: StateDirectory, network: Network, nft: Nftables, reader: RulesetReader | None, tun: str) -> None:
        self.tun = tun
        self.network = network
        self._directory, self._nft, self._reader = directory, nft, reader
        self._lock = asyncio.Lock()
        self._touched = False
        """Something was begun that has to be undone, done or not."""
        self._standing: LinkConfig | None = None
        self._rules: Ruleset | None = None
        self.view = NetworkView(())
        self.findings: tuple[Finding, ...] = ()
        self.accepted: tuple[Prefix, ...] = ()
        self.probed = Probed()

    @property
    def stands(self) -> bool:
        """Whether anything is set up on this machine."""
        return self._touched

    async def clean_leftovers(self) -> None:
        """Undo what a crashed daemon with this state directory left. A failure is logged: it must not keep the node from starting."""
        left = self._directory.recorded_host()
        if left is None:
            return
        tun, numbers = left
        try:
            await self.network.remove(numbers, tun)
            await self._nft.remove(tun)
        except HostError as error:
            log.warning("host_clean_failed tun=%s error=%s", tun, error)
            return
        self._directory.record_host(tun, None)
        log.info("host_cleaned tun=%s table=%d", tun, numbers.table)

    async def look(self) -> bool:
        """Read the interfaces again; whether anything that matters to paths or routes changed."""
        async with self._lock:
            before = self._fingerprint()
            self.view = await self.network.view()
            return self._fingerprint() != before

    def _fingerprint(self) -> object:
        return candidate_addresses(self.view.interfaces, self.tun, ()), attached_prefixes(self.view.interfaces, self.tun), self.view.gateways

    def candidates(self, overlay: Iterable[Prefix]) -> tuple[Address, ...]:
        """Local addresses to offer to peers."""
        return candidate_addresses(self.view.interfaces, self.tun, overlay)

    async def apply(self, netmap: Netmap, *, accept_routes: bool, mtu: int, gso_max_size: int | None, snat_routes: bool = True) -> None:
        """Make the machine fit `netmap`; only differences are touched. HostError where interface or routes can't be had.

        Cancelled, it still goes to its end, and `clear` waits for that: the thread or program at work could not be stopped, and what it sets up would stay.
        """
        work = asyncio.ensure_future(self._apply(netmap, accept_routes, mtu, gso_max_size, snat_routes))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(work)

    async def _apply(self, netmap: Netmap, accept_routes: bool, mtu: int, gso_max_size: int | None, snat_routes: bool) -> None:
        async with self._lock:
            plan = plan_routes(netmap, attached_prefixes(self.view.interfaces, self.tun), accept_routes=accept_routes)
            wanted = LinkConfig(self.tun, netmap.self.addresses, mtu, plan.routes, plan.excepted, gso_max_size)
            findings = list(plan.findings)
            if wanted != self._standing:
                if not self._touched:
                    self._directory.record_host(self.tun, numbers_for(self.tun))
                    self._touched = True
                notes = await self.network.configure(wanted)
                self._standing = wanted
                findings += [Finding(note.partition(":")[0], note.partition(": ")[2]) for note in notes]
            else:
                findings += [finding for finding in self.findings if finding.code in ("gso", "ipv6")]
            self.accepted = tuple(route for route in plan.routes if route not in netmap.prefixes)
            findings += await self._guard(Ruleset(self.tun, netmap.self.addresses, netmap.prefixes, netmap.self.routes if snat_routes else ()))
            self.findings = tuple(findings)

    async def _guard(self, rules: Ruleset) -> list[Finding]:
        if rules == self._rules:
            return []
        try:
            await self._nft.install(rules)
        except HostError as error:
            needed = "hosts behind this node can't answer without routes of their own, and " if rules.routes else ""
            return [Finding("nft", f"{error}; {needed}packets for the overlay's addresses from other interfaces are not dropped")]
        self._rules = rules
        return []

    def forget(self) -> None:
        """The interface is gone, and what stood on it: `apply` has to set up all of it again."""
        self._standing = None

    async def clear(self) -> None:
        """Undo everything; what can't be undone stays noted for the next start."""
        async with self._lock:
            if not self.stands:
                return
            self.findings, self.accepted = (), ()
            try:
                await self.network.remove(numbers_for(self.tun), self.tun)
                await self._nft.remove(self.tun)
            except HostError as error:
                log.warning("host_undo_failed tun=%s error=%s", self.tun, error)
                return
            self._standing = self._rules = None
            self._touched = False
            self._directory.record_host(self.tun, None)

    async def probe(self) -> None:
        """Look at what commonly breaks."""
        names = [interface.name for interface in self._underlay()]
        ruleset = await self._reader.dump() if self._reader is not None else ""
        self.probed = Probed(
            dropping_chain=probes.dropping_chain(ruleset, self.tun),
            strict_rp_filter=probes.strict_rp_filter(names),
        )

    def _underlay(self) -> list[Interface]:
        return underlay(self.view.interfaces, self.tun)
