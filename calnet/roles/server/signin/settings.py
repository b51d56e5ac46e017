"""What the `[oidc]` table of the server's configuration file says: which provider vouches for whom, and what its claims give. Reads the secret's file."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from calnet.errors import ConfigError

_TEXTS: Final = ("issuer", "client_id", "client_secret", "client_secret_file", "audience", "groups_claim", "username_claim", "redirect_url")
_LISTS: Final = ("scopes", "allowed_domains", "allowed_groups", "allowed_users", "owners", "admins", "auditors")
_NUMBERS: Final = ("session_s", "recheck_s")
_TABLES: Final = ("extra_params",)
_OURS: Final = (
    *("client_id", "client_secret", "code_challenge", "code_challenge_method", "nonce"),
    *("redirect_uri", "response_mode", "response_type", "scope", "state"),
)
"""Parameters of an authorization request that are not the configuration's to set."""
GOOGLE: Final = "https://accounts.google.com"
DEFAULT_SCOPES: Final = ("openid", "profile", "email", "groups", "offline_access")


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """Sign-in by OpenID Connect. Without a client secret the client is public, and PKCE alone binds a code to us."""

    issuer: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    audience: str = ""
    """Of access tokens that REST takes; the client's id by default."""
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    extra_params: tuple[tuple[str, str], ...] = ()
    """Further parameters of the authorization request, which some providers want. Google gives refresh tokens by `access_type` alone, not by a scope."""
    groups_claim: str = "groups"
    """With dots between, where it lies deeper: `realm_access.roles`."""
    username_claim: str = "preferred_username"
    redirect_url: str = ""
    """Where the provider sends browsers back, if not `/auth/callback` below --url."""
    allowed_domains: tuple[str, ...] = ()
    allowed_groups: tuple[str, ...] = ()
    allowed_users: tuple[str, ...] = ()
    """Whoever is in one of the lists given may sign in; without any, everybody whom the provider vouches for. Users by verified e-mail or subject."""
    owners: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    auditors: tuple[str, ...] = ()
    """Groups, verified e-mails or subjects that have the role."""
    session_s: float = 7 * 86_400.0
    recheck_s: float = 300.0
    """How often the provider is asked whether a user is still what it was."""

    @property
    def offline(self) -> bool:
        """Whether refresh tokens are asked for that outlive a sign-out at the provider."""
        return "offline_access" in self.scopes or ("access_type", "offline") in self.extra_params

    @property
    def prompt(self) -> str:
        """What a person who signs in is asked again for; empty: the provider decides. Refresh tokens that outlive the browser want consent each time (OpenID
        Connect Core section 11)."""
        return dict(self.extra_params).get("prompt", "consent" if self.offline else "")


def parse_oidc(table: Mapping[str, object]) -> OidcSettings:
    """The table's settings; ConfigError names the key that is wrong and what to write."""
    known = (*_TEXTS, *_LISTS, *_NUMBERS, *_TABLES)
    for key in table:
        if key not in known:
            raise ConfigError(f"[oidc]: there is no setting {key!r}; there are {', '.join(known)}")
    values: dict[str, object] = {}
    for name in _TEXTS:
        if name in table:
            values[name] = _text(name, table[name])
    for name in _LISTS:
        if name in table:
            values[name] = _list(name, table[name])
    for name in _NUMBERS:
        if name in table:
            values[name] = _number(name, table[name])
    for name in _TABLES:
        if name in table:
            values[name] = _params(name, table[name])
    if "client_secret_file" in values:
        if "client_secret" in values:
            raise ConfigError("[oidc]: give client_secret or client_secret_file, not both")
        values["client_secret"] = _secret_of(Path(str(values.pop("client_secret_file"))))
    for name in ("issuer", "client_id"):
        if not values.get(name):
            raise ConfigError(f"[oidc]: {name} is missing")
    values["issuer"] = _checked_url("issuer", str(values["issuer"]))
    if values.get("redirect_url"):
        _checked_url("redirect_url", str(values["redirect_url"]))
    if values["issuer"] == GOOGLE:
        values.setdefault("extra_params", (("access_type", "offline"),))
    settings = OidcSettings(**values)  # type: ignore[arg-type]
    if "openid" not in settings.scopes:
        raise ConfigError("[oidc]: scopes needs openid")
    return settings


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def askable(url: str, *, loopback: bool) -> SplitResult | None:
    """The parts of a URL that a request can be sent to: https, or with `loopback` http to this machine; None for any other text."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        return None
    secure = parts.scheme == "https" or (loopback and parts.scheme == "http" and is_loopback(host))
    return parts if secure and host and port != 0 and url.isascii() and url.isprintable() and " " not in url else None


def _checked_url(name: str, text: str) -> str:
    """https, or http on loopback alone; as the provider writes it, to the last slash."""
    parts = askable(text, loopback=True)
    if parts is None or parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"[oidc]: {name} = {text!r}: write an https URL, without query (http on loopback alone)")
    return text


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError(f"[oidc]: {name} is a text")
    return value


def _list(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f'[oidc]: {name} is a list of texts, such as ["a", "b"]')
    return tuple(value)


def _params(name: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(text, str) and text and text.isprintable() for pair in value.items() for text in pair):
        raise ConfigError(f'[oidc]: {name} is a table of texts, such as {{ access_type = "offline" }}')
    if ours := sorted(set(value) & set(_OURS)):
        raise ConfigError(f"[oidc]: {name} can't set {', '.join(ours)}: the server does")
    return tuple(value.items())


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 5 <= value <= 366 * 86_400:
        raise ConfigError(f"[oidc]: {name} is a number of seconds, 5 at least")
    return float(value)


def _secret_of(path: Path) -> str:
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & 0o044:
                raise ConfigError(f"[oidc]: {path} holds the client's secret and others can read it: chmod 600 it")
            secret = file.read(4096).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"[oidc]: client_secret_file {path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not secret:
        raise ConfigError(f"[oidc]: client_secret_file {path} is empty")
    return secret
