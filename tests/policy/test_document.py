"""Policy files: what golden files don't show. Whatever the text, there is a policy or a PolicyError with places in it."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.policy import document
from calnet.policy.document import PolicyError, parse_policy
from tests.policy.golden_files import GOLDEN
from tests.policy.worlds import node, policies, text_of

GOLDEN_TEXTS = [path.read_text() for path in sorted(GOLDEN.glob("*.hujson"))]


def refusal(text: str) -> PolicyError:
    with pytest.raises(PolicyError) as raised:
        parse_policy(text)
    return raised.value


def check_refusal(text: str, error: PolicyError) -> None:
    lines = text.count("\n") + 1
    assert error.problems
    for problem in error.problems:
        assert 1 <= problem.line <= lines
        assert problem.column >= 1
        assert problem.text
        assert f"line {problem.line}: {problem.text}" in str(error)
    assert list(error.problems) == sorted(error.problems, key=lambda problem: (problem.line, problem.column))


def test_refusal_tells_all_problems_with_their_lines_and_is_the_askers_fault() -> None:
    error = refusal('{"acls": [\n{"action": "accept", "src": ["group:x"], "dst": ["*:*"]}],\n"ssh": []}')
    assert str(error) == "line 2: there is no group:x in groups; line 3: 'ssh' is not supported: Calnet does not have SSH rules"
    assert error.code == "policy"
    assert error.http_status == 422


def test_text_that_is_no_hujson_is_one_problem_with_its_place() -> None:
    (problem,) = refusal('{"acls": [\n').problems
    assert (problem.line, problem.column, problem.text) == (2, 1, "] is missing at the end")


def test_more_problems_than_anybody_reads_are_counted() -> None:
    error = refusal('{"groups": {"group:a": [' + '"x",\n' * 250 + "]}}")
    assert len(error.problems) == document.MAX_PROBLEMS + 1
    assert error.problems[-1].text == "and 150 more problems from here on"
    assert error.problems[-1].line == 101


def test_long_rule_is_told_in_part() -> None:
    (permit,) = parse_policy('{"grants": [{"src": [' + '"alice@", ' * 200 + '], "dst": ["*"], "ip": ["*"]}]}').permits
    assert len(permit.text) == document.MAX_EXCERPT + 1
    assert permit.text.endswith("…")


@settings(max_examples=200)
@given(policies())
def test_policy_that_is_sound_is_read(drawn: dict[str, Any]) -> None:
    policy = parse_policy(text_of(drawn))
    assert len(policy.permits) == len(drawn["acls"]) + len(drawn["grants"])
    assert parse_policy(json.dumps(drawn, indent=1)).groups == policy.groups


WORDS = "* *:* alice@ tag:x group:a autogroup:self 10.0.0.0/8 tcp tcp:1 accept fd00::1:1"
KEYS = "groups tagOwners hosts acls grants autoApprovers tests defaultAction src dst ip proto action accept deny routes exitNode group:a tag:x lan ssh via"
VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 70_000, 1.5, "", *WORDS.split()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4),
    max_leaves=30,
)


@settings(max_examples=500)
@given(VALUES)
def test_any_values_are_a_policy_or_refused(value: object) -> None:
    text = json.dumps(value, indent=1)
    try:
        parse_policy(text)
    except PolicyError as error:
        check_refusal(text, error)


@settings(max_examples=500)
@given(st.sampled_from(GOLDEN_TEXTS), st.data())
def test_damaged_policies_are_a_policy_or_refused(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    damaged = text[:start] + data.draw(st.text(st.sampled_from('{}[]",:@*/-0a\n '), max_size=4)) + text[end:]
    try:
        parse_policy(damaged)
    except PolicyError as error:
        check_refusal(damaged, error)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_policy_or_refused(data: bytes) -> None:
    for text in (data.decode("latin-1"), data.decode("utf-8", "surrogateescape"), data.decode("utf-8", "replace")):
        try:
            parse_policy(text)
        except PolicyError as error:
            check_refusal(text, error)


@pytest.mark.parametrize("text", ["[", '{"acls": [', '{"a":', '"', "//", "/*"])
def test_hostile_repetition_is_refused_and_soon(text: str) -> None:
    refusal((text * 300_000)[:500_000])


# --- what policies are asked


@pytest.mark.parametrize(
    ("route", "number", "approved"),
    [
        ("10.1.0.0/16", 1, True),
        ("10.0.0.0/8", 1, True),
        ("10.1.0.0/16", 3, False),
        ("0.0.0.0/0", 1, False),
        ("8.0.0.0/6", 1, False),
        ("11.0.0.0/8", 1, False),
        ("fd99::/64", 4, True),
        ("fd99::/64", 1, False),
        ("::/0", 4, False),
    ],
)
def test_routes_within_an_approvers_prefix_are_approved_by_themselves(route: str, number: int, approved: bool) -> None:
    policy = parse_policy('{"tagOwners": {"tag:r": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["alice@"], "fd99::/48": ["tag:r"]}}}')
    asking = node(number, number) if number < 4 else node(4, None, tags=("tag:r",))
    assert policy.auto_approves(ipaddress.ip_network(route), asking) == approved


def test_tag_is_given_by_its_owners_alone() -> None:
    policy = parse_policy('{"tagOwners": {"tag:a": ["bob@", "autogroup:owner"], "tag:b": [], "tag:c": ["tag:a"]}}')
    givers = {tag: [number for number in (1, 2, 3) if policy.may_give_tag(tag, node(number, number))] for tag in ("tag:a", "tag:b", "tag:c", "tag:none")}
    assert givers == {"tag:a": [1, 2], "tag:b": [], "tag:c": [], "tag:none": []}
    assert policy.may_give_tag("tag:c", node(4, None, tags=("tag:a",)))
