"""One running server: sockets, HTTP, sessions, STUN, admin socket and the timer of the registry, started together and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Final

import uvicorn

from calnet.crypto.keys import RandomBytes
from calnet.errors import CalnetError, ConfigError, StateError
from calnet.roles.server.admin import AdminSocket
from calnet.roles.server.admission import Gate
from calnet.roles.server.app import build_app
from calnet.roles.server.cluster import Cluster
from calnet.roles.server.connection import in_prefixes
from calnet.roles.server.control_hub import ControlHub
from calnet.roles.server.control_session import serve_control
from calnet.roles.server.durable import durable
from calnet.roles.server.figures import figures
from calnet.roles.server.handover import Handover, take_handover, write_handover
from calnet.roles.server.listeners import tcp_listener, udp_socket
from calnet.roles.server.registry import Registry
from calnet.roles.server.relay_hub import RelayHub
from calnet.roles.server.relay_session import serve_relay
from calnet.roles.server.rest.api import Api
from calnet.roles.server.settings import ServerSettings, parse_url
from calnet.roles.server.standing import Changed
from calnet.roles.server.stun_service import StunService
from calnet.roles.server.timing import Timing
from calnet.roles.server.tls import TlsListener, tls_context
from calnet.roles.server.web_protocol import BoundedWebSocketProtocol, bounded_http

if TYPE_CHECKING:  # loaded where sign-in is configured
    from calnet.roles.server.signin.signin import SignIn

log = logging.getLogger(__name__)

MAX_WEBSOCKET_MESSAGE: Final = 65_536
"""A Noise message and a relay frame are both shorter."""
STOP_LIMIT_S: Final = 2.0
"""How long HTTP connections may take to end, once told to."""
HOUSEKEEPING_RETRY_S: Final = 5.0
HOUSEKEEPING_PAUSE_S: Final = 0.05
"""Between two runs, whatever the deadlines say."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without signal handlers of its own: the composition root has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class CalnetServer:
    """`start` makes one that serves; `stop` ends it. Everything runs on the event loop it was started on, but the registry's writer."""

    def __init__(self, settings: ServerSettings, registry: Registry, *, clock: Callable[[], float], random: RandomBytes, timing: Timing) -> None:
        self.settings = settings
        self.registry = registry
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._accepting = False
        self._housekeeping_wake = asyncio.Event()
        self._gate = Gate()
        self._listener = tcp_listener(settings.listen)
        try:
            self._stun = StunService(udp_socket(settings.stun_listen), self._loop)
        except CalnetError:
            self._listener.close()
            raise
        self._second_stun = self._beside(self._stun.port)
        handover = take_handover(settings.state_dir)
        if handover is not None:
            registry.resume(handover)
        self.control = ControlHub(registry, loop=self._loop, clock=clock, public_url=settings.url, stun_ports=self.stun_ports, timing=timing, handover=handover)
        self.relay = RelayHub(registry, timing=timing)
        self._random = random
        self._timing = timing
        self._uvicorn: _Uvicorn | None = None
        self._tls: ssl.SSLContext | None = None
        self._tls_listener: TlsListener | None = None
        self._serving: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._admin: AdminSocket | None = None
        self._signin = self._make_signin()
        self._cluster = Cluster(registry, self.control, self.relay, loop=self._loop, url=lambda: self.url, random=random) if "://" in settings.store else None
        self._rechecking: asyncio.Task[None] | None = None
        self._api = Api(
            registry,
            clock=self._loop.time,
            random=random,
            relays=self._relays,
            metrics=lambda: figures(registry, self.control, self.relay),
            authenticators=() if self._signin is None else self._signin.authenticators(),
        )

    @classmethod
    async def start(
        cls, settings: ServerSettings, registry: Registry, *, clock: Callable[[], float], random: RandomBytes, timing: Timing | None = None
    ) -> CalnetServer:
        """A server that serves; the registry stays the caller's to close.

        HostError where a port or the socket is taken, ConfigError for a certificate that can't be used.
        """
        server = cls(settings, registry, clock=clock, random=random, timing=timing or Timing())
        try:
            await server._start()
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._port

    @property
    def pending(self) -> int:
        """Connections that have not authenticated."""
        return len(self._gate)

    @property
    def stun_port(self) -> int:
        """The STUN server's UDP port."""
        return self._stun.port

    @property
    def stun_ports(self) -> tuple[int, ...]:
        """Both UDP ports: by two, nodes find out how their NAT maps."""
        return (self._stun.port,) if self._second_stun is None else (self._stun.port, self._second_stun.port)

    @property
    def url(self) -> str:
        """`--url`, or where this server is reached from its own machine."""
        if self.settings.url is not None:
            return str(self.settings.url)
        host = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(self.settings.listen.host, self.settings.listen.host)
        return f"{'https' if self.settings.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def drain(self) -> None:
        """Say so where a balancer asks (`/readyz`), tell every session that the server stops, and admit no new one."""
        self._accepting = False
        self._api.close()
        self.control.close()
        self.relay.close()

    async def stop(self) -> None:
        """Tell every session, end every connection, close every socket. A second call does nothing."""
        if self._accepting:
            await asyncio.to_thread(self._leave_handover, self.control.hand_over())
        self.drain()
        for task in (self._timer, self._rechecking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._signin is not None:
            await self._signin.close()
        if self._cluster is not None:
            await self._cluster.close()
        await self._drained()
        if self._tls_listener is not None:
            self._tls_listener.close()
            self._tls_listener = None
        if self._uvicorn is not None and self._serving is not None:
            self._uvicorn.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
        self._listener.close()
        for stun in (self._stun, self._second_stun):
            if stun is not None:
                stun.close()
        if self._admin is not None:
            await self._admin.close()

    def reload(self, settings: ServerSettings) -> tuple[str, ...]:
        """Take over what can change while serving: the public URL, the certificate (read anew), and sign-in's settings but the issuer. Names the settings that
        need a restart.

        ConfigError for a certificate that can't be used; the old one stays then.
        """
        if self._tls is not None and settings.tls_cert is not None and settings.tls_key is not None:
            with _explained(settings):
                self._tls.load_cert_chain(settings.tls_cert, settings.tls_key)
        self.control.set_public_url(settings.url)
        names = ["state_dir", "listen", "stun_listen", "store", "prefix", "trusted_proxies", "tls"]
        if self._signin is not None and settings.oidc is not None and settings.oidc.issuer == self._signin.settings.issuer:
            self._signin.take_over(settings.oidc)
        else:
            names.append("oidc")
        return tuple(name.replace("_", "-") for name in names if getattr(settings, name) != getattr(self.settings, name))

    async def _start(self) -> None:
        self._port: int = self._listener.getsockname()[1]
        if self.settings.tls_cert is not None and self.settings.tls_key is not None:
            with _explained(self.settings):
                self._tls = tls_context(self.settings.tls_cert, self.settings.tls_key)
        self._uvicorn = _Uvicorn(self._uvicorn_config())
        self.registry.subscribe(self._changed_on_any_thread)
        self._serving = self._loop.create_task(self._uvicorn.serve(sockets=[] if self._tls is not None else [self._listener]))
        while not self._uvicorn.started:
            if self._serving.done():
                self._serving.result()
                raise CalnetError("the HTTP server did not start")
            await asyncio.sleep(0.005)
        self._admin = await AdminSocket.open(self.settings.state_dir / "admin.sock", self._uvicorn.config, self._uvicorn.server_state, self._gate)
        if self._tls is not None:
            self._tls_listener = self._listen_for_tls(self._uvicorn, self._tls)
        self._timer = self._loop.create_task(self._housekeep())
        if self._cluster is not None:
            self._cluster.start()
        if self._signin is not None:
            self._rechecking = self._loop.create_task(self._signin.run())
        self._accepting = True

    def _beside(self, port: int) -> StunService | None:
        """STUN on the next port; nothing where that is taken: nodes then don't know how their NAT maps."""
        if port >= 65_535:
            return None
        try:
            return StunService(udp_socket(self.settings.stun_listen._replace(port=port + 1)), self._loop)
        except CalnetError as error:
            log.warning("second_stun_port_not_open reason=%s", error)
            return None

    def _uvicorn_config(self) -> uvicorn.Config:
        trusted = self.settings.trusted_proxies
        app = build_app(
            control_key=self.registry.control_key.public,
            serve_control=lambda connection: serve_control(self.control, connection, self._random),
            serve_relay=lambda connection: serve_relay(self.relay, connection, self._random),
            ready=lambda: self._accepting,
            gate=self._gate,
            trusted=trusted,
            serve_mesh=None if self._cluster is None else self._cluster.serve_mesh,
            more=[*self._api.routes(), *([] if self._signin is None else self._signin.routes())],
        )
        config = uvicorn.Config(
            app,
            http=bounded_http(self._gate, lambda host: in_prefixes(host, trusted)),
            ws=BoundedWebSocketProtocol,
            ws_max_size=MAX_WEBSOCKET_MESSAGE,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_LIMIT_S),
        )
        config.load()
        return config

    def _listen_for_tls(self, server: _Uvicorn, context: ssl.SSLContext) -> TlsListener:
        """uvicorn knows nothing of TLS: its protocol gets connections whose handshake is done."""
        trusted = self.settings.trusted_proxies
        http: Callable[..., asyncio.Protocol] = server.config.http_protocol_class
        make = partial(http, config=server.config, server_state=server.server_state, app_state={})
        return TlsListener(self._listener, context, make, gate=self._gate, trusted=lambda host: in_prefixes(host, trusted))

    def _relays(self) -> list[dict[str, object]]:
        others = [] if self._cluster is None else self._cluster.relays()
        return [{"url": settings_relay(self), "connected": len(self.relay)}, *others]

    def _make_signin(self) -> SignIn | None:
        if self.settings.oidc is None:
            return None
        from calnet.roles.server.signin.signin import SignIn

        signin = SignIn(self.registry, self.settings.oidc, public_url=lambda: parse_url(self.url), clock=self._clock, random=self._random)
        self.control.signin = signin
        return signin

    def _changed_on_any_thread(self, change: Changed) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped meanwhile
            self._loop.call_soon_threadsafe(self._changed, change)

    def _changed(self, change: Changed) -> None:
        self.relay.changed(change)
        self.control.changed(change)
        self._housekeeping_wake.set()

    async def _housekeep(self) -> None:
        """At each deadline, and every so often all the same: one that passed before it was asked for is named no more."""
        routine_at, due = self._loop.time(), math.inf
        while True:
            self._housekeeping_wake.clear()
            due = min(due, self.registry.next_deadline() or math.inf)
            wait = min(routine_at - self._loop.time(), due - self._clock())
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._housekeeping_wake.wait()
            elif await self._keep_house():
                routine_at, due = self._loop.time() + self._timing.housekeeping_s, math.inf

    async def _keep_house(self) -> bool:
        """Whether it was done; if not, it is tried again after a while."""
        try:
            await durable(self.registry.housekeeping())
        except CalnetError as error:  # a full disk, say
            log.error("housekeeping_failed reason=%s", error)
            await asyncio.sleep(HOUSEKEEPING_RETRY_S)
            return False
        await asyncio.sleep(HOUSEKEEPING_PAUSE_S)
        return True

    def _leave_handover(self, handover: Handover) -> None:
        try:
            write_handover(self.settings.state_dir, handover)
        except StateError as error:
            log.warning("handover_not_left reason=%s", error)

    async def _drained(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while len(self.control) or len(self.relay):
                    await asyncio.sleep(0.01)


def settings_relay(server: CalnetServer) -> str:
    """The relay's URL, as far as the server knows it."""
    return parse_url(server.url).relay


@contextlib.contextmanager
def _explained(settings: ServerSettings) -> Generator[None, None, None]:
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        what = f"the certificate {settings.tls_cert} and key {settings.tls_key} can't be used"
        raise ConfigError(f"{what}: {error.strerror or error}; give PEM files that belong together and that the server may read") from None
