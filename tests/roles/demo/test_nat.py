"""Which sites of the lab can meet, from how they behave alone."""

from __future__ import annotations

import itertools

import pytest

from calnet.roles.demo.nat import EXPECTED, Meeting, NatKind, Traits, expected_ipv6, meeting

_RELAYED = (NatKind.BLOCKED_UDP, NatKind.HTTP_ONLY)
_STRICT = (NatKind.PORT_RESTRICTED, NatKind.LINUX, NatKind.CGNAT, NatKind.FIREWALL)
"""They let in only what comes from an endpoint they sent to, and map all destinations alike."""


def _traits(kind: NatKind) -> dict[int, Traits]:
    return {6 if kind is NatKind.IPV6_ONLY else 4: EXPECTED[kind]}


def _by_hand(one: NatKind, other: NatKind) -> Meeting:
    kinds = {one, other}
    if kinds & set(_RELAYED) or kinds == {NatKind.SYMMETRIC} or (NatKind.IPV6_ONLY in kinds and len(kinds) == 2):
        return Meeting.NONE
    return Meeting.GUESSING if NatKind.SYMMETRIC in kinds and kinds & set(_STRICT) else Meeting.PUNCHING


@pytest.mark.parametrize(("one", "other"), list(itertools.product(NatKind, NatKind)))
def test_meeting_of_each_two_kinds_is_what_a_person_would_say(one: NatKind, other: NatKind) -> None:
    assert meeting(_traits(one), _traits(other)) is _by_hand(one, other)


def test_meeting_over_either_ip_version_is_the_easier_one() -> None:
    both = {4: EXPECTED[NatKind.SYMMETRIC], 6: expected_ipv6(NatKind.SYMMETRIC)}
    assert meeting(both, _traits(NatKind.SYMMETRIC)) is Meeting.NONE
    assert meeting(both, _traits(NatKind.PORT_RESTRICTED)) is Meeting.GUESSING
    assert meeting(both, _traits(NatKind.IPV6_ONLY)) is Meeting.PUNCHING
    assert meeting(both, both) is Meeting.PUNCHING


@pytest.mark.parametrize("kind", list(NatKind))
def test_ipv6_of_a_site_is_as_tight_as_its_ipv4(kind: NatKind) -> None:
    four, six = EXPECTED[kind], expected_ipv6(kind)
    assert (six.tcp, six.levels, six.clashes) == (four.tcp, 0, False)
    assert (meeting({6: six}, {6: six}) is Meeting.NONE) is (kind in _RELAYED)
