"""The book of device flows: one for each machine, however often and at once it asks, and no more than a bound in all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from calnet.errors import ExhaustedError, UnreachableError
from calnet.roles.server.signin.devices import MAX_FLOWS, DeviceFlows, login_of
from calnet.roles.server.signin.provider import Provider
from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.standing import Login
from tests.idp.plain import PlainProvider, plain_provider

Json = dict[str, Any]
Finished = list[tuple[str, Json]]


def with_flows(idp: PlainProvider, scenario: Callable[[DeviceFlows, Finished], Awaitable[None]], interval: float = 0.05) -> None:
    """`interval` is how long the provider wants to be left alone between two polls."""

    async def run() -> None:
        provider = Provider(OidcSettings(idp.issuer, "calnet"), time.monotonic)
        finished: Finished = []

        async def finish(code: str, tokens: Json) -> None:
            finished.append((code, tokens))

        flows = DeviceFlows(provider, finish, asyncio.get_running_loop())
        try:
            await scenario(flows, finished)
        finally:
            flows.close()
            await provider.close()

    idp.answers["/device"] = lambda _: (
        200,
        {"device_code": "d", "verification_uri_complete": f"https://id.example/{idp.asked.count('/device')}", "interval": interval, "expires_in": 60},
    )
    idp.answers["/token"] = lambda _: (400, {"error": "authorization_pending"})
    asyncio.run(run())


def test_machine_that_asks_again_or_twice_at_once_gets_the_same_flow() -> None:
    async def scenario(flows: DeviceFlows, _: Finished) -> None:
        urls = await asyncio.gather(*(flows.begin("AAAA") for _ in range(5)))
        assert {*urls, await flows.begin("AAAA")} == {Login("https://id.example/1")}
        assert await flows.begin("BBBB") == Login("https://id.example/2")

    with plain_provider([], device_flow=True) as idp:
        with_flows(idp, scenario)
        assert idp.asked.count("/device") == 2


def test_whoever_stops_waiting_ends_the_flow_for_nobody_else() -> None:
    async def scenario(flows: DeviceFlows, _: Finished) -> None:
        first, second = (asyncio.create_task(flows.begin("AAAA")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == Login("https://id.example/1")

    with plain_provider([], device_flow=True) as idp:
        with_flows(idp, scenario)
        assert idp.asked.count("/device") == 1


def test_more_flows_than_the_bound_are_not_begun_also_when_all_ask_at_once() -> None:
    async def scenario(flows: DeviceFlows, _: Finished) -> None:
        found = await asyncio.gather(*(flows.begin(str(number)) for number in range(MAX_FLOWS + 20)), return_exceptions=True)
        assert sum(isinstance(one, ExhaustedError) for one in found) == 20
        assert sum(isinstance(one, Login) for one in found) == MAX_FLOWS

    with plain_provider([], device_flow=True) as idp:
        with_flows(idp, scenario, interval=60)
        assert idp.asked.count("/device") == MAX_FLOWS


def test_flow_that_was_not_begun_or_has_ended_makes_room_for_another() -> None:
    async def scenario(flows: DeviceFlows, finished: Finished) -> None:
        begins = idp.answers["/device"]
        idp.answers["/device"] = lambda _: (200, {})
        with pytest.raises(UnreachableError):
            await flows.begin("AAAA")
        idp.answers["/device"] = begins
        assert await flows.begin("AAAA") == Login("https://id.example/2")
        idp.answers["/token"] = lambda _: (200, {"id_token": "x"})
        async with asyncio.timeout(30):
            while await flows.begin("AAAA") == Login("https://id.example/2"):
                await asyncio.sleep(0.01)
        assert finished[0] == ("AAAA", {"id_token": "x"})

    with plain_provider([], device_flow=True) as idp:
        with_flows(idp, scenario)


ENTRA = {
    "user_code": "ABC123DEF",
    "device_code": "d",
    "verification_uri": "https://microsoft.com/devicelogin",
    "expires_in": 900,
    "interval": 5,
    "message": "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code ABC123DEF to authenticate.",
}
GOOGLE = {"device_code": "d", "user_code": "GQVQ-JKEC", "verification_url": "https://www.google.com/device", "expires_in": 1800, "interval": 5}
KEYCLOAK = {
    "device_code": "d",
    "user_code": "ABCD-EFGH",
    "verification_uri": "https://id.example/realms/office/device",
    "verification_uri_complete": "https://id.example/realms/office/device?user_code=ABCD-EFGH",
    "expires_in": 600,
    "interval": 5,
}


@pytest.mark.parametrize(
    ("flow", "login"),
    [
        (ENTRA, Login("https://microsoft.com/devicelogin", "ABC123DEF")),
        (GOOGLE, Login("https://www.google.com/device", "GQVQ-JKEC")),
        (KEYCLOAK, Login("https://id.example/realms/office/device?user_code=ABCD-EFGH")),
        (ENTRA | {"user_code": None}, None),
        (ENTRA | {"user_code": "a\x1b[2J"}, None),
        (ENTRA | {"user_code": "A" * 65}, None),
        (GOOGLE | {"verification_url": "javascript:alert(1)"}, None),
        (KEYCLOAK | {"verification_uri_complete": "javascript:alert(1)"}, None),
    ],
    ids=["Entra ID", "Google", "Keycloak", "no code", "control characters", "long", "script", "script that is complete"],
)
def test_place_of_each_providers_answer_with_the_code_where_the_url_lacks_it(flow: Json, login: Login | None) -> None:
    assert login_of(flow) == login
