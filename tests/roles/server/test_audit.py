"""The audit log: every change with who, what, before and after; the configuration as it was at any time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import pytest

from calnet.errors import CalnetError, ForbiddenError, InvalidError
from calnet.model import UserId
from calnet.roles.server.actors import LOCAL, Actor, Terms
from calnet.roles.server.times import exact_time_text, parse_time, time_text
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import Identity, UserWish
from calnet.store.archive import read_archive
from calnet.store.interface import AuditRecord
from tests.roles.server.registries import Office, done

ADA = Actor("user", "1", "ada", "192.0.2.1", UserId(1))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _last(office: Office) -> dict[str, Any]:
    (row,) = office.registry.audit(limit=1)
    return row


def test_change_is_told_with_who_what_before_and_after(office: Office) -> None:
    done(office.registry.create_user("bob"))
    office.now += 1.25
    done(office.registry.rename_user("bob", "rob", terms=Terms(ADA)))
    row = _last(office)
    assert row["actor"] == {"kind": "user", "id": "1", "name": "ada", "source": "192.0.2.1"}
    assert (row["action"], row["at"]) == ("users.update", "2027-01-15T08:00:01.250Z")
    (change,) = row["changes"]
    assert (change["kind"], change["id"], change["before"]["name"], change["after"]["name"]) == ("user", "2", "bob", "rob")
    assert {name for name in change["before"] if change["before"][name] != change["after"][name]} == {"name"}


def test_first_start_is_the_first_record_and_names_no_secret(office: Office) -> None:
    (row,) = office.registry.audit()
    assert (row["seq"], row["actor"]["kind"], row["action"]) == (1, "system", "server.start")
    assert [(change["kind"], change["id"]) for change in row["changes"]] == [("setting", "prefix-v4"), ("setting", "prefix-v6"), ("user", "1")]


def test_machine_is_the_actor_of_what_it_does_itself(office: Office) -> None:
    machine = office.machine("laptop")
    node = office.join_as(machine)
    row = _last(office)
    assert (row["action"], row["actor"]["kind"], row["actor"]["name"]) == ("nodes.register", "node", "laptop")
    assert {change["kind"] for change in row["changes"]} == {"node", "key"}
    done(office.registry.update(node, os="plan9"))
    assert (_last(office)["action"], _last(office)["actor"]["id"]) == ("nodes.update", str(node))
    done(office.registry.logout(node, "192.0.2.9"))
    assert (_last(office)["action"], _last(office)["actor"]["source"]) == ("nodes.logout", "192.0.2.9")


def test_presence_and_what_changes_nothing_are_not_audited(office: Office) -> None:
    node = office.join()
    user = done(office.registry.sign_in(Identity("https://id.example", "00u1"), refresh=b"one")).id
    before = _last(office)["seq"]
    office.registry.connected(node)
    office.registry.disconnected(node)
    office.registry.set_health(node, ({"code": "x", "severity": "y", "text": "z"},))
    assert done(office.registry.ask_about(user, 0.0)) is not None
    done(office.registry.confirm(user, None, b"two"))
    done(office.registry.rename_user("admin", "admin"))
    done(office.registry.enable_node(str(node)))
    done(office.registry.housekeeping())
    assert _last(office)["seq"] == before


def test_refused_change_is_not_audited(office: Office) -> None:
    before = _last(office)["seq"]
    futures: list[Future[Any]] = [office.registry.create_user("admin"), office.registry.create_user("-"), office.registry.delete_user("admin")]
    for future in futures:
        with pytest.raises(CalnetError):
            done(future)
    assert _last(office)["seq"] == before


def test_log_is_paged_both_ways_and_filtered(office: Office) -> None:
    for number in range(5):
        done(office.registry.create_user(f"u{number}", terms=Terms(ADA if number % 2 else LOCAL)))
    seqs = [row["seq"] for row in office.registry.audit(limit=4)]
    assert seqs == [6, 5, 4, 3]
    assert [row["seq"] for row in office.registry.audit(before=3, limit=4)] == [2, 1]
    assert [row["seq"] for row in office.registry.audit(after=4, newest_first=False)] == [5, 6]
    assert [row["seq"] for row in office.registry.audit(accepts=lambda record: record.actor_name == "ada")] == [5, 3]
    assert [row["seq"] for row in office.registry.audit(accepts=lambda record: record.actor_name == "ada", limit=1, newest_first=False)] == [3]
    assert office.registry.audit(limit=0) == []


def test_log_outlives_a_restart_and_is_told_live_from_there_on(office: Office) -> None:
    done(office.registry.create_user("bob"))
    office.reopen()
    told: list[AuditRecord] = []
    end = office.registry.subscribe_audit(told.extend)
    done(office.registry.create_user("carol"))
    assert [(record.seq, record.action) for record in told] == [(3, "users.create")]
    end()
    done(office.registry.create_user("dave"))
    told_after: list[AuditRecord] = []
    office.registry.subscribe_audit(told_after.extend)
    done(office.registry.create_user("erin"))
    assert [record.seq for record in told + told_after] == [3, 5]


def test_waiting_changes_have_a_record_each_in_the_order_they_were_made(office: Office) -> None:
    told: list[AuditRecord] = []
    office.registry.subscribe_audit(told.extend)
    for future in [office.registry.create_user(f"u{number}") for number in range(50)]:
        done(future)
    assert [record.seq for record in told] == list(range(2, 52))
    assert [record.changes[0].after and record.changes[0].after["name"] for record in told] == [f"u{number}" for number in range(50)]


def test_time_of_a_row_is_after_its_change_and_a_moment_before_it_is_not(office: Office) -> None:
    office.now += 0.123456
    done(office.registry.create_user("bob"))
    at = parse_time(_last(office)["at"])
    assert "2" in office.registry.audit_at(at)["configuration"]["user"]
    assert "2" not in office.registry.audit_at(at - 0.001)["configuration"]["user"]


def test_before_the_first_start_there_was_nothing(office: Office) -> None:
    office.join()
    assert not any(office.registry.audit_at(office.now - 1)["configuration"].values())


@pytest.mark.parametrize("text", ["", "yesterday", "12:00", "2026-13-01", "9999-99-99T00:00:00Z", "1800000000"])
def test_no_time_is_invalid(text: str) -> None:
    with pytest.raises(InvalidError, match="is no time"):
        parse_time(text)


def test_times_are_read_as_they_are_written() -> None:
    for number in range(2000):
        at = round(1.8e9 + number * 1.000977, 3)
        assert parse_time(exact_time_text(at)) == at
    assert parse_time(str(time_text(1.8e9))) == 1.8e9
    assert parse_time("2027-01-15") == 1.8e9 - 8 * 3600


def test_restore_is_a_change_that_can_be_looked_behind(office: Office) -> None:
    done(office.registry.create_user("anna"))
    office.now += 1
    backup = office.registry.backup()
    done(office.registry.rename_user("anna", "berta"))
    done(office.registry.create_user("late"))
    between = office.now
    office.now += 1
    done(office.registry.restore(read_archive(backup), "server.restore", LOCAL))
    assert _names(office, between) == ["admin", "berta", "late"]
    assert _names(office, office.now) == _names(office, between - 1) == ["admin", "anna"]
    assert [(change["id"], (change["after"] or {}).get("name")) for change in _last(office)["changes"]] == [("3", None), ("2", "anna")]


def test_restore_of_another_server_tells_that_servers_past(office: Office, tmp_path: Path) -> None:
    other = Office(tmp_path / "other", seed=2)
    done(other.registry.create_user("there"))
    other.now += 1
    done(other.registry.rename_user("there", "gone"))
    backup = other.registry.backup()
    other.registry.close()
    done(office.registry.create_user("here"))
    office.now += 5
    done(office.registry.restore(read_archive(backup), "server.restore", LOCAL))
    assert _names(office, other.now - 1) == ["admin", "there"]
    assert _names(office, office.now) == ["admin", "gone"]


def test_restore_from_before_the_overlay_grew_forgets_no_record_either(office: Office) -> None:
    backup = office.registry.backup()
    office.now += 1
    office.reopen("100.70.0.0/16")
    office.now += 1
    assert done(office.registry.restore(read_archive(backup), "server.restore", LOCAL)) is True
    assert [row["action"] for row in office.registry.audit(newest_first=False)] == ["server.start", "server.start", "server.restore"]
    assert office.registry.audit_at(office.now - 1)["configuration"]["setting"]["prefix-v4"] == {"text": "100.70.0.0/16"}


def _names(office: Office, at: float) -> list[str]:
    return sorted(user["name"] for user in office.registry.audit_at(at)["configuration"]["user"].values())


# --- a random life, remembered

POLICY = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:%d"]}], "tagOwners": {"tag:a": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:a"]}}}'


class Life:
    """Does one random thing after the other, also what is refused."""

    def __init__(self, office: Office, seed: int) -> None:
        self.office = office
        self.random = Random(seed)
        self.machines = [office.machine(f"m{number}") for number in range(6)]

    def step(self) -> None:
        office, registry, random = self.office, self.office.registry, self.random
        deeds: list[Callable[[], object]] = [
            lambda: registry.create_user(f"u{random.randrange(6)}", role=random.choice(["user", "admin", "owner"])),
            lambda: registry.update_user(self._user(), UserWish(name=f"u{random.randrange(6)}")),
            lambda: registry.update_user(self._user(), UserWish(suspended=random.random() < 0.5)),
            lambda: registry.delete_user(self._user()),
            lambda: registry.sign_in(Identity("i", f"s{random.randrange(3)}", groups=(f"g{random.randrange(2)}",))),
            lambda: registry.register(random.choice(self.machines).request("", ("10.1.0.0/16",))),
            lambda: registry.register(random.choice(self.machines).request(office.auth_key(user=self._user()))),
            lambda: registry.approve_node(self._node(), random.choice([None, self._user()])),
            lambda: registry.rename_node(self._node(), f"n{random.randrange(4)}"),
            lambda: registry.tag_node(self._node(), (f"tag:{random.choice('ab')}",)),
            lambda: registry.disable_node(self._node()),
            lambda: registry.enable_node(self._node()),
            lambda: registry.expire_node(self._node()),
            lambda: registry.delete_node(self._node()),
            lambda: registry.approve_routes(self._node(), ("10.1.0.0/16",)),
            lambda: registry.revoke_routes(self._node(), ("10.1.0.0/16",)),
            lambda: registry.set_policy(POLICY % random.choice([1, 2])),
            registry.reset_policy,
            lambda: registry.create_token(TokenWish(self._user(), "t", expires_s=random.choice([60.0, 86_400.0]))),
            lambda: registry.revoke_token(self._of(registry.tokens())),
            lambda: registry.revoke_key(self._of(registry.keys())),
            lambda: registry.create_session(UserId(random.randrange(1, 5)), expires_s=60.0),
            lambda: registry.update_settings({"node_key_lifetime_s": random.choice([3600, 7200])}),
            registry.housekeeping,
        ]
        with contextlib.suppress(CalnetError):
            done(random.choice(deeds)())  # type: ignore[arg-type]

    def _user(self) -> str:
        return self._of(self.office.registry.users())

    def _node(self) -> str:
        return self._of(self.office.registry.nodes())

    def _of(self, rows: list[dict[str, Any]]) -> str:
        return str(self.random.choice(rows)["id"]) if rows else "0"


@pytest.mark.parametrize("seed", range(6))
def test_random_life_is_remembered_as_it_was_at_each_moment_also_after_a_restart_and_restores(tmp_path: Path, seed: int) -> None:
    office = Office(tmp_path / "state", seed=seed)
    life = Life(office, seed)
    remembered: list[tuple[float, str]] = []
    backup = b""
    for number in range(150):
        office.now += life.random.choice([0.25, 1.0, 100.0, 50_000.0])
        life.step()
        if number % 40 == 15:
            backup = office.registry.backup()
        elif number % 40 == 35:
            office.now += 1.0
            done(office.registry.restore(read_archive(backup), "server.restore", LOCAL))
        remembered.append((office.now, json.dumps(office.registry.audit_at(office.now)["configuration"], sort_keys=True)))
        if number % 50 == 49:
            office.reopen()
            assert json.dumps(office.registry.audit_at(office.now)["configuration"], sort_keys=True) == remembered[-1][1]
    assert len({text for _, text in remembered}) > 40
    for at, text in remembered:
        assert json.dumps(office.registry.audit_at(at)["configuration"], sort_keys=True) == text
    office.registry.close()


def test_no_record_of_a_random_life_holds_a_secret(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", seed=9)
    life = Life(office, 9)
    for _ in range(120):
        life.step()
    shown = json.dumps(office.registry.audit(limit=10_000))
    secret = office.registry.control_key.secret_bytes()
    for hidden in ("secret", "hash", "pending_code", "refresh", "control-key", secret.hex(), repr(secret)[2:-1]):
        assert hidden not in shown
    office.registry.close()


def test_forbidden_change_leaves_no_trace(office: Office) -> None:
    row = done(office.registry.create_user("bob"))
    before = _last(office)["seq"]
    with pytest.raises(ForbiddenError):
        done(office.registry.update_user("bob", UserWish(role="admin"), terms=Terms(Actor("user", user=UserId(row["id"])))))
    assert _last(office)["seq"] == before
