"""The one entry: finds the command, settles its flags, calls it, and turns every failure into one line and an exit code.

Commands are started by name, so that each run imports its own command alone; this module is where the roles come together.
"""

from __future__ import annotations

import contextlib
import os
import sys

from calnet import __version__
from calnet.errors import CalnetError, HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from calnet.roles.cli.bundle import Bundle
    from calnet.roles.cli.commands import Command

INTERRUPTED = 130
"""As a shell reports a program that Ctrl-C ended."""


def run(argv: Sequence[str] | None = None, bundle: Bundle | None = None) -> int:
    """Carries out one command line; the exit code. `bundle` is the one file we run from, None in a checkout."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = _debug_wanted(words)
    try:
        _make_output_safe()
        code = _dispatch(words, bundle)
        sys.stdout.flush()
        return code
    except SystemExit as ended:  # argparse's --help
        return ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _drop_output()
    except CalnetError as error:
        if debug:
            _print_traceback()
        _complain(str(error) or type(error).__name__)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last boundary: no traceback reaches a user unasked
        if debug:
            _print_traceback()
        _complain(_unexpected(error))
        return _drop_output() if isinstance(error, OSError) else 1


def _debug_wanted(words: list[str]) -> bool:
    return "--debug" in words or os.environ.get("CALNET_DEBUG", "").lower() not in ("", "0", "false", "no", "off")


def _dispatch(words: list[str], bundle: Bundle | None) -> int:
    if words[:1] == ["--debug"]:
        words = [*words[1:], "--debug"]
    if words[:1] in (["--version"], ["-V"]):
        print(f"calnet {__version__}")
        return 0
    from calnet.roles.cli.commands import COMMANDS, INTERNAL, overview, program_name

    program = program_name()
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview(program))
        return 0 if words else UsageError.exit_code
    command = COMMANDS.get(words[0]) or INTERNAL.get(words[0])
    if command is None:
        raise UsageError(f"there is no command {words[0]!r}{_meant(words[0])} (see: {program} --help)")
    args = _settled(command, program, words[1:])
    if command.role and bundle is not None:
        bundle.activate()
    args.reread = lambda: _settled(command, program, words[1:])
    args.bundle, args.debug = bundle, args.debug or _debug_wanted(words)
    return _function(command)(args)


def _settled(command: Command, program: str, words: list[str]) -> Namespace:
    """The command's flags, environment, configuration file and defaults, merged."""
    parser = command.parser(program)
    args = parser.parse_args(words)
    return vars(args).pop("leaf", parser).settle(args, os.environ)  # type: ignore[no-any-return]


def _function(command: Command) -> Callable[[Namespace], int]:
    import importlib

    module, _, name = command.start.partition(":")
    try:
        function: Callable[[Namespace], int] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "calnet":
            raise
        raise HostError(f"{command.name} needs the package {error.name}: run it from the built file (./dev build, or python3 build_zipapp.py)") from error
    except ImportError as error:
        raise HostError(f"this machine can't load a package of this file ({error}): build one here with python3 build_zipapp.py") from error
    return function


def _meant(word: str) -> str:
    from difflib import get_close_matches

    from calnet.roles.cli.commands import COMMANDS

    close = get_close_matches(word, COMMANDS, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _make_output_safe() -> None:
    """What the terminal's encoding lacks is escaped instead of failing; closed streams swallow what they are given."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> int:
    """Nobody reads stdout, or its disk is full: point it elsewhere, so that Python's own flush at exit says nothing more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


def _complain(text: str) -> None:
    from calnet.roles.cli.show import clean

    with contextlib.suppress(OSError):
        print(f"calnet: {clean(text)}", file=sys.stderr)


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return f"an internal error ({type(error).__name__}: {error}); run it again with --debug and report what it prints"


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()
