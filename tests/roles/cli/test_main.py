"""The entry: exit codes, one line on stderr, no traceback whatever the words."""

from __future__ import annotations

import errno
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calnet import __version__, errors
from calnet.roles.cli import main as entry
from calnet.roles.cli.commands import COMMANDS
from tests.roles.cli.daemon import Cli, scripted

ROOT = Path(__file__).resolve().parents[3]


def test_version_is_one_line(cli: Cli) -> None:
    assert cli("--version").out == f"calnet {__version__}\n"
    assert cli("--debug", "--version").code == 0


def test_help_lists_every_command_with_its_examples(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for command in COMMANDS.values():
        assert f"  {command.name:<10} {command.summary}" in shown.out


def test_no_words_at_all_print_the_help_and_exit_2(cli: Cli) -> None:
    assert cli().code == 2


def test_help_of_a_command_exits_0(cli: Cli) -> None:
    for words in (["up", "--help"], ["admin", "keys", "create", "--help"], ["admin", "-h"]):
        assert cli(*words).code == 0


def test_unknown_command_exits_2_and_suggests(cli: Cli) -> None:
    outcome = cli("stats")
    assert (outcome.code, outcome.out) == (2, "")
    assert "did you mean status?" in outcome.err


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.CalnetError, 1),
        (errors.UsageError, 2),
        (errors.UnreachableError, 3),
        (errors.LoginNeededError, 4),
        (errors.NotPermittedError, 5),
        (errors.TimedOutError, 6),
        (errors.NotFoundError, 1),
        (errors.ForbiddenError, 5),
        (errors.HostError, 1),
    ],
)
def test_error_from_the_daemon_sets_the_exit_code_and_one_line(cli: Cli, tmp_path: Path, kind: type[errors.CalnetError], code: int) -> None:
    with scripted(tmp_path, {"status": kind("what\nto do")}) as daemon:
        outcome = cli("status", "--socket", str(daemon.socket))
    assert (outcome.code, outcome.out, outcome.err) == (code, "", "calnet: what\\nto do\n")


def test_no_daemon_exits_3_and_names_install(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("up", "--socket", str(tmp_path / "none"))
    assert outcome.code == 3
    assert "calnet.pyz install node" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_defect_is_one_line_without_debug_and_a_traceback_with_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calnet.roles.cli.show.status_lines", lambda document: 1 // 0)
    with scripted(tmp_path, {"status": {}}) as daemon:
        quiet = cli("status", "--socket", str(daemon.socket))
        monkeypatch.setenv("CALNET_DEBUG", "1")
        loud = cli("status", "--socket", str(daemon.socket))
    assert (quiet.code, loud.code) == (1, 1)
    assert "Traceback" not in quiet.err
    assert "ZeroDivisionError" in quiet.err
    assert "Traceback" in loud.err


def test_role_without_its_packages_says_what_to_build(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> object:
        raise ModuleNotFoundError("No module named 'uvloop'", name="uvloop")

    monkeypatch.setattr("importlib.import_module", lacking)
    outcome = cli("server")
    assert outcome.code == 1
    assert "build_zipapp.py" in outcome.err


def test_role_gets_settled_flags_and_can_read_them_again(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Namespace] = []

    def started(args: Namespace) -> int:
        seen.append(args)
        return 0

    monkeypatch.setattr("calnet.roles.server.main.run", started)
    file = tmp_path / "server.toml"
    file.write_text('url = "http://a"')
    assert cli("server", "--config", str(file), "--debug").code == 0
    file.write_text('url = "http://b"')
    assert (seen[0].url, seen[0].debug, seen[0].reread().url) == ("http://a", True, "http://b")


def test_interrupt_exits_130_without_a_word(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_dispatch", interrupted)
    outcome = cli("status")
    assert (outcome.code, outcome.err) == (130, "")


WORDS = st.one_of(
    st.sampled_from([*COMMANDS, "--json", "--socket", "--timeout", "-c", "users", "nodes", "routes", "list", "--help", "--config", "-4", "--"]),
    st.text(max_size=12),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=5))
def test_any_words_give_an_exit_code_and_no_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]) -> None:
    def stub(_: object) -> object:
        return lambda args: 0

    with monkeypatch.context() as patched:
        patched.setattr(entry, "_function", stub)
        outcome = cli(*words)
    assert outcome.code in (0, 1, 2)
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err


def checkout(*words: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, str(ROOT / "calnet.py"), *words], check=False, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]


def test_full_disk_behind_stdout_is_one_line_and_exits_1() -> None:
    with open("/dev/full", "wb") as full:
        done = checkout("--help", stdout=full)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert b"No space left" in done.stderr


def test_closed_pipe_behind_stdout_is_silent() -> None:
    process = subprocess.Popen([sys.executable, str(ROOT / "calnet.py"), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, b"")


def test_closed_stdout_and_stderr_do_no_harm() -> None:
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} {ROOT}/calnet.py --help >&- 2>&-"], check=False)
    assert done.returncode == 0


def test_output_in_an_encoding_that_lacks_letters_is_escaped() -> None:
    done = checkout("--help", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_unexpected_os_error_names_the_file() -> None:
    assert entry._unexpected(OSError(errno.ENOENT, "No such file", "/x")) == "No such file: /x"


def test_cli_imports_nothing_slow(tmp_path: Path) -> None:
    script = "import sys; sys.argv=['calnet']; from calnet.roles.cli.main import run; run(['status','--socket','/nonexistent/x']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "asyncio",
        "dataclasses",
        "typing",
        "importlib.metadata",
        "ipaddress",
        "shutil",
        "pathlib",
        "subprocess",
        "logging",
        "tomllib",
        "inspect",
    }
