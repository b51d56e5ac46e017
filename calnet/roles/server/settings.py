"""What the server was told: flags, environment and configuration file, merged by the caller, parsed here into one frozen value."""

from __future__ import annotations

import ipaddress
import re
from argparse import Namespace
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from calnet.errors import UsageError
from calnet.model import Prefix
from calnet.roles.server.signin.settings import OidcSettings, parse_oidc

DEFAULT_STATE_DIR: Final = "/var/lib/calnet-server"

_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?))(?::(?P<port>[0-9]{1,5}))?")


class HostPort(NamedTuple):
    """An address to listen on. `host` has no brackets; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_DEFAULT_LISTEN: Final = HostPort("::", 8080)
_DEFAULT_STUN_LISTEN: Final = HostPort("::", 3478)


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """Where nodes reach this server: `http` or `https`, the authority as a URL writes it, and a path without a slash at its end."""

    scheme: str
    authority: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def relay(self) -> str:
        """The relay's WebSocket URL."""
        return f"{'wss' if self.scheme == 'https' else 'ws'}://{self.authority}{self.path}/relay"

    def stun(self, port: int) -> str:
        """This host's STUN server as the netmap names it: `host:port`, `[v6]:port`."""
        found = _HOST.fullmatch(self.authority)
        host = self.authority if found is None else (f"[{found['v6']}]" if found["v6"] else found["name"])
        return f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The flags of `calnet server`, parsed. `prefix` None keeps the stored one; `url` None takes the URL by which each node reached the server."""

    state_dir: Path = Path(DEFAULT_STATE_DIR)
    listen: HostPort = _DEFAULT_LISTEN
    stun_listen: HostPort = _DEFAULT_STUN_LISTEN
    store: str = "kv"
    prefix: IPv4Network | None = None
    url: PublicUrl | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[Prefix, ...] = ()
    oidc: OidcSettings | None = None

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS itself."""
        return self.tls_cert is not None


def settings_of(args: Namespace) -> ServerSettings:
    """The settings behind the merged flags; an absent or None flag has its default. UsageError names the flag that is wrong."""
    tls_cert, tls_key = _path(args, "tls_cert"), _path(args, "tls_key")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together: give both, or neither")
    return ServerSettings(
        state_dir=_path(args, "state_dir") or Path(DEFAULT_STATE_DIR),
        listen=parse_listen("--listen", text) if (text := _text(args, "listen")) else _DEFAULT_LISTEN,
        stun_listen=parse_listen("--stun-listen", text) if (text := _text(args, "stun_listen")) else _DEFAULT_STUN_LISTEN,
        store=_text(args, "store") or "kv",
        prefix=_prefix(_text(args, "prefix")),
        url=parse_url(text) if (text := _text(args, "url")) else None,
        tls_cert=tls_cert,
        tls_key=tls_key,
        trusted_proxies=_proxies(getattr(args, "trusted_proxy", None)),
        oidc=_oidc(args),
    )


def parse_listen(flag: str, text: str) -> HostPort:
    """`HOST:PORT`, `[v6]:PORT` or `:PORT` (any address; `*` too)."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in host and not bracketed):
        raise UsageError(f"{flag} {text!r}: write HOST:PORT, for example [::]:8080 or 127.0.0.1:8080")
    host = host[1:-1] if bracketed else host
    return HostPort("::" if host in ("", "*") else host, int(port))


def parse_url(text: str) -> PublicUrl:
    """`http://…` or `https://…` of `--url`; UsageError for anything else, for a query and for a user name in it."""
    try:
        parts = urlsplit(text)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_right = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not port_is_right or _HOST.fullmatch(parts.netloc) is None or parts.query or parts.fragment:
        raise UsageError(f"--url {text!r}: write the URL by which nodes reach this server, for example https://calnet.example.org")
    return PublicUrl(parts.scheme, parts.netloc, parts.path.rstrip("/"))


def is_authority(text: str) -> bool:
    """Whether `text` (a Host header, say) is a host name or address with an optional port, and nothing else."""
    found = _HOST.fullmatch(text)
    if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65_536):
        return False
    if found["v6"] is None:
        return True
    try:
        IPv6Address(found["v6"])
    except ValueError:
        return False
    return True


def _oidc(args: Namespace) -> OidcSettings | None:
    tables: dict[str, object] = getattr(args, "tables", {})
    table = tables.get("oidc")
    if table is None:
        return None
    if not isinstance(table, dict):
        raise UsageError("oidc is a table in the configuration file: [oidc], and its settings below")
    if _text(args, "url") is None and not table.get("redirect_url"):
        raise UsageError("sign-in needs --url (or url in the configuration file): the provider sends browsers back there")
    return parse_oidc(table)


def _text(args: Namespace, name: str) -> str | None:
    value = getattr(args, name, None)
    return None if value is None else str(value)


def _path(args: Namespace, name: str) -> Path | None:
    text = _text(args, name)
    return Path(text) if text else None


def _prefix(text: str | None) -> IPv4Network | None:
    if not text:
        return None
    try:
        return IPv4Network(text)
    except ValueError:
        raise UsageError(f"--prefix {text!r}: write an IPv4 network such as 100.70.0.0/24") from None


def _proxies(value: object) -> tuple[Prefix, ...]:
    texts = value if isinstance(value, list | tuple) else str(value).split(",") if value else []
    try:
        return tuple(ipaddress.ip_network(str(text).strip()) for text in texts)
    except ValueError:
        raise UsageError(f"--trusted-proxy {value!r}: write addresses or networks, such as 127.0.0.1 or 10.0.0.0/8") from None
