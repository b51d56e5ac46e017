"""The local API's operations: arguments, answers, errors."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from calnet.crypto.keys import encode_key
from calnet.errors import CalnetError, InvalidError, LoginNeededError, NotFoundError, NotPermittedError, TimedOutError, UsageError
from calnet.host import probes
from calnet.model import Endpoint, NodeId
from calnet.paths.explain import Outcome, Tried, View
from calnet.paths.stun_client import MappingBehaviour
from calnet.paths.way import Way
from calnet.roles.node import log_format, operations, overview
from calnet.roles.node.engine import PingAnswer
from calnet.wire import control
from tests.roles.node.fakes import World, a_netmap, run, until

RELAYED = PingAnswer("relay", None, 0.038)
DIRECT = PingAnswer("direct", Endpoint("203.0.113.9", 41641), 0.012)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("nonsense", {}),
        ("up", {"server": 7}),
        ("up", {"timeout_s": "soon"}),
        ("up", {"timeout_s": -1}),
        ("up", {"accept_routes": "yes"}),
        ("set", {"advertise_routes": "10.0.0.0/8"}),
        ("set", {"advertise_routes": [1]}),
        ("set", {"hostname": "x" * 2000}),
        ("ping", {"peer": "node2", "count": -1}),
        ("ping", {"peer": "node2", "count": True}),
        ("ping", {"peer": "node2", "until_direct": 1}),
        ("whois", {"ip": ["100.70.0.1"]}),
    ],
)
def test_operation_with_wrong_arguments_is_a_usage_error(tmp_path: Path, op: str, args: dict[str, Any]) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        with pytest.raises(UsageError):
            await world.call(op, **args)

    run(tmp_path, script)


@pytest.mark.parametrize(
    "server", ["ftp://x", "http://", "http://user@host", "http://host:99999", "http://host/?q=1", "http://a b", "http://h\n/x", "http://ä.test"]
)
def test_up_with_something_that_is_no_url_says_what_one_looks_like(tmp_path: Path, server: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        with pytest.raises(InvalidError, match="is not a server's URL"):
            await world.call("up", server=server)

    run(tmp_path, script)


def test_ping_answers_with_a_pong_event_each(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.engine.answers = [RELAYED]
        assert await world.call("ping", peer="node2") == {"sent": 1, "received": 1}
        assert world.events == [{"pong": {"peer": "node2", "ip": "100.70.0.2", "path": "relay", "endpoint": None, "rtt_ms": 38.0}}]

    run(tmp_path, script)


def test_ping_until_direct_ends_with_the_first_direct_answer(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.engine.answers = [RELAYED, DIRECT, DIRECT]
        assert await world.call("ping", peer="100.70.0.2", until_direct=True, timeout_s=10) == {"sent": 2, "received": 2, "direct": True}
        assert world.events[-1]["pong"]["endpoint"] == "203.0.113.9:41641"  # type: ignore[index]

    run(tmp_path, script)


def test_ping_unanswered_and_ping_that_stays_relayed_time_out(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        with pytest.raises(TimedOutError, match="no answer from node3"):
            await world.call("ping", peer="3", timeout_s=0.1)
        world.engine.answers = [RELAYED]
        with pytest.raises(TimedOutError, match="answers by relay"):
            await world.call("ping", peer="node2", until_direct=True, timeout_s=0.1)

    run(tmp_path, script)


def test_ping_of_nobody_names_who_there_is(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        with pytest.raises(NotFoundError, match="node2, node3"):
            await world.call("ping", peer="node9")

    run(tmp_path, script)


def test_ping_while_down_says_up_first(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.call("down")
        with pytest.raises(CalnetError):
            await world.call("ping", peer="node2")

    run(tmp_path, script)


def test_ip_and_whois_before_the_first_netmap_say_so(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        with pytest.raises(LoginNeededError):
            await world.call("ip")
        with pytest.raises(LoginNeededError):
            await world.call("whois", ip="100.70.0.1")
        with pytest.raises(LoginNeededError):
            await world.call("ping", peer="node2")
        with pytest.raises(InvalidError):
            await world.call("whois", ip="bob")

    run(tmp_path, script)


def test_whois_names_peers_and_this_node(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        assert (await world.call("whois", ip="100.70.0.2"))["name"] == "node2"
        assert (await world.call("whois", ip="fd12::1"))["self"] is True

    run(tmp_path, script)


def test_set_changes_what_is_given_and_tells_the_server(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        answer = await world.call("set", hostname="Carol", advertise_routes=["192.168.7.0/24"], accept_routes=True, operator="nobody")
        assert (answer["hostname"], answer["advertise_routes"], answer["accept_routes"], answer["operator"]) == ("carol", ["192.168.7.0/24"], True, "nobody")
        await until(lambda: any(isinstance(m, control.Update) and m.routes == ("192.168.7.0/24",) and m.hostname == "carol" for m in world.server.heard))
        assert world.engine.netmaps[-1][1] is True
        for name in ("snat_routes", "guess_ports", "map_ports"):
            assert (await world.call("get"))[name] is True
            assert (await world.call("set", **{name: False}))[name] is False
            assert (await world.call("get"))[name] is False
        again = await world.call("set", accept_routes=False)
        assert again["hostname"] == "carol"

    run(tmp_path, script)


def test_set_without_the_server_is_told_later(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.reachable = False
        await world.server.drop()
        await until(lambda: world.daemon.control.client is not None and not world.daemon.control.client.connected)
        await world.call("set", hostname="later")
        assert "hears of it later" in str(world.events[-1])
        world.server.reachable = True
        await until(lambda: any(isinstance(message, control.Update) and message.hostname == "later" for message in world.server.heard))

    run(tmp_path, script)


def test_up_again_with_other_routes_tells_the_server(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        assert await world.up(advertise_routes=["192.168.7.0/24"]) == {"state": "running"}
        await until(lambda: any(isinstance(message, control.Update) and message.routes == ("192.168.7.0/24",) for message in world.server.heard))
        assert len(world.server.registered) == 1

    run(tmp_path, script)


@pytest.mark.parametrize("args", [{"operator": "no-such-user"}, {"pin": "node9"}, {"unpin": "node2"}])
def test_set_of_what_is_not_there_changes_nothing(tmp_path: Path, args: dict[str, Any]) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        before = world.daemon.state
        with pytest.raises((InvalidError, NotFoundError)):
            await world.call("set", **args)
        assert world.daemon.state is before

    run(tmp_path, script)


def test_netcheck_has_the_contracts_fields(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        expected = {"udp", "ipv4", "ipv6", "mapping", "hairpin", "port_mapping", "relay_rtt_ms", "server_reachable"}
        assert set(await world.call("netcheck")) == expected
        await world.up()
        await until(lambda: world.engine.relay_states[-1:] == [True])
        found = await world.call("netcheck")
        assert set(found) == expected
        assert found["server_reachable"] is True
        assert found["relay_rtt_ms"] is not None

    run(tmp_path, script)


def test_interface_that_was_removed_is_made_again(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.daemon.health("tun-gone", "the device is gone")
        await until(lambda: len(world.engines) == 2 and world.daemon.state_name() == "running")
        assert world.engines[0].closed
        assert world.engine.netmaps[-1][0].peers[0].id == NodeId(2)

    run(tmp_path, script)


def test_status_says_at_once_whether_a_subnet_router_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysctls = tmp_path / "sys"
    (sysctls / "net/ipv4").mkdir(parents=True)
    (sysctls / "net/ipv4/ip_forward").write_text("0\n")
    monkeypatch.setattr(overview, "forwarding_off", lambda versions: probes.forwarding_off(versions, sysctls))

    async def script(world: World) -> None:
        netmap = a_netmap()
        world.server.netmap = replace(netmap, self=replace(netmap.self, advertised_routes=(ip_network("192.168.7.0/24"),)))
        await world.boot()
        await world.up()
        assert "ip-forward" in world.codes()
        (sysctls / "net/ipv4/ip_forward").write_text("1\n")
        assert "ip-forward" not in world.codes()

    run(tmp_path, script)


def test_whoever_advertises_routes_is_told_that_this_machine_does_not_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking: list[str] = ["net.ipv4.ip_forward"]
    monkeypatch.setattr(operations, "forwarding_off", lambda versions: tuple(lacking) if list(versions) else ())

    async def script(world: World) -> None:
        await world.boot()
        await world.up(advertise_routes=["192.168.7.0/24"])
        await world.call("set", advertise_routes=["192.168.8.0/24"])
        told = [event["say"] for event in world.events if "say" in event]
        assert told == ["this machine does not forward packets yet: sysctl -w net.ipv4.ip_forward=1"] * 2
        await world.call("set", hostname="other")
        await world.call("set", advertise_routes=[])
        lacking.clear()
        await world.call("set", advertise_routes=["192.168.7.0/24"])
        assert told == [event["say"] for event in world.events if "say" in event], "not where nothing is new, nor where nothing is lacking"

    run(tmp_path, script)


def test_why_tells_the_verdict_and_both_views(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        with pytest.raises(CalnetError, match=r"is down|no peer|log in"):
            await world.call("why", peer="node2")
        await world.up()
        used = Tried(Endpoint("192.0.2.7", 5), Outcome.IN_USE, 0.02)
        world.engine.views = View("direct", True, True, True, MappingBehaviour.ENDPOINT_INDEPENDENT, (used,)), None
        answer = await world.call("why", peer="node2")
        assert (answer["path"], answer["why"], answer["there"]) == ("direct", "direct: 192.0.2.7:5 answers in 20.0 ms", None)
        assert answer["here"]["candidates"] == [{"endpoint": "192.0.2.7:5", "outcome": "in use", "rtt_ms": 20.0}]
        with pytest.raises(CalnetError):
            await world.call("why", peer="nobody")

    run(tmp_path, script)


def test_path_of_a_peer_is_set_shown_and_given_to_the_engine(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        assert (await world.call("get"))["paths"] == {}
        assert (await world.call("set", path=["node2=relay", "node3=direct"]))["paths"] == {"node2": "relay", "node3": "direct"}
        await until(lambda: world.engine.ways == {NodeId(2): Way.RELAY, NodeId(3): Way.DIRECT})
        assert (await world.call("set", path=["node2=auto"]))["paths"] == {"node3": "direct"}
        for wrong in ("node2", "node2=best", "nobody=relay"):
            with pytest.raises(CalnetError):
                await world.call("set", path=[wrong])
        assert world.daemon.directory.state.prefs.ways == ((3, "direct"),)

    run(tmp_path, script)


def test_metrics_are_figures_in_prometheus_format(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        assert "calnet_up 0" in (await world.call("metrics"))["text"].splitlines()
        await world.up()
        lines = (await world.call("metrics"))["text"].splitlines()
        for line in ("calnet_up 1", "calnet_server_connected 1", 'calnet_path_changes_total{to="direct"} 2', "calnet_dropped_packets_total 3"):
            assert line in lines
        assert sum(line.startswith("calnet_peers{") for line in lines) == 3

    run(tmp_path, script)


def test_bug_report_tells_what_helps_and_no_secret(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        log_format.set_up(debug=False)
        logging.getLogger("calnet.test").warning("given key=%s", world.server.auth_key())
        report = await world.call("bugreport")
        keys = world.daemon.state.keys
        text = json.dumps(report)
        for secret in (keys.node, keys.control, keys.discovery):
            assert encode_key(secret.secret_bytes()) not in text
            assert secret.secret_bytes().hex() not in text
        assert world.server.auth_key() not in text
        assert any("given key=[removed]" in line for line in report["log"])
        assert report["status"]["state"] == "running"
        assert report["preferences"]["guess_ports"] is True

    run(tmp_path, script)


def test_metrics_and_bug_report_are_not_for_every_user(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        for op in ("metrics", "bugreport"):
            with pytest.raises(NotPermittedError):
                await world.call(op, uid=65534)
        assert await world.call("status", uid=65534)

    run(tmp_path, script)
