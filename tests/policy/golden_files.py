"""Golden policies: what becomes of each file in golden/. `python -m tests.policy.golden_files NAME…` prints it, to be read before it is kept."""

from __future__ import annotations

import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

from calnet.model import FilterRule, NodeId, UserId
from calnet.policy.compiled import CompiledPolicy
from calnet.policy.document import PolicyError, parse_policy
from calnet.policy.engine import PolicyNode
from calnet.policy.explain import Directory, imagined_of, run_tests, service_text
from calnet.policy.selectors import Service

GOLDEN = Path(__file__).parent / "golden"
OVERLAY = (ipaddress.ip_network("100.70.0.0/24"), ipaddress.ip_network("fd00::/64"))
ROUTES = tuple(ipaddress.ip_network(text) for text in ("192.168.1.0/24", "192.168.0.0/15", "10.0.0.0/8", "fd99::/64", "0.0.0.0/0"))


def nodes() -> list[PolicyNode]:
    return [_node(row) for row in json.loads((GOLDEN / "nodes.json").read_text())]


def _node(row: dict[str, Any]) -> PolicyNode:
    return PolicyNode(
        id=NodeId(row["id"]),
        name=row["name"],
        user=UserId(row["user"]) if "user" in row else None,
        tagged="tags" in row,
        addresses=tuple(ipaddress.ip_address(text) for text in row["addresses"]),
        routes=tuple(ipaddress.ip_network(text) for text in row.get("routes", ())),
        user_names=tuple(row.get("user_names", ())),
        role=row.get("role", ""),
        tags=tuple(row.get("tags", ())),
    )


def render(text: str) -> dict[str, Any]:
    """What the policy makes of the nodes, or what is wrong with it."""
    try:
        policy = parse_policy(text)
    except PolicyError as error:
        return {"problems": [f"{problem.line}:{problem.column}: {problem.text}" for problem in error.problems]}
    present = nodes()
    engine = CompiledPolicy(policy, OVERLAY, present)
    users = {node.user_names[0].rstrip("@"): imagined_of(node.user, node.user_names, node.role) for node in present if node.user is not None}
    return {
        "filters": {node.name: [_rule(rule) for rule in rules] for node in present if (rules := engine.rules(node.id))},
        "sees": {node.name: " ".join(other.name for other in present if other.id in engine.visible(node.id)) for node in present},
        "tests": [
            f"line {result.test.line}: {result.test.source} to {result.target}:{result.port}: {'passed' if result.passed else 'failed'}"
            for result in run_tests(policy, Directory(present, users))
        ],
        "tag_givers": {tag: " ".join(node.name for node in present if policy.may_give_tag(tag, node)) for tag in sorted(policy.owners)},
        "auto_approved": {str(route): names for route in ROUTES if (names := " ".join(node.name for node in present if policy.auto_approves(route, node)))},
        "reject": engine.reject,
    }


def _rule(rule: FilterRule) -> str:
    service = service_text(Service(rule.protocols, rule.ports))
    return f"{' '.join(map(str, rule.sources))} -> {' '.join(map(str, rule.destinations))}: {service}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(render((GOLDEN / f"{name}.hujson").read_text()), indent=2, ensure_ascii=False))
