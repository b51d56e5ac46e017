"""The kernel's side of the tunnel: the interface's addresses and MTU, routes in a table of their own, the rule that leads there, and a watch on the underlay.

What `configure` does is a difference: it reads what stands and changes what differs, so it can be called again after each netmap. All routes (the
overlay's and accepted ones) live in table `Numbers.table` behind `ip rule not fwmark MARK`, so that the daemon's own sockets, which carry the mark,
never enter the tunnel. `remove` undoes everything, also what a crashed daemon with the same numbers left.

pyroute2 is synchronous here, on one worker thread (it does not run on uvloop), and imported on first use: it costs 13 MB and 200 ms. The watch is a
plain netlink socket on the event loop: any message means "look again".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from calnet.errors import HostError
from calnet.host.interfaces import Gateway, Interface, NetworkView
from calnet.model import Address, Prefix

MARK: Final = 0xCA17E7
"""fwmark of every underlay socket of the daemon."""
RULE_PRIORITY: Final = 5400
DEBOUNCE_S: Final = 0.25

_FIRST_TABLE: Final = 7070
_TABLES: Final = 4096
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_INVERT: Final = 2  # FIB_RULE_INVERT
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_UNUSABLE_ADDRESS: Final = 0x08 | 0x20 | 0x40  # IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE
_TYPE_UNICAST: Final = 1
_TYPE_THROW: Final = 9
_MAIN_TABLE: Final = 254
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 addresses and routes, IPv6 addresses and routes
_IFA_F_NODAD: Final = 0x02
"""linux/if_addr.h: the address is ours, nobody else on a tunnel can have it."""
_NO_IPV6: Final = (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Numbers:
    """The routing table and rule priority of one daemon. Recorded in its state directory, so that a crashed daemon's can be cleaned."""

    table: int
    priority: int = RULE_PRIORITY


def numbers_for(tun: str) -> Numbers:
    """The numbers a daemon on interface `tun` uses: always the same for one name, so two daemons of one host keep apart."""
    return Numbers(_FIRST_TABLE if tun == "calnet0" else _FIRST_TABLE + 1 + zlib.crc32(tun.encode()) % _TABLES)


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """What should hold for the tunnel's interface: its own addresses, the prefixes led into it, and those within them that are not (`excepted`)."""

    name: str
    addresses: tuple[Address, ...]
    mtu: int
    routes: tuple[Prefix, ...]
    excepted: tuple[Prefix, ...] = ()
    gso_max_size: int | None = None


class Watch(Protocol):
    """A watch under way."""

    def close(self) -> None:
        """End it; a second call does nothing."""


class Network(Protocol):
    """This machine's interfaces and routes; `MemoryNetwork` is the twin."""

    async def configure(self, wanted: LinkConfig) -> tuple[str, ...]:
        """Make it so. Answers what was left out, as sentences for health. HostError where it can't be done."""

    async def remove(self, numbers: Numbers, name: str) -> None:
        """Undo everything of the daemon with these numbers on the interface `name`; nothing there is no error."""

    async def view(self) -> NetworkView:
        """The interfaces now."""

    def watch(self, changed: Callable[[], None]) -> Watch:
        """Call `changed` (debounced) after each change of interfaces, addresses or routes."""


class KernelNetwork:
    """`Network` over netlink."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "netlink")

    async def configure(self, wanted: LinkConfig) -> tuple[str, ...]:
        return await self._on_worker(lambda: _configure(wanted, numbers_for(wanted.name)))

    async def remove(self, numbers: Numbers, name: str) -> None:
        await self._on_worker(lambda: _remove(numbers, name))

    async def view(self) -> NetworkView:
        return await self._on_worker(_view)

    def watch(self, changed: Callable[[], None]) -> Watch:
        return _KernelWatch(asyncio.get_running_loop(), changed)

    def close(self) -> None:
        """Give the worker thread up."""
        self._worker.shutdown(wait=True)

    def _on_worker(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._worker, work)


class _KernelWatch:
    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._loop, self._changed = loop, changed
        self._timer: asyncio.TimerHandle | None = None
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            self._socket.close()
            raise HostError(f"can't watch the network interfaces: {error.strerror}") from error
        loop.add_reader(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(OSError):  # ENOBUFS too: messages were lost, so something changed
            while self._socket.recv(65_536):
                pass
        if self._timer is None:
            self._timer = self._loop.call_later(DEBOUNCE_S, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._changed()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextlib.contextmanager
def _netlink(doing: str) -> Iterator[Any]:
    """An open IPRoute; netlink's errors become HostError."""
    from pyroute2.iproute import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise _explained(error.code, doing) from error
    except OSError as error:
        raise _explained(error.errno or 0, doing) from error


def _explained(code: int, doing: str) -> HostError:
    if code in (errno.EPERM, errno.EACCES):
        return HostError(f"can't {doing}: not permitted; the daemon needs CAP_NET_ADMIN (run it as root, or by `calnet.pyz install node`)")
    if code == errno.ENODEV:
        return HostError(f"can't {doing}: the interface is gone")
    return HostError(f"can't {doing}: {errno.errorcode.get(code, str(code))}")


def _configure(wanted: LinkConfig, numbers: Numbers) -> tuple[str, ...]:
    notes: list[str] = []
    with _netlink(f"set up the interface {wanted.name}") as netlink:
        found = netlink.link_lookup(ifname=wanted.name)
        if not found:
            raise HostError(f"there is no interface {wanted.name}: was it removed? Restart the daemon")
        index = found[0]
        _quiet_ipv6(wanted.name)
        netlink.link("set", index=index, mtu=wanted.mtu)
        if wanted.gso_max_size is not None:
            _set_gso(netlink, index, wanted.gso_max_size, notes)
        netlink.link("set", index=index, state="up")
        _set_addresses(netlink, index, wanted, notes)
        for family in _FAMILIES:
            _set_routes(netlink, family, index, wanted, numbers, notes)
            _set_rule(netlink, family, numbers, present=any(_family(prefix) == family for prefix in wanted.routes))
    return tuple(notes)


def _family(value: Address | Prefix) -> int:
    return socket.AF_INET if value.version == 4 else socket.AF_INET6


def _quiet_ipv6(name: str) -> None:
    """No link-local address, hence no router solicitations into the tunnel. Where /proc/sys can't be written they only cost a dropped packet."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1")


def _set_gso(netlink: Any, index: int, size: int, notes: list[str]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        netlink.link("set", index=index, gso_max_size=size)
    except NetlinkError as error:
        notes.append(f"gso: the kernel does not take gso_max_size {size} ({errno.errorcode.get(error.code, error.code)}); large sends are split in two")


def _set_addresses(netlink: Any, index: int, wanted: LinkConfig, notes: list[str]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    standing = {(ip_interface(a.get_attr("IFA_ADDRESS")).ip, int(a["prefixlen"])) for a in netlink.get_addr(index=index)}
    target = {(address, address.max_prefixlen) for address in wanted.addresses}
    for address, length in standing - target:
        if not address.is_link_local:
            netlink.addr("del", index=index, address=str(address), prefixlen=length, family=_family(address))
    for address, length in sorted(target - standing, key=str):
        try:
            # Until the kernel's duplicate address detection is done, on a busy machine much later, no route may name the address as its source.
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            netlink.addr("add", index=index, address=str(address), prefixlen=length, family=_family(address), **flags)
        except NetlinkError as error:
            if address.version == 4 or error.code not in _NO_IPV6:
                raise
            notes.append(f"ipv6: IPv6 is off on this machine; {address} is not in use")


def _set_routes(netlink: Any, family: int, index: int, wanted: LinkConfig, numbers: Numbers, notes: list[str]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    sources = [address for address in wanted.addresses if _family(address) == family]
    target = {(prefix, _TYPE_UNICAST) for prefix in wanted.routes if _family(prefix) == family}
    target |= {(prefix, _TYPE_THROW) for prefix in wanted.excepted if _family(prefix) == family}
    standing = set(_table(netlink, family, numbers.table))
    for prefix, kind in standing - target:
        _delete_route(netlink, family, numbers.table, prefix, kind)
    for prefix, kind in sorted(target - standing, key=str):
        extra: dict[str, object] = {"type": "throw"} if kind == _TYPE_THROW else {"oif": index}
        if sources and kind == _TYPE_UNICAST:
            extra["prefsrc"] = str(sources[0])
        try:
            netlink.route("replace", family=family, dst=str(prefix), table=numbers.table, **extra)
        except NetlinkError as error:
            if family == socket.AF_INET or error.code not in (*_NO_IPV6, errno.EINVAL, errno.ENODEV):
                raise
            if not any(note.startswith("ipv6:") for note in notes):
                notes.append(f"ipv6: IPv6 is off on this machine; no route to {prefix}")


def _table(netlink: Any, family: int, table: int) -> Iterator[tuple[Prefix, int]]:
    """(prefix, type) of the routes in `table`."""
    for route in netlink.get_routes(family=family, table=table):
        if (route.get_attr("RTA_TABLE") or route["table"]) != table:
            continue
        zero = "0.0.0.0" if family == socket.AF_INET else "::"
        yield ip_network(f"{route.get_attr('RTA_DST') or zero}/{route['dst_len']}"), int(route["type"])


def _delete_route(netlink: Any, family: int, table: int, prefix: Prefix, kind: int) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        netlink.route("del", family=family, dst=str(prefix), table=table, type=kind)
    except NetlinkError as error:
        if error.code != errno.ESRCH:
            raise


def _set_rule(netlink: Any, family: int, numbers: Numbers, *, present: bool) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    spec = {"family": family, "table": numbers.table, "priority": numbers.priority, "fwmark": MARK, "fwmask": 0xFFFFFFFF, "flags": _INVERT}
    try:
        standing = [rule for rule in netlink.get_rules(family=family) if _is_ours(rule, numbers)]
        for _ in standing[1 if present else 0 :]:
            netlink.rule("del", **spec)
        if present and not standing:
            netlink.rule("add", **spec)
    except NetlinkError as error:
        if family == socket.AF_INET or error.code not in _NO_IPV6:
            raise


def _is_ours(rule: Any, numbers: Numbers) -> bool:
    return (
        rule.get_attr("FRA_TABLE") == numbers.table
        and rule.get_attr("FRA_PRIORITY") == numbers.priority
        and rule.get_attr("FRA_FWMARK") == MARK
        and bool(rule["flags"] & _INVERT)
    )


def _remove(numbers: Numbers, name: str) -> None:
    with _netlink(f"undo the routes of {name}") as netlink:
        for family in _FAMILIES:
            _set_rule(netlink, family, numbers, present=False)
            for prefix, kind in list(_table(netlink, family, numbers.table)):
                _delete_route(netlink, family, numbers.table, prefix, kind)
        for index in netlink.link_lookup(ifname=name):
            for address in netlink.get_addr(index=index):
                netlink.addr("del", index=index, address=address.get_attr("IFA_ADDRESS"), prefixlen=address["prefixlen"], family=address["family"])


def _view() -> NetworkView:
    with _netlink("read the network interfaces") as netlink:
        addresses: dict[int, list[Any]] = {}
        for address in netlink.get_addr():
            flags = address.get_attr("IFA_FLAGS") or address["flags"]
            text = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            if text and not flags & _UNUSABLE_ADDRESS:
                addresses.setdefault(address["index"], []).append(ip_interface(f"{text}/{address['prefixlen']}"))
        interfaces = tuple(_interface(link, addresses.get(link["index"], [])) for link in netlink.get_links())
        return NetworkView(interfaces, tuple(sorted(_gateways(netlink))))


def _interface(link: Any, addresses: list[Any]) -> Interface:
    flags = link["flags"]
    ordered = tuple(sorted(addresses, key=lambda assigned: (assigned.version, int(assigned.ip))))
    return Interface(link["index"], link.get_attr("IFLA_IFNAME"), bool(flags & _IFF_UP), ordered, bool(flags & _IFF_LOOPBACK))


def _gateways(netlink: Any) -> Iterator[Gateway]:
    for family in _FAMILIES:
        for route in netlink.get_routes(family=family, table=_MAIN_TABLE):
            if route["dst_len"] == 0 and route["type"] == _TYPE_UNICAST and (route.get_attr("RTA_TABLE") or route["table"]) == _MAIN_TABLE:
                metric = route.get_attr("RTA_PRIORITY") or 0
                if (hops := route.get_attr("RTA_MULTIPATH")) is None:
                    yield Gateway(metric, route.get_attr("RTA_GATEWAY") or "", route.get_attr("RTA_OIF") or 0)
                for hop in hops or ():
                    yield Gateway(metric, hop.get_attr("RTA_GATEWAY") or "", hop["oif"])
