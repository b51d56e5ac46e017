"""The one file for tests: built by build_zipapp.py, kept below build/ and made anew when something changed, and run by this Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = os.path.realpath(sys.executable)
BUILDER = (sys.executable, str(ROOT / "build_zipapp.py"))


def run(*words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command's outcome; stdin is `text`, or nothing. Calnet's own settings don't come along."""
    stdin: dict[str, object] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    whole = environment() | dict(env or {})
    return subprocess.run([str(word) for word in words], cwd=cwd, env=whole, capture_output=True, text=True, timeout=120, check=False, **stdin)  # type: ignore[call-overload,no-any-return]


def environment() -> dict[str, str]:
    """This process's, without Calnet's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CALNET_")}


def build(output: Path, *flags: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    done = run(*BUILDER, "--output", output, *flags, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr


def built_file() -> Path:
    """calnet.pyz of the sources as they are."""
    path = ROOT / "build" / "tests" / "calnet.pyz"
    path.parent.mkdir(parents=True, exist_ok=True)
    build(path, "--if-stale")
    return path


def calnet(built: Path, *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(PYTHON, "-IS", built, *words, env=env, cwd=cwd)


def in_mounts(mounts: str, built: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The file, run in a mount namespace of its own after these commands. Needs root."""
    script = f'set -e\nmount --make-rprivate /\n{mounts}\nexec "$@"'
    return run("unshare", "--mount", "sh", "-c", script, "sh", PYTHON, "-IS", built, *words, env=env)
