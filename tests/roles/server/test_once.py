"""Creates that are carried out once, however often they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calnet.errors import ConflictError, InvalidError
from calnet.roles.server import once
from calnet.roles.server.actors import Once, Replay, Terms
from calnet.roles.server.tokens import TokenWish
from tests.roles.server.registries import Office, done


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _once(name: str = "a", asked: bytes = b"request") -> Terms:
    def render(result: Any) -> tuple[int, bytes]:
        return 201, json.dumps(result).encode()

    return Terms(once=Once(name, asked, render, lambda body: body[::-1]))


def test_repeated_create_is_answered_as_before_and_done_once(office: Office) -> None:
    made = done(office.registry.create_key(terms=_once()))
    for _ in range(2):
        again: Any = done(office.registry.create_key(terms=_once()))
        assert again == Replay(201, json.dumps(made).encode()[::-1])
        office.reopen()
    assert len(office.registry.keys()) == 1


def test_key_used_for_another_request_is_refused(office: Office) -> None:
    done(office.registry.create_user("bob", terms=_once()))
    with pytest.raises(InvalidError, match="Idempotency-Key was used for another request"):
        done(office.registry.create_user("carol", terms=_once(asked=b"other")))
    assert done(office.registry.create_user("carol", terms=_once("b", b"other")))["name"] == "carol"


def test_refused_create_keeps_no_answer(office: Office) -> None:
    with pytest.raises(ConflictError):
        done(office.registry.create_user("admin", terms=_once()))
    done(office.registry.rename_user("admin", "root"))
    assert done(office.registry.create_user("admin", terms=_once()))["name"] == "admin"


def test_answer_is_kept_for_a_day(office: Office) -> None:
    wish = TokenWish("admin", "ci")
    done(office.registry.create_token(wish, terms=_once()))
    office.now += once.KEPT_S - 1
    done(office.registry.housekeeping())
    assert isinstance(done(office.registry.create_token(wish, terms=_once())), Replay)
    office.now += 1
    assert "token" in done(office.registry.create_token(wish, terms=_once()))
    assert len(office.registry.tokens()) == 2


def test_kept_answers_are_bounded_and_housekeeping_makes_room(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "MAX_ANSWERS", 2)
    for name in "ab":
        done(office.registry.create_key(terms=_once(name)))
    with pytest.raises(InvalidError, match="too many answers"):
        done(office.registry.create_key(terms=_once("c")))
    assert isinstance(done(office.registry.create_key(terms=_once("a"))), Replay)
    office.now += once.KEPT_S
    done(office.registry.housekeeping())
    done(office.registry.create_key(terms=_once("c")))


def test_fifty_at_once_make_one(office: Office) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers: list[Any] = list(pool.map(lambda _: done(office.registry.create_user("bob", terms=_once())), range(50)))
    assert sum(isinstance(answer, Replay) for answer in answers) == 49
    assert len(office.registry.users()) == 2


def test_what_is_kept_is_sealed(office: Office) -> None:
    made = done(office.registry.create_key(terms=_once()))
    office.registry.close()
    kept = b"".join(path.read_bytes() for path in office.directory.iterdir())
    assert made["key"].encode() not in kept
    assert made["key"].encode()[::-1] in kept
    office.open()
