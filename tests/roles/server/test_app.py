"""The HTTP face: what each path answers, and that a bad request is never an internal error."""

from __future__ import annotations

import asyncio
import base64
import random
from ipaddress import IPv4Network

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from calnet.roles.server.durable import durable
from calnet.roles.server.settings import ServerSettings
from calnet.roles.server.standing import NodeState
from calnet.roles.server.tokens import TokenWish
from calnet.wire import control
from tests.roles.server.client import WAIT_S, Machine
from tests.roles.server.world import World, in_world, in_world_of


async def get(world: World, path: str, method: str = "GET", **more: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, world.url + path, headers=more)


@in_world
async def test_health_and_readiness_answer(world: World) -> None:
    assert (await get(world, "/healthz")).text == "ok\n"
    assert (await get(world, "/readyz")).text == "ready\n"


@in_world
async def test_key_is_the_servers_control_key(world: World) -> None:
    document = (await get(world, "/control/key")).json()
    assert base64.b64decode(document["control_key"]) == world.key
    assert document["protocol"] == 1


@in_world
async def test_errors_are_problem_documents(world: World) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("POST", "/healthz", 405), ("GET", "/relay", 426), ("GET", "/control/ws", 426)):
        answer = await get(world, path, method)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        document = answer.json()
        assert (document["status"], document["type"]) == (status, "about:blank")
        assert document["title"]
        assert document["detail"]


@in_world
async def test_health_that_a_node_tells_is_in_the_list_of_nodes_and_nothing_a_terminal_obeys(world: World) -> None:
    token = (await durable(world.registry.create_token(TokenWish("admin", "t"))))["token"]

    async def health() -> list[dict[str, str]]:
        (row,) = (await get(world, "/api/v1/nodes", authorization=f"Bearer {token}")).json()["items"]
        return row["health"]  # type: ignore[no-any-return]

    line = {"code": "time", "severity": "warning", "text": "the clock is 40 s ahead"}
    async with world.control(Machine("ill")) as session:
        await session.join(await world.auth_key())
        assert await health() == []
        await session.say(control.Health((control.HealthLine(**line), control.HealthLine("x\n", "\x1b[2J", "\u202etext\r\n" * 30))))
        await session.say(control.Ping(1))
        await session.expect(control.Pong)
        first, second = await health()
        assert first == line
        assert all(text.isprintable() for text in second.values())
        await session.say(control.Health(()))
        await session.say(control.Ping(2))
        await session.expect(control.Pong)
        assert await health() == []


@in_world
async def test_server_that_stops_is_not_ready(world: World) -> None:
    world.server.drain()
    answer = await get(world, "/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, 503)
    assert (await get(world, "/healthz")).status_code == 200


@in_world
async def test_websocket_on_another_path_is_refused(world: World) -> None:
    with pytest.raises(InvalidStatus):
        await connect(world.url.replace("http", "ws") + "/elsewhere", proxy=None)


@in_world
async def test_random_requests_never_get_a_5xx(world: World) -> None:
    draw = random.Random(7)
    pieces = [b"GET", b"POST", b" ", b"/", b"/healthz", b"/%00", b"/../..", b"?", b" HTTP/1.1", b" HTTP/9", b"\r\n", b"Host: x", b"Host: \xff", b":", b"\0"]
    pieces += [b"Content-Length: -1", b"Content-Length: 9999999999", b"Transfer-Encoding: chunked", b"Upgrade: websocket", b"Connection: upgrade", b"\xff\xfe"]
    for _ in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
        writer.write(b"".join(draw.choices(pieces, k=draw.randrange(1, 20))) + b"\r\n\r\n")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer == b"" or not answer.startswith(b"HTTP/1.1 5"), answer
        writer.close()


@in_world
async def test_control_websocket_with_a_malformed_host_is_closed(world: World) -> None:
    for host in ("a b", "", "x/y", "u@h", "h:99999999"):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
        writer.write(
            b"GET /control/ws HTTP/1.1\r\nHost: " + host.encode() + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        answer = b""
        while b"Host header" not in answer and not answer.startswith(b"HTTP/1.1 4"):
            more = await asyncio.wait_for(reader.read(4096), WAIT_S)
            assert more, answer
            answer += more
        writer.close()


@in_world
async def test_forwarded_headers_of_an_untrusted_client_are_ignored(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.join(await world.auth_key())
    client = world.control(Machine("other"))
    client.headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    async with client as session:
        await session.join(await world.auth_key())
        assert session.netmap is not None
        assert session.netmap.relays[0].url.startswith("ws://127.0.0.1")


@in_world_of(settings=ServerSettings(trusted_proxies=(IPv4Network("127.0.0.1/32"),)))
async def test_forwarded_headers_of_a_trusted_proxy_give_the_relay_its_url(world: World) -> None:
    client = world.control(Machine())
    client.headers = {"X-Forwarded-Host": "calnet.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    async with client as session:
        node = await session.join(await world.auth_key())
        assert session.netmap is not None
        assert session.netmap.relays[0].url == "wss://calnet.example.org/relay"
        assert world.registry.standing_of(node).state is NodeState.ACTIVE
        await session.say(control.Ping(1))
        await session.expect(control.Pong)
