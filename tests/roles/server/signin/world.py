"""A server with sign-in on, and the provider that it trusts."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TypeVar

import httpx

from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.standing import Standing
from tests.idp.provider import CLIENT_ID, CLIENT_SECRET, Browser, IdentityProvider, provider
from tests.roles.server.registries import Machine, done
from tests.roles.server.running import Running, running

Found = TypeVar("Found")
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
def sign_in_world(directory: Path, **changes: object) -> Iterator[SignInWorld]:
    """Both, on loopback; `changes` are of OidcSettings."""
    port = free_port()
    environment = {"TOKEN_SECONDS": "60"}
    with provider(f"http://127.0.0.1:{port}/auth/callback", **environment) as idp:
        settings = OidcSettings(issuer=idp.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, admins=("admins",), recheck_s=1.0)
        with running(directory, port=port, oidc=replace(settings, **changes)) as server:  # type: ignore[arg-type]
            world = SignInWorld(server, idp)
            with contextlib.ExitStack() as stack:
                stack.callback(lambda: [browser.__exit__() for browser in world.browsers])
                yield world


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
