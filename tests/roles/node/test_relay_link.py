"""The relay connection: refusals, floods, fuzz, and a change of key without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import pytest

from calnet.crypto.keys import PrivateKey
from calnet.errors import UnreachableError
from calnet.roles.node import relay_client, underlay
from calnet.roles.node.relay_link import RelayLink
from calnet.wire import relay
from tests.roles.node.fakes import RELAY_URL, FakeServer, until

OLD, NEW = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)


class User:
    def __init__(self) -> None:
        self.states: list[bool] = []
        self.came: list[tuple[bytes, bytes]] = []

    def relay_changed(self, connected: bool) -> None:
        self.states.append(connected)

    def relayed(self, sender: bytes, datagrams: list[memoryview]) -> None:
        self.came += [(sender, bytes(datagram)) for datagram in datagrams]


def with_link(script: Callable[[FakeServer, User, RelayLink], Coroutine[Any, Any, None]], *, change_key_after: float = 0.05, user: User | None = None) -> None:
    user = user or User()

    async def main() -> None:
        server = FakeServer()
        link = RelayLink(user, dial=server.dial, random=Random(1).randbytes, clock=asyncio.get_running_loop().time, change_key_after=change_key_after)
        link.use(RELAY_URL, server.key.public, OLD)
        try:
            async with asyncio.timeout(30):
                await script(server, user, link)
        finally:
            link.stop()
            await server.drop()

    asyncio.run(main())


def test_link_connects_with_the_node_key_and_carries_both_ways() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        assert link.down_s() is not None
        await until(lambda: user.states == [True])
        assert link.down_s() is None
        assert server.relays[0].key == OLD.public
        link.send(b"p" * 32, [b"one", bytearray(b"two")])
        await server.relays[0].deliver(b"q" * 32, b"three")
        await until(lambda: len(server.relays[0].datagrams) == 2 and user.came)
        assert server.relays[0].datagrams == [(b"p" * 32, b"one"), (b"p" * 32, b"two")]
        assert user.came == [(b"q" * 32, b"three")]
        assert await link.measure() is not None

    with_link(script)


def test_link_changes_its_key_without_being_down() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        link.use(RELAY_URL, server.key.public, NEW)
        link.use(RELAY_URL, server.key.public, NEW)
        await until(lambda: len(server.relays) == 2)
        await until(lambda: server.relays[0].socket.closed and user.states[-1])
        assert server.relays[1].key == NEW.public
        assert False not in user.states
        link.send(b"p" * 32, [b"after"])
        await until(lambda: server.relays[1].datagrams)
        assert len(server.relays) == 2

    with_link(script)


def test_link_refused_says_why_and_tries_again() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        server.relay_refusal = relay.Reason.EXPIRED
        await server.drop()
        await until(lambda: "expired" in link.reason)
        server.relay_refusal = None
        await until(lambda: user.states[-1])

    with_link(script)


def test_link_replaced_by_another_machine_comes_back() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        await server.relays[0].socket.send(relay.close_frame(relay.Reason.REPLACED))
        await until(lambda: user.states == [True, False, True])

    with_link(script)


class Faulty(User):
    """Fails at what it is told, `faults` times."""

    def __init__(self, faults: int, *, also_when_lost: bool = False) -> None:
        super().__init__()
        self.faults, self.also_when_lost = faults, also_when_lost

    def relayed(self, sender: bytes, datagrams: list[memoryview]) -> None:
        if self.faults:
            self.faults -= 1
            raise ValueError("max() arg is an empty sequence")
        super().relayed(sender, datagrams)

    def relay_changed(self, connected: bool) -> None:
        super().relay_changed(connected)
        if self.also_when_lost and not connected:
            self.also_when_lost = False
            raise KeyError("lost")


@pytest.mark.parametrize("also_when_lost", [False, True])
def test_defect_at_a_relayed_datagram_costs_a_connection_that_is_told_and_made_anew(also_when_lost: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        for states in ([True], [True, False, True]):
            await until(partial(lambda states: user.states == states, states))
            assert link.down_s() is None
            await server.relays[-1].deliver(b"q" * 32, b"poison")
        await until(lambda: len(server.relays) == 3 and user.states[-1])
        await server.relays[2].deliver(b"q" * 32, b"harmless")
        await until(lambda: user.came == [(b"q" * 32, b"harmless")])
        assert user.states == [True, False, True, False, True]

    with_link(script, user=Faulty(2, also_when_lost=also_when_lost))
    failures = [record for record in caplog.records if record.getMessage().startswith("connection_failed")]
    assert all(record.exc_info is not None for record in failures)
    assert len(failures) == (3 if also_when_lost else 2)
    assert "ValueError" in failures[0].getMessage()
    assert "relay_lost error=the connection was ended by a defect of Calnet (ValueError)" in caplog.text


def test_link_stopped_is_down_and_sends_nothing() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        link.use("", b"", OLD)
        assert user.states == [True, False]
        link.send(b"p" * 32, [b"unanswered"])
        assert await link.measure() is None
        assert link.down_s() is None

    with_link(script)


def test_link_stopped_while_its_connection_breaks_makes_no_other() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        link.stop()
        await server.drop()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert len(server.relays) == 1

    with_link(script)


@pytest.mark.parametrize("seed", range(6))
def test_attack_15_fuzzed_relay_frames_cost_a_connection_at_most(seed: int) -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        random = Random(seed)
        with suppress(UnreachableError):  # the first may end the connection already
            await server.relays[0].socket.send(random.randbytes(random.randrange(0, 64)))
            await server.relays[0].socket.send(bytes((random.randrange(1, 7),)) + random.randbytes(random.randrange(0, 64)))
        await server.relays[0].socket.close()
        await until(lambda: len(server.relays) == 2 and user.states[-1])

    with_link(script)


def test_client_queue_is_bounded_and_the_oldest_go() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        size, count = 1000, 2 * relay_client.QUEUE_BYTES // 1000
        link.send(b"p" * 32, [number.to_bytes(4, "big") + bytes(size - 4) for number in range(count)])
        last = (count - 1).to_bytes(4, "big")
        await until(lambda: server.relays[0].datagrams and server.relays[0].datagrams[-1][1][:4] == last)
        came = server.relays[0].datagrams
        assert len(came) <= relay_client.QUEUE_BYTES // size + 1
        assert int.from_bytes(came[0][1][:4], "big") >= count - len(came)

    with_link(script)


def test_client_pings_a_silent_relay_and_leaves_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(relay, "SILENCE_LIMIT_S", 0.2)

    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        server.relays[0].socket.other.inbox.put_nowait = lambda message: None  # type: ignore[union-attr, method-assign]
        await until(lambda: len(server.relays) >= 2)

    with_link(script)


def swallow(server: FakeServer) -> None:
    """The first connection stands, and nothing comes out of it here any more."""
    server.relays[0].socket.other.inbox.put_nowait = lambda message: None  # type: ignore[union-attr, method-assign]


def test_connection_that_gives_no_sign_of_life_while_data_goes_is_replaced_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_client, "ASK_AFTER_S", 0.05)
    monkeypatch.setattr(relay_client, "ANSWER_S", 0.1)

    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        swallow(server)
        link.send(b"p" * 32, [b"unanswered"])
        await until(lambda: len(server.relays) == 2 and len(user.states) == 2)
        assert user.states == [True, True]  # never down
        link.send(b"p" * 32, [b"arrives"])
        await until(lambda: server.relays[1].datagrams == [(b"p" * 32, b"arrives")])

    with_link(script)


def test_connection_that_answers_is_kept_though_no_data_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_client, "ASK_AFTER_S", 0.02)
    monkeypatch.setattr(relay_client, "ANSWER_S", 5.0)

    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        for number in range(20):
            link.send(b"p" * 32, [bytes([number])])
            await asyncio.sleep(0.02)
        await until(lambda: len(server.relays[0].datagrams) == 20)
        assert (len(server.relays), user.states) == (1, [True])

    with_link(script)


def test_change_of_network_asks_the_connection_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_client, "ANSWER_S", 0.1)

    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        link.reconnect_now()
        await asyncio.sleep(0.3)
        assert len(server.relays) == 1
        swallow(server)
        link.reconnect_now()
        await until(lambda: len(server.relays) == 2)

    with_link(script)


def test_move_replaces_the_connection_without_waiting_for_its_answer() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        link.moved()
        link.moved()
        await until(lambda: len(server.relays) == 2 and user.states == [True, True])
        link.send(b"p" * 32, [b"arrives"])
        await until(lambda: server.relays[1].datagrams == [(b"p" * 32, b"arrives")])

    with_link(script)


@pytest.mark.parametrize("connected", [True, False])
def test_move_while_a_connection_is_being_made_makes_another_at_once(connected: bool) -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        server.mute = True
        if connected:
            link.moved()
        else:
            await server.drop()
            await until(lambda: user.states == [True, False])
            link.reconnect_now()
        await asyncio.sleep(0.05)  # it waits for an answer to what it sent from the place before
        server.mute = False
        link.moved()
        await until(lambda: len(server.relays) == 2 and user.states[-1], 5.0)
        assert user.states == ([True, True] if connected else [True, False, True])

    with_link(script)


def test_change_of_network_wakes_the_connection_that_takes_the_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underlay, "backoff", lambda attempt, fraction: 60.0)

    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        server.reachable = False
        link.moved()
        await asyncio.sleep(0.05)
        server.reachable = True
        link.reconnect_now()
        await until(lambda: user.states == [True, True])

    with_link(script)


@pytest.mark.parametrize("key_first", [True, False])
def test_move_while_the_key_changes_leaves_one_connection_with_the_new_key(key_first: bool) -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        server.mute = True
        if not key_first:
            link.moved()
        link.use(RELAY_URL, server.key.public, NEW)
        if key_first:
            link.moved()
        await asyncio.sleep(0.1)  # both are under way
        server.mute = False
        link.moved()
        await until(lambda: server.relays[-1].key == NEW.public)
        await until(lambda: [session.key for session in server.relays if not session.socket.closed] == [NEW.public])
        await until(lambda: len([task for task in asyncio.all_tasks() if "RelayClient.run" in repr(task)]) == 1)
        assert len(server.relays) == 2

    with_link(script)


def test_connection_that_ends_after_a_move_is_told_though_the_key_changes() -> None:
    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        server.mute = True
        link.use(RELAY_URL, server.key.public, NEW)
        await asyncio.sleep(0.1)
        link.moved()
        await server.drop()
        await until(lambda: user.states == [True, False])

    with_link(script)


def test_stalled_connection_that_ends_before_the_next_one_stands_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_client, "ANSWER_S", 0.05)

    async def script(server: FakeServer, user: User, link: RelayLink) -> None:
        await until(lambda: user.states == [True])
        swallow(server)
        server.reachable = False
        link.reconnect_now()
        await asyncio.sleep(0.2)
        assert user.states == [True]
        del server.relays[0].socket.other.inbox.put_nowait  # type: ignore[union-attr]
        await server.relays[0].socket.close()
        await until(lambda: user.states == [True, False])
        assert link.down_s() is not None
        server.reachable = True
        link.reconnect_now()
        await until(lambda: user.states == [True, False, True])

    with_link(script)
