"""A server with sign-in on, and the provider that it trusts."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx

from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.standing import Standing
from tests.idp.plain import PlainProvider, plain_provider
from tests.idp.provider import CLIENT_ID, CLIENT_SECRET, Browser, IdentityProvider, provider
from tests.idp.signing import TokenKey
from tests.roles.server.registries import Machine, done
from tests.roles.server.running import Running, running

Found = TypeVar("Found")
Json = dict[str, Any]
WAIT_S = 40.0


@dataclass(frozen=True)
class SignInWorld:
    """The two, and short ways to use them."""

    server: Running
    idp: IdentityProvider
    browsers: list[Browser] = field(default_factory=list)

    def sign_in(self, user: str) -> tuple[httpx.Client, httpx.Response]:
        """A browser of this user after the login: its client for the server, with the cookie, and the last page."""
        browser = Browser(user)
        self.browsers.append(browser)
        page = browser.go(f"{self.server.url}/auth/login")
        assert isinstance(page, httpx.Response)
        return browser.client(self.server.url), page

    def knock(self, seed: int) -> Standing:
        """A machine that registers without a key and waits."""
        return done(self.server.registry.register(Machine(Random(seed), f"machine-{seed}").request()))


@contextlib.contextmanager
def sign_in_world(directory: Path, *, device_flow: bool = True, **changes: object) -> Iterator[SignInWorld]:
    """Both, on loopback; `changes` are of OidcSettings."""
    port = free_port()
    environment = {"TOKEN_SECONDS": "60", "DEVICE_FLOW": "1" if device_flow else "0"}
    with provider(f"http://127.0.0.1:{port}/auth/callback", **environment) as idp:
        settings = OidcSettings(issuer=idp.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, admins=("admins",), recheck_s=1.0)
        with running(directory, port=port, oidc=replace(settings, **changes)) as server:  # type: ignore[arg-type]
            world = SignInWorld(server, idp)
            with contextlib.ExitStack() as stack:
                stack.callback(lambda: [browser.__exit__() for browser in world.browsers])
                yield world


@dataclass(frozen=True)
class PlainWorld:
    """A server that trusts a provider which says what a test puts in its mouth."""

    server: Running
    idp: PlainProvider
    key: TokenKey

    def id_token(self, **changes: object) -> str:
        """An ID token as the provider gives it to this server now."""
        now = int(time.time())
        return self.key.sign({"iss": self.idp.issuer, "sub": "alice", "aud": CLIENT_ID, "iat": now, "exp": now + 60} | changes)


Tokens = Callable[[PlainWorld, str], Json]
"""What the token endpoint gives, of the world and the nonce that belongs there."""


class Login:
    """A browser that the server has sent to the provider, which will answer `tokens`."""

    def __init__(self, world: PlainWorld, tokens: Tokens) -> None:
        self.world = world
        self.browser = httpx.Client(trust_env=False, timeout=20)
        sent = self.browser.get(f"{world.server.url}/auth/login")
        assert sent.headers["location"].startswith(f"{world.idp.issuer}/authorize?")
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(sent.headers["location"]).query).items()}
        self.forms: list[dict[str, str]] = []

        def give(form: dict[str, str]) -> tuple[int, Json]:
            self.forms.append(form)
            return 200, tokens(world, self.query["nonce"])

        world.idp.answers["/token"] = give

    def __enter__(self) -> Login:
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.close()

    def comes_back(self, **changes: str) -> httpx.Response:
        values = {"code": "a-code", "state": self.query["state"]} | changes
        return self.browser.get(f"{self.world.server.url}/auth/callback", params=values)


@contextlib.contextmanager
def plain_world(
    directory: Path,
    *,
    path: str = "",
    publish: Callable[[Json], list[Json]] = lambda public: [public],
    userinfo: Json | None = None,
    device_flow: bool = False,
    **changes: object,
) -> Iterator[PlainWorld]:
    """Both, on loopback; `publish` makes the provider's key set of its public key, `changes` are of OidcSettings."""
    key = TokenKey("RS256", "a-key")
    with plain_provider(publish(key.public), path=path, device_flow=device_flow, userinfo=userinfo) as idp:
        settings = OidcSettings(issuer=idp.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
        with running(directory, oidc=replace(settings, **changes)) as server:  # type: ignore[arg-type]
            yield PlainWorld(server, idp, key)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(look: Callable[[], Found], what: str) -> Found:
    """What `look` finds once it is true."""
    until = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < until, f"it did not come to pass that {what}"
        time.sleep(0.1)
    return found
