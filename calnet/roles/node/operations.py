"""The local API of the daemon: operations, their arguments, and who may call them.

What only reads is open to every local user; what changes something needs root, the daemon's own user or the operator, by the credentials the kernel
gives of whoever connected. Nothing here opens a file or connects anywhere that the caller names: there is no deputy to confuse.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from calnet.errors import (
    InvalidError,
    LoginNeededError,
    NotPermittedError,
    TimedOutError,
    UnreachableError,
    UsageError,
)
from calnet.host.local_socket import LocalRequest
from calnet.host.probes import clean_name, forwarding_off
from calnet.model import NodeId
from calnet.roles.node import overview
from calnet.roles.node.daemon import Daemon
from calnet.roles.node.login import Logins, UpRequest
from calnet.roles.node.reports import bug_report, metrics_text
from calnet.roles.node.routes import check_advertised
from calnet.roles.node.state import Pin, Prefs
from calnet.roles.node.status import find_peer, whois_document
from calnet.roles.node.why import why_document

MAX_PINGS: Final = 1_000_000
PING_INTERVAL_S: Final = 1.0
PROBING_INTERVAL_S: Final = 0.2
HAIRPIN_PATIENCE_S: Final = 1.0
WHY_PATIENCE_S: Final = 2.0
"""How long the other end may take to tell its view."""
PROBING_PATIENCE_S: Final = 2.0
"""While a direct path is waited for, an answer that is later than this counts as lost."""

Json = dict[str, Any]
Operation = Callable[[LocalRequest], Awaitable[object]]


class Operations:
    """Call `handle` for each local request. `operator` is the user that --operator names; one set by `set` counts beside it."""

    def __init__(self, daemon: Daemon, logins: Logins, operator: str = "") -> None:
        self._daemon, self._logins, self._operator = daemon, logins, operator
        self._changing = asyncio.Lock()
        self._reading: dict[str, Operation] = {
            "status": self._status,
            "ip": self._ip,
            "ping": self._ping,
            "whois": self._whois,
            "netcheck": self._netcheck,
            "why": self._why,
            "wait": self._wait,
            "version": self._version,
            "get": self._get,
        }
        self._writing: dict[str, Operation] = {
            "up": self._up,
            "login": self._login,
            "down": self._down,
            "logout": self._logout,
            "set": self._set,
        }
        self._private: dict[str, Operation] = {"metrics": self._metrics, "bugreport": self._bugreport}
        """They change nothing, and tell what other users of this machine need not know."""

    async def handle(self, request: LocalRequest) -> object:
        """The result of one request. Raises the CalnetError that its caller sees."""
        reading = self._reading.get(request.op)
        if reading is not None:
            return await reading(request)
        writing = self._writing.get(request.op) or self._private.get(request.op)
        if writing is None:
            raise UsageError(f"this daemon knows no operation {request.op[:40]!r}; is it of another version?")
        if not self.may_change(request.uid):
            raise NotPermittedError(f"{request.op} needs root, or the user that `calnet.pyz node --operator USER` names")
        return await writing(request)

    def may_change(self, uid: int) -> bool:
        """Whether this user may change something."""
        if uid in (0, os.geteuid()):
            return True
        names = {name for name in (self._operator, self._daemon.state.prefs.operator) if name}
        return any(_uid_of(name) == uid for name in names)

    # --- reading ---

    async def _status(self, request: LocalRequest) -> Json:
        return await overview.status(self._daemon)

    async def _ip(self, request: LocalRequest) -> Json:
        netmap = self._daemon.control.netmap
        if netmap is None:
            raise LoginNeededError("this node has no address yet: `calnet up` first")
        return {"ips": [str(address) for address in netmap.self.addresses]}

    async def _whois(self, request: LocalRequest) -> Json:
        return whois_document(self._daemon.control.netmap, _text(request.args, "ip", ""))

    async def _version(self, request: LocalRequest) -> Json:
        return {"version": self._daemon.machine.version}

    async def _get(self, request: LocalRequest) -> Json:
        state = self._daemon.state
        prefs = state.prefs
        return {
            "server": state.server_url,
            "want_up": prefs.want_up,
            "hostname": self._daemon.hostname(),
            "advertise_routes": list(prefs.advertise_routes),
            "accept_routes": prefs.accept_routes,
            "snat_routes": prefs.snat_routes,
            "guess_ports": prefs.guess_ports,
            "map_ports": prefs.map_ports,
            "paths": self._named_ways(prefs),
            "operator": prefs.operator or self._operator or None,
            "port": prefs.port or None,
            "pinned": [pin.name for pin in prefs.pins],
        }

    async def _netcheck(self, request: LocalRequest) -> Json:
        daemon = self._daemon
        relay_rtt = await daemon.relay.measure()
        found = None if daemon.engine is None else await daemon.engine.netcheck(HAIRPIN_PATIENCE_S)
        return {
            "udp": found is not None and (found.ipv4 is not None or found.ipv6 is not None),
            "ipv4": None if found is None or found.ipv4 is None else str(found.ipv4),
            "ipv6": None if found is None or found.ipv6 is None else str(found.ipv6),
            "mapping": "unknown" if found is None else found.mapping,
            "hairpin": None if found is None else found.hairpin,
            "port_mapping": [] if daemon.mapper.lease is None else [daemon.mapper.lease.protocol],
            "relay_rtt_ms": None if relay_rtt is None else round(relay_rtt * 1000, 2),
            "server_reachable": daemon.control.connected,
        }

    async def _metrics(self, request: LocalRequest) -> Json:
        return {"text": await metrics_text(self._daemon)}

    async def _bugreport(self, request: LocalRequest) -> Json:
        return await bug_report(self._daemon)

    async def _why(self, request: LocalRequest) -> Json:
        """Why the path to a peer is what it is, as both ends see it."""
        daemon = self._daemon
        peer = find_peer(daemon.control.netmap, _text(request.args, "peer", ""))
        if daemon.engine is None:
            raise UnreachableError("this node is down: `calnet up` first")
        here, there = await daemon.engine.why(peer.id, WHY_PATIENCE_S)
        return why_document(peer, here, there)

    async def _wait(self, request: LocalRequest) -> Json:
        daemon, timeout = self._daemon, _seconds(request.args, "timeout_s", None)
        if await daemon.until(lambda: daemon.state_name() == "running" and daemon.control.connected, timeout):
            return {"state": daemon.state_name()}
        name = daemon.state_name()
        if name == "needs-approval":
            raise LoginNeededError(f"still not approved after {timeout:g} s: `calnet up` prints the command to run on the server")
        if name == "needs-login":
            raise LoginNeededError(f"still not logged in after {timeout:g} s: `calnet up`")
        reason = f": {daemon.control.error}" if daemon.control.error is not None else ""
        raise TimedOutError(f"not connected after {timeout:g} s (state {name}){reason}")

    async def _ping(self, request: LocalRequest) -> Json:
        """Probe a peer; each answer is an event. `until_direct` ends with the first direct answer."""
        daemon, args = self._daemon, request.args
        peer = find_peer(daemon.control.netmap, _text(args, "peer", ""))
        count = _whole(args, "count", 0)
        until_direct = _flag(args, "until_direct") or False
        timeout = _seconds(args, "timeout_s", 5.0) or 5.0
        sent = received = 0
        limit = min(count or (MAX_PINGS if until_direct else 1), MAX_PINGS)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while sent < limit:
            started = loop.time()
            patience = min(PROBING_PATIENCE_S, deadline - started) if until_direct else timeout
            if patience <= 0.0:
                break
            answered, direct = await self._ping_once(peer.id, peer.name, str(peer.addresses[0]), patience, request)
            sent, received = sent + 1, received + answered
            if until_direct and direct:
                return {"sent": sent, "received": received, "direct": True}
            pause = PROBING_INTERVAL_S if until_direct else PING_INTERVAL_S
            if sent < limit:
                await asyncio.sleep(max(0.0, pause - (loop.time() - started)))
        if received == 0:
            raise TimedOutError(f"no answer from {peer.name} ({peer.addresses[0]}) in {timeout:g} s")
        if until_direct:
            raise TimedOutError(f"no direct path to {peer.name} ({peer.addresses[0]}) in {timeout:g} s; it answers by relay")
        return {"sent": sent, "received": received}

    async def _ping_once(self, peer: Any, name: str, ip: str, patience: float, request: LocalRequest) -> tuple[int, bool]:
        engine = self._daemon.engine
        if engine is None:
            raise LoginNeededError("this node is not up: `calnet up` first")
        try:
            answer = await engine.ping(peer, patience)
        except TimedOutError:
            return 0, False
        endpoint = None if answer.endpoint is None else str(answer.endpoint)
        await request.emit({"pong": {"peer": name, "ip": ip, "path": answer.via, "endpoint": endpoint, "rtt_ms": round(answer.rtt_s * 1000, 2)}})
        return 1, answer.via == "direct"

    # --- changing ---

    async def _up(self, request: LocalRequest, *, renew: bool = False) -> Json:
        wanted = self._up_request(request.args, renew=renew)
        async with self._changing:
            before = self._daemon.state
            await self._logins.prepare(wanted)
        reached = await self._logins.complete(wanted, request.emit)
        prefs = self._daemon.state.prefs
        if before.registered:
            await self._tell_server(before.prefs, prefs, request)
        await _say_what_routing_lacks(before.prefs, prefs, request)
        return {"state": reached}

    async def _login(self, request: LocalRequest) -> Json:
        return await self._up(request, renew=True)

    def _up_request(self, args: Json, *, renew: bool) -> UpRequest:
        advertised = _texts(args, "advertise_routes")
        hostname = _text(args, "hostname", None)
        return UpRequest(
            server=_text(args, "server", None) or None,
            auth_key=_text(args, "auth_key", "") or "",
            qr=bool(args.get("qr")),
            hostname=None if hostname is None else _checked_hostname(hostname),
            advertise_routes=None if advertised is None else check_advertised(advertised, self._overlay()),
            accept_routes=_flag(args, "accept_routes"),
            timeout_s=_seconds(args, "timeout_s", 30.0) or 30.0,
            renew=renew,
        )

    def _overlay(self) -> tuple[Any, ...]:
        return () if self._daemon.control.netmap is None else self._daemon.control.netmap.prefixes

    async def _down(self, request: LocalRequest) -> Json:
        daemon = self._daemon
        async with self._changing:
            self._logins.down()
        await daemon.until(lambda: not daemon.setup.stands, 10.0)
        return {"state": daemon.state_name()}

    async def _logout(self, request: LocalRequest) -> Json:
        async with self._changing:
            told = await self._logins.logout()
        if not told:
            await request.emit({"say": "the server was not reached: it still lists this node; an admin can expire it (calnet.pyz admin nodes expire)"})
        return {"state": self._daemon.state_name()}

    async def _set(self, request: LocalRequest) -> Json:
        async with self._changing:
            before = self._daemon.state.prefs
            prefs = self._changed_prefs(before, request.args)
            self._daemon.directory.save_prefs(prefs)
            self._daemon.settle()
            await self._tell_server(before, prefs, request)
        await _say_what_routing_lacks(before, prefs, request)
        return await self._get(request)

    async def _tell_server(self, before: Prefs, prefs: Prefs, request: LocalRequest) -> None:
        daemon = self._daemon
        if (prefs.hostname, prefs.advertise_routes) == (before.hostname, before.advertise_routes) or not daemon.state.registered:
            return
        try:
            await daemon.control.tell_server()
        except (UnreachableError, TimedOutError) as error:
            await request.emit({"say": f"saved; the server hears of it later: {error}"})
        except InvalidError:
            daemon.directory.save_prefs(replace(daemon.state.prefs, hostname=before.hostname, advertise_routes=before.advertise_routes))
            raise

    def _changed_prefs(self, prefs: Prefs, args: Json) -> Prefs:
        hostname, operator, accept = _text(args, "hostname", None), _text(args, "operator", None), _flag(args, "accept_routes")
        advertised = _texts(args, "advertise_routes")
        if hostname is not None:
            prefs = replace(prefs, hostname=_checked_hostname(hostname))
        if advertised is not None:
            prefs = replace(prefs, advertise_routes=check_advertised(advertised, self._overlay()))
        if accept is not None:
            prefs = replace(prefs, accept_routes=accept)
        snat = _flag(args, "snat_routes")
        if snat is not None:
            prefs = replace(prefs, snat_routes=snat)
        guess = _flag(args, "guess_ports")
        if guess is not None:
            prefs = replace(prefs, guess_ports=guess)
        if operator is not None:
            if operator and _uid_of(operator) is None:
                raise InvalidError(f"there is no user {operator!r} on this machine")
            prefs = replace(prefs, operator=operator)
        mapping = _flag(args, "map_ports")
        if mapping is not None:
            prefs = replace(prefs, map_ports=mapping)
        for wish in _texts(args, "path") or ():
            prefs = replace(prefs, ways=self._changed_ways(prefs, wish))
        pin, unpin = _text(args, "pin", None), _text(args, "unpin", None)
        if pin:
            peer = find_peer(self._daemon.control.netmap, pin)
            kept = tuple(other for other in prefs.pins if other.id != peer.id)
            prefs = replace(prefs, pins=(*kept, Pin(peer.id, peer.name, tuple(str(address) for address in peer.addresses), peer.node_key)))
        if unpin:
            kept = tuple(other for other in prefs.pins if unpin not in (other.name, str(other.id), *other.addresses))
            if kept == prefs.pins:
                raise InvalidError(f"{unpin!r} is not pinned; pinned are: {', '.join(other.name for other in prefs.pins) or 'none'}")
            prefs = replace(prefs, pins=kept)
        return prefs

    def _changed_ways(self, prefs: Prefs, wish: str) -> tuple[tuple[int, str], ...]:
        """`PEER=auto|relay|direct`."""
        name, equals, way = wish.rpartition("=")
        if not equals or way not in ("auto", "relay", "direct"):
            raise InvalidError(f"{wish!r}: write PEER=auto, PEER=relay or PEER=direct")
        peer = find_peer(self._daemon.control.netmap, name)
        kept = tuple(other for other in prefs.ways if other[0] != peer.id)
        return kept if way == "auto" else (*kept, (peer.id, way))

    def _named_ways(self, prefs: Prefs) -> Json:
        netmap = self._daemon.control.netmap
        names = {} if netmap is None else {peer.id: peer.name for peer in netmap.peers}
        return {names.get(NodeId(peer), str(peer)): way for peer, way in prefs.ways}


async def _say_what_routing_lacks(before: Prefs, prefs: Prefs, request: LocalRequest) -> None:
    """Where routes are newly advertised: what this machine has to be told for its packets to be forwarded."""
    if prefs.advertise_routes != before.advertise_routes:
        for name in forwarding_off(6 if ":" in route else 4 for route in prefs.advertise_routes):
            await request.emit({"say": f"this machine does not forward packets yet: sysctl -w {name}=1"})


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return int(name) if name.isascii() and name.isdigit() else None


def _checked_hostname(name: str) -> str:
    """A host name as the server takes it; empty takes the machine's own again."""
    if name and clean_name(name) != name.lower():
        raise InvalidError(f"{name!r} is no host name: letters, digits and hyphens, at most 63, such as {clean_name(name)!r}")
    return name.lower()


def _text(args: Json, name: str, default: str | None) -> Any:
    value = args.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > 1024:
        raise UsageError(f"{name} has to be a text")
    return value


def _texts(args: Json, name: str) -> tuple[str, ...] | None:
    value = args.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{name} has to be a list of texts")
    return tuple(value)


def _flag(args: Json, name: str) -> bool | None:
    value = args.get(name)
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{name} has to be true or false")
    return value


def _whole(args: Json, name: str, default: int) -> int:
    value = args.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PINGS:
        raise UsageError(f"{name} has to be a whole number up to {MAX_PINGS}")
    return value


def _seconds(args: Json, name: str, default: float | None) -> float | None:
    value = args.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400 * 365:
        raise UsageError(f"{name} has to be a number of seconds")
    return float(value)
