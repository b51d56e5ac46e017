"""What `can` and the tests of a policy say, against the slow evaluator and word by word."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings

from calnet.errors import NotFoundError
from calnet.model import NodeId, UserId
from calnet.policy import explain as explaining
from calnet.policy.builtin import BuiltinPolicy
from calnet.policy.document import parse_policy
from calnet.policy.engine import PolicyNode
from calnet.policy.explain import Directory, End, Verdict, decide, explain, imagined_of, run_tests
from tests.policy.worlds import NODES, OVERLAY, ROLES, USERS, Face, Json, allowed, node, policies, questions, text_of

ALICE, PHONE, BOB = node(1, 1), node(2, 1), node(3, 2)
WEB, ROUTER = node(4, None, tags=("tag:web",)), node(5, None, tags=("tag:router",), routes=("192.168.1.0/24",))
BACKUP = node(6, None, tags=("tag:router",), routes=("192.168.1.0/24", "192.168.0.0/16"))
NODES_HERE = (ALICE, PHONE, BOB, WEB, ROUTER, BACKUP)
PEOPLE = {names[0].removesuffix("@").lower(): imagined_of(UserId(number), names, ROLES[number]) for number, names in USERS.items()}

POLICY = """{
  "groups": {"group:dev": ["alice@", "carol@"], "group:empty": []},
  "tagOwners": {"tag:web": [], "tag:router": [], "tag:new": []},
  "hosts": {"printer": "192.168.1.7", "nowhere": "10.1.1.1", "bobs": "100.70.0.3"},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "tag:new:22"]},
    {
      "action": "accept", // written on several lines
      "src": ["bob@"],
      "dst": ["printer:9100"],
      "proto": "tcp",
    },
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
    {"action": "accept", "src": ["printer"], "dst": ["bobs:162"]},
  ],
}"""


def directory(nodes: tuple[PolicyNode, ...] = NODES_HERE) -> Directory:
    return Directory(nodes, PEOPLE, {ipaddress.ip_network("192.168.1.0/24"): BACKUP.id})


def ask(source: str, destination: str, protocol: int = 6, port: int | None = 443, *, text: str | None = POLICY) -> Verdict:
    return explain(None if text is None else parse_policy(text), directory(), source, destination, protocol, port)


def end_of(face: Face) -> End:
    route = next((route for route in face.node.routes if face.address in route), None) if face.routed else None
    return End("", face.node, face.address, route)


@settings(max_examples=150)
@given(policies(), NODES)
def test_verdict_is_what_the_rules_say(document: Json, nodes: list[PolicyNode]) -> None:
    policy = parse_policy(text_of(document))
    for one, other in permutations(nodes, 2):
        whole: dict[tuple[int, int | None], bool] = {}
        for source, target, protocol, port in questions(one, other):
            expected = allowed(document, source, target, protocol, port)
            assert decide(policy, end_of(source), end_of(target), protocol, port).allowed == expected
            if not source.routed and not target.routed:
                asked = (1 if protocol == 58 else protocol, port)
                whole[asked] = whole.get(asked, False) or expected
        for (protocol, port), expected in whole.items():
            assert decide(policy, End("", one), End("", other), protocol, port).allowed == expected


@settings(max_examples=100)
@given(NODES)
def test_builtin_verdict_is_what_its_filters_accept(nodes: list[PolicyNode]) -> None:
    engine = BuiltinPolicy(OVERLAY, nodes)
    for one, other in permutations(nodes, 2):
        for source, target, protocol, port in questions(one, other):
            accepted = engine.sees(one.id, other.id) and any(
                any(source.address in prefix for prefix in rule.sources) and any(target.address in prefix for prefix in rule.destinations)
                for rule in engine.rules(other.id)
            )
            assert decide(None, end_of(source), end_of(target), protocol, port).allowed == accepted


def test_allowed_names_rule_line_and_what_matched() -> None:
    verdict = ask("n1", "n4")
    assert verdict.allowed
    assert verdict.permit is not None
    assert verdict.permit.line == 6
    assert verdict.reason == (
        'by the rule in line 6 (group:dev to tag:web): {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "tag:new:22"]}'
    )


def test_rule_of_several_lines_is_told_whole_and_the_route_with_its_router() -> None:
    verdict = ask("bob@", "192.168.1.7", 6, 9100)
    assert verdict.allowed
    assert verdict.reason == (
        'by the rule in line 7 (bob@ to printer): {"action": "accept", "src": ["bob@"], "dst": ["printer:9100"], "proto": "tcp"}'
        ", through the router n6 of 192.168.1.0/24"
    )
    assert (verdict.destination.node, verdict.destination.route) == (BACKUP, ipaddress.ip_network("192.168.1.0/24"))
    assert ask("bob@", "printer", 6, 9100).reason == verdict.reason
    assert ask("bob@", "printer", 6, 9100).destination.name == "printer"


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (("n1", "n4", 6, 22), "no rule allows tcp/22 between them; the one in line 6 (tag:web) allows tcp+udp/80,443, icmp+icmpv6"),
        (("n1", "n4", 47, None), "no rule allows 47 between them; the one in line 6 (tag:web) allows tcp+udp/80,443, icmp+icmpv6"),
        (("n4", "n1"), "no rule has this source and this destination"),
        (("n1", "n3"), "no rule has this source and this destination"),
        (("192.168.1.7", "fd00::3", 17, 162), "they have no family of addresses in common that this protocol is for"),
        (("n1", "100.70.0.4", 58, None), "they have no family of addresses in common that this protocol is for"),
        (("192.168.1.8", "n3", 17, 162), "no rule has this source and this destination"),
    ],
)
def test_denied_says_why_and_what_is_near(question: tuple[str, ...], reason: str) -> None:
    verdict = ask(*question)  # type: ignore[arg-type]
    assert not verdict.allowed
    assert verdict.permit is None
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("question", "allowed_"),
    [
        (("alice@", "tag:web"), True),
        (("ALICE@example.com", "TAG:web"), None),
        (("alice", "tag:web"), True),
        (("1", "4"), True),
        (("100.70.0.1", "fd00::4"), False),
        (("fd00::1", "fd00::4"), True),
        (("carol@", "tag:web"), True),
        (("carol@", "tag:new", 6, 22), True),
        (("carol@", "tag:new", 6, 23), False),
        (("bob@", "tag:web"), False),
        (("alice@", "alice@", 6, 22), True),
        (("n1", "n2", 6, 22), True),
        (("n1", "n1", 6, 22), True),
        (("n5", "192.168.1.7", 6, 22), False),
        (("n6", "192.168.1.7", 6, 22), True),
        (("n1", "n4", 1, None), True),
        (("n1", "n4", 58, None), True),
        (("192.168.1.7", "n3", 17, 162), True),
        (("192.168.1.7", "bobs", 17, 162), True),
        (("192.168.5.5", "bob@", 17, 162), False),
        (("tag:router", "n3", 17, 162), False),
    ],
)
def test_ends_are_named_in_every_way(question: tuple[str, ...], allowed_: bool | None) -> None:
    if allowed_ is None:
        with pytest.raises(NotFoundError):
            ask(*question)  # type: ignore[arg-type]
        return
    assert ask(*question).allowed == allowed_  # type: ignore[arg-type]


def test_node_that_is_reached_by_one_family_alone_is_told_so() -> None:
    text = '{"grants": [{"src": ["*"], "dst": ["100.70.0.4"], "ip": ["tcp:443"]}]}'
    verdict = ask("n1", "n4", text=text)
    assert verdict.allowed
    assert verdict.reason.endswith(", by 100.70.0.4 alone")
    assert not ask("n1", "fd00::4", text=text).allowed
    assert not ask("n1", "100.70.0.4", text=text).reason.endswith("alone")


@pytest.mark.parametrize("name", ["nobody", "nobody@", "10.1.1.1", "nowhere", "100.70.0.99", "", "group:dev"])
def test_name_that_is_none_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError):
        ask("n1", name)
    with pytest.raises(NotFoundError):
        ask(name, "n1")


@pytest.mark.parametrize(
    ("question", "allowed_", "words"),
    [
        (("n1", "n2"), True, "nodes of one user reach each other"),
        (("n1", "n3"), False, "nodes of different users do not reach each other"),
        (("n3", "n4"), True, "tagged nodes are reachable by all nodes"),
        (("n4", "n3"), False, "nodes of different users"),
        (("n3", "192.168.1.9"), True, "approved routes are reachable by all nodes"),
        (("192.168.1.9", "n4"), False, "what is behind a router reaches nobody"),
        (("n1", "n1"), True, "a node reaches itself"),
    ],
)
def test_builtin_policy_explains_itself(question: tuple[str, str], allowed_: bool, words: str) -> None:
    verdict = ask(*question, text=None)
    assert verdict.allowed == allowed_
    assert words in verdict.reason
    assert verdict.permit is None


# --- the tests of a policy


def results(tests: str, nodes: tuple[PolicyNode, ...] = NODES_HERE) -> tuple[explaining.TestResult, ...]:
    return run_tests(parse_policy(POLICY.rstrip("}") + f'"tests": [{tests}]}}'), directory(nodes))


@pytest.mark.parametrize(
    "test",
    [
        '{"src": "alice@", "accept": ["tag:web:443", "tag:web:80"], "deny": ["tag:web:22", "bob@:22", "printer:9100"]}',
        '{"src": "bob@", "accept": ["printer:9100", "192.168.1.7:9100", "bobs:22"], "deny": ["tag:web:443", "192.168.1.8:9100", "carol@:22"]}',
        '{"src": "bob@", "proto": "udp", "deny": ["printer:9100"]}',
        '{"src": "group:dev", "accept": ["tag:web:443"], "deny": ["tag:web:22"]}',
        '{"src": "printer", "proto": 17, "accept": ["bobs:162"], "deny": ["bobs:161"]}',
        '{"src": "group:empty", "deny": ["tag:web:443"]}',
        '{"src": "new@", "accept": ["new@:22"], "deny": ["other@:22", "tag:web:443"]}',
        '{"src": "10.0.0.0/8", "deny": ["nowhere:22", "alice@:22"]}',
        '{"src": "tag:new", "deny": ["tag:web:443"]}',
        '{"src": "alice@", "accept": ["tag:new:22"]}',
    ],
)
def test_policys_own_tests_pass_whether_or_not_nodes_are_there(test: str) -> None:
    for result in (*results(test), *results(test, ())):
        if result.target in ("bobs", "carol@") or (result.test.source == "printer" and result.target == "bobs"):
            continue  # by an address that nobody has, or by nodes there
        assert result.passed, result
    assert all(result.passed for result in results(test))


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ('{"src": "alice@", "accept": ["tag:web:22"]}', "no rule allows tcp/22"),
        ('{"src": "alice@", "deny": ["tag:web:443"]}', "by the rule in line 6"),
        ('{"src": "group:empty", "accept": ["tag:web:443"]}', "group:empty has no members"),
        ('{"src": "alice@", "accept": ["group:empty:443"]}', "group:empty has no members"),
        ('{"src": "alice@", "deny": ["group:dev:22"]}', "by the rule in line 13"),
        ('{"src": "group:dev", "accept": ["alice@:22"]}', "no rule has this source"),
        ('{"src": "group:dev", "deny": ["alice@:22"]}', "by the rule in line 13"),
    ],
)
def test_policys_own_test_that_fails_says_why(test: str, words: str) -> None:
    (result,) = results(test)
    assert not result.passed
    assert words in result.verdict.reason


def test_two_users_that_are_not_there_are_two() -> None:
    (result,) = results('{"src": "x@", "deny": ["y@:22"]}', ())
    assert result.passed


def test_router_of_the_longest_prefix_is_asked_and_of_equal_ones_the_one_at_work() -> None:
    assert ask("bob@", "192.168.1.9", 6, 9100).destination.node == BACKUP
    assert ask("bob@", "192.168.5.5", 6, 9100).destination.route == ipaddress.ip_network("192.168.0.0/16")
    alone = Directory(NODES_HERE, PEOPLE)
    assert alone.ends("192.168.1.9")[0].node == ROUTER
    gone = Directory(NODES_HERE, PEOPLE, {ipaddress.ip_network("192.168.1.0/24"): NodeId(99)})
    assert gone.ends("192.168.1.9")[0].node == ROUTER


def test_name_is_found_whatever_its_case_and_a_node_before_a_user() -> None:
    named = replace(BOB, name="alice")
    assert Directory((ALICE, named), PEOPLE).ends("Alice")[0].node == named
    assert [end.node for end in Directory((ALICE, named), PEOPLE).ends("Alice@")] == [ALICE]
