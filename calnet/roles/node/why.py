"""The document that `why PEER` prints: both ends' view of a path, the verdict, and what would help. Pure."""

from __future__ import annotations

from calnet.model import Peer
from calnet.paths.explain import View, judge

Json = dict[str, object]


def why_document(peer: Peer, here: View, there: View | None) -> Json:
    """`peer`, `path` (direct, relay, none), `why`, `advice`, and the views of both ends; `there` is null where the peer did not say."""
    verdict = judge(here, there, online=peer.online)
    return {
        "peer": peer.name,
        "path": here.path,
        "why": verdict.text,
        "advice": list(verdict.advice),
        "here": _view(here),
        "there": None if there is None else _view(there),
    }


def _view(view: View) -> Json:
    return {
        "path": view.path,
        "set": view.way.value,
        "udp": view.udp,
        "relay": view.relay,
        "mapping": view.mapping.value,
        "guess_ports": view.may_guess,
        "candidates": [
            {"endpoint": str(one.endpoint), "outcome": one.outcome.words, "rtt_ms": None if one.rtt_s is None else round(one.rtt_s * 1000, 1)}
            for one in view.tried
        ],
    }
