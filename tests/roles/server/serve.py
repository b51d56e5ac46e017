"""Runs the server role as a process: `python serve.py name=value …`, the names being those of its flags."""

from __future__ import annotations

import sys
from argparse import Namespace

from calnet.errors import CalnetError
from calnet.roles.server.main import run

if __name__ == "__main__":
    try:
        sys.exit(run(Namespace(**dict(word.split("=", 1) for word in sys.argv[1:]))))
    except CalnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
