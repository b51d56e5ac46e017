"""The daemon: one state, and everything that follows from it.

Theory of operation. Four things decide what runs: what the user wants (`Prefs.want_up`), where the server says this machine stands ("unknown" until it
has spoken), the netmap (the last one, from disk until the server sends another; both control_link.py), and this node's key expiry. `_settle` compares them
with what runs and starts or stops control session, relay and data path; it is called after each change, and changes nothing where nothing has to. What is set
up on the machine follows in one task (host_keeper.py), as it takes time. Whatever has to outlive a crash is durable before it is acted on.

A data path that ends by itself (it can where it has a process of its own) is opened again, with pauses that grow (restarts.py).

Error contract. HostError and StateError of `start` end the daemon; later ones become health lines, and the thing is tried again at the next change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from calnet import __version__
from calnet.crypto.keys import RandomBytes
from calnet.errors import CalnetError, HostError, StateError
from calnet.host.interfaces import WayOut, has_moved, ways_out
from calnet.model import Buffer, Endpoint, Netmap, NodeId, Prefix
from calnet.paths.way import Way
from calnet.roles.node import routes
from calnet.roles.node.clocks import Clocks
from calnet.roles.node.control_client import FetchKey
from calnet.roles.node.control_link import ACTIVE, PENDING, REFUSING, UNKNOWN, ControlLink
from calnet.roles.node.engine import Engine, NotStartedError, OpenEngine, PeerStatus
from calnet.roles.node.escape import shown
from calnet.roles.node.host_keeper import HostKeeper, Wanted
from calnet.roles.node.host_setup import HostSetup
from calnet.roles.node.notices import Notices
from calnet.roles.node.port_mapping import PortMapper
from calnet.roles.node.relay_link import RelayLink
from calnet.roles.node.restarts import Restarts, soon
from calnet.roles.node.routes import Finding
from calnet.roles.node.state import NodeState, StateDirectory
from calnet.roles.node.tasks import Tasks
from calnet.roles.node.underlay import Dial, resolve

log = logging.getLogger(__name__)

TICK_S: Final = 5.0
GOODBYE_S: Final = 0.5
PREVIOUS_KEY_S: Final = 3600.0
"""After a renewal the old node key answers for so long."""
STUN_AGAIN_S: Final = 900.0
STUN_RETRY_S: Final = 15.0
SLEEP_JUMP_S: Final = 3.0
"""A clock that ran so much further than the loop's says the machine slept."""


NO_STATUS: Final = PeerStatus("none", None, None, None, 0, 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the node says of itself."""

    hostname: str
    os: str = "linux"
    version: str = __version__
    capabilities: tuple[str, ...] = ()
    """Protocol extensions that it takes (tunnel/capabilities.py)."""


class Daemon:
    """See the module's docstring. It is the control session's, relay's and data path's host; operations.py speaks for local users."""

    def __init__(
        self,
        directory: StateDirectory,
        setup: HostSetup,
        open_engine: OpenEngine,
        dial: Dial,
        fetch_key: FetchKey,
        *,
        machine: Machine,
        clocks: Clocks,
        random: RandomBytes,
        fixed_port: int = 0,
        mark: int = 0,
    ) -> None:
        """`mark` is the fwmark of what goes past the tunnel."""
        self.directory, self.setup, self.machine, self.clocks, self.random = directory, setup, machine, clocks, random
        self._open_engine, self._fixed_port = open_engine, fixed_port
        self.notices = Notices(clocks.elapsed)
        self._tasks = Tasks(self.notices)
        self.engine: Engine | None = None
        self.control = ControlLink(
            self,
            directory,
            self.notices,
            self._tasks,
            dial=dial,
            fetch_key=fetch_key,
            random=random,
            clocks=clocks,
            software=machine.version,
            capabilities=machine.capabilities,
        )
        self.relay = RelayLink(self, dial=dial, random=random, clock=clocks.elapsed)
        self.trusted: Netmap | None = None
        """As this node acts on it."""
        self._senders: dict[bytes, NodeId] = {}
        self._relay_keys: dict[NodeId, bytes] = {}
        self._stun: tuple[str, ...] = ()
        self._ways_out: dict[int, WayOut] = {}
        """The last known by each IP version."""
        self.trust_findings: tuple[Finding, ...] = ()
        self.host = HostKeeper(setup, wanted=self._wanted_on_host, moved=self._paths_changed, settled=self._host_settled, clock=clocks.elapsed)
        self.mapper = PortMapper(self._port_mapped, random=random, mark=mark)
        self._restarts = Restarts()
        self._ended = ""
        """Why the last data path ended by itself, until there is another."""
        self._restart: asyncio.TimerHandle | None = None
        self._watch: Callable[[], None] | None = None
        self._changed = asyncio.Event()
        self._closing = False

    # --- life ---

    @property
    def state(self) -> NodeState:
        return self.directory.state

    def now(self) -> float:
        """Unix seconds in server time."""
        return self.clocks.wall() + self.control.clock_offset

    async def start(self) -> None:
        """Clean what a crash left, then come up if the user wanted it so. HostError, StateError: the daemon can't run."""
        await self.setup.clean_leftovers()
        await self.setup.look()
        self._ways_out = ways_out(self.setup.view, {})
        self.control.load()
        watch = self.setup.network.watch(self.host.network_changed)
        self._watch = watch.close
        self._tasks.keep("host", self.host.run)
        self._tasks.keep("netmap", self.control.keeper.run)
        self._tasks.keep("tick", self._tick)
        self._tasks.keep("port-mapping", self.mapper.run)
        self._settle(raising=True)

    async def close(self) -> None:
        """Stop everything; what was set up on the machine is undone first, as saying goodbye to the server may take a moment."""
        self._closing = True
        if self._watch is not None:
            self._watch()
        if self.control.client is not None:
            self.control.client.stop()
        ending = self._tasks.cancel_all()
        self.relay.stop()
        if self._restart is not None:
            self._restart.cancel()
        self._close_engine()
        await self.setup.clear()
        with contextlib.suppress(StateError):
            self.control.keeper.write_now()
        self.directory.close()
        if ending:
            await asyncio.wait(ending, timeout=GOODBYE_S)

    # --- the one state ---

    def state_name(self) -> str:
        """`running`, `stopped`, `needs-login`, `needs-approval` or `starting`."""
        state = self.state
        known = state.registered and not state.logged_out
        if not state.prefs.want_up:
            return "stopped" if known else "needs-login"
        if self.control.standing == PENDING and known:
            return "needs-approval"
        if not known or self.control.standing in REFUSING or self._own_key_expired():
            return "needs-login"
        return "running" if self.engine is not None and self.host.ready else "starting"

    def _own_key_expired(self) -> bool:
        expires = None if self.control.netmap is None else self.control.netmap.self.key_expires
        return expires is not None and self.now() >= expires

    def may_run(self) -> bool:
        """Whether the data path should be up."""
        state = self.state
        allowed = state.prefs.want_up and state.registered and not state.logged_out and self.control.standing in (UNKNOWN, ACTIVE)
        return allowed and self.control.netmap is not None and not self._own_key_expired() and not self._closing

    def settle(self) -> None:
        """Make what runs fit what should run. HostError, StateError where the data path can't be opened."""
        self._settle(raising=True)

    def _settle(self, *, raising: bool = False) -> None:
        if not self._closing:
            self.control.use()
        try:
            self._settle_engine()
            if self.engine is not None or not self.may_run():
                self.health("host", None)
                self.health("data-path", None)
        except (HostError, StateError) as error:
            if raising:
                raise
            log.error("start_failed error=%s", error)
            self.health("host", str(error))
            self._restart_in(self._restarts.failed(self.clocks.elapsed(), self._jitter()))
        self._settle_relay()
        self._settle_stun()
        self._settle_mapping()
        self.host.again()
        self._tell()

    def _settle_engine(self) -> None:
        if not self.may_run() or self.control.netmap is None:
            self._close_engine()
            self._restarts.unwanted()
            self._ended = ""
            return
        self.trusted, self.trust_findings = routes.trusted(self.control.netmap, self.state.prefs.pins)
        self._relay_keys = {peer.id: peer.node_key for peer in self.trusted.peers}
        self._senders = {key: peer.id for peer in self.trusted.peers for key in (peer.previous_node_key, peer.node_key) if key is not None}
        if self.engine is None and not self._restarts.may_open(self.clocks.elapsed()):
            return
        if self.engine is None:
            self.engine = self._opened()
            self._restarts.opened(self.clocks.elapsed())
            if self._ended:
                self.notices.event("data-path", Finding("data-path-restarted", f"the data path's process {self._ended}; a new one took its place"))
                self._ended = ""
            self.engine.set_clock(self.control.clock_offset)
            self._apply(self.engine, self.trusted)
            if self.relay.connected:
                self.engine.relay_connected(True)
            self.engine.network_changed(self.local_endpoints())
            self._port_mapped(None if self.mapper.lease is None else self.mapper.lease.endpoint)
            log.info("up tun=%s port=%d ip=%s peers=%d", self.setup.tun, self.engine.port, self.trusted.self.addresses[0], len(self.trusted.peers))
        else:
            self._apply(self.engine, self.trusted)

    def _apply(self, engine: Engine, netmap: Netmap) -> None:
        prefs = self.state.prefs
        ways = {NodeId(peer): Way(way) for peer, way in prefs.ways}
        engine.apply(netmap, accept_routes=prefs.accept_routes, guess_ports=prefs.guess_ports, ways=ways)

    def _opened(self) -> Engine:
        kept = self.state.prefs.port
        try:
            engine = self._open_engine(self._fixed_port or kept, self)
        except HostError as error:
            if self._fixed_port or not kept or isinstance(error, NotStartedError):
                raise
            log.warning("port_taken port=%d", kept)  # ours was drawn at random: another does as well
            engine = self._open_engine(0, self)
        if not self._fixed_port and engine.port != kept:
            try:
                self.directory.save_prefs(replace(self.state.prefs, port=engine.port))
            except StateError:
                engine.close()
                raise
        return engine

    def _close_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = self.trusted = None
            self.control.endpoints, self._senders, self._stun = (), {}, ()
            self.host.down()
            self.notices.clear()
            log.info("down tun=%s", self.setup.tun)

    def _settle_relay(self) -> None:
        netmap, server_key = self.trusted, self.state.server_key
        wanted = self.engine is not None or self._ended  # what follows on a data path that ended finds its relay connected
        url = netmap.relays[0].url if wanted and netmap is not None and netmap.relays else ""
        self.relay.use(url, server_key or b"", self.state.keys.node)

    def _settle_stun(self) -> None:
        servers = self.trusted.stun if self.engine is not None and self.trusted is not None else ()
        if servers != self._stun:
            self._stun = servers
            self._tasks.keep("stun", lambda: self._resolve_stun(servers))

    def keys_changed(self) -> None:
        """The node's keys in `state` are others now: the data path answers to old and new, the relay is told the new one."""
        if self.engine is not None:
            self.engine.set_identity(self.state.keys.identity())
        self._settle()

    def leave_server(self) -> None:
        """Forget all that the server said: another one is coming."""
        self.control.stop()
        self.relay.stop()
        self.control.forget_server()
        self._close_engine()

    # --- what others wait for ---

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `condition` holds; False if it doesn't within `timeout` seconds (None: for ever)."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return condition()
        return True

    # --- tasks ---

    def _wanted_on_host(self) -> Wanted | None:
        if self.trusted is None or self.engine is None:
            return None
        prefs = self.state.prefs
        return Wanted(self.trusted, prefs.accept_routes, self.engine.mtu, self.engine.gso_max_size, prefs.snat_routes)

    def _host_settled(self, text: str | None) -> None:
        self.health("network", text)
        self._tell()

    async def _paths_changed(self) -> None:
        moved = self._moved()
        log.info("network_changed moved=%s addresses=%s", moved, ",".join(str(address) for address in self.setup.candidates(())))
        if self.engine is not None and moved and not self._fixed_port:
            await self._change_port(self.engine)
        if self.engine is not None:
            self.engine.network_changed(self.local_endpoints(), moved=moved)
        self._settle_mapping(afresh=True)
        for link in (self.relay, self.control):
            if moved:
                link.moved()
            else:
                link.reconnect_now()

    def _moved(self) -> bool:
        """Whether our packets leave from elsewhere than before."""
        before = self._ways_out
        now = ways_out(self.setup.view, before)
        self._ways_out = before | now
        return has_moved(before, now)

    async def _change_port(self, engine: Engine) -> None:
        """A router that had our packets from another address keeps that one's connections, and our port towards each peer with it (a Linux one for 120 s, and
        for as long as the peer asks there): from the same port we would come to the peer as another, which its own router does not let in."""
        try:
            await engine.change_port()
            self.directory.save_prefs(replace(self.state.prefs, port=engine.port))
        except StateError as error:
            log.error("state_not_saved error=%s", error)
        except CalnetError as error:
            log.warning("port_not_changed error=%s", error)

    def _settle_mapping(self, *, afresh: bool = False) -> None:
        """The mapper asks the present gateway for the present port, or nobody."""
        gateway = next((gateway.address for gateway in self.setup.view.gateways if "." in gateway.address), None)
        wanted = self.engine is not None and self.state.prefs.map_ports
        self.mapper.use(gateway if wanted else None, 0 if self.engine is None else self.engine.port, afresh=afresh)

    def _port_mapped(self, endpoint: Endpoint | None) -> None:
        if self.engine is not None:
            self.engine.mapped_endpoints(() if endpoint is None else (endpoint,))

    async def _resolve_stun(self, servers: tuple[str, ...]) -> None:
        """Tell the data path where the STUN servers are; asked again while none resolves, and now and then as addresses change."""
        while True:
            found = await resolve(servers)
            if self.engine is not None:
                self.engine.stun_servers(found)
            await asyncio.sleep(STUN_AGAIN_S if found or not servers else STUN_RETRY_S)

    def local_endpoints(self) -> tuple[Endpoint, ...]:
        """This machine's addresses with the data path's port."""
        if self.engine is None or self.control.netmap is None:
            return ()
        return tuple(Endpoint(str(address), self.engine.port) for address in self.setup.candidates(self.control.netmap.prefixes))

    async def _tick(self) -> None:
        """What time alone brings: our key's expiry, the old key's end, a sleep of the machine."""
        slept_before = self.clocks.elapsed() - self.clocks.awake()
        while True:
            await asyncio.sleep(TICK_S)
            slept = self.clocks.elapsed() - self.clocks.awake()
            if slept - slept_before > SLEEP_JUMP_S:
                log.info("woke slept_s=%.0f", slept - slept_before)
                await self._paths_changed()
            slept_before = slept
            if self.engine is not None and self._own_key_expired():
                log.warning("key_expired")
                self._settle()
            self._end_previous_key()
            self.host.again()

    def _end_previous_key(self) -> None:
        state = self.state
        if state.keys.previous is None or state.unconfirmed or self.now() - state.renewed_at < PREVIOUS_KEY_S:
            return
        try:
            self.directory.save(replace(state, keys=replace(state.keys, previous=None)))
        except StateError as error:
            log.error("state_not_saved error=%s", error)
            return
        if self.engine is not None:
            self.engine.set_identity(self.state.keys.identity())

    # --- ControlUser ---

    def server_spoke(self) -> None:
        self._settle()

    def server_lost(self) -> None:
        self._tell()

    def candidates_arrived(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        if self.engine is not None:
            self.engine.candidates(peer, endpoints)

    def clock_told(self) -> None:
        if self.engine is not None:
            self.engine.set_clock(self.control.clock_offset)

    # --- RelayUser ---

    def relay_changed(self, connected: bool) -> None:
        if self.engine is not None:
            self.engine.relay_connected(connected)
        self._tell()

    def relayed(self, sender: bytes, datagrams: list[memoryview]) -> None:
        peer = self._senders.get(sender)
        if self.engine is not None and peer is not None:
            self.engine.relayed(peer, datagrams)

    # --- EngineHost ---

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        key = self._relay_keys.get(peer)
        if key is not None:
            self.relay.send(key, datagrams)

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        self.control.send_candidates(peer, endpoints)

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.control.publish(endpoints)

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None:
        try:
            self.directory.stamps.persist(node_key, timestamp, sent)
        except StateError as error:
            self.health("stamps", str(error))
            raise
        self.health("stamps", None)

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None:
        log.info("path_changed peer=%s path=%s", self._peer_name(peer), shown(description))
        if endpoint is not None:
            self.control.keeper.worked(peer, endpoint)

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None:
        log.info("router_moved prefix=%s from=%s to=%s why=%s", prefix, self._peer_name(old), self._peer_name(new), shown(why))

    def _peer_name(self, peer: NodeId) -> str:
        peers = () if self.trusted is None else self.trusted.peers
        return shown(next((other.name for other in peers if other.id == peer), str(peer)))

    def mtu_raised(self, mtu: int) -> None:
        log.info("mtu_raised mtu=%d", mtu)
        self.host.again()

    def health(self, code: str, text: str | None) -> None:
        self.notices.set(code, text)
        if code == "tun-gone" and text is not None:
            asyncio.get_running_loop().call_soon(self._reopen)

    def _reopen(self) -> None:
        """Somebody removed the interface: make it again."""
        self._close_engine()
        self.setup.forget()
        self._settle()

    def engine_ended(self, why: str) -> None:
        log.error("data_path_ended why=%s", why)
        self._close_engine()
        self.setup.forget()
        pause = self._restarts.ended(self.clocks.elapsed(), self._jitter())
        self._ended = why
        self.health("data-path", f"the data path's process {why}: nothing is carried until a new one runs, which is started {soon(pause)}")
        self._tell()
        self._restart_in(pause)

    def _restart_in(self, pause: float | None) -> None:
        if self._restart is not None:
            self._restart.cancel()
        self._restart = None if pause is None else asyncio.get_running_loop().call_later(pause, self._settle)

    def _jitter(self) -> float:
        return self.random(1)[0] / 256

    # --- looking at it ---

    def hostname(self) -> str:
        """The name this node asks for."""
        return self.state.prefs.hostname or self.machine.hostname

    def udp_port(self) -> int | None:
        """The UDP port in use, or the one it will be; None before there was one."""
        return self.engine.port if self.engine is not None else self._fixed_port or self.state.prefs.port or None
