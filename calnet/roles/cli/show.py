"""How data is printed for people. Whatever came from elsewhere (names, endpoints, texts) has its control characters escaped: no line is forged, and no
terminal is told anything.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Json = dict[str, object]


def clean(value: object) -> str:
    """`value` as text with CR, LF, ANSI escapes, bidirectional marks and everything else not printable written as backslash escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def mapping(value: object) -> Json:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Json]:
    """The JSON objects in `value`."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def cell(value: object) -> str:
    """A value in a table or a line: words for what JSON writes otherwise, `-` for nothing."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(f"{clean(key)}: {cell(item)}" for key, item in value.items())
    return clean(value)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """The rows as lines, columns two spaces apart, the last one not padded."""
    rows = list(rows)
    widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row[:-1], widths, strict=False)), row[-1]]).rstrip() for row in rows]


def table(rows: Sequence[Json], columns: Sequence[str]) -> list[str]:
    """A heading and a line a row."""
    heading = [column.replace("_", " ").upper() for column in columns]
    return aligned([heading, *([cell(row.get(column)) for column in columns] for row in rows)])


def facts(document: Json) -> list[str]:
    """One object as lines `name  value`."""
    return aligned([[clean(name).replace("_", " "), cell(value)] for name, value in document.items()]) if document else []


def why_lines(document: Json) -> list[str]:
    """What `why` prints: the verdict, each end's view, and what would help."""
    lines = [f"{clean(document.get('peer'))}: {clean(document.get('why'))}"]
    for name in ("here", "there"):
        view = mapping(document.get(name))
        if not view:
            lines.append(f"  {name}: no answer")
            continue
        udp, relay = ("works" if view.get("udp") else "does not get through"), ("connected" if view.get("relay") else "not connected")
        lines.append(f"  {name}: NAT mapping {clean(view.get('mapping'))}, UDP {udp}, relay {relay}")
        rows = [[f"    {clean(row.get('endpoint'))}", cell(row.get("outcome")), _milliseconds(row.get("rtt_ms"))] for row in listing(view.get("candidates"))]
        lines += aligned(rows) if rows else ["    no candidates of the other side"]
    advice = document.get("advice")
    return lines + [f"  what would help: {clean(text)}" for text in (advice if isinstance(advice, list) else [])]


def _milliseconds(value: object) -> str:
    return f"{value:g} ms" if isinstance(value, int | float) else ""


STATE_LINES = {
    "stopped": "Calnet is stopped; start it with: calnet.pyz up",
    "needs-login": "This machine is not logged in; connect it with: calnet.pyz up --server URL",
    "needs-approval": "This machine waits for approval on the server (calnet.pyz admin nodes approve CODE; calnet.pyz up prints the code)",
    "starting": "Calnet is starting",
}


def status_lines(document: Json) -> list[str]:
    """What `status` prints: how it stands unless it runs, then a line a peer."""
    state = document.get("state")
    lines = [] if state == "running" else [STATE_LINES.get(str(state), f"state: {clean(state)}")]
    return lines + aligned(peer_row(peer) for peer in listing(document.get("peers")))


def peer_row(peer: Json) -> list[str]:
    """Address, name, owner, system and how it is reached."""
    owner = f"{clean(peer['user'])}@" if peer.get("user") else ",".join(clean(tag) for tag in _items(peer.get("tags"))) or "-"
    return [cell(peer.get("ip")), cell(peer.get("name")), owner, cell(peer.get("os")), activity(peer)]


def activity(peer: Json) -> str:
    """`active; direct ENDPOINT, tx N rx N`, `active; relay (why, where a path was left for it), …`, `idle`, or `offline, last seen …`."""
    traffic = f", tx {cell(peer.get('tx_bytes', 0))} rx {cell(peer.get('rx_bytes', 0))}"
    path = peer.get("path")
    if path == "direct":
        return f"active; direct {cell(peer.get('endpoint'))}{traffic}"
    if path == "relay":
        note = f" ({cell(peer['path_note'])})" if peer.get("path_note") else ""
        return f"active; relay{note}{traffic}"
    if peer.get("online"):
        return "idle"
    return f"offline, last seen {clean(peer['last_seen'])}" if peer.get("last_seen") else "offline"


def health_lines(document: Json) -> list[str]:
    """The health lines of a status document."""
    return [f"{clean(line.get('severity', 'warning'))}: {clean(line.get('text', line.get('code', '')))}" for line in listing(document.get("health"))]


def pong_line(pong: Json) -> str:
    """`pong from bob (100.70.0.2) via relay in 38ms`; whole milliseconds, at least one."""
    rtt = pong.get("rtt_ms")
    milliseconds = max(1, round(rtt)) if isinstance(rtt, int | float) else "?"
    via = "relay" if pong.get("path") == "relay" else cell(pong.get("endpoint"))
    return f"pong from {cell(pong.get('peer'))} ({cell(pong.get('ip'))}) via {via} in {milliseconds}ms"


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
