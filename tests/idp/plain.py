"""An OpenID provider without a mind of its own, on loopback: it publishes the keys and gives the answers that a test puts there, also those that no honest
provider gives."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

Json = dict[str, Any]
Answer = Callable[[dict[str, str]], tuple[int, Json]]
"""The form of a request → status and document."""


class PlainProvider:
    """`answers` are by path below the issuer; `asked` has all paths that were asked for, in order."""

    def __init__(self, origin: str, path: str, keys: Sequence[Json], *, device_flow: bool, userinfo: Json | None) -> None:
        self.issuer = origin + path
        self.path = path
        self.asked: list[str] = []
        self.locations: dict[str, str] = {}
        """By path: where the browser is sent on to."""
        endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        if device_flow:
            endpoints["device_authorization_endpoint"] = "device"
        if userinfo is not None:
            endpoints["userinfo_endpoint"] = "userinfo"
        document = {"issuer": self.issuer} | {name: f"{self.issuer}/{place}" for name, place in endpoints.items()}
        self.answers: dict[str, Answer] = {
            "/.well-known/openid-configuration": lambda _: (200, document),
            "/keys": lambda _: (200, {"keys": list(keys)}),
            "/userinfo": lambda _: (200, userinfo or {}),
        }


@contextlib.contextmanager
def plain_provider(keys: Sequence[Json], *, path: str = "", device_flow: bool = False, userinfo: Json | None = None) -> Iterator[PlainProvider]:
    """Such a provider, whose issuer has `path` behind its host and port; without `userinfo` it has no such endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer is two packets: each would wait 40 ms for the first to be acknowledged

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            self._answer(dict(parse_qsl(body.decode())))

        def _answer(self, form: dict[str, str]) -> None:
            place = self.path.partition("?")[0].removeprefix(provider.path)
            provider.asked.append(place)
            status, document = provider.answers.get(place, _nothing)(form)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if provider.locations.get(place):
                self.send_header("location", provider.locations[place])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = PlainProvider(f"http://127.0.0.1:{server.server_port}", path, keys, device_flow=device_flow, userinfo=userinfo)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


def _nothing(_: dict[str, str]) -> tuple[int, Json]:
    return 404, {}
