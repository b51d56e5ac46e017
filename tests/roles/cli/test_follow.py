"""`events follow` and `audit list --follow`: what is printed as it happens, also across a restart of the server."""

from __future__ import annotations

import json
import os
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from calnet.errors import CalnetError, UnreachableError
from calnet.roles.cli import admin_commands
from calnet.roles.cli.api import Api
from calnet.roles.server.registry import Registry
from calnet.roles.server.tokens import TokenWish
from calnet.store.opening import open_store
from tests.roles.server.registries import Machine, done
from tests.roles.server.running import running

Json = dict[str, object]
WAIT_S = 20.0


class _EndedError(Exception):
    """The test has seen enough."""


class Follower(Api):
    """Follows on a thread, as the command does."""

    def __init__(self, directory: Path, *, url: str = "", token: str = "", **words: object) -> None:
        super().__init__(socket_path="" if url else str(directory / "admin.sock"), url=url, token=token)
        self.began = threading.Semaphore(0)
        self.error: CalnetError | None = None
        self._ended = False
        self._args = Namespace(**{"json": True, "op": "events.follow", "actor": None, "action": None} | words)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def events(self, last: str | None = None) -> Iterator[tuple[str, str, Json]]:
        if self._ended:
            raise _EndedError
        for number, event in enumerate(super().events(last)):
            if not number:
                self.began.release()
            yield event
            if self._ended:
                raise _EndedError

    def end(self, registry: Registry) -> None:
        """With a last change, so that there is something to hear."""
        self._ended = True
        done(registry.create_user(f"last-{os.urandom(4).hex()}"))
        self.join()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            admin_commands.followed(self, self._args)
        except _EndedError:
            pass
        except CalnetError as error:
            self.error = error


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_commands, "FOLLOW_AGAIN_S", 0.05)


def printed(capsys: pytest.CaptureFixture[str], enough: Callable[[list[str]], bool]) -> list[str]:
    """The lines of stdout, once they are enough."""
    lines: list[str] = []
    deadline = time.monotonic() + WAIT_S
    while not enough(lines):
        assert time.monotonic() < deadline, lines
        lines += capsys.readouterr().out.splitlines()
        time.sleep(0.01)
    return lines


@pytest.mark.parametrize("op", ["events.follow", "audit.list"])
def test_server_that_restarts_before_the_first_event_is_followed_on_and_nothing_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str], op: str) -> None:
    with running(tmp_path / "state"):
        follower = Follower(tmp_path / "state", op=op)
        assert follower.began.acquire(timeout=WAIT_S)
    registry = Registry(open_store("kv", tmp_path / "state"), clock=time.time, random=os.urandom)
    done(registry.create_user("meanwhile"))
    registry.close()
    with running(tmp_path / "state") as server:
        assert follower.began.acquire(timeout=WAIT_S)
        done(server.registry.create_user("later"))
        lines = printed(capsys, lambda lines: len(lines) >= 2)
        follower.end(server.registry)
    assert [json.loads(line)["changes"][0]["after"]["name"] for line in lines] == ["meanwhile", "later"]


def test_server_that_is_not_there_at_first_ends_it(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    follower.join()
    assert isinstance(follower.error, UnreachableError)


def test_token_that_no_longer_holds_ends_it(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        made = done(server.registry.create_token(TokenWish("admin", "short")))
        follower = Follower(tmp_path, url=server.url, token=made["token"])
        assert follower.began.acquire(timeout=WAIT_S)
        done(server.registry.revoke_token(made["id"]))
        follower.join()
    assert follower.error is not None
    assert follower.error.code == "unauthorized"


def test_audit_follows_the_changes_that_it_would_list_and_events_all_as_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path / "state") as server:
        registry = server.registry
        node = done(registry.register(Machine(Random(1), "laptop").request(done(registry.create_key())["key"]))).node
        assert node is not None
        everything = Follower(tmp_path / "state", json=False)
        assert everything.began.acquire(timeout=WAIT_S)
        registry.connected(node)
        done(registry.create_user("bob"))
        lines = printed(capsys, lambda lines: len(lines) >= 2)
        everything.end(registry)
        capsys.readouterr()
        assert lines[0] == "laptop came"
        assert "users.create  user 2 (bob) made" in lines[1]
        users = Follower(tmp_path / "state", json=False, op="audit.list", action="users", actor="calnet")
        assert users.began.acquire(timeout=WAIT_S)
        registry.connected(node)
        done(registry.rename_node(str(node), "other"))
        done(registry.rename_user("bob", "rob"))
        assert "users.update" in printed(capsys, lambda lines: bool(lines))[0]
        users.end(registry)


def test_log_that_is_another_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    admin_commands._print_event(Namespace(json=False), "reset", {"seq": 3})
    assert "what changed in between is not shown" in capsys.readouterr().err
