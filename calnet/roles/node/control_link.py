"""What the server says, and what it is told: the node's one control session, where this machine stands, the netmap.

Theory of operation. `use` makes the session stand or end as the state wants it. What the session tells is taken down here (a netmap goes to the disk, a
peer's new key to the notices, a standing that takes access away forgets the netmap), and then `ControlUser.server_spoke` lets the daemon act on it.

Error contract. Nothing the server says raises here; what can't be written becomes a health line. Requests (`tell_server`) raise as the client's do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from calnet.crypto.keys import RandomBytes, encode_key
from calnet.errors import AuthenticationError, CalnetError, StateError, UnreachableError
from calnet.model import Endpoint, Netmap, NodeId
from calnet.roles.node import routes
from calnet.roles.node.clocks import Clocks
from calnet.roles.node.control_client import ControlClient, FetchKey
from calnet.roles.node.escape import shown
from calnet.roles.node.netmap_keeper import NetmapKeeper
from calnet.roles.node.notices import Notices
from calnet.roles.node.routes import Finding
from calnet.roles.node.state import NodeState, StateDirectory
from calnet.roles.node.tasks import Tasks
from calnet.roles.node.underlay import Dial, parse_server
from calnet.wire import control

log = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
ACTIVE: Final = "active"
PENDING: Final = "pending"
REFUSING: Final = ("unregistered", "expired", "disabled")


class ControlUser(Protocol):
    """What the daemon hears. No call may block."""

    def server_spoke(self) -> None:
        """The standing or the netmap may be another."""

    def server_lost(self) -> None:
        """The session ended, or couldn't be made."""

    def candidates_arrived(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """A peer's candidates: it wants to be probed."""

    def clock_told(self) -> None:
        """`clock_offset` may be another."""


class ControlLink:
    """See the module's docstring. It is the control client's host."""

    def __init__(
        self,
        user: ControlUser,
        directory: StateDirectory,
        notices: Notices,
        tasks: Tasks,
        *,
        dial: Dial,
        fetch_key: FetchKey,
        random: RandomBytes,
        clocks: Clocks,
        software: str,
        capabilities: tuple[str, ...],
    ) -> None:
        self._user, self._directory, self._notices, self._tasks = user, directory, notices, tasks
        self._dial, self.fetch_key, self._random, self._clocks = dial, fetch_key, random, clocks
        self._software, self._capabilities = software, capabilities
        self.keeper = NetmapKeeper(directory, lambda text: notices.set("state", text))
        self.client: ControlClient | None = None
        self.netmap: Netmap | None = None
        """As the server sent it."""
        self.standing, self.approve_code = UNKNOWN, ""
        self.login_url = ""
        """Where a person signs in for this machine while it waits; empty without single sign-on."""
        self.user_code = ""
        """What has to be entered there, where the URL does not say it."""
        self.clock_offset = 0.0
        """Server time minus this machine's, in seconds."""
        self.endpoints: tuple[Endpoint, ...] = ()
        """Where we can be reached; each new session is told."""
        self.error: CalnetError | None = None
        self.key_error: AuthenticationError | None = None
        self.confirm_keys: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Registers unconfirmed keys again (login.py)."""
        self._unsent = False
        """The server has not heard yet what `set` changed."""
        self._down_since: float | None = None

    @property
    def _state(self) -> NodeState:
        return self._directory.state

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        return self.client is not None and self.client.connected

    def down_s(self) -> float | None:
        """For how long the server has been out of reach; None while connected or not wanted."""
        return None if self._down_since is None else self._clocks.elapsed() - self._down_since

    # --- what should stand ---

    def load(self) -> None:
        """Take the netmap on disk. StateError where it can't be read; a damaged one is set aside."""
        self.netmap, damaged = self._directory.load_netmap()
        if self.netmap is not None:
            self.keeper.keep(self.netmap)
        if damaged is not None:
            log.warning("netmap_damaged set_aside=%s", damaged)
            self._notices.event("netmap", Finding("netmap", f"the stored netmap was damaged and is set aside as {damaged}; the server sends another"))

    def use(self) -> None:
        """Have a session with the server of the state if the user wants to be up."""
        state = self._state
        if not state.prefs.want_up or not state.server_url or state.server_key is None:
            self.stop()
        elif self.client is None:
            self.standing, self.error, self.key_error = UNKNOWN, None, None
            self._down_since = self._clocks.elapsed()
            self.client = ControlClient(
                parse_server(state.server_url),
                state.server_key,
                state.keys.control,
                dial=self._dial,
                events=self,
                random=self._random,
                wall=self._clocks.wall,
                fetch_key=self.fetch_key,
                netmap=self.netmap,
                software=self._software,
                capabilities=self._capabilities,
            )
            self._tasks.spawn("control", self.client.run())

    def stop(self) -> None:
        """End the session; `use` makes another where one is wanted."""
        self._tasks.cancel("control")
        if self.client is not None:
            self.client.stop()
        self.client, self._down_since = None, None

    def reconnect_now(self) -> None:
        """Don't wait for a backoff: the network changed."""
        if self.client is not None:
            self.client.reconnect_now()

    def moved(self) -> None:
        """Packets leave from elsewhere: the session ends, and a new one begins at once."""
        if self.client is not None:
            self.client.moved()

    def forget_netmap(self) -> None:
        """The netmap counts no more, on disk either. StateError where that can't be."""
        self.netmap = None
        if self.client is not None:
            self.client.forget_netmap()
        self.keeper.forget()

    def forget_server(self) -> None:
        """What it said counts no more: another one is coming. StateError where the netmap can't be removed from the disk."""
        self.forget_netmap()
        self.standing, self.approve_code, self.error, self.key_error = UNKNOWN, "", None, None

    # --- what the server is told ---

    async def tell_server(self) -> None:
        """Tell the server host name and advertised routes. Where it isn't reached it hears of them later; the error says so to whoever waits."""
        client, prefs = self.client, self._state.prefs
        self._unsent = True
        if client is None or not client.connected:
            raise UnreachableError("the server is not connected")
        await client.update(hostname=prefs.hostname or None, routes=prefs.advertise_routes)
        self._unsent = False

    def publish(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Where we can be reached: now, and with each new session."""
        self.endpoints = endpoints
        if self.client is not None:
            self.client.publish(endpoints)

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """Send our candidates to one peer; dropped without a session."""
        if self.client is not None:
            self.client.candidates(peer, endpoints)

    async def _logout(self, client: ControlClient) -> None:
        await self._quietly("logout", client.logout())

    async def _quietly(self, what: str, request: Coroutine[Any, Any, object]) -> None:
        """A request nobody waits for: its failure is logged, and it is made again with the next session."""
        try:
            await request
        except CalnetError as error:
            log.warning("request_failed what=%s error=%s", what, shown(str(error), 400))

    # --- ControlEvents ---

    def control_connected(self, welcome: control.Welcome) -> None:
        state = self._state
        log.info("control_connected server=%s state=%s version=%s", state.server_url, shown(welcome.state), shown(welcome.version, 40))
        self.error = self.key_error = self._down_since = None
        self.standing_changed(welcome.state, welcome.code)
        if self.client is None:
            return
        if self.endpoints:
            self.client.publish(self.endpoints)
        if self._state.logged_out and welcome.state == ACTIVE:
            self._tasks.spawn("logout", self._logout(self.client))
        elif self._state.unconfirmed and self.confirm_keys is not None:
            self._tasks.spawn("confirm", self._quietly("confirm", self.confirm_keys()))

    def control_lost(self, reason: CalnetError) -> None:
        if self._down_since is None:
            self._down_since = self._clocks.elapsed()
        if str(reason) != str(self.error) and not isinstance(reason, AuthenticationError):
            log.warning("control_lost error=%s", shown(str(reason), 400))
        self.error = reason
        self._user.server_lost()

    def server_key_wrong(self, error: AuthenticationError) -> None:
        if self.key_error is None:
            log.error("server_key_changed pinned=%s error=%s", encode_key(self._state.server_key or b""), error)
        self.key_error = error

    def standing_changed(self, state: str, code: str, login_url: str = "", user_code: str = "") -> None:
        """Where the server says this machine stands. What takes access away ends the data path and forgets the netmap."""
        if state != self.standing:
            log.info("standing state=%s", shown(state))
        same_wait = state == PENDING == self.standing and code == self.approve_code
        if login_url or not same_wait:
            self.login_url, self.user_code = login_url, user_code
        self.standing, self.approve_code = state, code
        if state in REFUSING:
            try:
                self.forget_netmap()
            except StateError as error:
                self._notices.set("state", str(error))
        self._user.server_spoke()

    def netmap_arrived(self, netmap: Netmap) -> None:
        for peer, old, renewal in routes.key_changes(self.netmap, netmap):
            self._note_key(peer.name, peer.id, old, peer.node_key, renewal)
        if netmap != self.netmap:
            self.keeper.keep(netmap)
        self.netmap, self.standing = netmap, ACTIVE
        self._user.server_spoke()
        advertised = {str(route) for route in netmap.self.advertised_routes}
        if self._unsent or set(self._state.prefs.advertise_routes) != advertised:
            self._tasks.spawn("update", self._quietly("update", self.tell_server()))

    def _note_key(self, name: str, peer: NodeId, old: bytes, new: bytes, renewal: bool) -> None:
        log.warning("peer_key_changed peer=%s id=%d old=%s new=%s renewal=%s", shown(name), peer, encode_key(old), encode_key(new), renewal)
        if renewal:
            finding = Finding("peer-key-renewed", f"{name} renewed its key, it is now {encode_key(new)}")
        else:
            finding = Finding(
                "peer-key-changed", f"{name} has another key than before, {encode_key(new)}: ask its owner; `calnet set --pin {name}` refuses further changes"
            )
        self._notices.event(peer, finding)

    def candidates_arrived(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        self._user.candidates_arrived(peer, endpoints)

    def server_time(self, offset: float) -> None:
        self.clock_offset = offset
        self._user.clock_told()
