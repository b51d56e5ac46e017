"""Why a path is what it is: every verdict, and both ends' views over the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calnet.errors import InvalidError, NotFoundError
from calnet.model import Endpoint, NodeId, Source
from calnet.paths import constants as c
from calnet.paths.candidates import Candidate
from calnet.paths.effects import SendDatagram, SendRelayed, ViewReceived
from calnet.paths.explain import Outcome, Tried, View, judge, outcome_of
from calnet.paths.stun_client import MappingBehaviour
from calnet.paths.way import Way
from calnet.sim.nat import KINDS
from calnet.sim.node import Node
from calnet.sim.world import World

THERE = Endpoint("203.0.113.2", 5000)
EASY = View("relay", True, True, True, MappingBehaviour.ENDPOINT_INDEPENDENT, (Tried(THERE, Outcome.NO_ANSWER),))
HARD = replace(EASY, mapping=MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)


@pytest.mark.parametrize(
    ("here", "there", "online", "words"),
    [
        (replace(EASY, path="direct", tried=(Tried(THERE, Outcome.IN_USE, 0.0123),)), EASY, True, "203.0.113.2:5000 answers in 12.3 ms"),
        (replace(EASY, path="direct", tried=()), None, True, "the peer answers"),
        (EASY, None, False, "offline"),
        (replace(EASY, path="none", relay=False), None, True, "no way"),
        (replace(EASY, path="none"), EASY, True, "idle"),
        (replace(EASY, path="none", way=Way.DIRECT), EASY, True, "the relay is not to be used, as was set here"),
        (replace(EASY, way=Way.RELAY), EASY, True, "that is what was set here"),
        (HARD, replace(HARD, way=Way.RELAY, udp=False), True, "that is what was set at the peer's"),
        (replace(EASY, tried=(Tried(THERE, Outcome.NO_DATA),)), EASY, True, "203.0.113.2:5000 answers probes, but carried no data"),
        (EASY, replace(EASY, tried=(Tried(THERE, Outcome.NO_DATA),)), True, "203.0.113.2:5000 answers probes, but carried no data"),
        (replace(EASY, udp=False), EASY, True, "no UDP gets through here"),
        (EASY, replace(EASY, udp=False), True, "no UDP gets through at the peer's"),
        (HARD, HARD, True, "both NATs"),
        (HARD, EASY, True, "ports are guessed"),
        (EASY, HARD, True, "the NAT at the peer's"),
        (replace(HARD, may_guess=False), EASY, True, "the NAT here gives each destination another port"),
        (HARD, replace(EASY, may_guess=False), True, "the NAT here gives each destination another port"),
        (EASY, None, True, "said nothing of its side"),
        (replace(EASY, tried=()), EASY, True, "named no candidate"),
        (EASY, EASY, True, "neither answers the other"),
        (replace(EASY, left="UDP is throttled here: 0.3"), HARD, True, "by relay: UDP is throttled here: 0.3"),
        (replace(EASY, path="direct"), replace(EASY, tried=(Tried(THERE, Outcome.SLOW),)), True, "comes by relay, since that carries more from there"),
    ],
)
def test_verdict_names_the_reason_and_what_would_help(here: View, there: View | None, online: bool, words: str) -> None:
    verdict = judge(here, there, online=online)
    assert words in verdict.text
    assert bool(verdict.advice) == (here.path != "direct")


def test_outcome_of_a_candidate_is_what_became_of_it() -> None:
    now = 1000.0
    fresh = Candidate(THERE, told=True, named_at=now)
    assert outcome_of(fresh, now, in_use=True) is Outcome.IN_USE
    assert outcome_of(fresh, now, in_use=False) is Outcome.NOT_TRIED
    assert outcome_of(replace(fresh, probed_at=now), now, in_use=False) is Outcome.NO_ANSWER
    answered = replace(fresh, probed_at=now, answered_at=now)
    assert outcome_of(answered, now + 1, in_use=False) is Outcome.ANSWERS
    assert outcome_of(answered, now + c.TRUST + 1, in_use=False) is Outcome.ANSWERED
    assert outcome_of(replace(answered, held_until=now + 60), now + 1, in_use=False) is Outcome.NO_DATA
    assert outcome_of(replace(answered, held_until=now + 60, slow=True), now + 1, in_use=False) is Outcome.SLOW
    assert len({outcome.words for outcome in Outcome}) == len(Outcome)


def pair(one: str, other: str) -> tuple[World, Node, Node]:
    world = World(1)
    nodes = []
    for number, kind in ((1, one), (2, other)):
        nodes.append(world.node(world.site(f"203.0.113.{number}", KINDS[kind], KINDS["firewall"]), f"192.168.{number}.2"))
    world.start()
    return world, nodes[0], nodes[1]


def ask(world: World, here: Node, there: Node) -> View | None:
    """The other's view as it comes back."""
    got: list[ViewReceived] = []
    perform = here.perform
    here.perform = lambda effects: (got.extend(e for e in effects if isinstance(e, ViewReceived)), perform(effects))[1]  # type: ignore[method-assign]
    token, effects = here.paths.question(there.id, world.now)
    perform(effects)
    world.run(1.0)
    here.perform = perform  # type: ignore[method-assign]
    assert all((one.peer, one.token) == (there.id, token) for one in got)
    assert len(got) <= 1
    return got[0].view if got else None


def test_both_ends_views_come_together() -> None:
    world, one, other = pair("symmetric", "symmetric")
    world.talk(one, other)
    world.run(10.0)
    here, there = one.paths.view(other.id, world.now), ask(world, one, other)
    assert there == replace(other.paths.view(one.id, world.now), tried=there.tried if there else ())
    assert (here.path, here.mapping) == ("relay", MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)
    assert "both NATs" in judge(here, there, online=True).text
    assert {tried.outcome for tried in here.tried} == {Outcome.NO_ANSWER}


def test_direct_path_is_seen_in_use_from_both_ends() -> None:
    world, one, other = pair("port-restricted", "port-restricted")
    world.talk(one, other)
    world.run(5.0)
    there = ask(world, one, other)
    assert there is not None
    for view in (one.paths.view(other.id, world.now), there):
        assert view.path == "direct"
        (used,) = [tried for tried in view.tried if tried.outcome is Outcome.IN_USE]
        assert used.rtt_s is not None
        assert 0.0 < used.rtt_s < 0.5


@pytest.mark.parametrize("way", list(Way))
def test_what_the_user_set_is_seen_from_the_other_end(way: Way) -> None:
    world, one, other = pair("port-restricted", "port-restricted")
    other.perform(other.paths.set_ways({one.id: way}, world.now))
    view = ask(world, one, other)
    assert view is not None
    assert view.way is way


def test_peer_that_can_not_answer_is_no_view() -> None:
    world, one, other = pair("port-restricted", "port-restricted")
    other.sleep()
    assert ask(world, one, other) is None


def test_questions_are_answered_a_bounded_number_of_times() -> None:
    world, one, other = pair("port-restricted", "port-restricted")
    answers = 0
    for _ in range(60):
        _, effects = one.paths.question(other.id, world.now)
        (question,) = [effect.data for effect in effects if isinstance(effect, SendRelayed)]
        answers += sum(isinstance(effect, SendRelayed | SendDatagram) for effect in other.paths.receive_probe(question, Source(None, one.id), world.now))
    assert 0 < answers <= c.QUESTIONS_BURST


def test_nobody_is_asked_who_is_no_peer() -> None:
    world, one, _ = pair("port-restricted", "port-restricted")
    for call in (one.paths.question, one.paths.view):
        with pytest.raises((NotFoundError, InvalidError)):
            call(NodeId(9), world.now)
