"""The access policy: Tailscale's policy file as far as Calnet has it, parsed to frozen values. Pure.

`parse_policy` reads the whole text and names everything that is wrong with it, each with its line: nothing that is written is passed over. What Tailscale
has and Calnet does not is named as such.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from calnet.errors import InvalidError
from calnet.model import Prefix
from calnet.policy.engine import PolicyNode
from calnet.policy.hujson import HujsonError, Located, Member, Place, parse_hujson, plain
from calnet.policy.prefixes import parse_prefix
from calnet.policy.selectors import (
    OWNERS,
    SOURCES,
    TARGETS,
    TESTED,
    USER_NAME,
    Names,
    PolicyTest,
    Selector,
    SelectorError,
    Service,
    Target,
    parse_capability,
    parse_ports,
    parse_protocols,
    parse_selector,
    services_of,
    split_target,
)
from calnet.wire.endpoints import overlaps

MAX_PROBLEMS: Final = 100
"""More are counted, not told."""
MAX_EXCERPT: Final = 300
"""Characters of a rule that people are shown."""
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_NOWHERE: Final = ipaddress.ip_network("0.0.0.0/32")
"""Stands for a host whose address can't be read, so that the rules that name it are not complained of too."""
SECTIONS: Final = ("groups", "tagOwners", "hosts", "acls", "grants", "autoApprovers", "tests", "defaultAction")
_ELSEWHERE: Final = {
    "ssh": "SSH rules",
    "sshTests": "SSH rules",
    "nodeAttrs": "node attributes",
    "postures": "device posture",
    "defaultSrcPosture": "device posture",
    "srcPosture": "device posture",
    "derpMap": "a relay map (relays are this network's own servers)",
    "ipsets": "IP sets (use hosts)",
    "extraDNSRecords": "DNS records",
    "disableIPv4": "that switch",
    "OneCGNATRoute": "that switch",
    "randomizeClientPort": "that switch (ports are random and kept)",
    "services": "services",
    "app": "application grants (use ip)",
    "via": "routing by grants",
}
_OLD: Final = {"users": "src", "ports": "dst"}
"""Names of before that Tailscale still reads."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    line: int
    column: int
    text: str


class PolicyError(InvalidError):
    """The policy can't be used; `problems` are all that were found."""

    code = "policy"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(f"line {problem.line}: {problem.text}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Permit:
    """One rule: from any source to each target, on that target's services. `text` is the rule in one line of JSON, for people."""

    line: int
    text: str
    sources: tuple[Selector, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that compiles. `owners` is who may give each tag, `approvers` whose routes within a prefix need no admin."""

    text: str
    permits: tuple[Permit, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hosts: Mapping[str, Prefix] = field(default_factory=dict)
    owners: Mapping[str, tuple[Selector, ...]] = field(default_factory=dict)
    approvers: tuple[tuple[Prefix, tuple[Selector, ...]], ...] = ()
    tests: tuple[PolicyTest, ...] = ()
    reject: bool = False

    def auto_approves(self, route: Prefix, node: PolicyNode) -> bool:
        """Whether the route, advertised by this node, is approved without an admin."""
        return any(
            route.version == prefix.version and overlaps(route, prefix) and route.prefixlen >= prefix.prefixlen and any(one.selects(node) for one in selectors)
            for prefix, selectors in self.approvers
        )

    def may_give_tag(self, tag: str, owner: PolicyNode) -> bool:
        """Whether the owner (a node that stands for a user: its names and role) may make nodes of this tag."""
        return any(selector.selects(owner) for selector in self.owners.get(tag, ()))


def parse_policy(text: str) -> Policy:
    """The policy; PolicyError with all problems."""
    try:
        document = parse_hujson(text)
    except HujsonError as error:
        raise PolicyError((Problem(error.place.line, error.place.column, error.problem),)) from error
    reader = _Reader(text)
    policy = reader.policy(document)
    if reader.problems:
        problems = sorted(reader.problems, key=lambda problem: (problem.line, problem.column))
        more = problems[MAX_PROBLEMS:]
        if more:
            problems[MAX_PROBLEMS:] = [Problem(more[0].line, more[0].column, f"and {len(more)} more problems from here on")]
        raise PolicyError(tuple(problems))
    return policy


class _Reader:
    """Collects problems; what can't be read is left out of the result, which is then not used."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._names = Names()

    def policy(self, document: Located) -> Policy:
        sections = self._members(document, "a policy", SECTIONS)
        groups = self._groups(sections.get("groups"))
        hosts = self._hosts(sections.get("hosts"))
        tags = frozenset(key for key, _ in self._pairs(sections.get("tagOwners"), quiet=True))
        self._names = Names(groups, hosts, tags)
        return Policy(
            text=self._text,
            permits=(*self._acls(sections.get("acls")), *self._grants(sections.get("grants"))),
            groups=groups,
            hosts=hosts,
            owners=dict(self._owners(sections.get("tagOwners"))),
            approvers=tuple(self._approvers(sections.get("autoApprovers"))),
            tests=tuple(self._tests(sections.get("tests"))),
            reject=self._default_action(sections.get("defaultAction")),
        )

    # --- sections

    def _groups(self, section: Member | None) -> dict[str, tuple[str, ...]]:
        groups = {}
        for name, member in self._pairs(section):
            if not name.startswith("group:") or len(name) == len("group:"):
                self._complain(member.place, f"{name!r} is no group: write group:NAME")
            members = []
            for text, place in self._texts(member.located, f"the members of {name}"):
                if not USER_NAME.fullmatch(text):
                    self._complain(place, f"{text!r} can't be in a group: members are users, as alice@ or by their e-mail address")
                members.append(text.lower())
            groups[name] = tuple(members)
        return groups

    def _hosts(self, section: Member | None) -> dict[str, Prefix]:
        hosts: dict[str, Prefix] = {}
        for name, member in self._pairs(section):
            if not _HOST_NAME.fullmatch(name) or _is_address(name):
                self._complain(member.place, f"{name!r} is no name for a host: use letters, digits, dots, hyphens and underscores")
            text = self._text_of(member.located, f"the host {name}")
            try:
                hosts[name] = parse_prefix(text) if text else _NOWHERE
            except ValueError as error:
                self._complain(member.located.place, f"the host {name}: {error}")
                hosts[name] = _NOWHERE
        return hosts

    def _owners(self, section: Member | None) -> Iterator[tuple[str, tuple[Selector, ...]]]:
        for tag, member in self._pairs(section):
            if not tag.startswith("tag:") or len(tag) == len("tag:"):
                self._complain(member.place, f"{tag!r} is no tag: write tag:NAME")
            yield tag, tuple(self._selectors(member.located, f"the owners of {tag}", OWNERS))

    def _approvers(self, section: Member | None) -> Iterator[tuple[Prefix, tuple[Selector, ...]]]:
        if section is None:
            return
        parts = self._members(section.located, "autoApprovers", ("routes", "exitNode"))
        if "exitNode" in parts:
            self._complain(parts["exitNode"].place, "Calnet does not have exit nodes yet: leave exitNode out")
        for route, member in self._pairs(parts.get("routes")):
            try:
                prefix = parse_prefix(route)
            except ValueError as error:
                self._complain(member.place, str(error))
                continue
            yield prefix, tuple(self._selectors(member.located, f"the approvers of {route}", OWNERS))

    def _default_action(self, section: Member | None) -> bool:
        if section is None:
            return False
        text = self._text_of(section.located, "defaultAction")
        if text not in ("drop", "reject", ""):
            self._complain(section.located.place, f"defaultAction is drop or reject, not {text!r}")
        return text == "reject"

    def _acls(self, section: Member | None) -> Iterator[Permit]:
        for item in self._items(section):
            rule = self._members(item, "a rule of acls", ("action", "src", "dst", "proto", "comment"), needs=("action", "src", "dst"))
            if "action" in rule and (action := self._text_of(rule["action"].located, "action")) not in ("accept", ""):
                self._complain(rule["action"].located.place, f"action is accept, not {action!r}: what no rule accepts is refused anyway")
            protocols = self._protocols(rule.get("proto"))
            targets = []
            for text, place in self._texts(rule["dst"].located if "dst" in rule else None, "dst"):
                with self._at(place):
                    name, ports = split_target(text)
                    targets.append(Target(parse_selector(name, self._names, TARGETS), services_of(protocols, parse_ports(ports))))
            yield self._permit(item, rule, tuple(targets))

    def _grants(self, section: Member | None) -> Iterator[Permit]:
        for item in self._items(section):
            rule = self._members(item, "a grant", ("src", "dst", "ip", "comment"), needs=("src", "dst", "ip"))
            services: list[Service] = []
            for text, place in self._texts(rule["ip"].located if "ip" in rule else None, "ip"):
                with self._at(place):
                    services += parse_capability(text)
            if "ip" in rule and rule["ip"].located.value == ():
                self._complain(rule["ip"].located.place, "ip is empty: such a grant gives nothing")
            selectors = self._selectors(rule["dst"].located if "dst" in rule else None, "dst", TARGETS)
            yield self._permit(item, rule, tuple(Target(selector, tuple(services)) for selector in selectors))

    def _permit(self, item: Located, rule: dict[str, Member], targets: tuple[Target, ...]) -> Permit:
        sources = tuple(self._selectors(rule["src"].located if "src" in rule else None, "src", SOURCES))
        if any(target.selector.kind == "self" for target in targets):
            for source in sources:
                if source.kind not in ("user", "group", "member", "role"):
                    self._complain(rule["src"].place, f"autogroup:self is for users' own devices: {source.text} can't be its source")
        text = json.dumps(plain(item), ensure_ascii=False)
        return Permit(item.place.line, text if len(text) <= MAX_EXCERPT else f"{text[:MAX_EXCERPT]}…", sources, targets)

    def _tests(self, section: Member | None) -> Iterator[PolicyTest]:
        for item in self._items(section):
            test = self._members(item, "a test", ("src", "proto", "accept", "deny"), needs=("src",))
            source = self._text_of(test["src"].located, "src") if "src" in test else ""
            if source:
                with self._at(test["src"].located.place):
                    parse_selector(source, self._names, TESTED)
            protocols = self._protocols(test.get("proto"))
            wanted = {}
            for key in ("accept", "deny"):
                wanted[key] = tuple(self._test_target(text, place) for text, place in self._texts(test[key].located if key in test else None, key))
            if test and "accept" not in test and "deny" not in test:
                self._complain(item.place, "a test needs accept or deny")
            found = [tuple(one for one in wanted[key] if one is not None) for key in ("accept", "deny")]
            yield PolicyTest(item.place.line, source, protocols[0] if protocols else None, *found)

    def _test_target(self, text: str, place: Place) -> tuple[str, int] | None:
        with self._at(place):
            name, ports = split_target(text)
            parse_selector(name, self._names, TESTED)
            ranges = parse_ports(ports)
            if len(ranges) != 1 or ranges[0].first != ranges[0].last:
                raise SelectorError(f"{text!r}: a test names one port, as in web:443")
            return name, ranges[0].first
        return None

    # --- pieces

    def _protocols(self, member: Member | None) -> tuple[int, ...]:
        if member is None:
            return ()
        with self._at(member.located.place):
            value = member.located.value
            text = str(value) if isinstance(value, int) and not isinstance(value, bool) else self._text_of(member.located, "proto")
            return parse_protocols(text) if text else ()
        return ()

    def _selectors(self, located: Located | None, what: str, kinds: frozenset[str]) -> Iterator[Selector]:
        for text, place in self._texts(located, what):
            with self._at(place):
                yield parse_selector(text, self._names, kinds)

    def _pairs(self, section: Member | None, *, quiet: bool = False) -> Iterator[tuple[str, Member]]:
        if section is None:
            return
        value = section.located.value
        if isinstance(value, dict):
            yield from value.items()
        elif not quiet:
            self._complain(section.located.place, "an object in { } belongs here")

    def _items(self, section: Member | None) -> tuple[Located, ...]:
        if section is None:
            return ()
        value = section.located.value
        if not isinstance(value, tuple):
            self._complain(section.located.place, "a list in [ ] belongs here")
            return ()
        return value

    def _members(self, located: Located, what: str, known: tuple[str, ...], needs: tuple[str, ...] = ()) -> dict[str, Member]:
        value = located.value
        if not isinstance(value, dict):
            self._complain(located.place, f"{what} is an object in {{ }}")
            return {}
        for key, member in value.items():
            if key not in known:
                self._complain(member.place, _unknown(key, known, what))
        for key in needs:
            if key not in value:
                self._complain(located.place, f"{what} needs {key}")
        return value

    def _texts(self, located: Located | None, what: str) -> Iterator[tuple[str, Place]]:
        if located is None:
            return
        if not isinstance(located.value, tuple):
            self._complain(located.place, f"{what}: a list of texts in [ ] belongs here")
            return
        for item in located.value:
            text = self._text_of(item, what)
            if text:
                yield text, item.place

    def _text_of(self, located: Located, what: str) -> str:
        """The text; empty, and a problem, for anything else."""
        if isinstance(located.value, str) and located.value:
            return located.value
        self._complain(located.place, f"{what}: a text in quotes belongs here")
        return ""

    def _at(self, place: Place) -> _Complaints:
        return _Complaints(self, place)

    def _complain(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place.line, place.column, text))

    def complain(self, place: Place, text: str) -> None:
        """A problem, for `_Complaints`."""
        self._complain(place, text)


class _Complaints:
    """Makes a SelectorError raised in its block a problem at a place."""

    def __init__(self, reader: _Reader, place: Place) -> None:
        self._reader, self._place = reader, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, SelectorError):
            return False
        self._reader.complain(self._place, str(error))
        return True


def _is_address(text: str) -> bool:
    try:
        parse_prefix(text)
    except ValueError:
        return False
    return True


def _unknown(key: str, known: tuple[str, ...], what: str) -> str:
    if key in _ELSEWHERE:
        return f"{key!r} is not supported: Calnet does not have {_ELSEWHERE[key]}"
    if key in _OLD:
        return f"{what} has no {key!r}: write {_OLD[key]}"
    close = difflib.get_close_matches(key.lower(), [word.lower() for word in known], 1)
    meant = next((word for word in known if close and word.lower() == close[0]), None)
    return f"{what} has no {key!r}" + (f": did you mean {meant}?" if meant else f"; it may have {', '.join(known)}")
