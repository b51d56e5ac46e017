"""`calnet server check`: tries what the configuration names, changes nothing, and says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from calnet.errors import CalnetError
from calnet.store.opening import FILE_NAMES

if TYPE_CHECKING:
    from calnet.roles.server.settings import ServerSettings


_MARKS: Final = {True: "ok   ", False: "WRONG", None: "-    "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    ok: bool | None
    """None where nothing can be told from here: the text says what was not tested, and why."""
    text: str


def run_check(settings: ServerSettings, *, as_json: bool) -> int:
    """Print the findings; 0 where all is well, else 1."""
    findings = list(check(settings))
    if settings.oidc is not None:
        from calnet.roles.server.signin.check import check_sign_in

        redirect = settings.oidc.redirect_url or (f"{settings.url}/auth/callback" if settings.url is not None else "")
        findings += asyncio.run(check_sign_in(settings.oidc, redirect, time.time))
    ok = all(finding.ok is not False for finding in findings)
    if as_json:
        print(json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{_MARKS[finding.ok]}  {finding.what:<{width}}  {finding.text}")
    return 0 if ok else 1


def check(settings: ServerSettings) -> Iterator[Finding]:
    """What can be told without asking anybody but this machine and the database."""
    yield _tls(settings)
    yield _state_directory(settings.state_dir)
    yield _store(settings)
    yield from _ports(settings)
    yield _prefix(settings)
    yield _url(settings)


def _tls(settings: ServerSettings) -> Finding:
    if settings.tls_cert is None or settings.tls_key is None:
        return Finding("TLS", True, "not by this server: nodes are safe all the same, browsers and API tokens need a proxy with TLS in front")
    from calnet.roles.server.tls import tls_context

    try:
        tls_context(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        return Finding("TLS", False, f"{settings.tls_cert} and {settings.tls_key} can't be used: {error.strerror or error}; give PEM files of one pair")
    return Finding("TLS", True, f"{settings.tls_cert} and {settings.tls_key} belong together")


def _state_directory(path: Path) -> Finding:
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return Finding("state directory", True, f"{path} is made at the first start")
    except OSError as error:
        return Finding("state directory", False, f"{path} can't be looked at: {error.strerror}; run this as root or as the server's user")
    if mode & 0o077:
        return Finding("state directory", False, f"{path} can be opened by others: chmod 700 it")
    return Finding("state directory", True, str(path))


def _store(settings: ServerSettings) -> Finding:
    if "://" in settings.store:
        try:
            from calnet.store.postgres import check_url, reach, shown

            check_url(settings.store)
            version = reach(settings.store)
        except (CalnetError, ImportError) as error:
            return Finding("store", False, str(error))
        return Finding("store", True, f"{shown(settings.store)} answers (PostgreSQL {version})")
    there = [kind for kind, name in FILE_NAMES.items() if (settings.state_dir / name).exists()]
    if there and settings.store not in there:
        advice = f"start with --store {there[0]}, or carry it over (admin export, admin import)"
        return Finding("store", False, f"{settings.state_dir} holds a store of kind {there[0]}: {advice}")
    return Finding("store", True, f"{settings.store}, {'there' if there else 'made at the first start'}")


def _ports(settings: ServerSettings) -> Iterator[Finding]:
    from calnet.roles.server.listeners import tcp_listener, udp_socket

    for what, listen in (("TCP port", settings.listen), ("STUN port", settings.stun_listen)):
        try:
            (tcp_listener if what == "TCP port" else udp_socket)(listen).close()
        except CalnetError as error:
            running = (settings.state_dir / "admin.sock").exists()
            yield Finding(what, running, f"{error}" if not running else "in use, by the server that runs here it seems")
        else:
            yield Finding(what, True, "free")


def _prefix(settings: ServerSettings) -> Finding:
    from calnet.roles.server.allocation import check_prefix
    from calnet.roles.server.founding import DEFAULT_PREFIX

    if settings.prefix is None:
        return Finding("prefix", True, f"the one in use; at first {DEFAULT_PREFIX}")
    try:
        check_prefix(settings.prefix)
    except CalnetError as error:
        return Finding("prefix", False, str(error))
    return Finding("prefix", True, f"{settings.prefix}; where the server has one already, this has to be around it")


def _url(settings: ServerSettings) -> Finding:
    if settings.url is None:
        return Finding("URL", True, "each node uses the URL by which it reached the server (--url names one for all)")
    return Finding("URL", True, str(settings.url))
