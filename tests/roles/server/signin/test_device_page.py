"""Machines at a provider without device flow: this server's own page lets them in, one at a time, and asks first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import httpx
import pytest

from calnet.roles.server.standing import Standing
from calnet.wire import control
from tests.idp.provider import Browser
from tests.roles.server.client import ControlClient
from tests.roles.server.client import Machine as ControlMachine
from tests.roles.server.registries import done
from tests.roles.server.signin.world import SignInWorld, sign_in_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignInWorld]:
    with sign_in_world(tmp_path_factory.mktemp("pages") / "state", device_flow=False) as found:
        yield found


def form_token(page: httpx.Response) -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', page.text)
    assert found is not None, page.text
    return found[1]


def node(world: SignInWorld, standing: Standing) -> tuple[str, str | None]:
    row = world.server.registry.node(str(standing.node))
    return row["state"], row["user"]


def place(world: SignInWorld, code: str) -> str:
    return f"{world.server.url}/auth/device/{code}"


def test_machine_is_let_in_on_our_page_by_whoever_signs_in_and_says_so(world: SignInWorld) -> None:
    def on_the_page(url: str) -> tuple[httpx.Response, httpx.Response]:
        with Browser("bob") as browser:
            asked = browser.go(url)
            assert isinstance(asked, httpx.Response)
            return asked, browser.client(url).post(url, data={"token": form_token(asked)})

    async def register() -> tuple[control.State, httpx.Response, httpx.Response, str]:
        async with ControlClient(world.server.url, world.server.registry.control_key.public, ControlMachine("kiosk")) as client:
            waiting = await client.register()
            assert isinstance(waiting, control.State)
            asked, done = await asyncio.to_thread(on_the_page, waiting.login_url)
            return waiting, asked, done, (await client.expect(control.State)).state

    waiting, asked, done, state = asyncio.run(register())
    assert waiting.login_url == place(world, waiting.code)
    assert str(asked.url) == waiting.login_url
    assert "kiosk" in asked.text
    assert f"<code>{waiting.code}</code>" in asked.text
    assert done.status_code == 200
    assert "on its way in" in done.text
    assert state == "active"
    (row,) = [row for row in world.server.registry.nodes() if row["hostname"] == "kiosk"]
    assert (row["user"], row["state"], row["code"]) == ("bob", "active", None)


def test_attack_31_signing_in_alone_lets_no_machine_in(world: SignInWorld) -> None:
    standing = world.knock(1)
    url = place(world, standing.code)
    with Browser("bob") as browser:
        assert isinstance(browser.go(url), httpx.Response)
        client = browser.client(url)
        assert client.get(url).status_code == 200
        for data in ({}, {"token": ""}, {"token": "0" * 64}, {"code": standing.code}):
            assert client.post(url, data=data).status_code == 403
    assert node(world, standing) == ("pending", None)


def test_attack_31_form_of_another_persons_page_is_refused(world: SignInWorld) -> None:
    standing = world.knock(2)
    url = place(world, standing.code)
    alice, _ = world.sign_in("alice")
    bob, _ = world.sign_in("bob")
    assert alice.post(url, data={"token": form_token(bob.get(url))}).status_code == 403
    assert node(world, standing) == ("pending", None)
    with httpx.Client(trust_env=False) as stranger:
        answer = stranger.post(url, data={"token": form_token(bob.get(url))})
        assert answer.headers["location"].startswith(f"{world.idp.issuer}/")
    assert node(world, standing) == ("pending", None)


def test_attack_31_one_confirmation_lets_one_machine_in_once(world: SignInWorld) -> None:
    first, second = world.knock(3), world.knock(4)
    bob, _ = world.sign_in("bob")
    url = place(world, first.code)
    token = form_token(bob.get(url))
    assert bob.post(url, data={"token": token}).status_code == 200
    assert node(world, first) == ("active", "bob")
    again = bob.post(url, data={"token": token})
    assert again.status_code == 404
    alice, _ = world.sign_in("alice")
    assert alice.get(url).status_code == 404
    assert node(world, first) == ("active", "bob")
    assert node(world, second) == ("pending", None)


def test_attack_31_machine_that_somebody_signed_in_for_is_nobody_elses_while_it_waits_for_an_admin(world: SignInWorld) -> None:
    registry = world.server.registry
    standing = world.knock(8)
    url = place(world, standing.code)
    alice, _ = world.sign_in("alice")
    bob, _ = world.sign_in("bob")
    tokens = {client: form_token(client.get(url)) for client in (alice, bob)}
    done(registry.update_settings({"require_approval": True}))
    try:
        for _ in range(2):
            first = alice.post(url, data={"token": tokens[alice]})
            assert first.status_code == 200
            assert f"admin nodes approve {standing.code}" in first.text
            for late in (bob.post(url, data={"token": tokens[bob]}), bob.get(url)):
                assert late.status_code == 409
                assert late.headers["content-type"].startswith("text/html")
                assert "somebody else has signed in for that machine" in late.text
                assert "alice" not in late.text
            assert "<form" not in (mine := alice.get(url)).text
            assert (mine.status_code, mine.text) == (200, first.text)
            assert node(world, standing) == ("pending", "alice")
    finally:
        done(registry.update_settings({"require_approval": False}))
    done(registry.approve_node(standing.code))
    assert node(world, standing) == ("active", "alice")


def test_attack_31_callback_that_led_to_a_machine_is_of_no_use_again(world: SignInWorld) -> None:
    standing = world.knock(5)
    with Browser("bob") as browser, httpx.Client(trust_env=False) as thief:
        callback = browser.go(place(world, standing.code), stop_at=f"{world.server.url}/auth/callback")
        assert isinstance(callback, str)
        client = browser.client(callback)
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        answer = client.get(callback)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/auth/device/{standing.code}")
        for headers in ({}, {"Cookie": cookie}):
            again = thief.get(callback, headers=headers)
            assert again.status_code == 401
            assert "calnet_session" not in thief.cookies
    assert node(world, standing) == ("pending", None)


def test_page_takes_the_code_of_a_machine_that_waits_and_no_other_name_of_one(world: SignInWorld) -> None:
    waiting, joined = world.knock(6), world.knock(7)
    bob, _ = world.sign_in("bob")
    url = place(world, joined.code)
    token = form_token(bob.get(url))
    assert bob.post(url, data={"token": token}).status_code == 200
    for name in (str(joined.node), str(waiting.node), "machine-6", "machine-7", joined.code, waiting.code.lower(), "nobody", "%0d%0aX: y", "%00"):
        for answer in (bob.get(place(world, name)), bob.post(place(world, name), data={"token": token})):
            assert answer.status_code == 404, name
    assert node(world, waiting) == ("pending", None)
