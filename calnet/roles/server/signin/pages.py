"""The few pages that a person sees while signing in: plain HTML without scripts, that loads nothing from anywhere. Pure."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

_STYLE: Final = (
    ":root{color-scheme:light dark}body{font:17px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem}"
    "button{font:inherit;padding:.4rem 1.2rem}code{font-size:1.2em}"
)
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


def message(title: str, text: str) -> str:
    """A page that says one thing."""
    return _page(title, f"<p>{escape(text)}</p>")


def signed_in(name: str, token: str) -> str:
    """Who is signed in, and the way out."""
    form = f'<form method="post" action="/auth/logout"><input type="hidden" name="token" value="{escape(token)}"><button>Sign out</button></form>'
    return _page("Signed in", f"<p>You are signed in as <b>{escape(name)}</b>.</p>{form}")


def confirm(name: str, hostname: str, code: str, token: str) -> str:
    """Ask before a machine is let in: whoever sent the link may not be who owns it."""
    return _page(
        "Let this machine in?",
        f"<p>The machine <b>{escape(hostname)}</b> wants to join as <b>{escape(name)}</b>'s. Go on only if its terminal shows the code</p>"
        f"<p><code>{escape(code)}</code></p>"
        f'<form method="post"><input type="hidden" name="token" value="{escape(token)}"><button>Let it in</button></form>',
    )


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)} - Calnet</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
