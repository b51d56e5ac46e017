"""docs/policy.md says what is so: its policies compile, and what it calls unsupported is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from calnet.policy import document, selectors
from calnet.policy.document import PolicyError, parse_policy

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()


def test_policies_in_the_documentation_compile() -> None:
    found = re.findall(r"```hujson\n(.*?)```", TEXT, re.DOTALL)
    assert found
    for text in found:
        assert parse_policy(text).permits


def test_documentation_names_all_sections_and_words() -> None:
    words = [*document.SECTIONS, *selectors.AUTOGROUPS, "drop", "reject"]
    assert [word for word in words if word not in TEXT and word != "members"] == []


@pytest.mark.parametrize("section", re.findall(r"`(\w+)`", TEXT[TEXT.index("## 10.") :].partition("switches")[0]))
def test_what_the_documentation_calls_unsupported_is_refused_by_name(section: str) -> None:
    grant = f'{{"grants": [{{"src": ["*"], "dst": ["*"], "ip": ["*"], "{section}": []}}], "{section}": []}}'
    with pytest.raises(PolicyError, match=f"'{section}' is not supported"):
        parse_policy(grant)
