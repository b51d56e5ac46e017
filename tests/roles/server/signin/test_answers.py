"""Providers whose answers are wrong, late, or given twice, against a whole server: nobody is signed in and no machine let in by them (attack 31)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from queue import Queue
from typing import Any

import httpx
import pytest

from calnet.roles.server.users import Identity
from calnet.wire import control
from tests.idp.signing import TokenKey, compact
from tests.roles.server.client import ControlClient, Machine
from tests.roles.server.registries import done
from tests.roles.server.signin.test_devices import ENTRA, GOOGLE
from tests.roles.server.signin.world import Login, PlainWorld, Tokens, eventually, plain_world

STRANGER = TokenKey("RS256", "a-key")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainWorld]:
    with plain_world(tmp_path_factory.mktemp("pages") / "state") as world:
        yield world


@pytest.fixture
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainWorld]:
    with plain_world(tmp_path_factory.mktemp("devices") / "state", device_flow=True) as world:
        yield world


def right(world: PlainWorld, nonce: str) -> Json:
    return {"id_token": world.id_token(nonce=nonce)}


def test_sign_in_at_a_provider_that_answers_right_is_done_once(pages: PlainWorld) -> None:
    with Login(pages, right) as login:
        cookies = dict(login.browser.cookies)
        done = login.comes_back()
        assert (done.status_code, done.headers["location"]) == (303, "/auth/done")
        (form,) = login.forms
        assert login.query["code_challenge"] == base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        with httpx.Client(trust_env=False, cookies=cookies) as same:
            again = same.get(f"{pages.server.url}/auth/callback", params={"code": "a-code", "state": login.query["state"]})
        assert again.status_code == 401
        assert "used before" in again.text
        assert len(login.forms) == 1


@pytest.mark.parametrize(
    "tokens",
    [
        lambda world, nonce: {},
        lambda world, nonce: {"id_token": 7},
        lambda world, nonce: {"access_token": world.id_token(nonce=nonce)},
        lambda world, nonce: {"id_token": world.id_token()},
        lambda world, nonce: {"id_token": world.id_token(nonce=nonce[::-1])},
        lambda world, nonce: {"id_token": world.id_token(nonce=[nonce])},
        lambda world, nonce: {"id_token": world.id_token(nonce=nonce, aud="another")},
        lambda world, nonce: {"id_token": world.id_token(nonce=nonce, iss="https://evil.example")},
        lambda world, nonce: {"id_token": world.id_token(nonce=nonce, exp=1)},
        lambda world, nonce: {"id_token": world.id_token(sub="", nonce=nonce)},
        lambda world, nonce: {"id_token": STRANGER.sign({"iss": world.idp.issuer, "sub": "alice", "nonce": nonce})},
    ],
    ids=["nothing", "no token", "access token alone", "no nonce", "other nonce", "list of nonces", "audience", "issuer", "expired", "subject", "key"],
)
def test_attack_31_answer_that_does_not_belong_to_the_sign_in_gives_no_session(pages: PlainWorld, tokens: Tokens) -> None:
    with Login(pages, tokens) as login:
        refused = login.comes_back()
        assert refused.status_code == 401
        assert refused.headers["content-type"].startswith("text/html")
        assert "calnet_session" not in login.browser.cookies
        assert login.comes_back().status_code == 401
        assert len(login.forms) == 1


def test_attack_31_code_that_the_provider_takes_no_more_is_refused_in_one_sentence(pages: PlainWorld) -> None:
    for error, status in (("invalid_grant", 401), ("server_error", 502)):
        with Login(pages, right) as login:
            pages.idp.answers["/token"] = lambda _, error=error: (400, {"error": error, "error_description": "<b>gone</b>"})  # type: ignore[misc]
            refused = login.comes_back()
            assert refused.status_code == status
            assert refused.headers["content-type"].startswith("text/html")
            assert error in refused.text
            assert "<b>gone" not in refused.text
    with Login(pages, right) as login:
        assert login.comes_back().status_code == 303


async def waiting(world: PlainWorld, machine: Machine) -> tuple[str, str]:
    """The machine registers without a key: its code and login URL."""
    async with ControlClient(world.server.url, world.server.registry.control_key.public, machine) as client:
        state = await client.register()
        assert isinstance(state, control.State)
        assert state.state == "pending"
        return state.code, state.login_url


def begins_flows(world: PlainWorld, tokens: Callable[[str], tuple[int, Json]]) -> None:
    """The provider begins a flow for everybody who asks, and answers to `tokens` of its device code."""
    numbers = count(1)

    def begin(_: dict[str, str]) -> tuple[int, Json]:
        number = next(numbers)
        return 200, {"device_code": f"device-{number}", "verification_uri_complete": f"{world.idp.issuer}/go?code={number}", "interval": 0.05, "expires_in": 60}

    world.idp.answers["/device"] = begin
    world.idp.answers["/token"] = lambda form: tokens(form["device_code"])


def state_of(world: PlainWorld, machine: Machine) -> tuple[str, str | None]:
    (row,) = [row for row in world.server.registry.nodes() if row["hostname"] == machine.hostname]
    return row["state"], row["user"]


def test_attack_31_one_id_token_admits_one_machine(devices: PlainWorld, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = Machine("first"), Machine("second"), Machine("third")
    token = devices.id_token(preferred_username="alice")
    given = {"device-1": token, "device-2": token, "device-3": devices.id_token(preferred_username="alice", jti="another")}
    begins_flows(devices, lambda code: (200, {"id_token": given[code]}))
    asyncio.run(waiting(devices, first))
    eventually(lambda: state_of(devices, first) == ("active", "alice"), "the first machine is admitted")
    asyncio.run(waiting(devices, second))
    eventually(lambda: "used before" in caplog.text, "the same token for another machine is refused")
    assert state_of(devices, second)[0] == "pending"
    asyncio.run(waiting(devices, third))
    eventually(lambda: state_of(devices, third) == ("active", "alice"), "another token admits another machine")
    assert state_of(devices, second)[0] == "pending"


def test_attack_31_answer_of_one_device_flow_is_taken_once(devices: PlainWorld) -> None:
    """The provider would give tokens again and again; the server asks once, and admits the machine that the flow was begun for alone."""
    machine, other = Machine("machine"), Machine("other")
    asked: list[str] = []

    def tokens(code: str) -> tuple[int, Json]:
        asked.append(code)
        return (200, {"id_token": devices.id_token(preferred_username="alice")}) if code == "device-2" else (400, {"error": "authorization_pending"})

    begins_flows(devices, tokens)
    assert asyncio.run(waiting(devices, other))[1].endswith("code=1")
    asyncio.run(waiting(devices, machine))
    eventually(lambda: state_of(devices, machine) == ("active", "alice"), "the machine is admitted")
    seen = len(asked)
    eventually(lambda: asked[seen:].count("device-1") >= 5, "the other flow is asked about still")
    assert asked.count("device-2") == 1
    assert state_of(devices, other)[0] == "pending"


def test_attack_31_device_flow_that_somebody_else_finishes_later_changes_nothing(devices: PlainWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Once somebody signed in, a machine that waits for an admin gets no new flow, but the page that says so."""
    machine, registry = Machine("machine"), devices.server.registry
    done(registry.update_settings({"require_approval": True}))
    answers: Queue[Json] = Queue()

    def tokens(_: str) -> tuple[int, Json]:
        return (400, {"error": "authorization_pending"}) if answers.empty() else (200, answers.get())

    begins_flows(devices, tokens)
    code, url = asyncio.run(waiting(devices, machine))
    assert url.endswith("code=1")
    bob = done(registry.sign_in(Identity(devices.idp.issuer, "bob", preferred_name="bob"))).id
    done(registry.admit_node(code, bob))
    answers.put({"id_token": devices.id_token(preferred_username="alice")})
    eventually(lambda: "somebody else has signed in" in caplog.text, "the flow that ends later is refused")
    assert state_of(devices, machine) == ("pending", "bob")
    assert asyncio.run(waiting(devices, machine)) == (code, f"{devices.server.url}/auth/device/{code}")
    assert devices.idp.asked.count("/device") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda world: (400, {"error": "access_denied"}), "device_flow_ended"),
        (lambda world: (400, {"error": "expired_token"}), "device_flow_ended"),
        (lambda world: (400, {"error": "invalid_client"}), "device_flow_failed"),
        (lambda world: (200, {}), "no ID token"),
        (lambda world: (200, {"access_token": world.id_token()}), "no ID token"),
        (lambda world: (200, {"id_token": world.id_token(aud="another")}), "another audience"),
        (lambda world: (200, {"id_token": world.id_token(exp=1)}), "has expired"),
        (lambda world: (200, {"id_token": STRANGER.sign({"iss": world.idp.issuer})}), "signature does not hold"),
        (lambda world: (200, {"id_token": compact({"alg": "none", "kid": "a-key"}, {}, lambda _: b"x")}), "algorithm"),
    ],
    ids=["denied", "expired", "client", "nothing", "access token alone", "audience", "old", "key", "none"],
)
def test_machine_whose_sign_in_fails_stays_out(
    devices: PlainWorld, caplog: pytest.LogCaptureFixture, answer: Callable[[PlainWorld], tuple[int, Json]], said: str
) -> None:
    caplog.set_level("INFO")
    machine = Machine("machine")
    begins_flows(devices, lambda _: answer(devices))
    _, url = asyncio.run(waiting(devices, machine))
    assert url.endswith("code=1")
    eventually(lambda: said in caplog.text, "the flow ends")
    assert state_of(devices, machine)[0] == "pending"
    _, url = asyncio.run(waiting(devices, machine))
    assert url.endswith("code=2"), "a new flow is begun for a machine that asks again"


@pytest.mark.parametrize(
    "flow",
    [
        {},
        {"device_code": "x"},
        {"device_code": "x", "verification_uri": "javascript:alert(1)"},
        {"device_code": "x", "verification_uri": "https://id.example/\x1b[2J"},
        {"device_code": "x", "verification_uri": ["https://id.example/"]},
        {"device_code": 7, "verification_uri": "https://id.example/"},
    ],
    ids=["nothing", "no place", "script", "control characters", "list", "number"],
)
def test_device_flow_that_is_none_leaves_the_machine_to_an_admin(devices: PlainWorld, flow: Json) -> None:
    devices.idp.answers["/device"] = lambda _: (200, flow)
    code, url = asyncio.run(waiting(devices, Machine("machine")))
    assert (len(code) > 0, url) == (True, "")
    assert "/token" not in devices.idp.asked


@pytest.mark.parametrize(
    ("flow", "url", "user_code"),
    [(ENTRA, "https://microsoft.com/devicelogin", "ABC123DEF"), (GOOGLE, "https://www.google.com/device", "GQVQ-JKEC")],
    ids=["Entra ID", "Google"],
)
def test_machine_is_told_the_code_to_enter_where_the_url_lacks_it(devices: PlainWorld, flow: Json, url: str, user_code: str) -> None:
    devices.idp.answers["/device"] = lambda _: (200, flow | {"interval": 0.05})
    answers: Queue[Json] = Queue()
    devices.idp.answers["/token"] = lambda _: (428, {"error": "authorization_pending"}) if answers.empty() else (200, answers.get())

    async def register() -> control.State:
        async with ControlClient(devices.server.url, devices.server.registry.control_key.public, Machine("machine")) as client:
            state = await client.register()
            assert isinstance(state, control.State)
            return state

    state = asyncio.run(register())
    assert (state.login_url, state.user_code) == (url, user_code)
    answers.put({"id_token": devices.id_token(preferred_username="alice")})
    eventually(lambda: state_of(devices, Machine("machine")) == ("active", "alice"), "the machine is admitted")


@pytest.mark.parametrize("error", ["invalid_client", "unauthorized_client", "invalid_scope"])
def test_machine_is_sent_to_our_own_page_where_the_provider_begins_no_flow_for_this_client(devices: PlainWorld, error: str) -> None:
    """Google's clients for web servers are such: its discovery names a device endpoint all the same."""
    devices.idp.answers["/device"] = lambda _: (401, {"error": error})
    code, url = asyncio.run(waiting(devices, Machine("machine")))
    assert url == f"{devices.server.url}/auth/device/{code}"
