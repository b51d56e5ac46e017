"""The daemon: one state, and everything that follows from it.

Theory of operation. Four things decide what runs: what the user wants (`Prefs.want_up`), where the server says this machine stands (`standing`, "unknown"
until it has spoken), the netmap (the last one, from disk until the server sends another), and this node's key expiry. `_settle` compares them with what
runs and starts or stops control session, relay and data path; it is called after each change, and changes nothing where nothing has to. What is set
up on the machine follows in one task (`_keep_host`), as it takes time. Whatever has to outlive a crash is durable before it is acted on.

Error contract. HostError and StateError of `start` end the daemon; later ones become health lines, and the thing is tried again at the next change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from calnet import __version__
from calnet.crypto.keys import RandomBytes, encode_key
from calnet.errors import AuthenticationError, CalnetError, HostError, StateError, UnreachableError
from calnet.model import Buffer, Endpoint, Netmap, NodeId
from calnet.roles.node import routes
from calnet.roles.node.control_client import ControlClient, FetchKey
from calnet.roles.node.engine import Engine, OpenEngine, PeerStatus
from calnet.roles.node.escape import shown
from calnet.roles.node.host_keeper import HostKeeper, Wanted
from calnet.roles.node.host_setup import HostSetup
from calnet.roles.node.netmap_keeper import NetmapKeeper
from calnet.roles.node.notices import Notices
from calnet.roles.node.relay_link import RelayLink
from calnet.roles.node.routes import Finding
from calnet.roles.node.state import NodeState, StateDirectory
from calnet.roles.node.underlay import Dial, parse_server, resolve
from calnet.wire import control

log = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
ACTIVE: Final = "active"
PENDING: Final = "pending"
REFUSING: Final = ("unregistered", "expired", "disabled")
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


@dataclass(frozen=True, slots=True)
class Clocks:
    """`wall` is this machine's Unix time; `awake` a clock that stands still while it sleeps, `elapsed` one that goes on."""

    wall: Callable[[], float]
    awake: Callable[[], float]
    elapsed: Callable[[], float]


class Daemon:
    """See the module's docstring. It is the control client's, relay's and data path's host; operations.py speaks for local users."""

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
    ) -> None:
        self.directory, self.setup, self.machine, self.clocks, self.random = directory, setup, machine, clocks, random
        self._open_engine, self._dial, self.fetch_key, self._fixed_port = open_engine, dial, fetch_key, fixed_port
        self.engine: Engine | None = None
        self.client: ControlClient | None = None
        self.relay = RelayLink(self, dial=dial, random=random, clock=clocks.elapsed)
        self.netmap: Netmap | None = None
        """As the server sent it."""
        self.trusted: Netmap | None = None
        """As this node acts on it."""
        self.standing, self.approve_code = UNKNOWN, ""
        self.clock_offset = 0.0
        self.endpoints: tuple[Endpoint, ...] = ()
        self.server_error: CalnetError | None = None
        self.server_key_error: AuthenticationError | None = None
        self._server_down_since: float | None = None
        self.notices = Notices(clocks.elapsed)
        self.keeper = NetmapKeeper(directory, lambda text: self.health("state", text))
        self.unsent = False
        """The server has not heard yet what `set` changed."""
        self.confirm_keys: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Registers unconfirmed keys again (login.py)."""
        self._senders: dict[bytes, NodeId] = {}
        self._relay_keys: dict[NodeId, bytes] = {}
        self._stun: tuple[str, ...] = ()
        self.trust_findings: tuple[Finding, ...] = ()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.host = HostKeeper(setup, wanted=self._wanted_on_host, moved=self._paths_changed, settled=self._host_settled, clock=clocks.elapsed)
        self._watch: Callable[[], None] | None = None
        self._changed = asyncio.Event()
        self._closing = False

    # --- life ---

    @property
    def state(self) -> NodeState:
        return self.directory.state

    def now(self) -> float:
        """Unix seconds in server time."""
        return self.clocks.wall() + self.clock_offset

    async def start(self) -> None:
        """Clean what a crash left, then come up if the user wanted it so. HostError, StateError: the daemon can't run."""
        await self.setup.clean_leftovers()
        await self.setup.look()
        self.netmap, damaged = self.directory.load_netmap()
        if self.netmap is not None:
            self.keeper.keep(self.netmap)
        if damaged is not None:
            log.warning("netmap_damaged set_aside=%s", damaged)
            self.notices.event("netmap", Finding("netmap", f"the stored netmap was damaged and is set aside as {damaged}; the server sends another"))
        watch = self.setup.network.watch(self.host.network_changed)
        self._watch = watch.close
        self._spawn("host", self.host.run())
        self._spawn("netmap", self.keeper.run())
        self._spawn("tick", self._tick())
        self._settle(raising=True)

    async def close(self) -> None:
        """Stop everything; what was set up on the machine is undone first, as saying goodbye to the server may take a moment."""
        self._closing = True
        if self._watch is not None:
            self._watch()
        ending = list(self._tasks.values())
        if self.client is not None:
            self.client.stop()
        for task in ending:
            task.cancel()
        self.relay.stop()
        self._close_engine()
        await self.setup.clear()
        with contextlib.suppress(StateError):
            self.keeper.write_now()
        self.directory.close()
        if ending:
            await asyncio.wait(ending, timeout=GOODBYE_S)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        old = self._tasks.get(name)
        if old is not None:
            old.cancel()
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._task_ended(name, done))

    def _task_ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed task=%s error=%r", name, error, exc_info=error)
            self.health("internal", f"an internal task ({name}) ended by a defect: restart the daemon, and see its log")

    # --- the one state ---

    def state_name(self) -> str:
        """`running`, `stopped`, `needs-login`, `needs-approval` or `starting`."""
        state = self.state
        known = state.registered and not state.logged_out
        if not state.prefs.want_up:
            return "stopped" if known else "needs-login"
        if self.standing == PENDING and known:
            return "needs-approval"
        if not known or self.standing in REFUSING or self._own_key_expired():
            return "needs-login"
        return "running" if self.engine is not None and self.host.ready else "starting"

    def _own_key_expired(self) -> bool:
        expires = None if self.netmap is None else self.netmap.self.key_expires
        return expires is not None and self.now() >= expires

    def may_run(self) -> bool:
        """Whether the data path should be up."""
        state = self.state
        allowed = state.prefs.want_up and state.registered and not state.logged_out and self.standing in (UNKNOWN, ACTIVE)
        return allowed and self.netmap is not None and not self._own_key_expired() and not self._closing

    def settle(self) -> None:
        """Make what runs fit what should run. HostError, StateError where the data path can't be opened."""
        self._settle(raising=True)

    def _settle(self, *, raising: bool = False) -> None:
        self._settle_control()
        try:
            self._settle_engine()
            self.health("host", None)
        except (HostError, StateError) as error:
            if raising:
                raise
            log.error("start_failed error=%s", error)
            self.health("host", str(error))
        self._settle_relay()
        self._settle_stun()
        self.host.again()
        self._tell()

    def _settle_control(self) -> None:
        state = self.state
        wanted = state.prefs.want_up and bool(state.server_url) and state.server_key is not None and not self._closing
        if wanted and self.client is None and state.server_key is not None:
            self.standing, self.server_error, self.server_key_error = UNKNOWN, None, None
            self._server_down_since = self.clocks.elapsed()
            self.client = ControlClient(
                parse_server(state.server_url),
                state.server_key,
                state.keys.control,
                dial=self._dial,
                events=self,
                random=self.random,
                wall=self.clocks.wall,
                fetch_key=self.fetch_key,
                netmap=self.netmap,
            )
            self._spawn("control", self.client.run())
        elif not wanted and self.client is not None:
            self.stop_control()

    def stop_control(self) -> None:
        """End the control session; `settle` makes another where one is wanted."""
        task = self._tasks.pop("control", None)
        if task is not None:
            task.cancel()
        if self.client is not None:
            self.client.stop()
        self.client, self._server_down_since = None, None

    def _settle_engine(self) -> None:
        if not self.may_run() or self.netmap is None:
            self._close_engine()
            return
        self.trusted, self.trust_findings = routes.trusted(self.netmap, self.state.prefs.pins)
        self._relay_keys = {peer.id: peer.node_key for peer in self.trusted.peers}
        self._senders = {key: peer.id for peer in self.trusted.peers for key in (peer.previous_node_key, peer.node_key) if key is not None}
        if self.engine is None:
            self.engine = self._opened()
            self.engine.apply(self.trusted, accept_routes=self.state.prefs.accept_routes)
            self.engine.network_changed(self.local_endpoints())
            log.info("up tun=%s port=%d ip=%s peers=%d", self.setup.tun, self.engine.port, self.trusted.self.addresses[0], len(self.trusted.peers))
        else:
            self.engine.apply(self.trusted, accept_routes=self.state.prefs.accept_routes)

    def _opened(self) -> Engine:
        kept = self.state.prefs.port
        try:
            engine = self._open_engine(self._fixed_port or kept, self)
        except HostError:
            if self._fixed_port or not kept:
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
            self.endpoints, self._senders, self._stun = (), {}, ()
            self.host.down()
            self.notices.clear()
            log.info("down tun=%s", self.setup.tun)

    def _settle_relay(self) -> None:
        netmap, server_key = self.trusted, self.state.server_key
        url = netmap.relays[0].url if self.engine is not None and netmap is not None and netmap.relays else ""
        self.relay.use(url, server_key or b"", self.state.keys.node)

    def _settle_stun(self) -> None:
        servers = self.trusted.stun if self.engine is not None and self.trusted is not None else ()
        if servers != self._stun:
            self._stun = servers
            self._spawn("stun", self._resolve_stun(servers))

    def keys_changed(self) -> None:
        """The node's keys in `state` are others now: the data path answers to old and new, the relay is told the new one."""
        if self.engine is not None:
            self.engine.set_identity(self.state.keys)
        self._settle()

    def leave_server(self) -> None:
        """Forget all that the server said: another one is coming."""
        self.stop_control()
        self.relay.stop()
        self.forget_netmap()
        self._close_engine()
        self.standing, self.approve_code, self.server_error, self.server_key_error = UNKNOWN, "", None, None

    def forget_netmap(self) -> None:
        """The netmap counts no more, on disk either. StateError where that can't be."""
        self.netmap = None
        if self.client is not None:
            self.client.forget_netmap()
        self.keeper.forget()

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
        return Wanted(self.trusted, self.state.prefs.accept_routes, self.engine.gso_max_size)

    def _host_settled(self, text: str | None) -> None:
        self.health("network", text)
        self._tell()

    def _paths_changed(self) -> None:
        log.info("network_changed addresses=%s", ",".join(str(address) for address in self.setup.candidates(())))
        if self.engine is not None:
            self.engine.network_changed(self.local_endpoints())
        self.relay.reconnect_now()
        if self.client is not None:
            self.client.reconnect_now()

    async def _resolve_stun(self, servers: tuple[str, ...]) -> None:
        """Tell the data path where the STUN servers are; asked again while none resolves, and now and then as addresses change."""
        while True:
            found = await resolve(servers)
            if self.engine is not None:
                self.engine.stun_servers(found)
            await asyncio.sleep(STUN_AGAIN_S if found or not servers else STUN_RETRY_S)

    def local_endpoints(self) -> tuple[Endpoint, ...]:
        """This machine's addresses with the data path's port."""
        if self.engine is None or self.netmap is None:
            return ()
        return tuple(Endpoint(str(address), self.engine.port) for address in self.setup.candidates(self.netmap.prefixes))

    async def _tick(self) -> None:
        """What time alone brings: our key's expiry, the old key's end, a sleep of the machine."""
        slept_before = self.clocks.elapsed() - self.clocks.awake()
        while True:
            await asyncio.sleep(TICK_S)
            slept = self.clocks.elapsed() - self.clocks.awake()
            if slept - slept_before > SLEEP_JUMP_S:
                log.info("woke slept_s=%.0f", slept - slept_before)
                self._paths_changed()
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
            self.engine.set_identity(self.state.keys)

    # --- ControlEvents ---

    def control_connected(self, welcome: control.Welcome) -> None:
        log.info("control_connected server=%s state=%s version=%s", self.state.server_url, shown(welcome.state), shown(welcome.version, 40))
        self.server_error = self.server_key_error = self._server_down_since = None
        self.standing_changed(welcome.state, welcome.code)
        if self.client is None:
            return
        if self.endpoints:
            self.client.publish(self.endpoints)
        if self.state.logged_out and welcome.state == ACTIVE:
            self._spawn("logout", self._tell_logout(self.client))
        elif self.state.unconfirmed and self.confirm_keys is not None:
            self._spawn("confirm", self._quietly("confirm", self.confirm_keys()))

    async def _tell_logout(self, client: ControlClient) -> None:
        await self._quietly("logout", client.logout())

    async def _quietly(self, what: str, request: Coroutine[Any, Any, object]) -> None:
        """A request nobody waits for: its failure is logged, and it is made again with the next session."""
        try:
            await request
        except CalnetError as error:
            log.warning("request_failed what=%s error=%s", what, shown(str(error), 400))

    def control_lost(self, reason: CalnetError) -> None:
        if self._server_down_since is None:
            self._server_down_since = self.clocks.elapsed()
        if str(reason) != str(self.server_error) and not isinstance(reason, AuthenticationError):
            log.warning("control_lost error=%s", shown(str(reason), 400))
        self.server_error = reason
        self._tell()

    def server_key_wrong(self, error: AuthenticationError) -> None:
        if self.server_key_error is None:
            log.error("server_key_changed pinned=%s error=%s", encode_key(self.state.server_key or b""), error)
        self.server_key_error = error

    def standing_changed(self, state: str, code: str) -> None:
        """Where the server says this machine stands. What takes access away ends the data path and forgets the netmap."""
        if state != self.standing:
            log.info("standing state=%s", shown(state))
        self.standing, self.approve_code = state, code
        if state in REFUSING:
            try:
                self.forget_netmap()
            except StateError as error:
                self.health("state", str(error))
        self._settle()

    def netmap_arrived(self, netmap: Netmap) -> None:
        for peer, old, renewal in routes.key_changes(self.netmap, netmap):
            self._note_key(peer.name, peer.id, old, peer.node_key, renewal)
        if netmap != self.netmap:
            self.keeper.keep(netmap)
        self.netmap, self.standing = netmap, ACTIVE
        self._settle()
        advertised = {str(route) for route in netmap.self.advertised_routes}
        if self.unsent or set(self.state.prefs.advertise_routes) != advertised:
            self._spawn("update", self._quietly("update", self.tell_server()))

    async def tell_server(self) -> None:
        """Tell the server host name and advertised routes. Where it isn't reached it hears of them later; the error says so to whoever waits."""
        client = self.client
        self.unsent = True
        if client is None or not client.connected:
            raise UnreachableError("the server is not connected")
        await client.update(hostname=self.state.prefs.hostname or None, routes=self.state.prefs.advertise_routes)
        self.unsent = False

    def _note_key(self, name: str, peer: NodeId, old: bytes, new: bytes, renewal: bool) -> None:
        log.warning("peer_key_changed peer=%s id=%d old=%s new=%s renewal=%s", shown(name), peer, encode_key(old), encode_key(new), renewal)
        if renewal:
            finding = Finding("peer-key-renewed", f"{name} renewed its key, it is now {encode_key(new)}")
        else:
            finding = Finding(
                "peer-key-changed", f"{name} has another key than before, {encode_key(new)}: ask its owner; `calnet set --pin {name}` refuses further changes"
            )
        self.notices.event(peer, finding)

    def candidates_arrived(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        if self.engine is not None:
            self.engine.candidates(peer, endpoints)

    def server_time(self, offset: float) -> None:
        self.clock_offset = offset

    # --- RelayUser ---

    def relay_changed(self, connected: bool) -> None:
        if self.engine is not None:
            self.engine.relay_connected(connected)
        self._tell()

    def relayed(self, sender: bytes, datagram: memoryview) -> None:
        peer = self._senders.get(sender)
        if self.engine is not None and peer is not None:
            self.engine.relayed(peer, datagram)

    # --- EngineHost ---

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        key = self._relay_keys.get(peer)
        if key is not None:
            self.relay.send(key, datagrams)

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        if self.client is not None:
            self.client.candidates(peer, endpoints)

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints
        if self.client is not None:
            self.client.publish(endpoints)

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None:
        try:
            self.directory.stamps.persist(node_key, timestamp, sent)
        except StateError as error:
            self.health("stamps", str(error))
            raise
        self.health("stamps", None)

    def path_changed(self, peer: NodeId, description: str) -> None:
        name = next((other.name for other in self.trusted.peers if other.id == peer), str(peer)) if self.trusted is not None else str(peer)
        log.info("path_changed peer=%s path=%s", shown(name), shown(description))
        status = self.peer_status(peer)
        if status.path == "direct" and status.endpoint is not None:
            self.keeper.worked(peer, status.endpoint)

    def health(self, code: str, text: str | None) -> None:
        self.notices.set(code, text)
        if code == "tun-gone" and text is not None:
            asyncio.get_running_loop().call_soon(self._reopen)

    def _reopen(self) -> None:
        """Somebody removed the interface: make it again."""
        self._close_engine()
        self.setup.forget()
        self._settle()

    # --- looking at it ---

    def peer_status(self, peer: NodeId) -> PeerStatus:
        return NO_STATUS if self.engine is None else self.engine.peer_status(peer)

    def hostname(self) -> str:
        """The name this node asks for."""
        return self.state.prefs.hostname or self.machine.hostname

    def udp_port(self) -> int | None:
        """The UDP port in use, or the one it will be; None before there was one."""
        return self.engine.port if self.engine is not None else self._fixed_port or self.state.prefs.port or None

    def server_down_s(self) -> float | None:
        """For how long the server has been out of reach; None while connected or not wanted."""
        return None if self._server_down_since is None else self.clocks.elapsed() - self._server_down_since
