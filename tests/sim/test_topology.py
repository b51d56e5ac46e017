"""A user's own network as TOML, and what `sim` says of it."""

from __future__ import annotations

import pytest

from calnet.errors import ConfigError
from calnet.roles.sim.main import play
from calnet.sim.topology import parse_topology

NETWORK = """
seconds = 30
[[box]]
name = "home"
address = "203.0.113.1"
kind = "port-restricted"
[[box]]
name = "office"
address = "203.0.113.2"
kind = "linux"
latency_ms = 20
[[node]]
name = "laptop"
address = "192.168.1.2"
behind = "home"
[[node]]
name = "desk"
address = ["192.168.2.2", "2001:db8:2::2"]
behind = "office"
"""
EVENTS = """
[[event]]
at = 10
what = "udp-off"
box = "office"
[[event]]
at = 20
what = "udp-on"
box = "office"
"""


def test_network_is_played_and_told() -> None:
    played = play(parse_topology(NETWORK + EVENTS))
    assert [(pair.source, pair.target) for pair in played.pairs] == [("laptop", "desk"), ("desk", "laptop")]
    for pair in played.pairs:
        assert pair.first is not None
        assert pair.first < 0.1
        assert pair.direct is not None
        assert pair.direct < 1.0
        assert 270 < pair.received <= pair.sent
        assert [change.why for change in pair.changes][1] == "no answer while sending"
        assert all(silence.seconds < 1.3 for silence in pair.silences)
        assert pair.path.startswith("direct")


def test_same_seed_is_the_same_run_and_another_is_another() -> None:
    one, other, third = (play(parse_topology(NETWORK + EVENTS, seed=seed)) for seed in (1, 1, 2))
    assert one == other
    assert one != third


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ('at = 5\nwhat = "reboot"\nbox = "home"\nfor = 3', "direct"),
        ('at = 5\nwhat = "rebind"\nbox = "home"', "direct"),
        ('at = 5\nwhat = "latency"\nbox = "home"\nvalue = 300', "direct"),
        ('at = 5\nwhat = "loss"\nbox = "home"\nvalue = 0.1', "direct"),
        ('at = 5\nwhat = "throttle"\nbox = "home"\nvalue = 200', "direct"),
        ('at = 5\nwhat = "throttle"\nbox = "home"\nvalue = 0', "direct"),
        ('at = 5\nwhat = "sleep"\nnode = "desk"\nfor = 5', "direct"),
        ('at = 5\nwhat = "offline"\nnode = "desk"\nfor = 5', "direct"),
        ('at = 5\nwhat = "server-restart"\nfor = 5', "direct"),
        ('at = 5\nwhat = "udp-off"\nbox = "home"', "relay"),
    ],
)
def test_each_event_happens_and_traffic_goes_on(event: str, path: str) -> None:
    played = play(parse_topology(f"{NETWORK}[[event]]\n{event}\n"))
    assert all(pair.path.startswith(path) for pair in played.pairs)
    assert all(pair.received > 150 for pair in played.pairs)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "two nodes"),
        ("x = 1", "'x'"),
        ("[[node", "no TOML"),
        ("node = 1", "[[node]]"),
        (NETWORK + "[[node]]\nname = 'desk'\naddress = '192.168.2.9'", "two nodes desk"),
        (NETWORK + "[[node]]\nname = 'third'\naddress = '192.168.2.2'\nbehind = 'office'", "taken"),
        (NETWORK + "[[node]]\nname = 'third'\naddress = 'there'", "IP address"),
        (NETWORK + "[[node]]\nname = 'third'\naddress = '10.0.0.1'\nbehind = 'nowhere'", "no box 'nowhere'"),
        (NETWORK + "[[node]]\nname = 3\naddress = '10.0.0.1'", "name is a text"),
        (NETWORK + "[[box]]\nname = 'third'\naddress = '203.0.113.3'\nkind = 'odd'", "full-cone"),
        (NETWORK + "[[box]]\nname = 'home'\naddress = '203.0.113.3'\nkind = 'linux'", "two boxes"),
        (NETWORK + "[[box]]\nname = 'third'\naddress = '203.0.113.1'\nkind = 'linux'", "taken"),
        (NETWORK + "[[box]]\nname = 'third'\naddress = '203.0.113.3'\nkind = 'linux'\nloss = 2", "loss is a number"),
        (NETWORK + "[[box]]\nname = 'third'\naddress = '203.0.113.3'\nkind = 'linux'\nudp = 1", "true or false"),
        (NETWORK + "[[talk]]\nfrom = 'desk'\nto = 'desk'", "itself"),
        (NETWORK + "[[talk]]\nfrom = 'desk'\nto = 'nobody'", "no node 'nobody'"),
        (NETWORK + "[[event]]\nat = 1\nwhat = 'earthquake'\nbox = 'home'", "reboot"),
        (NETWORK + "[[event]]\nat = 1\nwhat = 'reboot'\nbox = 'desk'", "no box 'desk'"),
        ("seconds = 1e9\n" + NETWORK.replace("seconds = 30", ""), "seconds is a number"),
    ],
)
def test_each_mistake_is_named(text: str, word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_topology(text)
    assert word in str(raised.value)
