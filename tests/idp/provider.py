"""A real OpenID provider for tests (npm's oidc-provider, certified), installed once into build/, and a browser that signs people in there without a screen."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

HERE = Path(__file__).resolve().parent
PLACE = HERE.parents[1] / "build" / "idp"
CLIENT_ID = "calnet"
CLIENT_SECRET = "a-secret-of-the-tests-alone-0123456789"
AUDIENCE = "https://calnet.test/api"


@dataclass(frozen=True)
class IdentityProvider:
    """A provider that runs; its hooks."""

    issuer: str

    def hook(self, name: str, **values: object) -> dict[str, Any]:
        answer = httpx.post(f"{self.issuer}/test/{name}", json=values, timeout=20, trust_env=False)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def sign(self, claims: dict[str, object], **header: object) -> str:
        """Any claims, signed by a real key of the provider."""
        return str(self.hook("sign", claims=claims, header=header)["token"])


def installed() -> Path:
    """Where the provider's packages are; skips (or fails where CALNET_REQUIRE_IDP=1) without node and npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        reason = "node and npm are not installed here (Debian's packages nodejs and npm)"
        if os.environ.get("CALNET_REQUIRE_IDP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    stamp = PLACE / "package-lock.json"
    if not stamp.exists() or stamp.read_bytes() != (HERE / "package-lock.json").read_bytes():
        PLACE.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "package.json", PLACE)
        (PLACE / "lock.tmp").write_bytes((HERE / "package-lock.json").read_bytes())
        (PLACE / "lock.tmp").rename(stamp)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=PLACE, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            stamp.unlink()
            pytest.fail(f"npm ci failed: {done.stderr[-2000:]}")
    shutil.copy(HERE / "idp.mjs", PLACE)
    return PLACE


@contextlib.contextmanager
def provider(redirect_url: str, **environment: str) -> Iterator[IdentityProvider]:
    """A provider whose client may send browsers back to `redirect_url`."""
    place = installed()
    settings = os.environ | {"REDIRECTS": redirect_url} | environment
    process = subprocess.Popen(["node", "idp.mjs", "0"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=settings)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("READY "):
                yield IdentityProvider(line.split()[1])
                return
        raise AssertionError("the provider did not start")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[tuple[str, str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append((values.get("action", ""), values.get("method", "get").upper(), {}))
        elif tag == "input" and self.forms and values.get("name"):
            self.forms[-1][2][values["name"]] = values.get("value", "")


class Browser:
    """Follows redirects and fills in the provider's forms as `user`. Cookies are kept for each host and port, as they are all on 127.0.0.1."""

    def __init__(self, user: str) -> None:
        self.user = user
        self._clients: dict[str, httpx.Client] = {}
        self.visited: list[str] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def client(self, url: str) -> httpx.Client:
        """The client for the URL's host and port."""
        origin = "/".join(url.split("/")[:3])
        return self._clients.setdefault(origin, httpx.Client(trust_env=False, timeout=20))

    def go(self, url: str, *, stop_at: str = "\0") -> httpx.Response | str:
        """Open the URL and do what it asks until nothing more is asked; the last answer, or the URL that begins with `stop_at`."""
        method, data = "GET", None
        for _ in range(40):
            if url.startswith(stop_at):
                return url
            self.visited.append(url.split("?")[0])
            answer = self.client(url).request(method, url, data=data)
            if answer.is_redirect:
                url, method, data = urljoin(url, answer.headers["location"]), "GET", None
                continue
            forms = _Forms()
            forms.feed(answer.text)
            if not forms.forms or "/auth/" in url:
                return answer
            action, method, data = forms.forms[0]
            url = urljoin(url, action)
            if "login" in data or data.get("prompt") == "login":
                data |= {"login": self.user, "password": "x"}
        raise AssertionError(f"a loop: {self.visited}")
