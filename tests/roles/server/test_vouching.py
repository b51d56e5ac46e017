"""Users whom a provider vouches for: asked about in turn, out of its reach, and vouched for no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from calnet.errors import ConflictError, ForbiddenError, NotFoundError, UnauthorizedError
from calnet.model import UserId
from calnet.roles.server.actors import Actor, Role, Terms
from calnet.roles.server.standing import NodeState
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import Identity, UserWish
from calnet.roles.server.vouching import SIGN_OUT_S, ended_by_sign_out
from calnet.store.interface import UserRecord, Watch
from tests.roles.server.registries import Office, done

ALICE = Identity("https://id.example", "00u1", "alice@example.com", "Alice A", "alice", ("eng",), Role.ADMIN)
WEEK_S = 7 * 86_400.0


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


def _alice(office: Office, refresh: bytes = b"sealed", until: float | None = None) -> UserId:
    return done(office.registry.sign_in(ALICE, refresh=refresh, until=until)).id


def _record(office: Office, user: UserId) -> UserRecord:
    record = office.registry.user_record(user)
    assert record is not None
    return record


def _token(office: Office) -> str:
    return str(done(office.registry.create_token(TokenWish("alice", "ci")))["token"])


def _validity(office: Office) -> list[bool]:
    rows = office.registry.keys()
    return [row["valid"] for row in rows]


def _opens(office: Office, token: str) -> bool:
    try:
        return office.registry.principal_of_token(token, "") is not None
    except UnauthorizedError:
        return False


def test_removed_users_key_admits_no_machine(office: Office) -> None:
    user = _alice(office)
    key = office.auth_key(user="alice", reusable=True)
    node = office.register(office.machine("laptop"), key).node
    assert node is not None
    done(office.registry.lose_access(user))
    assert office.registry.standing_of(node).state is NodeState.EXPIRED
    assert _validity(office) == [False]
    with pytest.raises(ForbiddenError, match="revoked"):
        office.register(office.machine("another"), key)
    later = office.auth_key(user="alice")
    with pytest.raises(ForbiddenError, match="sign in"):
        office.register(office.machine("another"), later)
    _alice(office)
    with pytest.raises(ForbiddenError, match="revoked"):
        office.register(office.machine("another"), key)
    assert office.register(office.machine("another"), later).state is NodeState.ACTIVE


def test_removed_user_does_nothing_more_until_it_signs_in(office: Office) -> None:
    user = _alice(office)
    token = _token(office)
    secret, _ = done(office.registry.create_session(user, expires_s=3600.0))
    node = office.join(user="alice")
    by_user = Terms(Actor("user", str(user), "alice", user=user))
    done(office.registry.lose_access(user))
    assert office.registry.user("alice")["access"] == "lost"
    assert not _opens(office, token)
    assert office.registry.session_of(secret) is None
    with pytest.raises(ForbiddenError):
        done(office.registry.create_user("evil", role="admin", terms=by_user))
    with pytest.raises(ForbiddenError):
        done(office.registry.create_session(user, expires_s=3600.0))
    with pytest.raises(ForbiddenError, match="sign in again"):
        done(office.registry.sign_in(ALICE, anew=False))
    with pytest.raises(ConflictError, match="vouches for alice no more"):
        done(office.registry.approve_node(str(node)))
    assert done(office.registry.approve_node(str(node), "admin"))["user"] == "admin"
    _alice(office)
    assert office.registry.user("alice")["access"] == "granted"
    assert not _opens(office, token), "what was revoked stays so"
    assert done(office.registry.create_user("fine", terms=by_user))["name"] == "fine"


def test_actor_acts_as_no_more_than_its_access_token_gives(office: Office) -> None:
    user = _alice(office)
    terms = Terms(Actor("user", str(user), "alice", user=user, at_most=Role.USER))
    for future in (office.registry.create_user("evil", role="admin", terms=terms), office.registry.create_token(TokenWish("admin", "x"), terms=terms)):
        with pytest.raises(ForbiddenError):
            done(future)


def test_one_server_at_a_time_asks_about_a_user(office: Office) -> None:
    user = _alice(office)
    assert done(office.registry.ask_about(user, 300.0)) is None
    office.now += 300.0
    assert done(office.registry.ask_about(user, 300.0)) == Watch(office.now, office.now - 300.0, b"sealed")
    assert done(office.registry.ask_about(user, 300.0)) is None
    done(office.registry.confirm(user, None, b"next"))
    office.now += 300.0
    assert done(office.registry.ask_about(user, 300.0)) == Watch(office.now, office.now - 300.0, b"next")


def test_confirmation_takes_over_claims_and_is_no_login(office: Office) -> None:
    user = _alice(office)
    before = office.registry.user("alice")
    office.now += 60.0
    done(office.registry.confirm(user, Identity("https://id.example", "00u1", groups=("ops",)), b"next"))
    after = office.registry.user("alice")
    assert (after["role"], after["groups"], after["last_login"]) == ("user", ["ops"], before["last_login"])
    done(office.registry.confirm(user, None, b"third"))
    assert office.registry.user("alice") == after, "etag and all: nothing that people see has changed"


def test_confirmation_that_comes_after_the_loss_gives_nothing_back(office: Office) -> None:
    user = _alice(office)
    done(office.registry.lose_access(user))
    with pytest.raises(NotFoundError):
        done(office.registry.confirm(user, ALICE, b"next"))
    assert _record(office, user).access == "lost"


def test_refresh_token_that_ends_with_a_sign_out_leaves_the_last_word_for_a_while(office: Office) -> None:
    user = _alice(office)
    token, key = _token(office), office.auth_key(user="alice", reusable=True, expires_s=10 * WEEK_S)
    node = office.join(user="alice")
    secret, _ = done(office.registry.create_session(user, expires_s=10 * WEEK_S))
    done(office.registry.signed_out(user))
    watch = done(office.registry.ask_about(user, 0.0))
    assert watch is not None
    assert ended_by_sign_out(watch)
    done(office.registry.lapse(user, office.now + WEEK_S))
    assert _opens(office, token)
    assert office.registry.standing_of(node).key_expires == office.now + WEEK_S
    done(office.registry.rest(user))
    assert _record(office, user).access == "granted"
    office.now += WEEK_S
    done(office.registry.rest(user))
    assert _record(office, user).access == "resting"
    assert not _opens(office, token)
    assert office.registry.session_of(secret) is None
    assert office.registry.standing_of(node).state is NodeState.EXPIRED
    with pytest.raises(ForbiddenError, match="sign in"):
        office.register(office.machine("another"), key)
    _alice(office)
    assert _opens(office, token), "what rested is of use again"


def test_refresh_token_that_outlives_a_sign_out_was_not_ended_by_it(office: Office) -> None:
    user = _alice(office)
    done(office.registry.signed_out(user))
    for wait, still in ((SIGN_OUT_S - 1.0, True), (1.0, False)):
        office.now += wait
        done(office.registry.confirm(user, None, b"next"))
        watch = _record(office, user).watch
        assert watch is not None
        assert ended_by_sign_out(watch) is still


def test_word_about_a_user_without_refresh_token_is_renewed_by_each_sign_in(office: Office) -> None:
    user = _alice(office, b"", office.now + WEEK_S)
    token, node = _token(office), office.join(user="alice")
    office.now += WEEK_S - 1.0
    _alice(office, b"", office.now + WEEK_S)
    office.now += WEEK_S - 1.0
    done(office.registry.rest(user))
    assert _opens(office, token)
    office.now += 1.0
    done(office.registry.rest(user))
    assert not _opens(office, token)
    assert office.registry.standing_of(node).state is NodeState.ACTIVE, "its key's own end is the node's"


def test_sign_in_without_a_refresh_token_keeps_an_earlier_one(office: Office) -> None:
    user = _alice(office)
    _alice(office, b"", office.now + WEEK_S)
    watch = _record(office, user).watch
    assert watch is not None
    assert (watch.refresh, watch.until) == (b"sealed", None)


def test_user_made_by_hand_needs_nobodys_word(office: Office) -> None:
    user = UserId(done(office.registry.create_user("bob"))["id"])
    token = str(done(office.registry.create_token(TokenWish("bob", "ci")))["token"])
    done(office.registry.rest(user))
    assert done(office.registry.ask_about(user, 0.0)) is None
    assert _opens(office, token)


def test_who_has_anything_that_opens_something_is_depended_on(office: Office) -> None:
    user = _alice(office)
    assert user not in office.registry.depended_on()
    done(office.registry.create_session(user, expires_s=60.0))
    assert user in office.registry.depended_on()
    office.now += 60.0
    assert user not in office.registry.depended_on()
    row = done(office.registry.create_key(user="alice"))
    assert user in office.registry.depended_on()
    done(office.registry.revoke_key(row["id"]))
    assert user not in office.registry.depended_on()
    row = done(office.registry.create_token(TokenWish("alice", "ci")))
    assert user in office.registry.depended_on()
    done(office.registry.revoke_token(row["id"]))
    assert user not in office.registry.depended_on()
    office.join(user="alice")
    assert user in office.registry.depended_on()


def test_suspended_user_is_shown_the_key_that_admits_nobody(office: Office) -> None:
    _alice(office)
    office.auth_key(user="alice")
    done(office.registry.update_user("alice", UserWish(suspended=True)))
    assert _validity(office) == [False]
