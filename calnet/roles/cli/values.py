"""What a flag's value may be: each function takes the text as given and returns the value, or raises ValueError with what is wrong and what to write.

Nothing that is refused here reaches /proc, a file name, DNS or the daemon.
"""

from __future__ import annotations

import os
import re
import sys

from calnet.errors import UsageError

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+|\d+(?:\.\d+)?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_LONGEST_S = 100 * 366 * 86_400.0
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,14}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")
_TAG = re.compile(r"tag:[a-z0-9](?:[a-z0-9-]{0,48}[a-z0-9])?")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}|\*)?:(\d{1,5})")
_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))(?::(\d{1,5}))?(?:/[\x21-\x7e]*)?", re.IGNORECASE)
_SECRET_LIMIT = 4096


def duration(text: str) -> float:
    """Seconds, above 0: `500ms`, `30s`, `5m`, `24h`, `7d`, `1h30m`; a bare number is seconds."""
    if not text.isascii() or not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: write 30s, 5m, 24h or 7d")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"{text!r}: a duration is above 0, and 100 years at most")
    return seconds


def hostname(text: str) -> str:
    """A DNS label in lower case; empty stands for the machine's own name."""
    if text and not _LABEL.fullmatch(text):
        raise ValueError(f"{text!r} is no host name: use 1 to 63 letters, digits and hyphens, not a hyphen at an end (no dots)")
    return text.lower()


def interface(text: str) -> str:
    """A network interface's name, as the kernel takes it and no file path or pattern can be made of it."""
    if not _INTERFACE.fullmatch(text) or text in ("all", "default"):
        raise ValueError(f"{text!r} is no interface name: use 1 to 15 letters, digits, '_', '-' and '.', such as calnet0")
    return text


def user(text: str) -> str:
    """A local user's name or number; empty stands for nobody."""
    if text and not _USER.fullmatch(text):
        raise ValueError(f"{text!r} is no user name")
    return text


def word(text: str) -> str:
    """A name, id, address or code: anything but empty, and nothing a terminal would obey."""
    if not text or not text.isprintable() or len(text) > 255:
        raise ValueError(f"{text[:80]!r}: give a name, an id or an address")
    return text


def tag(text: str) -> str:
    """`tag:NAME`."""
    if not _TAG.fullmatch(text):
        raise ValueError(f"{text!r} is no tag: write tag:NAME with lower-case letters, digits and hyphens")
    return text


def host_port(text: str) -> str:
    """`HOST:PORT`, `[v6]:PORT` or `:PORT`, unchanged."""
    found = _HOST_PORT.fullmatch(text)
    if found is None or int(found[1]) > 65_535:
        raise ValueError(f"{text!r}: write HOST:PORT, for example [::]:8080 or 127.0.0.1:8080")
    return text


def url(text: str) -> str:
    """`http://HOST[:PORT]` or `https://…`, without a user name, query or fragment."""
    found = _URL.fullmatch(text)
    if found is None or "?" in text or "#" in text or not 0 < int(found[1] or 80) <= 65_535:
        raise ValueError(f"{text!r}: write the server's URL, for example http://192.0.2.1:8080 or https://calnet.example.org")
    return text.rstrip("/")


def store(text: str) -> str:
    """The kind of store, or a PostgreSQL database's URL."""
    if text not in ("kv", "sqlite") and not text.startswith(("postgresql://", "postgres://")):
        raise ValueError(f"{text.partition('://')[0]!r}: the stores are kv, sqlite, and a database as postgresql://USER@HOST/DATABASE")
    return text


def check(text: str) -> str:
    """The one verb of `server`."""
    if text != "check":
        raise ValueError(f"{text!r}: `server` serves, `server check` tests its configuration")
    return text


def role(text: str) -> str:
    """What a user may do."""
    if text not in ("owner", "admin", "auditor", "user"):
        raise ValueError(f"{text!r}: the roles are owner, admin, auditor and user")
    return text


def number(text: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    if not (text.isascii() and text.isdigit() and len(text) < 19 and least <= int(text) <= most):
        raise ValueError(f"{text!r}: give a whole number from {least} to {most}")
    return int(text)


def port(text: str) -> int:
    """A UDP port; 0 for a random one that is kept."""
    return number(text, 0, 65_535)


def mtu(text: str) -> int:
    """The tunnel interface's MTU in bytes; IPv6 asks for 1280."""
    return number(text, 1280, 65_535)


def processes(text: str) -> int:
    """Of a node: 1, or 2 with the data path in its own."""
    return number(text, 1, 2)


def descriptor(text: str) -> int:
    """A descriptor that this process was started with."""
    return number(text, 0, 1 << 20)


def way(text: str) -> str:
    """`PEER=auto`, `PEER=relay` or `PEER=direct`."""
    peer, _, wanted = text.rpartition("=")
    if not peer or wanted not in ("auto", "relay", "direct"):
        raise ValueError(f"{text!r}: write PEER=auto, PEER=relay or PEER=direct")
    return text


def count(text: str) -> int:
    """How many pings."""
    return number(text, 1, 1_000_000)


def address(text: str) -> str:
    """An IPv4 or IPv6 address in its canonical form."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address") from None


def prefix(text: str) -> str:
    """A network with no host bits set, in its canonical form."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network: write ADDRESS/LENGTH, such as 192.168.1.0/24") from None
    raise ValueError(f"{text!r} has host bits set; did you mean {meant}?")


def ipv4_prefix(text: str) -> str:
    """The overlay's IPv4 network."""
    network = prefix(text)
    if ":" in network:
        raise ValueError(f"{text!r}: write an IPv4 network such as 100.70.0.0/24")
    return network


def prefixes(text: str) -> list[str]:
    """Networks with commas between; empty for none."""
    return [prefix(part.strip()) for part in text.split(",")] if text.strip() else []


def secret(text: str) -> str:
    """The secret that `text` names: itself, `file:PATH`, or `-` for the first line of stdin. UsageError where there is none to read."""
    if text == "-":
        if sys.stdin is None:
            raise UsageError("no secret on stdin: it is closed")
        found = sys.stdin.readline(_SECRET_LIMIT)
    elif text.startswith("file:"):
        found = _secret_file(text.removeprefix("file:"))
    else:
        found = text
    found = found.strip()
    if not found or not found.isascii() or not found.isprintable():
        where = "on stdin" if text == "-" else f"in {text.removeprefix('file:')}" if text.startswith("file:") else "given"
        raise UsageError(f"no secret {where}: one line of printable characters is needed")
    return found


def _secret_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                print(f"calnet: warning: other users can reach the secret in {path!r}; chmod 600 it", file=sys.stderr)
            return file.readline(_SECRET_LIMIT)
    except (OSError, ValueError) as error:
        raise UsageError(f"the secret's file {path!r} can't be read: {getattr(error, 'strerror', None) or error}") from None
