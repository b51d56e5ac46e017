"""The user's say in a peer's path: the relay alone, or never the relay."""

from __future__ import annotations

from calnet.paths.effects import NOWHERE
from calnet.paths.explain import Outcome
from calnet.paths.way import Way
from calnet.sim.internet import Weather
from calnet.sim.nat import KINDS
from calnet.sim.node import Node
from calnet.sim.world import SECOND, SERVER, World


def pair(weather: Weather | None = None) -> tuple[World, Node, Node]:
    world = World(1)
    sites = [world.site(f"203.0.113.{number}", KINDS["port-restricted"], KINDS["firewall"], weather=weather) for number in (1, 2)]
    nodes = [world.node(site, f"192.168.{number}.2") for number, site in enumerate(sites, 1)]
    world.start()
    return world, nodes[0], nodes[1]


def choose(world: World, node: Node, other: Node, way: Way) -> None:
    node.perform(node.paths.set_ways({other.id: way}, world.now))


def test_relay_alone_carries_all_and_no_path_is_looked_for() -> None:
    world, one, other = pair()
    choose(world, one, other, Way.RELAY)
    choose(world, other, one, Way.RELAY)
    world.talk(one, other)
    world.run(20.0)
    assert one.data_to == other.data_to == []
    assert one.paths.report(other.id).path == "relay"
    assert len(other.streams[one.id].at) >= one.sent[other.id] - 1
    assert other.streams[one.id].direct_at == []


def test_choice_moves_what_flows_and_back_without_loss() -> None:
    world, one, other = pair()
    world.talk(one, other)
    world.run(5.0)
    assert one.paths.report(other.id).path == "direct"
    for node, peer in ((one, other), (other, one)):
        choose(world, node, peer, Way.RELAY)
    (change,) = [change for _, change in one.changes[-1:]]
    assert (change.new.endpoint, change.new.relay, change.why) == (None, True, "as the user set it")
    mark = world.now
    world.run(5.0)
    assert [at for at in other.streams[one.id].direct_at if at > mark + 0.1] == []
    for node, peer in ((one, other), (other, one)):
        choose(world, node, peer, Way.AUTO)
    world.run(10.0)
    assert one.paths.report(other.id).path == "direct"
    world.hush()
    world.run(1.0)
    assert other.streams[one.id].numbers == set(range(1, one.sent[other.id] + 1))


def test_direct_alone_never_uses_the_relay_for_data() -> None:
    world, one, other = pair()
    for node, peer in ((one, other), (other, one)):
        choose(world, node, peer, Way.DIRECT)
    assert one.paths.route(other.id) == NOWHERE
    world.talk(one, other)
    world.run(5.0)
    assert one.paths.report(other.id).path == "direct"
    for box in world.boxes:
        box.udp = False
    world.run(20.0)
    assert one.paths.route(other.id) == NOWHERE
    last = max(other.streams[one.id].at)
    assert world.now - last > 15.0
    assert all(at in other.streams[one.id].direct_at for at in other.streams[one.id].at)


def test_direct_alone_that_slept_goes_on_where_it_was_without_loss() -> None:
    world, one, other = pair()
    for node, peer in ((one, other), (other, one)):
        choose(world, node, peer, Way.DIRECT)
    world.talk(one, other)
    world.run(20.0)
    world.hush()
    world.run(60.0)
    before, mark = one.sent[other.id], world.now
    world.talk(one, other)
    world.run(10.0)
    world.hush()
    world.run(1.0)
    assert other.streams[one.id].numbers >= set(range(before + 1, one.sent[other.id] + 1))
    assert [at for at in other.streams[one.id].at if at > mark] == [at for at in other.streams[one.id].direct_at if at > mark]


def test_direct_alone_here_and_relay_alone_there_both_have_their_way() -> None:
    world, one, other = pair()
    choose(world, one, other, Way.DIRECT)
    world.talk(one, other)
    world.run(5.0)
    choose(world, other, one, Way.RELAY)
    before, mark = one.sent[other.id], world.now
    world.run(120.0)
    assert [change for at, change in one.changes if at > mark] == []
    world.hush()
    world.run(1.0)
    assert other.streams[one.id].numbers >= set(range(before + 1, one.sent[other.id] + 1))
    assert [at for at in one.streams[other.id].direct_at if at > mark + 0.1] == []


def test_direct_alone_on_a_path_that_full_packets_do_not_pass_goes_on_and_asks_no_more_of_it() -> None:
    world, one, other = pair(Weather(mtu=1250))
    for node, peer in ((one, other), (other, one)):
        choose(world, node, peer, Way.DIRECT)
    world.talk(one, other)
    world.run(30.0)
    probes, data = len(one.datagrams), len(one.data_to)
    world.run(60.0)
    assert one.paths.report(other.id).path == "direct"
    assert len(one.datagrams) - probes - (len(one.data_to) - data) <= 20


def test_relay_alone_probes_nothing_and_tells_of_no_path_whatever_the_peer_does() -> None:
    world, one, other = pair()
    choose(world, one, other, Way.RELAY)
    mark, stun = world.now, {SERVER, SECOND}
    world.talk(one, other)
    world.run(60.0)
    assert one.changes == []
    asked = [endpoint for at, endpoint in other.datagrams if at > mark and endpoint not in stun]
    answers = [endpoint for at, endpoint in one.datagrams if at > mark and endpoint not in stun]
    assert len(answers) <= len(asked)
    assert one.paths.view(other.id, world.now).tried
    assert {tried.outcome for tried in one.paths.view(other.id, world.now).tried} == {Outcome.NOT_TRIED}


def test_relay_alone_ends_what_was_under_way() -> None:
    world, one, other = pair()
    world.talk(one, other)
    world.run(5.0)
    for node, peer in ((one, other), (other, one)):
        choose(world, node, peer, Way.RELAY)
    world.run(0.2)
    mark = world.now
    world.run(60.0)
    assert [endpoint for at, endpoint in one.datagrams if at > mark and endpoint not in {SERVER, SECOND}] == []


def test_choice_that_changes_nothing_tells_nothing() -> None:
    world, one, other = pair()
    assert one.paths.set_ways({}, world.now) == []
    choose(world, one, other, Way.RELAY)
    assert one.paths.set_ways({other.id: Way.RELAY}, world.now) == []
    assert one.paths.set_ways({}, world.now) == []  # an idle peer is by relay either way
