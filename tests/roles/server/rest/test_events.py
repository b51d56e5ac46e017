"""Live events over HTTP: who hears what, where a stream begins, and what ends it."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from calnet.model import NodeId
from calnet.roles.server.rest import api, events
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import UserWish
from tests.roles.server.registries import Machine, done
from tests.roles.server.running import Running, running

WAIT_S = 20.0


@dataclass(frozen=True)
class Event:
    """One event as it came; `id` and `name` are empty where it has none."""

    id: str
    name: str
    data: dict[str, Any]


class Listener:
    """A stream of events, read on a thread. Entered once the first has come, where one is `awaited`."""

    def __init__(self, server: Running, token: str, last: str | None = None, *, awaited: bool = True) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._headers = {"Authorization": f"Bearer {token}"} | ({} if last is None else {"Last-Event-ID": last})
        self._connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)
        self._connection.connect()
        self._awaited = awaited
        self._came: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Listener:
        self._thread.start()
        if self._awaited:
            self.first = self.next()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def next(self) -> Event:
        """The next one; AssertionError where the stream ended."""
        found = self._came.get(timeout=WAIT_S)
        assert found is not None, "the stream ended"
        return found

    def await_end(self) -> list[Event]:
        """What came until the stream's end."""
        found = []
        while (event := self._came.get(timeout=WAIT_S)) is not None:
            found.append(event)
        return found

    def nothing_more(self) -> bool:
        return self._came.empty()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        self._connection.request("GET", "/api/v1/events", headers=self._headers)
        with contextlib.suppress(OSError, http.client.HTTPException), self._connection.getresponse() as answer:
            for line in answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                elif fields.keys() & {"id", "data"}:
                    self._came.put(Event(fields.get("id", ""), fields.get("event", ""), json.loads(fields.get("data", "{}"))))
                    fields = {}
        self._came.put(None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "state") as found:
        for name in ("mine", "other"):
            done(found.registry.create_user(name))
        yield found


def token(server: Running, user: str, *scopes: str) -> str:
    return str(done(server.registry.create_token(TokenWish(user, "events", scopes)))["token"])


def node(server: Running, user: str, seed: int) -> NodeId:
    key = done(server.registry.create_key(user=user))["key"]
    found = done(server.registry.register(Machine(Random(seed), user).request(key))).node
    assert found is not None
    return found


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_user_hears_of_its_own_nodes_and_of_nothing_else(server: Running) -> None:
    registry = server.registry
    mine, theirs = node(server, "mine", 1), node(server, "other", 2)
    with Listener(server, token(server, "mine")) as listener:
        done(registry.rename_node(str(theirs), "secret-name"))
        registry.connected(theirs)
        done(registry.create_user("somebody"))
        done(registry.create_key(user="mine"))
        done(registry.set_policy('{"acls": []}'))
        done(registry.update_settings({"require_approval": True}))
        done(registry.approve_node(str(theirs), "mine"))  # before, it was another's
        done(registry.delete_user("somebody"))
        registry.connected(mine)
        assert listener.next() == Event("", "presence", {"node": mine, "name": "mine", "online": True})
        done(registry.rename_node(str(mine), "better"))
        change = listener.next()
        assert (change.name, change.data["changes"][0]["after"]["name"]) == ("change", "better")
        assert change.id == str(change.data["seq"]) == str(registry.newest_audit())
        assert listener.nothing_more()
    with Listener(server, token(server, "mine"), "0") as listener:  # nor of what it missed
        done(registry.rename_node(str(mine), "best"))
        told = [listener.first]
        while told[-1].data["changes"][0]["after"].get("name") != "best":
            told.append(listener.next())
    assert {change["after"]["user"] for event in told for change in event.data["changes"]} == {registry.user("mine")["id"]}
    assert [event.data["action"] for event in told] == ["nodes.rename"] * 2


def test_auditor_hears_of_all_that_come_and_go_and_change(server: Running) -> None:
    registry = server.registry
    done(registry.create_user("looker", role="auditor"))
    theirs = node(server, "other", 2)
    with Listener(server, token(server, "looker")) as listener:
        assert listener.first == Event(str(registry.newest_audit()), "", {})
        for online, act in ((True, registry.connected), (False, registry.disconnected)):
            act(theirs)
            assert listener.next() == Event("", "presence", {"node": theirs, "name": "other", "online": online})
        registry.disconnected(theirs)
        done(registry.create_user("new"))
        assert listener.next().data["action"] == "users.create"


def test_stream_that_broke_before_its_first_event_is_taken_up_where_it_began(server: Running) -> None:
    admin = token(server, "admin")
    with Listener(server, admin) as listener:
        began = listener.first.id
    done(server.registry.create_user("missed"))
    with Listener(server, admin, began) as listener:
        assert listener.first.data["changes"][0]["after"]["name"] == "missed"


@pytest.mark.parametrize("ahead", [1, 1000, 10**17])
def test_change_that_the_log_does_not_have_begins_anew_and_is_said(server: Running, ahead: int) -> None:
    admin = token(server, "admin")
    newest = server.registry.newest_audit()
    with Listener(server, admin, str(newest + ahead)) as listener:
        assert listener.first == Event(str(newest), "reset", {"seq": newest})
        done(server.registry.create_user("now"))
        event = listener.next()
        assert (event.id, event.data["changes"][0]["after"]["name"]) == (str(newest + 1), "now")
    with Listener(server, admin, str(newest + 1), awaited=False) as listener:  # the newest itself is none that is missing
        done(server.registry.create_user("then"))
        assert listener.next().id == str(newest + 2)


@pytest.mark.parametrize("last", ["-1", "x", "1" * 19, "١"])
def test_what_is_no_number_is_refused(server: Running, last: str) -> None:
    headers = [(b"Authorization", f"Bearer {token(server, 'admin')}".encode()), (b"Last-Event-ID", last.encode())]
    assert httpx.get(f"{server.url}/api/v1/events", headers=headers, trust_env=False).status_code == 422


def test_stream_ends_with_the_token_before_it_tells_more(server: Running) -> None:
    registry = server.registry
    made = done(registry.create_token(TokenWish("admin", "short")))
    with Listener(server, made["token"]) as listener:
        done(registry.revoke_token(made["id"]))
        done(registry.create_user("unheard"))
        assert listener.await_end() == []


def test_stream_of_a_demoted_auditor_tells_no_more_of_others(server: Running) -> None:
    registry = server.registry
    done(registry.create_user("looker", role="auditor"))
    mine = node(server, "looker", 5)
    with Listener(server, token(server, "looker")) as listener:
        done(registry.update_user("looker", UserWish(role="user")))
        done(registry.create_user("unheard"))
        done(registry.rename_node(str(mine), "heard"))
        assert listener.next().data["action"] == "nodes.rename"


def test_quiet_and_busy_streams_look_again_whether_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that runs out is no change that could be heard of."""
    monkeypatch.setattr(api, "Events", partial(events.Events, heartbeat_s=0.3))
    with running(tmp_path / "state") as server:
        registry = server.registry
        theirs = node(server, "admin", 1)
        made = [done(registry.create_token(TokenWish("admin", "short", expires_s=1.5)))["token"] for _ in range(2)]
        with Listener(server, made[0]) as quiet:
            assert quiet.await_end() == []
        made = [done(registry.create_token(TokenWish("admin", "short", expires_s=1.5)))["token"]]
        stop = threading.Event()

        def noise() -> None:
            while not stop.wait(0.02):
                registry.connected(theirs)
                registry.disconnected(theirs)

        thread = threading.Thread(target=noise)
        thread.start()
        try:
            with Listener(server, made[0]) as busy:
                assert busy.await_end()
        finally:
            stop.set()
            thread.join()


def test_streams_are_bounded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 2)
    admin = token(server, "admin")
    with Listener(server, admin), Listener(server, admin):
        answer = httpx.get(f"{server.url}/api/v1/events", headers={"Authorization": f"Bearer {admin}"}, trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")

    def again() -> bool:
        with httpx.stream("GET", f"{server.url}/api/v1/events", headers={"Authorization": f"Bearer {admin}"}, trust_env=False) as stream:
            return stream.status_code == 200

    eventually(again)


def test_reader_that_is_too_slow_is_cut_off_and_goes_on_from_where_it_was(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_WAITING", 10)
    registry, admin = server.registry, token(server, "admin")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(WAIT_S)
        deaf.connect((host, int(port)))
        deaf.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin}\r\nConnection: close\r\n\r\n".encode())
        text = b""
        while b"id: " not in text:
            text += deaf.recv(4096)
        before = registry.newest_audit()
        for number in range(60):
            done(registry.set_policy('{"acls": []} // ' + f"{number}".rjust(200_000)))
        while chunk := deaf.recv(1 << 20):
            text += chunk
    ids = [int(line.removeprefix(b"id: ")) for line in text.splitlines() if line.startswith(b"id: ")]
    assert ids == list(range(before, ids[-1] + 1))
    assert ids[-1] < before + 60
    whole = ids[-1] if text.endswith(b"\n\n0\r\n\r\n") else ids[-2]
    with Listener(server, admin, str(whole)) as listener:
        found = [listener.first, *(listener.next() for _ in range(before + 60 - whole - 1))]
    assert [int(event.id) for event in found] == list(range(whole + 1, before + 61))
