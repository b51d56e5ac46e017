"""What waits for a relay client: bounds, order, and who may reach whom."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from calnet.model import NodeId, NodeKey
from calnet.roles.server import relay_hub
from calnet.roles.server.registry import Registry
from calnet.roles.server.relay_hub import DATAGRAM_OVERHEAD, MAX_QUEUE, RelayClient, RelayHub
from calnet.roles.server.standing import Changed
from calnet.roles.server.timing import Timing
from calnet.wire import relay
from calnet.wire.relay import Data, Reason, RelayDecoder, RelayEncoder


def key_of(node: int) -> NodeKey:
    return NodeKey(bytes([node]) * 32)


class SmallRegistry:
    """Nodes 1 to 9, each with the key of its number; `hidden` pairs don't see each other."""

    def __init__(self) -> None:
        self.nodes = {key_of(node): NodeId(node) for node in range(1, 10)}
        self.hidden: set[frozenset[int]] = set()

    def node_of_key(self, key: NodeKey) -> NodeId | None:
        return self.nodes.get(key)

    def sees(self, node: NodeId, other: NodeId) -> bool:
        return frozenset((node, other)) not in self.hidden


@pytest.fixture
def registry() -> SmallRegistry:
    return SmallRegistry()


@pytest.fixture
def hub(registry: SmallRegistry) -> RelayHub:
    return RelayHub(cast(Registry, registry), timing=Timing())


def admitted(hub: RelayHub, node: int) -> RelayClient:
    client = hub.admit(key_of(node))
    assert isinstance(client, RelayClient)
    return client


def send(client: RelayClient, encoder: RelayEncoder, to: int, *datagrams: bytes) -> None:
    for frame in encoder.encode((key_of(to), datagram) for datagram in datagrams):
        client.take_frame(frame)


def received(client: RelayClient, decoder: RelayDecoder) -> list[tuple[bytes, bytes]]:
    got: list[tuple[bytes, bytes]] = []
    while frames := client.take_frames():
        for frame in frames:
            found = decoder.decode(frame)
            if isinstance(found, Data):
                got.extend((key, bytes(data)) for key, data in found.datagrams)
    return got


def test_queue_beyond_its_bytes_drops_the_oldest(hub: RelayHub) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    fits = MAX_QUEUE // (1000 + DATAGRAM_OVERHEAD)
    encoder = RelayEncoder()
    for number in range(fits + 5):
        send(one, encoder, 2, number.to_bytes(4, "big") * 250)
    got = received(two, RelayDecoder())
    assert len(got) == fits
    assert got[0][1][:4] == (5).to_bytes(4, "big")
    assert got[-1][1][:4] == (fits + 4).to_bytes(4, "big")
    assert (two.dropped, two.queued, hub.queued) == (5, 0, 0)


def test_queue_of_tiny_datagrams_is_bounded_by_their_overhead(hub: RelayHub) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    for _ in range(3):
        send(one, RelayEncoder(), 2, *([b"x"] * 10_000))
    assert len(received(two, RelayDecoder())) <= MAX_QUEUE // DATAGRAM_OVERHEAD


def test_queues_in_all_are_bounded(hub: RelayHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_hub, "MAX_QUEUED_IN_ALL", 10_000)
    one, two, three = admitted(hub, 1), admitted(hub, 2), admitted(hub, 3)
    encoder = RelayEncoder()
    send(one, encoder, 2, *([bytes(1000)] * 50))
    send(one, encoder, 3, bytes(1000))
    assert hub.queued <= 10_000
    assert three.dropped == 1
    assert two.queued + three.queued == hub.queued


def test_leaving_client_gives_its_queue_back(hub: RelayHub) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    send(one, RelayEncoder(), 2, b"waits")
    hub.leave(two)
    assert (hub.queued, len(hub)) == (0, 1)
    two.enqueue(key_of(1), b"too late")
    assert hub.queued == 0


def test_older_connection_that_leaves_late_does_not_take_the_newer_with_it(hub: RelayHub) -> None:
    older = admitted(hub, 1)
    newer = admitted(hub, 1)
    assert older.closing is not None
    assert older.closing[0] is Reason.REPLACED
    hub.leave(older)
    sender = admitted(hub, 2)
    send(sender, RelayEncoder(), 1, b"x")
    assert received(newer, RelayDecoder()) == [(key_of(2), b"x")]


@pytest.mark.parametrize("case", ["hidden", "unknown", "itself"])
def test_datagram_to_whom_the_sender_may_not_reach_is_dropped_and_told_gone(hub: RelayHub, registry: SmallRegistry, case: str) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    registry.hidden.add(frozenset((1, 2)))
    target = {"hidden": 2, "unknown": 77, "itself": 1}[case]
    send(one, RelayEncoder(), target, b"secret")
    assert two.queued == one.queued == 0
    assert [RelayDecoder().decode(frame) for frame in one.take_frames()] == [relay.Gone((key_of(target),))]


def test_change_of_policy_holds_for_the_next_datagram(hub: RelayHub, registry: SmallRegistry) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    encoder = RelayEncoder()
    send(one, encoder, 2, b"before")
    registry.hidden.add(frozenset((1, 2)))
    hub.changed(Changed(frozenset(), frozenset()))
    send(one, encoder, 2, b"after")
    assert received(two, RelayDecoder()) == [(key_of(1), b"before")]


def test_change_of_standing_closes_who_lost_its_key_and_nobody_else(hub: RelayHub, registry: SmallRegistry) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    del registry.nodes[key_of(1)]
    hub.changed(Changed(frozenset(), frozenset({NodeId(1), NodeId(2)}), urgent=True))
    assert one.closing is not None
    assert two.closing is None
    send(one, RelayEncoder(), 2, b"still here?")
    assert two.queued == 0


def test_closing_client_sends_its_reason_last(hub: RelayHub) -> None:
    one, two = admitted(hub, 1), admitted(hub, 2)
    send(one, RelayEncoder(), 2, b"waits")
    two.ping(b"12345678")
    two.close(Reason.SILENT, "gone")
    two.close(Reason.OTHER, "a second reason changes nothing")
    frames = [RelayDecoder().decode(frame) for frame in two.take_frames()]
    assert frames == [relay.Ping(b"12345678"), relay.Close(Reason.SILENT, "gone")]


def test_control_frames_that_nobody_reads_are_bounded(hub: RelayHub) -> None:
    one = admitted(hub, 1)
    for _ in range(1000):
        one.take_frame(relay.ping_frame(b"12345678"))
    assert len(one.take_frames()) == relay_hub.MAX_CONTROL_FRAMES


def test_wake_is_set_by_a_datagram() -> None:
    async def scenario() -> None:
        hub = RelayHub(cast(Registry, SmallRegistry()), timing=Timing())
        one, two = admitted(hub, 1), admitted(hub, 2)
        send(one, RelayEncoder(), 2, b"x")
        await asyncio.wait_for(two.wake.wait(), 1)

    asyncio.run(scenario())
