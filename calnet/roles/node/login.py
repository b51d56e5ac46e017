"""`up`, `login`, `logout`, `down`: how this machine comes to be registered, and renews its keys without a break.

Order matters. What the user wants is saved before anything is tried; a new node key is saved (`unconfirmed`) before the server hears of it, so that a
crash between the two leaves a key that both know or that is registered again at the next connection; the old key answers on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from calnet.errors import CalnetError, InvalidError, LoginNeededError, RefusedError, TimedOutError, UnreachableError
from calnet.roles.node.control_client import ControlClient
from calnet.roles.node.control_link import ACTIVE, PENDING, REFUSING, UNKNOWN
from calnet.roles.node.daemon import Daemon
from calnet.roles.node.overview import health_lines
from calnet.roles.node.qr import qr_lines
from calnet.roles.node.state import NodeState
from calnet.roles.node.underlay import parse_server
from calnet.wire import control
from calnet.wire.authkey import parse_auth_key

log = logging.getLogger(__name__)

Emit = Callable[[dict[str, object]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What `up` or `login` was asked; None leaves a value as it is. `renew`: new keys even where the node is active."""

    server: str | None = None
    auth_key: str = ""
    hostname: str | None = None
    advertise_routes: tuple[str, ...] | None = None
    accept_routes: bool | None = None
    timeout_s: float = 30.0
    renew: bool = False
    qr: bool = False
    """Show the login's URL as a QR code too."""


class Logins:
    """The daemon's comings and goings. Calls that change something are the caller's to serialize; waiting is not."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        daemon.control.confirm_keys = self.confirm_again

    async def prepare(self, request: UpRequest) -> None:
        """Save what is wanted and start what it needs: the first half of `up`, under the caller's lock."""
        daemon = self._daemon
        state = await self._with_server(daemon.state, request)
        prefs = replace(state.prefs, want_up=True)
        if request.hostname is not None:
            prefs = replace(prefs, hostname=request.hostname)
        if request.advertise_routes is not None:
            prefs = replace(prefs, advertise_routes=request.advertise_routes)
        if request.accept_routes is not None:
            prefs = replace(prefs, accept_routes=request.accept_routes)
        if state.server_key != daemon.state.server_key:
            daemon.leave_server()
        elif state.server_url != daemon.state.server_url:
            daemon.control.stop()  # the same server by another name: live tunnels go on
        daemon.directory.save(replace(state, prefs=prefs))
        daemon.settle()

    async def _with_server(self, state: NodeState, request: UpRequest) -> NodeState:
        """`state` with the server that the request names and the key pinned for it."""
        url = parse_server(request.server).url() if request.server else state.server_url
        if not url:
            raise InvalidError("no server is known yet: give --server URL")
        carried = parse_auth_key(request.auth_key).server_key if request.auth_key else None
        known = state.server_key if url == state.server_url and not state.logged_out else None
        if carried is not None and known is not None and carried != known:
            log.warning("server_key_pinned_anew server=%s", url)
        key = carried or known or await self._daemon.control.fetch_key(parse_server(url))
        if key == state.server_key:
            return replace(state, server_url=url)  # the same server, perhaps by another name
        return replace(state, server_url=url, server_key=key, registered=False, logged_out=False, unconfirmed=False)

    async def complete(self, request: UpRequest, emit: Emit) -> str:
        """Register where that is needed, wait for approval and until the node runs: the second half of `up`. The state reached."""
        daemon = self._daemon
        if request.renew or not daemon.may_run():
            await self._log_in(request, emit)
        if not await daemon.until(lambda: daemon.state_name() != "starting" or "host" in daemon.notices, request.timeout_s):
            raise TimedOutError(f"not up after {request.timeout_s:g} s: {await self._hindrance()}")
        name = daemon.state_name()
        if name == "running":
            return name
        if name in ("needs-login", "needs-approval"):
            raise LoginNeededError(f"this machine needs a {'login' if name == 'needs-login' else 'approval'}: {await self._hindrance()}")
        raise CalnetError(f"not up ({name}): {await self._hindrance()}")

    async def _hindrance(self) -> str:
        lines = await health_lines(self._daemon)
        if self._daemon.control.error is not None:
            return str(self._daemon.control.error)
        return lines[0].text if lines else "see `calnet status`"

    async def _log_in(self, request: UpRequest, emit: Emit) -> None:
        daemon = self._daemon
        client = await self.connected(request.timeout_s)
        fresh = request.renew or daemon.control.standing in REFUSING or daemon.state.logged_out
        waiting_anew = daemon.control.standing == PENDING and (request.auth_key or not daemon.control.login_url)
        if fresh or waiting_anew or not daemon.state.registered:
            await self._register(client, request)
        if daemon.control.standing != PENDING:
            return
        code = daemon.control.approve_code
        event: dict[str, object] = {"approve_code": code, "say": f"waiting for approval; on the server: calnet.pyz admin nodes approve {code}"}
        url = daemon.control.login_url
        if url:
            event = {"login_url": url, "user_code": daemon.control.user_code, "code": code, "qr": qr_lines(url) if request.qr else []}
        await emit(event)
        await daemon.until(lambda: daemon.control.standing != PENDING or not daemon.state.prefs.want_up, None)
        if daemon.control.standing != ACTIVE and daemon.control.standing != UNKNOWN:
            raise LoginNeededError(f"this machine was not approved: the server says {daemon.control.standing}")

    async def connected(self, timeout: float) -> ControlClient:
        """The control client once it has a session. What keeps it from one is raised after `timeout`, a wrong server key at once."""
        daemon = self._daemon
        await daemon.until(lambda: daemon.control.client is None or daemon.control.client.connected or daemon.control.key_error is not None, timeout)
        if daemon.control.key_error is not None:
            raise daemon.control.key_error
        if daemon.control.client is None or not daemon.control.client.connected:
            raise daemon.control.error or UnreachableError(f"the server {daemon.state.server_url} does not answer")
        return daemon.control.client

    async def _register(self, client: ControlClient, request: UpRequest) -> None:
        """Register, with new keys where this machine was known to peers before. A refusal leaves the keys as they were."""
        daemon, before = self._daemon, self._daemon.state
        if before.registered and not before.unconfirmed:
            daemon.directory.save(replace(before, keys=before.keys.renewed(daemon.random), unconfirmed=True, renewed_at=daemon.now()))
        try:
            answer = await client.register(daemon.state.keys, self._message(request))
        except RefusedError:
            daemon.directory.save(replace(daemon.state, keys=before.keys, unconfirmed=False))
            raise
        self.confirmed(answer)

    def _message(self, request: UpRequest) -> Callable[[int, bytes], control.Register]:
        daemon = self._daemon
        keys, prefs = daemon.state.keys, daemon.state.prefs
        return lambda number, proof: control.Register(
            request=number,
            node_key=keys.node.public,
            discovery_key=keys.discovery.public,
            proof=proof,
            hostname=daemon.hostname(),
            os=daemon.machine.os,
            version=daemon.machine.version,
            capabilities=daemon.machine.capabilities,
            auth_key=request.auth_key.strip(),
            routes=prefs.advertise_routes,
        )

    def confirmed(self, answer: control.Registered | control.State) -> None:
        """The server knows our keys: both answer from now on, the new one initiates."""
        daemon = self._daemon
        daemon.directory.save(replace(daemon.state, registered=True, logged_out=False, unconfirmed=False))
        log.info("registered node_key_renewed=%s", daemon.state.keys.previous is not None)
        daemon.keys_changed()
        if isinstance(answer, control.State):
            daemon.control.standing_changed(answer.state, answer.code, answer.login_url, answer.user_code)
        else:
            daemon.control.standing_changed(ACTIVE, "")

    async def confirm_again(self) -> None:
        """After a crash in mid-renewal: register the keys that were saved. A refusal brings the old ones back."""
        daemon = self._daemon
        client = await self.connected(30.0)
        try:
            self.confirmed(await client.register(daemon.state.keys, self._message(UpRequest())))
        except RefusedError as error:
            log.warning("renewal_refused error=%s", error)
            previous = daemon.state.keys.previous
            if previous is not None:
                daemon.directory.save(replace(daemon.state, keys=replace(daemon.state.keys, node=previous, previous=None), unconfirmed=False))
                daemon.keys_changed()

    async def logout(self) -> bool:
        """End the registration's use; whether the server was told. Locally it holds in any case."""
        daemon = self._daemon
        told = False
        if daemon.control.client is not None and daemon.control.client.connected:
            try:
                await daemon.control.client.logout()
                told = True
            except (UnreachableError, TimedOutError) as error:
                log.warning("logout_not_told error=%s", error)
        daemon.directory.save(replace(daemon.state, logged_out=True))
        daemon.control.forget_netmap()
        daemon.settle()
        return told

    def down(self) -> None:
        """Stop, and stay stopped after a restart."""
        daemon = self._daemon
        daemon.directory.save_prefs(replace(daemon.state.prefs, want_up=False))
        daemon.settle()
