"""The commands about this file itself: version, manual, licences."""

from __future__ import annotations

import os
import sys

from calnet import __version__
from calnet.errors import CalnetError, HostError
from calnet.roles.cli import client, show
from calnet.roles.cli.node_commands import print_json, print_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from calnet.roles.cli.bundle import Bundle

_DAEMON_S = 2.0


def version(args: Namespace) -> int:
    """`version`: ours, what this file was built for, and the daemon's if one answers."""
    built = None if args.bundle is None else args.bundle.built_for
    document: show.Json = {
        "version": __version__,
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}",
        "machine": os.uname().machine,
        "built_for": built,
        "build": None if args.bundle is None else args.bundle.build_id,
        "daemon": _daemon_version(args.socket),
    }
    if args.json:
        print_json(document)
        return 0
    targets = "not a built file: a checkout" if built is None else ", ".join(f"CPython {show.clean(target.replace('-', ' on '))}" for target in built)
    daemon = show.clean(document["daemon"]) if document["daemon"] else "not running"
    print_lines([f"calnet {__version__}", f"built for: {targets}", f"running on: CPython {document['python']} on {document['machine']}", f"daemon: {daemon}"])
    return 0


def _daemon_version(path: str) -> object:
    try:
        return show.mapping(client.request(path, "version", {}, timeout_s=_DAEMON_S)).get("version")
    except CalnetError:
        return None


def man(args: Namespace) -> int:
    """`man [COMMAND]`: by man where there is one and a terminal to show it on, else the same as text."""
    from calnet.roles.cli.commands import program_name
    from calnet.roles.cli.pages import known, text_page

    page = _page(args.bundle, "calnet.1" if args.page is None else f"calnet-{known(args.page)}.1")
    if page is not None and _shown_by_man(page):
        return 0
    print(text_page(args.page, program_name()))
    return 0


def _page(bundle: Bundle | None, name: str) -> bytes | None:
    """The page's source: from the file, or from the checkout."""
    if bundle is not None:
        return bundle.read(f"man/{name}")
    path = os.path.join(os.path.dirname(__file__), "..", "..", "..", "man", name)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _shown_by_man(page: bytes) -> bool:
    import shutil
    import subprocess

    found = shutil.which("man")
    if found is None or _is_stub(found):
        return False
    return subprocess.run([found, "-l", "-"], input=page, check=False).returncode == 0


def _is_stub(path: str) -> bool:
    """Minimised images replace man by a shell script that only says so."""
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def licenses(args: Namespace) -> int:
    """`licenses`: Calnet's own, then each bundled package's."""
    bundle: Bundle | None = args.bundle
    if bundle is None:
        raise HostError("a checkout bundles no packages; Calnet's own licence is in LICENSE")
    for name, text in bundle.licences():
        print(f"{'=' * 100}\n{name}\n{'=' * 100}\n{text.rstrip()}\n")
    return 0
