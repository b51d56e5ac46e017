"""The built-in policy between users and tags, on the wire."""

from __future__ import annotations

import pytest

from calnet.roles.demo.product import eventually
from tests.e2e.network import SOON, Network, answers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_users_are_apart_and_tagged_nodes_answer_all_but_begin_nothing(net: Network) -> None:
    net.admin("users", "create", "anna")
    net.admin("users", "create", "otto")
    anna = net.join("annas", key=("--user", "anna"))
    other = net.join("annastoo", key=("--user", "anna"))
    otto = net.join("ottos", key=("--user", "otto"))
    printer = net.join("printer", key=("--tag", "tag:printer"))
    net.acquaint("annas", "annastoo")
    for node in (anna, otto):
        eventually(lambda node=node: answers(node, printer.address()), SOON, "everybody reaches the tagged node")  # type: ignore[misc]
    eventually(lambda: answers(anna, other.address()), SOON, "nodes of one user reach each other")
    assert not answers(anna, otto.address())
    assert not answers(otto, anna.address())
    assert not answers(printer, anna.address())
    assert not answers(printer, otto.address())
    assert printer.own()["tags"] == ["tag:printer"]
    assert printer.own()["key_expires"] is None
