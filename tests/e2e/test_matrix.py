"""The whole matrix: nodes behind every two kinds of NAT and firewall reach each other, directly wherever the two can meet, else by relay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.matrix import Matrix, Result, all_cases, markdown, matrix
from calnet.roles.demo.nat import Meeting, NatKind
from tests.e2e.network import PROGRAM

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def made() -> Iterator[Matrix]:
    with matrix(PROGRAM, all_cases()) as everything:
        yield everything


@pytest.fixture(scope="module")
def results(made: Matrix) -> list[Result]:
    found = made.run()
    print(markdown(found))
    return found


def test_every_two_kinds_are_a_case() -> None:
    kinds = {frozenset(case.kinds) for case in all_cases()}
    assert len(kinds) == len(all_cases()) == len(NatKind) * (len(NatKind) + 1) // 2


def test_every_pair_gets_a_reply_and_the_path_that_its_kinds_allow(results: list[Result]) -> None:
    assert [str(result.case) for result in results if not result.as_expected] == [], "\n" + markdown(results)


def test_no_pair_loses_a_ping(results: list[Result]) -> None:
    assert [str(result.case) for result in results if result.lost] == [], "\n" + markdown(results)


def test_pair_that_cannot_meet_never_was_direct(results: list[Result]) -> None:
    assert [str(r.case) for r in results if r.case.meeting is Meeting.NONE and r.direct_s is not None] == [], "\n" + markdown(results)
