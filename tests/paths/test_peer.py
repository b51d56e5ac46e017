"""One peer's machine as a script: events in, actions out; every state × every input."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from calnet.model import Endpoint, NodeId
from calnet.paths import constants as c
from calnet.paths.effects import PathChanged, Route
from calnet.paths.peer import Exchange, PathState, PeerAction, PeerPath, Probe
from calnet.paths.way import Way

PEER = NodeId(7)
LAN, WAN, ELSE = Endpoint("192.168.1.7", 7), Endpoint("203.0.113.7", 7), Endpoint("203.0.113.8", 7)
RELAY = Route(None, True)


def relayed(relay: bool = True) -> tuple[PeerPath, float]:
    """Data flows, no path is proven."""
    path = PeerPath(PEER, relay=relay, overlay=())
    path.told((LAN, WAN), 0.0, wake=False)
    path.data_sent(0.0)
    return path, 0.0


def direct(relay: bool = True) -> tuple[PeerPath, float]:
    """WAN was proven at 0.05, in answer to data at 0; the attempt has ended."""
    path, _ = relayed(relay)
    path.pong_received(WAN, 0.05, 0.05)
    for step in (0.2, 0.5, 1.0, 2.0):
        path.data_received(WAN, step)
        path.on_timer(step)
    return path, 2.0


def doubted(relay: bool = True) -> tuple[PeerPath, float]:
    """Data was sent on the proven path without an answer for 0.8 s."""
    path, now = direct(relay)
    path.data_sent(now)
    path.on_timer(now + 0.4)
    path.on_timer(now + 0.8)
    return path, now + 0.8


def asleep(relay: bool = True) -> tuple[PeerPath, float]:
    """Nothing flowed for long."""
    path, now = direct(relay)
    while (due := path.deadline(now)) is not None:
        now = due
        path.on_timer(now)
        if path.state is PathState.DIRECT and path.active(now):
            path.pong_received(WAN, 0.05, now)
    return path, now


STATES: dict[PathState, Callable[[bool], tuple[PeerPath, float]]] = {
    PathState.RELAYED: relayed,
    PathState.DIRECT: direct,
    PathState.DOUBTED: doubted,
    PathState.ASLEEP: asleep,
}

INPUTS: dict[str, Callable[[PeerPath, float], list[PeerAction]]] = {
    "data sent": lambda path, now: path.data_sent(now),
    "data from best": lambda path, now: path.data_received(WAN, now),
    "data from elsewhere": lambda path, now: path.data_received(ELSE, now),
    "data by relay": lambda path, now: path.data_received(None, now),
    "ping from best": lambda path, now: path.ping_received(WAN, now),
    "ping from elsewhere": lambda path, now: path.ping_received(ELSE, now),
    "pong from best": lambda path, now: path.pong_received(WAN, 0.05, now),
    "pong from better": lambda path, now: path.pong_received(LAN, 0.001, now),
    "pong from nowhere": lambda path, now: path.pong_received(ELSE, 0.001, now),
    "told": lambda path, now: path.told((LAN, WAN, ELSE), now, wake=True),
    "netmap": lambda path, now: path.told((LAN, WAN), now, wake=False),
    "relay lost": lambda path, now: path.relay_connected(False, now),
    "relay back": lambda path, now: path.relay_connected(True, now),
    "network changed": lambda path, now: path.network_changed(now),
    "own candidates": lambda path, now: path.own_candidates_changed(now),
    "timer": lambda path, now: path.on_timer(now),
    "silence": lambda path, now: path.on_timer(now + c.TRUST),
}

R, D, U, A = PathState.RELAYED, PathState.DIRECT, PathState.DOUBTED, PathState.ASLEEP
MOVES: dict[str, tuple[PathState, PathState, PathState, PathState]] = {
    "data sent": (R, D, U, A),
    "data from best": (R, D, U, A),
    "data from elsewhere": (R, D, U, A),
    "data by relay": (R, D, U, A),
    "ping from best": (R, D, U, A),
    "ping from elsewhere": (R, D, U, A),
    "pong from best": (D, D, D, D),
    "pong from better": (D, D, D, D),
    "pong from nowhere": (R, D, U, A),
    "told": (R, D, U, A),
    "netmap": (R, D, U, A),
    "relay lost": (R, D, U, A),
    "relay back": (R, D, U, A),
    "network changed": (R, U, U, A),
    "own candidates": (R, D, U, A),
    "timer": (R, D, U, A),
    "silence": (R, R, R, A),
}


def route_of(path: PeerPath, relay: bool) -> Route:
    """What the state's route has to be."""
    endpoint = None if path.best is None else path.best.endpoint
    return {
        PathState.RELAYED: Route(None, relay),
        PathState.DIRECT: Route(endpoint, False),
        PathState.DOUBTED: Route(endpoint, relay),
        PathState.ASLEEP: RELAY if relay else Route(endpoint, False),
    }[path.state]


@pytest.mark.parametrize("relay", [True, False])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("position", range(4))
def test_state_and_input_give_the_table_s_next_state_and_its_route(position: int, name: str, relay: bool) -> None:
    start = (R, D, U, A)[position]
    path, now = STATES[start](relay)
    assert path.state is start
    before = path.route
    actions = INPUTS[name](path, now)
    assert path.state is MOVES[name][position]
    connected = {"relay lost": False, "relay back": True}.get(name, relay)
    assert path.route == route_of(path, connected)
    changes = [action for action in actions if isinstance(action, PathChanged)]
    assert (changes[0].old, changes[-1].new) == (before, path.route) if changes else path.route == before
    due = path.deadline(now)
    assert due is None or due > now - 1.0


def test_first_data_goes_by_relay_and_begins_an_attempt() -> None:
    path = PeerPath(PEER, relay=True, overlay=())
    path.told((WAN, LAN), 0.0, wake=False)
    assert path.deadline(0.0) is None
    assert path.route == RELAY
    assert path.data_sent(0.0) == [Exchange(), Probe(LAN, False), Probe(WAN, False, opening=True)]
    assert path.data_sent(0.1) == []
    for offset in c.PROBE_OFFSETS[1:]:
        assert path.deadline(0.1) == offset
        assert path.on_timer(offset) == [Probe(LAN, False), Probe(WAN, False, opening=offset < 2.0)]
    assert path.deadline(2.0) == 7.0


def test_peer_that_knows_of_the_attempt_is_probed_in_full() -> None:
    path = PeerPath(PEER, relay=True, overlay=())
    path.told((WAN,), 0.0, wake=False)
    assert Probe(WAN, False, opening=True) in path.data_sent(0.0)
    assert path.told((WAN,), 0.04, wake=True) == [Probe(WAN, False)]
    assert path.on_timer(0.25) == [Probe(WAN, False)]


def test_probe_of_the_peer_shows_that_it_is_open_and_is_answered_by_one_at_once() -> None:
    path = PeerPath(PEER, relay=True, overlay=())
    path.told((WAN,), 0.0, wake=False)
    path.data_sent(0.0)
    assert path.ping_received(WAN, 0.04) == [Probe(WAN, False)]


def test_only_what_is_public_is_opened_first_and_only_where_the_peer_hears_by_relay() -> None:
    six = Endpoint("2001:db8::7", 7)
    path = PeerPath(PEER, relay=True, overlay=())
    path.told((LAN, WAN, six), 0.0, wake=False)
    assert {action.endpoint for action in path.data_sent(0.0) if isinstance(action, Probe) and action.opening} == {WAN, six}
    alone = PeerPath(PEER, relay=False, overlay=())
    alone.told((WAN,), 0.0, wake=False)
    assert Probe(WAN, False) in alone.data_sent(0.0)


def test_proven_candidate_takes_over_and_a_better_one_from_it() -> None:
    path, _ = relayed()
    assert path.pong_received(WAN, 0.05, 0.05) == [PathChanged(PEER, RELAY, Route(WAN, False), f"{WAN} answers in 50 ms")]
    assert path.pong_received(LAN, 0.001, 0.06) == [PathChanged(PEER, Route(WAN, False), Route(LAN, False), f"{LAN} answers in 1 ms")]
    assert path.pong_received(WAN, 0.0001, 0.07) == []


def test_sending_without_an_answer_probes_then_doubts_then_leaves() -> None:
    path, now = direct()
    assert path.data_sent(now) == []
    assert path.deadline(now) == now + c.ANSWER_DUE
    assert path.on_timer(now + c.ANSWER_DUE) == [Probe(WAN, True)]
    actions = path.on_timer(now + c.DOUBT_AFTER)
    assert actions[0] == PathChanged(PEER, Route(WAN, False), Route(WAN, True), "no answer while sending")
    assert Probe(LAN, False) in actions
    path.data_sent(now + 6.0)
    actions = path.on_timer(now + c.TRUST)
    assert actions[0] == PathChanged(PEER, Route(WAN, True), RELAY, "no answer")


def test_first_data_after_an_idle_time_begins_an_attempt_at_once() -> None:
    for start in (asleep, relayed):
        path, now = start(True)
        while path.active(now) or path.deadline(now) is not None:
            now = max(path.deadline(now) or now, now + 0.1)
            path.on_timer(now)
        path.told((LAN, WAN), now, wake=True)  # the peer's own attempt, a while ago
        for step in c.PROBE_OFFSETS:
            path.on_timer(now + step)
        assert any(isinstance(action, Probe) for action in path.data_sent(now + 10.0)), start
        assert not path.data_sent(now + 10.1)


def test_lost_path_gives_way_to_another_proven_one() -> None:
    path, _ = relayed()
    path.pong_received(WAN, 0.05, 0.05)
    path.data_sent(3.0)
    path.on_timer(3.8)
    assert path.state is PathState.DOUBTED
    path.pong_received(ELSE, 0.05, 4.0)
    path.told((ELSE,), 4.0, wake=True)
    path.pong_received(ELSE, 0.05, 4.1)
    assert path.route == Route(ELSE, False)
    path.pong_received(LAN, 0.06, 9.0)
    path.data_sent(9.0)
    assert PathChanged(PEER, Route(ELSE, False), Route(LAN, False), "no answer") in path.on_timer(4.1 + c.TRUST)
    assert path.route == Route(LAN, False)


def test_idle_attempt_ends_after_its_first_rounds() -> None:
    path = PeerPath(PEER, relay=True, overlay=())
    assert path.told((WAN,), 0.0, wake=True) == [Exchange(), Probe(WAN, False)]
    for offset in c.PROBE_OFFSETS[1:]:
        assert path.on_timer(offset) == [Probe(WAN, False)]
    assert path.deadline(2.0) is None


def test_attempt_with_relay_rests_after_half_a_minute_and_begins_anew_each_minute() -> None:
    path, now = relayed()
    times = []
    while now < 130.0:
        due = path.deadline(now)
        assert due is not None
        now = due
        if any(isinstance(action, Probe) for action in path.data_sent(now) + path.on_timer(now)):
            times.append(now)
    assert [at for at in times if at > 2.0 and at < 60.0] == [7.0, 12.0, 17.0, 22.0, 27.0]
    assert 60.0 in times
    assert 120.0 in times


def test_held_path_that_answers_is_not_taken_until_its_time_is_over() -> None:
    path, now = direct()
    while path.route.endpoint is not None:
        now += 0.3
        path.data_sent(now)
        path.pong_received(WAN, 0.05, now)
        path.on_timer(now)
    assert path.route == RELAY
    assert now >= c.NO_DATA_AFTER
    assert path.pong_received(WAN, 0.05, now + 1.0) == []
    assert path.ping_received(WAN, now + 1.0) == []
    assert path.route == RELAY
    path.pong_received(WAN, 0.05, now + c.HOLD_FIRST + 1.0)
    assert path.route == Route(WAN, False)


def test_path_that_carries_nothing_is_kept_where_there_is_no_other() -> None:
    path, now = direct(relay=False)
    for _ in range(100):
        now += 0.3
        path.data_sent(now)
        path.pong_received(WAN, 0.05, now)
        path.on_timer(now)
    assert path.route == Route(WAN, False)


def test_candidates_told_again_and_again_do_not_raise_the_rate_of_one_endpoint() -> None:
    path, _ = relayed()
    probes = sum(isinstance(action, Probe) and action.endpoint == WAN for tick in range(1_000) for action in path.told((WAN,), tick / 100, wake=True))
    assert probes <= 10.0 / c.PROBE_GAP + 1


def test_new_candidate_of_a_direct_peer_is_looked_at_while_data_flows() -> None:
    path, now = direct()
    assert Probe(ELSE, False) in path.told((ELSE,), now, wake=True)
    path, now = asleep()
    assert path.told((ELSE,), now, wake=False) == []


def test_data_from_a_doubted_path_does_not_say_that_ours_arrives_there() -> None:
    path, now = doubted()
    assert not any(isinstance(action, PathChanged) for action in path.data_received(WAN, now + 0.1))
    assert path.route == Route(WAN, True)
    assert path.pong_received(WAN, 0.05, now + 0.2)[0] == PathChanged(PEER, Route(WAN, True), Route(WAN, False), "it answers again")


@pytest.mark.parametrize("sign", [lambda path, now: path.ping_received(WAN, now), lambda path, now: path.data_received(None, now)])
def test_peer_that_seems_not_to_hear_us_is_asked_and_doubted_without_an_answer(sign: Callable[[PeerPath, float], list[PeerAction]]) -> None:
    path, now = direct()
    path.data_sent(now)
    path.data_received(WAN, now)
    assert sign(path, now + 0.4) == [Probe(WAN, True)]
    assert sign(path, now + 0.5) == []
    assert path.deadline(now + 0.5) == now + 0.4 + c.PROBE_GAP
    assert path.on_timer(now + 0.55) == [Probe(WAN, True)]
    path.data_received(WAN, now + 0.6)
    actions = path.on_timer(now + 0.7)
    assert actions[0] == PathChanged(PEER, Route(WAN, False), Route(WAN, True), "the peer does not hear us there")


def test_peer_that_asks_is_asked_no_more_once_it_answers() -> None:
    path, now = direct()
    assert path.ping_received(WAN, now + 0.4) == [Probe(WAN, True)]
    assert path.pong_received(WAN, 0.05, now + 0.45) == []
    assert path.ping_received(WAN, now + 0.8) == []
    path.on_timer(now + 2.0)
    assert path.state is PathState.DIRECT


def relayed_data(path: PeerPath, now: float, seconds: float, *, every: float = 0.5, sends: bool = True) -> float:
    """Data of the peer by relay alone, answered directly, with all probes answered; until the path changes or `seconds` are over."""
    end = now + seconds
    while now < end and path.route == Route(WAN, False):
        now += every
        if sends:
            path.data_sent(now)
        path.pong_received(WAN, 0.05, now)
        path.data_received(None, now)
    return now


def test_path_that_the_peer_has_left_is_left_too() -> None:
    path, begun = direct()
    now = relayed_data(path, begun, 60.0)
    assert path.route == RELAY
    assert c.AVOIDED_AFTER <= now - begun <= c.AVOIDED_AFTER + 1.0
    path.pong_received(WAN, 0.05, now + 1.0)
    assert path.route == RELAY


def test_peer_that_also_sends_directly_or_seldom_by_relay_or_alone_has_not_left_the_path() -> None:
    path, now = direct()
    now = relayed_data(path, now, c.AVOIDED_AFTER - 1.0)
    path.data_received(WAN, now)
    now = relayed_data(path, now, c.AVOIDED_AFTER - 1.0)
    now = relayed_data(path, now, 60.0, every=c.AVOIDED_GAP + 0.5)
    relayed_data(path, now, 60.0, sends=False)
    assert path.route == Route(WAN, False)


def test_data_that_came_by_relay_before_the_path_was_direct_says_nothing_of_it() -> None:
    path, now = relayed()
    for _ in range(100):
        now += 0.5
        path.data_sent(now)
        path.data_received(None, now)
    path.pong_received(WAN, 0.05, now)
    assert path.route == Route(WAN, False)
    relayed_data(path, now, c.AVOIDED_AFTER - 1.0)
    assert path.route == Route(WAN, False)


def test_stale_timer_after_a_long_sleep_leaves_the_path() -> None:
    path, now = direct()
    path.data_sent(now)
    path.on_timer(now + 40.0)
    assert path.route == RELAY


# --- a path that carries less than the relay


def test_slow_path_is_held_back_said_why_and_used_again_after_the_hold() -> None:
    path, now = direct()
    (change,) = [action for action in path.leave("throttled", now, slow=True) if isinstance(action, PathChanged)]
    assert (change.new, change.why) == (RELAY, "throttled")
    assert path.left == "throttled"
    assert not any(isinstance(action, PathChanged) for action in path.pong_received(WAN, 0.05, now + c.HOLD_FIRST - 0.1))
    assert path.route == RELAY
    path.pong_received(WAN, 0.05, now + c.HOLD_FIRST)
    assert path.route == Route(WAN, False)
    assert path.left == ""
    path.leave("throttled again", now + c.HOLD_FIRST + 10.0, slow=True)
    path.pong_received(WAN, 0.05, now + 3 * c.HOLD_FIRST + 9.9)
    assert path.route == RELAY
    path.pong_received(WAN, 0.05, now + 3 * c.HOLD_FIRST + 10.0)
    assert path.route == Route(WAN, False)


@pytest.mark.parametrize("slow", [True, False])
def test_held_path_is_better_than_none_and_good_again_in_another_network(slow: bool) -> None:
    for relay_lost, again in ((True, 2), (False, 1)):
        path, now = direct()
        path.leave("left", now, slow=slow)
        actions = path.relay_connected(False, now + 1.0) if relay_lost else path.network_changed(now + 1.0)
        assert any(isinstance(action, Probe) and action.endpoint == WAN for action in actions)
        path.pong_received(WAN, 0.05, now + 1.1)
        assert path.route == Route(WAN, False)
        path.relay_connected(True, now + 2.0)
        path.leave("left", now + 3.0, slow=slow)
        known = path.candidates.get(WAN)
        assert known is not None
        assert known.held_times == again


def test_hold_ends_with_the_last_other_way_and_not_before() -> None:
    path, now = direct()
    path.leave("it answers probes but carries no data", now)
    path.pong_received(LAN, 0.01, now + 0.1)
    path.relay_connected(False, now + 0.2)
    path.pong_received(WAN, 0.0001, now + 0.3)
    assert path.route == Route(LAN, False)
    path.data_sent(now + 0.4)
    probed = [action.endpoint for action in path.on_timer(now + 0.4 + c.TRUST) if isinstance(action, Probe)]
    assert (path.route, WAN in probed) == (Route(None, False), True)
    path.pong_received(WAN, 0.05, now + 7.0)
    assert path.route == Route(WAN, False)


# --- what the user wants


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("start", STATES)
def test_direct_alone_is_as_without_a_relay(start: PathState, name: str) -> None:
    path, now = STATES[start](True)
    barred = path.set_way(Way.DIRECT, now)
    assert path.route == Route(None if path.best is None else path.best.endpoint, False)
    assert all(action.why == "as the user set it" for action in barred if isinstance(action, PathChanged))
    alone, _ = STATES[start](False)
    INPUTS[name](path, now + 1.0)
    INPUTS["relay lost" if name == "relay back" else name](alone, now + 1.0)
    assert (path.state, path.route) == (alone.state, alone.route)
    assert not path.route.relay


def test_direct_alone_keeps_a_path_that_the_peer_avoids_or_that_carries_nothing() -> None:
    path, now = direct()
    path.set_way(Way.DIRECT, now)
    now = relayed_data(path, now, 30.0)
    assert path.route == Route(WAN, False)
    for _ in range(100):
        now += 0.3
        path.data_sent(now)
        path.pong_received(WAN, 0.05, now)
        path.on_timer(now)
    assert path.route == Route(WAN, False)
    assert path.leave("packets of 1280 bytes don't get through", now) == []


def test_direct_alone_takes_the_path_that_was_held_back_at_once() -> None:
    path, now = direct()
    path.leave("UDP is throttled here", now, slow=True)
    assert path.set_way(Way.AUTO, now + 1.0) == []
    actions = path.set_way(Way.DIRECT, now + 1.0)
    assert any(isinstance(action, Probe) and action.endpoint == WAN for action in actions)
    path.pong_received(WAN, 0.05, now + 1.1)
    assert path.route == Route(WAN, False)


def test_direct_alone_opens_its_side_first_as_the_peer_hears_of_it_by_relay() -> None:
    path, now = relayed()
    path.set_way(Way.DIRECT, now)
    assert Probe(WAN, False, opening=True) in path.own_candidates_changed(now + 1.0)


@pytest.mark.parametrize("start", STATES)
def test_relay_alone_rests_whatever_happens_and_then_looks_for_a_path_with_what_it_heard(start: PathState) -> None:
    path, now = STATES[start](True)
    path.set_way(Way.RELAY, now)
    for name, event in INPUTS.items():
        actions = event(path, now + 1.0)
        assert not [action for action in actions if not isinstance(action, PathChanged)], name
        assert path.route == Route(None, name != "relay lost"), name
        assert (path.deadline(now + 1.0), path.awake) == (None, False), name
    assert path.set_way(Way.AUTO, now + 2.0) == []
    assert Probe(ELSE, False, opening=True) in path.data_sent(now + 3.0)


def test_path_held_back_is_no_riddle_to_guess_ports_for() -> None:
    path, now = direct()
    path.leave("throttled", now, slow=True)
    for step in (1.0, 2.0, 3.0):
        path.data_sent(now + step)
        path.on_timer(now + step)
    assert not path.is_stuck(now + 3.0)
    other, now = relayed()
    other.data_sent(now + 3.0)
    assert other.is_stuck(now + 3.0)


def test_word_about_a_path_that_was_left_ends_with_the_hold() -> None:
    path, now = direct()
    path.leave("throttled", now, slow=True)
    while now < 2.0 + c.HOLD_FIRST + c.ATTEMPT_INTERVAL:
        assert path.left == "throttled" or now >= 2.0 + c.HOLD_FIRST
        now += 0.5
        path.data_sent(now)
        path.on_timer(now)
    assert path.left == ""


def test_data_that_goes_by_relay_for_a_trial_expects_no_answer_from_the_path() -> None:
    path, now = direct()
    path.data_sent(now)
    for step in range(20):
        assert not [action for action in path.data_relayed(now + step / 10) if isinstance(action, PathChanged)]
        assert not path.on_timer(now + step / 10)
    assert path.state is PathState.DIRECT
    assert path.active(now + 2.0)
    assert path.ask(now + 2.0) == [Probe(WAN, True)]
    waiting, now = doubted()
    waiting.data_relayed(now)
    assert waiting.state is PathState.DOUBTED
    nowhere, now = relayed()
    assert nowhere.ask(now) == []


def test_peer_that_tells_other_candidates_than_the_path_in_use_is_sent_data_both_ways_until_one_answers() -> None:
    path, now = direct()
    assert Probe(ELSE, False) in path.told((LAN, ELSE), now, wake=True)
    assert path.route == Route(WAN, True)
    path.pong_received(ELSE, 0.05, now + 0.1)
    assert path.route == Route(ELSE, False)
    for told in ((LAN, WAN, ELSE), (LAN,), ()):
        path, now = direct()
        path.told(told, now, wake=True)
        assert path.route == Route(WAN, False), "it is there still, or nothing else is"


def test_move_proves_nothing_and_opens_our_own_side_before_it_knocks_at_the_peers() -> None:
    path, now = direct()
    actions = path.network_changed(now, moved=True)
    assert Exchange() in actions
    assert Probe(WAN, False, opening=True) in actions
    assert path.route == RELAY
    actions = path.told((LAN, WAN), now + 0.5, wake=True) + path.on_timer(now + 1.0)
    assert not any(isinstance(action, Probe) and action.endpoint == WAN and not action.opening for action in actions), "it may have told that before it heard"
    assert Probe(WAN, False) in path.on_timer(now + c.OPENING + 0.2)
    path.pong_received(WAN, 0.05, now + 2.5)
    assert path.route == Route(WAN, False)


def test_move_without_a_relay_goes_on_by_the_path_that_was_and_knocks_at_once() -> None:
    path, now = direct(relay=False)
    assert Probe(WAN, False) in path.network_changed(now + 1.0, moved=True)
    assert path.route == Route(WAN, False)
