"""Flags, environment, configuration file, defaults: which one counts, and what is refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from calnet.errors import CalnetError, ConfigError, UsageError
from calnet.roles.cli.commands import COMMANDS
from calnet.roles.cli.parser import Parser


def settled(command: str, *words: str, **environment: str) -> Namespace:
    parser = COMMANDS[command].parser("calnet")
    args = parser.parse_args(list(words))
    leaf: Parser = vars(args).pop("leaf", parser)
    return leaf.settle(args, environment)


def config(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "calnet.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_defaults_are_the_contracts() -> None:
    node, server = settled("node"), settled("server")
    assert (node.state_dir, node.socket, node.tun, node.port, node.mtu, node.operator) == (
        "/var/lib/calnet",
        "/run/calnet/calnet.sock",
        "calnet0",
        None,
        1280,
        None,
    )
    assert (server.state_dir, server.store, server.listen, server.trusted_proxy) == ("/var/lib/calnet-server", "kv", None, None)


def test_flag_outranks_environment_outranks_file_outranks_default(tmp_path: Path) -> None:
    file = config(tmp_path, 'tun = "file0"\nport = 1\nmtu = 1300\n')
    args = settled("node", "--config", file, "--tun", "flag0", CALNET_TUN="env0", CALNET_PORT="2")
    assert (args.tun, args.port, args.mtu, args.socket) == ("flag0", 2, 1300, "/run/calnet/calnet.sock")


def test_server_and_admin_have_variables_of_their_own() -> None:
    assert settled("server", CALNET_SERVER_STORE="sqlite", CALNET_STORE="kv").store == "sqlite"
    assert settled("admin", "users", "list", CALNET_SERVER_SOCKET="/s", CALNET_SOCKET="/n").socket == "/s"


def test_environment_names_the_configuration_file(tmp_path: Path) -> None:
    assert settled("node", CALNET_CONFIG=config(tmp_path, 'tun = "file0"')).tun == "file0"


def test_switches_in_the_environment_are_words_for_yes_and_no() -> None:
    assert settled("up", CALNET_ACCEPT_ROUTES="yes").accept_routes is True
    assert settled("up", CALNET_ACCEPT_ROUTES="0").accept_routes is False
    assert settled("up").accept_routes is None
    with pytest.raises(UsageError, match="CALNET_ACCEPT_ROUTES"):
        settled("up", CALNET_ACCEPT_ROUTES="perhaps")


def test_secret_has_no_variable() -> None:
    assert settled("up", CALNET_AUTH_KEY="calnet-x").auth_key is None


def test_purge_has_no_variable() -> None:
    assert settled("uninstall", "node", CALNET_PURGE="1").purge is False


def test_wrong_value_in_the_environment_names_the_variable() -> None:
    with pytest.raises(UsageError, match="CALNET_PORT"):
        settled("node", CALNET_PORT="x")


def test_list_in_the_file_and_in_the_environment(tmp_path: Path) -> None:
    file = config(tmp_path, 'trusted-proxy = ["10.0.0.0/8", "127.0.0.1"]\ntls_cert = "c"')
    assert settled("server", "--config", file).trusted_proxy == ["10.0.0.0/8", "127.0.0.1/32"]
    assert settled("server", CALNET_SERVER_TRUSTED_PROXY="10.0.0.0/8").trusted_proxy == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    "text",
    [
        "tun = ",
        "unknown = 1",
        'port = "x"',
        "port = true",
        "port = 1.5",
        "tun = 5e3",
        'tun = "../x"',
        "debug = 1",
        "[table]\na = 1",
        "listen = 5",
        "\xff\xfe",
        'config = "x"',
    ],
)
def test_file_that_is_wrong_is_a_config_error_that_names_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"calnet\.toml"):
        settled("node", "--config", config(tmp_path, text))


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\0b"])
def test_file_that_cannot_be_read_is_a_config_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        settled("node", "--config", f"{tmp_path}/{name}")


@pytest.mark.parametrize("line", ['auth-key = "calnet-x"', 'store = "postgresql://calnet:secret@db/calnet"', 'token = "x"'])
def test_file_with_a_secret_that_others_can_read_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        settled("server", "--config", config(tmp_path, line, 0o640))


def test_file_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="changed by every user"):
        settled("node", "--config", config(tmp_path, "", 0o666))


def test_file_without_secrets_may_be_read_by_all(tmp_path: Path) -> None:
    assert settled("node", "--config", config(tmp_path, 'tun = "file0"', 0o644)).tun == "file0"


@pytest.mark.parametrize(
    "words",
    [["up", "--nonsense"], ["up", "--serv", "http://a"], ["ping"], ["admin"], ["admin", "users"], ["admin", "nodes", "routes"], ["install", "x"], ["ip", "7"]],
)
def test_wrong_words_are_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        settled(*words)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_is_whole(name: str) -> None:
    text = COMMANDS[name].parser("calnet").format_help()
    assert "examples:" in text
    assert f"calnet {name}" in text
    assert max(map(len, text.splitlines())) <= 110


def test_admin_flags_may_stand_before_the_noun_or_after_the_verb() -> None:
    assert settled("admin", "--socket", "/a", "users", "list").socket == "/a"
    assert settled("admin", "users", "list", "--socket", "/a").socket == "/a"
    assert settled("admin", "nodes", "routes", "approve", "bob", "10.0.0.0/8", "fd01::/64").routes == ["10.0.0.0/8", "fd01::/64"]
    assert settled("admin", "nodes", "tag", "bob", "tag:a", "tag:b").tags == ["tag:a", "tag:b"]


def test_errors_of_the_parser_are_calnets() -> None:
    assert issubclass(UsageError, CalnetError)
