"""The access policy on the server: which one holds, what it says of tags and routes, and the questions people ask of it before and after setting one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from calnet.crypto.hash import blake2s
from calnet.errors import ForbiddenError, InvalidError, StateError
from calnet.model import NodeId, Prefix
from calnet.policy import builtin
from calnet.policy.builtin import BuiltinPolicy
from calnet.policy.compiled import CompiledPolicy
from calnet.policy.difference import Shift, difference
from calnet.policy.document import Permit, Policy, PolicyError, Problem, parse_policy
from calnet.policy.engine import PolicyNode
from calnet.policy.explain import Directory, End, TestResult, Verdict, explain, imagined_of, run_tests
from calnet.policy.selectors import SelectorError, parse_protocols
from calnet.roles.server.actors import Actor
from calnet.roles.server.founding import POLICY, prefixes_of
from calnet.roles.server.netmaps import EngineFactory, policy_node
from calnet.roles.server.powers import acting_user, is_manager
from calnet.roles.server.routes import is_approvable, parse_route
from calnet.roles.server.snapshot import Snapshot, state_of
from calnet.roles.server.standing import NodeState
from calnet.store.interface import Change, Delete, Key, NodeRecord, Put, SettingRecord, UserRecord

Json = dict[str, Any]


@functools.lru_cache(maxsize=4)
def _parsed(text: str) -> Policy:
    return parse_policy(text)


def policy_of(state: Snapshot) -> Policy | None:
    """The policy that was set; None where the built-in one holds."""
    text = state.settings.get(POLICY)
    return None if text is None else _parsed(text.decode())


def engine_of(state: Snapshot) -> EngineFactory:
    """What compiles the policy in force."""
    policy = policy_of(state)
    return BuiltinPolicy if policy is None else functools.partial(CompiledPolicy, policy)


def stored_engine_of(state: Snapshot) -> EngineFactory:
    """As engine_of, of a store that another version may have written; StateError where this one can't read its policy: it is not passed over."""
    try:
        return engine_of(state)
    except PolicyError as error:
        raise StateError(f"the policy in the store does not compile with this version ({error}): start the version that set it, and change it there") from error


def policy_row(state: Snapshot) -> Json:
    """The policy in force, for people."""
    text = state.settings.get(POLICY)
    return _row("built-in", builtin.TEXT) if text is None else _row("set", text.decode())


def _row(source: str, text: str) -> Json:
    return {"source": source, "text": text, "etag": blake2s(source.encode(), b"\0", text.encode()).hex()[:24]}


def plan_set_policy(state: Snapshot, text: str) -> tuple[Sequence[Change], Json]:
    """PolicyError where it does not compile, or one of its tests fails. Routes that it approves by itself are approved in the same commit."""
    policy = _parsed(text)
    failed = [result for result in run_tests(policy, directory(state)) if not result.passed]
    if failed:
        raise PolicyError(tuple(Problem(result.test.line, 1, f"the test fails: {_test_text(result)}") for result in failed))
    after = [auto_approved(state, node, policy) for node in state.nodes.values()]
    approved = [Put(node) for node in after if node != state.nodes[node.id]]
    return [Put(SettingRecord(POLICY, text.encode())), *approved], _row("set", text)


def plan_reset_policy(state: Snapshot) -> tuple[Sequence[Change], None]:
    """The built-in policy from now on; routes approved so far stay so."""
    return ([Delete(Key(SettingRecord, POLICY))] if POLICY in state.settings else []), None


def auto_approved(state: Snapshot, node: NodeRecord, policy: Policy | None = None) -> NodeRecord:
    """The node with those of its advertised routes approved that the policy (that in force) approves by itself: never one that no admin could approve."""
    policy = policy or policy_of(state)
    if policy is None or not policy.approvers or not node.name:
        return node
    seen, overlay = policy_node(state, node), prefixes_of(state)
    offered = [parse_route(route) for route in node.advertised_routes if route not in node.approved_routes]
    more = [str(route) for route in offered if policy.auto_approves(route, seen) and is_approvable(route, overlay)]
    return replace(node, approved_routes=tuple(sorted((*node.approved_routes, *more)))) if more else node


def check_tags_allowed(state: Snapshot, actor: Actor, tags: Sequence[str]) -> None:
    """ForbiddenError where a user who is no admin gives a tag that the policy's tagOwners don't let it give. InvalidError is left to the plan."""
    user = acting_user(state, actor)
    if user is None or is_manager(user):
        return
    for tag in tags:
        if not may_give_tags(state, user, (tag,)):
            raise ForbiddenError(f"only an admin or an owner of {tag} (tagOwners in the policy) may give it")


def may_give_tags(state: Snapshot, user: UserRecord | None, tags: Sequence[str]) -> bool:
    """Whether the policy's tagOwners let the user give all of these tags."""
    policy = policy_of(state)
    return user is not None and policy is not None and all(policy.may_give_tag(tag, _imagined(user)) for tag in tags)


# --- questions


def directory(state: Snapshot, primaries: Mapping[Prefix, NodeId] | None = None, *, now: float | None = None) -> Directory:
    """The admitted nodes and users, for questions; with `now` the active nodes alone."""
    users = {user.name: _imagined(user) for user in state.users.values()}
    return Directory(_policy_nodes(state, now), users, primaries)


def _policy_nodes(state: Snapshot, now: float | None) -> list[PolicyNode]:
    return [policy_node(state, node) for node in state.nodes.values() if node.name and (now is None or state_of(node, now) is NodeState.ACTIVE)]


def _imagined(user: UserRecord) -> PolicyNode:
    return imagined_of(user.id, (f"{user.name}@", *([user.email] if user.email else ())), user.role)


def check(state: Snapshot, text: str) -> Json:
    """See Management.check_policy."""
    try:
        policy = _parsed(text)
    except PolicyError as error:
        return {"ok": False, "problems": [{"line": problem.line, "column": problem.column, "text": problem.text} for problem in error.problems], "tests": []}
    results = run_tests(policy, directory(state))
    return {"ok": all(result.passed for result in results), "problems": [], "tests": [_test_row(result) for result in results]}


def test(state: Snapshot, text: str | None) -> Json:
    """See Management.test_policy."""
    policy = policy_of(state) if text is None else _parsed(text)
    results = () if policy is None else run_tests(policy, directory(state))
    return {"ok": all(result.passed for result in results), "tests": [_test_row(result) for result in results]}


def diff(state: Snapshot, text: str, now: float) -> Json:
    """See Management.diff_policy."""
    found = difference(policy_of(state), _parsed(text), _policy_nodes(state, now))
    return {"gained": [_shift_row(shift) for shift in found.gained], "lost": [_shift_row(shift) for shift in found.lost]}


def can(state: Snapshot, source: str, destination: str, protocol: str, port: int | None, now: float, primaries: Mapping[Prefix, NodeId]) -> Json:
    """See Management.can."""
    try:
        numbers = parse_protocols(protocol)
    except SelectorError as error:
        raise InvalidError(str(error)) from error
    if not numbers:
        raise InvalidError("name one protocol, such as tcp/443 or icmp")
    if port is None and protocol.lower() in ("tcp", "udp", "sctp", "dccp"):
        raise InvalidError(f"{protocol} needs a port, as in {protocol}/443")
    verdict = explain(policy_of(state), directory(state, primaries, now=now), source, destination, numbers[0], port)
    return _verdict_row(verdict)


def _verdict_row(verdict: Verdict) -> Json:
    permit: Permit | None = verdict.permit
    return {
        "allowed": verdict.allowed,
        "reason": verdict.reason,
        "rule": None if permit is None else {"line": permit.line, "text": permit.text},
        "source": _end_row(verdict.source),
        "destination": _end_row(verdict.destination),
    }


def _end_row(end: End) -> Json:
    node = end.node
    owner = next(iter(node.user_names), None)
    route = None if end.route is None else {"prefix": str(end.route), "router": node.name}
    return {"name": end.name, "node": node.name or None, "user": None if node.tagged else owner, "tags": list(node.tags), "route": route}


def _test_row(result: TestResult) -> Json:
    return {"line": result.test.line, "passed": result.passed, "text": _test_text(result)}


def _test_text(result: TestResult) -> str:
    wish = "must reach" if result.wanted else "must not reach"
    return f"{result.test.source} {wish} {result.target}:{result.port}, and {'does' if result.verdict.allowed else 'does not'} ({result.verdict.reason})"


def _shift_row(shift: Shift) -> Json:
    return {"sources": list(shift.sources), "destinations": list(shift.destinations), "services": list(shift.services), "between": shift.between}
