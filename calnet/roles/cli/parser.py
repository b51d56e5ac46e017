"""The parser of one command, and where its settings come from: flags, then the environment, then the configuration file, then the default.

argparse does the flags; it leaves out what was not given, and `Parser.settle` fills the rest. Only the parser of the command that was asked for is built,
as building all of them costs more than most commands take.
"""

from __future__ import annotations

import argparse
import os

from calnet.errors import ConfigError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    Convert = Callable[[str], object]

DAEMON_SECRETS = ("auth-key", "auth_key", "token", "password", "secret", "client-secret", "client_secret")
TABLES = ("oidc",)
"""Tables of a configuration file that the role itself reads."""
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's own finds the terminal's width through shutil, which costs 5 ms for each run."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_columns())


class Setting:
    """One flag that can be set elsewhere too. `convert` is None for a switch."""

    __slots__ = ("convert", "default", "dest", "environment", "flag", "repeated")

    def __init__(self, flag: str, dest: str, convert: Convert | None, default: object, *, environment: bool, repeated: bool) -> None:
        self.flag, self.dest, self.convert, self.default, self.environment, self.repeated = flag, dest, convert, default, environment, repeated


class Parser(argparse.ArgumentParser):
    """An argparse parser whose options are settings. `prefix` is how its environment variables begin."""

    def __init__(self, prog: str, *, prefix: str = "CALNET_", description: str = "", examples: tuple[str, ...] = ()) -> None:
        epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=Formatter, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.prefix = prefix
        self.settings: list[Setting] = []
        self.positionals: dict[str, object] = {}

    def error(self, message: str) -> NoReturn:
        """A UsageError instead of argparse's exit."""
        raise UsageError(f"{message} (see: {self.prog} --help)")

    def value(self, flag: str, convert: Convert, text: str, *, metavar: str, default: object = None, shown: str = "", environment: bool = True) -> None:
        """An option with a value. `shown` is the default as help names it."""
        note = shown or ("" if default is None else str(default))
        self.add_argument(flag, metavar=metavar, type=_typed(convert), help=_help(text, note))
        self._setting(flag, convert, default, environment=environment)

    def values(self, flag: str, convert: Convert, text: str, *, metavar: str) -> None:
        """An option that may be given several times; the setting is a list, None without any."""
        self.add_argument(flag, metavar=metavar, type=_typed(convert), action="append", help=_help(text))
        self._setting(flag, convert, None, repeated=True)

    def switch(self, flag: str, text: str, *, environment: bool = True) -> None:
        """An option without a value: True or False."""
        self.add_argument(flag, action="store_true", help=_help(text))
        self._setting(flag, None, False, environment=environment)

    def choice(self, flag: str, text: str) -> None:
        """`--x` and `--no-x`: True, False, or None for neither."""
        self.add_argument(flag, action=argparse.BooleanOptionalAction, help=_help(text))
        self._setting(flag, None, None)

    def word(self, name: str, convert: Convert, text: str, *, metavar: str, many: str = "", default: object = None) -> None:
        """A positional argument; `many` is argparse's nargs, and `default` stands for one that may be left out."""
        if many:
            self.add_argument(name, metavar=metavar, type=_typed(convert), help=_help(text), nargs=many)
            self.positionals[name] = default
        else:
            self.add_argument(name, metavar=metavar, type=_typed(convert), help=_help(text))

    def json(self) -> None:
        """`--json`."""
        self.switch("--json", "print JSON instead of text", environment=False)

    def _setting(self, flag: str, convert: Convert | None, default: object, *, environment: bool = True, repeated: bool = False) -> None:
        dest = flag.lstrip("-").replace("-", "_")
        self.settings.append(Setting(flag, dest, convert, default, environment=environment, repeated=repeated))

    def settle(self, args: argparse.Namespace, environment: Mapping[str, str]) -> argparse.Namespace:
        """`args` with every setting: those not given take the environment's value, the configuration file's, or their default."""
        given = vars(args)
        given.update({setting.dest: value for setting in self.settings if setting.dest not in given for value in self._from(setting, environment)})
        config = read_config(str(given["config"]), self) if given.get("config") else {}
        given["tables"] = config.pop("tables", {})
        for setting in self.settings:
            given.setdefault(setting.dest, config.get(setting.dest, setting.default))
        for name, default in self.positionals.items():
            if given.get(name) in (None, []):
                given[name] = default
        return args

    def _from(self, setting: Setting, environment: Mapping[str, str]) -> list[object]:
        variable = self.prefix + setting.dest.upper()
        text = environment.get(variable)
        if text is None or not setting.environment:
            return []
        try:
            return [_converted(setting, text)]
        except ValueError as error:
            raise UsageError(f"the environment variable {variable}: {error}") from None


def read_config(path: str, parser: Parser) -> dict[str, object]:
    """The settings of a TOML file, by `dest`. ConfigError says what is wrong with it, and refuses one that holds secrets and that others can read."""
    import tomllib

    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            document = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the configuration file {path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if mode & 0o002:
        raise ConfigError(f"the configuration file {path} can be changed by every user: chmod 600 it")
    tables = {key: document.pop(key) for key in TABLES if key in document}
    if mode & 0o044 and any(_is_secret(key, value) for part in (document, *tables.values()) if isinstance(part, dict) for key, value in part.items()):
        raise ConfigError(f"the configuration file {path} holds a secret and others can read it: chmod 600 it")
    known = {setting.dest: setting for setting in parser.settings if setting.dest not in ("config", "json")}
    values = {key.replace("-", "_"): _configured(path, known.get(key.replace("-", "_")), key, value) for key, value in document.items()}
    return values | ({"tables": tables} if tables else {})


def _configured(path: str, setting: Setting | None, key: str, value: object) -> object:
    if setting is None:
        raise ConfigError(f"{path}: there is no setting {key!r}")
    wrong = ConfigError(f"{path}: {key} has the wrong type")
    if setting.convert is None:
        if not isinstance(value, bool):
            raise wrong
        return value
    listed = ",".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
    if isinstance(listed, bool) or not isinstance(listed, str | int):
        raise wrong
    try:
        return _converted(setting, str(listed))
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: {error}") from None


def _is_secret(key: str, value: object) -> bool:
    """A key that names a secret, or a URL with a password in it."""
    authority = value.partition("://")[2].partition("/")[0] if isinstance(value, str) else ""
    return key in DAEMON_SECRETS or ("@" in authority and ":" in authority.rpartition("@")[0])


def _converted(setting: Setting, text: str) -> object:
    if setting.convert is None:
        if text.lower() not in _YES + _NO:
            raise ValueError(f"{text!r}: write 1 or 0")
        return text.lower() in _YES
    if setting.repeated:
        return [setting.convert(part.strip()) for part in text.split(",")] if text else None
    return setting.convert(text)


def _typed(convert: Convert) -> Convert:
    """`convert` for argparse, which drops a ValueError's text and keeps that of an ArgumentTypeError."""

    def typed(text: str) -> object:
        if text is argparse.SUPPRESS:  # the default of a word that was left out
            return text
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _help(text: str, default: str = "") -> str:
    return (f"{text} (default: {default})" if default else text).replace("%", "%%")


def _columns() -> int:
    try:
        width = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
    except (OSError, ValueError):
        width = 80
    return max(50, min(width or 80, 110)) - 2
