"""The manual: a page for each command, and text where there is no man."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from calnet.roles.cli import file_commands, pages
from calnet.roles.cli.commands import COMMANDS
from tests.roles.cli.daemon import Cli

ROOT = Path(__file__).resolve().parents[3]


def test_every_command_has_a_page_in_setup_cfg_and_in_man() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = {line.partition(":")[0] for line in settings["build_manpages"]["manpages"].split()}
    wanted = {"man/calnet.1", *(f"man/calnet-{name}.1" for name in COMMANDS)}
    assert listed == wanted
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "man").iterdir()} == wanted


@pytest.mark.parametrize("name", COMMANDS)
def test_page_of_a_command_has_its_name_usage_and_examples(name: str) -> None:
    page = getattr(pages, f"page_{name}")()
    assert page.prog == f"calnet-{name}"
    assert page.format_usage().startswith(f"usage: calnet {name}")
    assert f"calnet {COMMANDS[name].examples[0]}".replace("-", "\\-") in page._manpage[0]["content"]


def test_first_page_lists_every_command() -> None:
    shown = pages.page()._manpage[0]["content"]  # type: ignore[attr-defined]
    for name in COMMANDS:
        assert f"calnet\\-{name} (1)" in shown


def test_unknown_page_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        _ = pages.page_nonsense


def test_man_without_a_man_program_prints_text(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert cli("man").out.startswith("Calnet:")
    assert cli("man", "up").out.startswith("usage: calnet.pyz up")
    assert cli("man", "nonsense").code == 1


def test_man_that_is_a_stub_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "man").write_text("#!/bin/sh\necho minimised\n")
    assert file_commands._is_stub(str(tmp_path / "man"))
    assert not file_commands._is_stub("/bin/sh")


def test_man_shows_the_checkouts_page(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []

    def show(page: bytes) -> bool:
        shown.append(page)
        return True

    monkeypatch.setattr(file_commands, "_shown_by_man", show)
    assert cli("man", "ping").code == 0
    assert shown == [(ROOT / "man" / "calnet-ping.1").read_bytes()]


def test_licenses_of_a_checkout_points_at_the_file(cli: Cli) -> None:
    assert cli("licenses").code == 1
