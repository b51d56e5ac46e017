"""What REST takes and gives: the bodies and queries of requests, which are validated by these types, and the rows of answers, which document them.

The OpenAPI document is made of the same types. Requests refuse unknown fields, so that a misspelt one is no silent default.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, inspect

from calnet.roles.server.actors import Role
from calnet.roles.server.standing import NodeState

NODE_STATES: Final = tuple(state.value for state in NodeState if state is not NodeState.UNREGISTERED)
"""What a node that is listed may be."""
Name = Annotated[str, Meta(min_length=1, max_length=63, description="letters, digits and hyphens")]
Reference = Annotated[str, Meta(min_length=1, max_length=128)]
Tag = Annotated[str, Meta(max_length=64, description="tag:NAME")]
Tags = Annotated[list[Tag], Meta(max_length=32)]
Routes = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=64)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Time = Annotated[str, Meta(description="RFC 3339, UTC")]
Etag = Annotated[str, Meta(description="changes with each change of the thing; give it in If-Match")]
RoleName = Annotated[str, Meta(pattern=f"^({'|'.join(Role)})$", extra_json_schema={"enum": list(Role)})]
StateName = Annotated[str, Meta(pattern=f"^({'|'.join(NODE_STATES)})$", extra_json_schema={"enum": list(NODE_STATES)})]
PolicyText = Annotated[str, Meta(max_length=524_288, description="a policy file (HuJSON)")]


class Request(Struct, forbid_unknown_fields=True):
    """Base of all bodies."""


# --- bodies


class CreateUser(Request):
    name: Name
    role: RoleName = "user"


class UpdateUser(Request):
    name: Name | None = None
    role: RoleName | None = None
    suspended: bool | None = None


class CreateKey(Request):
    user: Reference | None = None
    reusable: bool = False
    ephemeral: bool = False
    expires_s: Seconds = 86_400.0
    tags: Tags = []


class UpdateNode(Request):
    name: Name | None = None
    tags: Tags | None = None


class ApproveNode(Request):
    user: Reference | None = None


class NodeRoutes(Request):
    routes: Routes


class PolicyBody(Request):
    text: PolicyText


class PolicyTestBody(Request):
    text: PolicyText | None = None


class CanBody(Request):
    source: Reference
    destination: Reference
    protocol: Annotated[str, Meta(min_length=1, max_length=20, description="tcp, udp, icmp, … or a number")]
    port: Annotated[int, Meta(ge=0, le=65_535)] | None = None


class CreateToken(Request):
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    user: Reference | None = None
    scopes: Annotated[list[Annotated[str, Meta(max_length=40)]], Meta(max_length=64)] = []
    expires_s: Seconds = 90 * 86_400.0


class UpdateSettings(Request):
    node_key_lifetime_s: float | UnsetType = UNSET
    require_approval: bool | UnsetType = UNSET


# --- queries: what is left out is UNSET, as no word may stand for it (a `null` would)


class NoQuery(Struct, forbid_unknown_fields=True):
    pass


class Page(Struct, forbid_unknown_fields=True):
    """`cursor` is the `next` of the page before; `sort` a field, with - before it for descending."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[str, Meta(max_length=1000)] = ""
    sort: Annotated[str, Meta(max_length=40)] = ""


class UsersPage(Page):
    name: str | UnsetType = UNSET
    role: RoleName | UnsetType = UNSET
    suspended: bool | UnsetType = UNSET


class KeysPage(Page):
    user: str | UnsetType = UNSET
    valid: bool | UnsetType = UNSET


class NodesPage(Page):
    name: str | UnsetType = UNSET
    user: str | UnsetType = UNSET
    tag: str | UnsetType = UNSET
    state: StateName | UnsetType = UNSET
    online: bool | UnsetType = UNSET


class RoutesPage(Page):
    name: str | UnsetType = UNSET
    route: str | UnsetType = UNSET
    approved: bool | UnsetType = UNSET
    advertised: bool | UnsetType = UNSET


class TokensPage(Page):
    user: str | UnsetType = UNSET
    valid: bool | UnsetType = UNSET


class SessionsPage(Page):
    user: str | UnsetType = UNSET


class AuditPage(Struct, forbid_unknown_fields=True):
    """Newest first: `before` is the `next` of the page before. With `after`, oldest first from there."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    before: Annotated[int, Meta(ge=1, le=2**62)] | UnsetType = UNSET
    after: Annotated[int, Meta(ge=0, le=2**62)] | UnsetType = UNSET
    actor: Annotated[str, Meta(max_length=128)] | UnsetType = UNSET
    action: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class At(Struct, forbid_unknown_fields=True):
    time: Annotated[str, Meta(min_length=1, max_length=40)]


# --- answers


class Problem(Struct):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str | UnsetType = UNSET


class Whoami(Struct):
    kind: str
    name: str
    user: str | None
    role: str
    scopes: list[str] | None


class User(Struct):
    id: int
    name: str
    role: str
    display_name: str
    email: str
    groups: list[str]
    issuer: str | None
    subject: str | None
    role_by_hand: bool
    suspended: bool
    access: str
    created: Time
    last_login: Time | None
    etag: Etag


class Key(Struct):
    id: str
    user: str | None
    tags: list[str]
    reusable: bool
    ephemeral: bool
    created: Time
    expires: Time
    used: Time | None
    revoked: Time | None
    valid: bool
    etag: Etag


class CreatedKey(Struct):
    """The key is shown this once."""

    key: str
    id: str


class NodeRoutesRow(Struct):
    advertised: list[str]
    approved: list[str]


class HealthLine(Struct):
    code: str
    severity: str
    text: str


class Node(Struct):
    id: int
    name: str
    hostname: str
    user: str | None
    tags: list[str]
    addresses: list[str]
    os: str
    version: str
    state: str
    online: bool
    last_seen: Time | None
    key_expires: Time | None
    disabled: bool
    pending: bool
    code: str | None
    ephemeral: bool
    routes: NodeRoutesRow
    created: Time
    node_key: str
    control_key: str
    endpoints: list[str]
    health: list[HealthLine]
    etag: Etag


class Overlap(Struct):
    node: int
    name: str
    route: str


class Route(Struct):
    node: int
    name: str
    route: str
    advertised: bool
    approved: bool
    primary: bool
    online: bool
    overlaps: list[Overlap]


class Policy(Struct):
    source: str
    text: str
    etag: Etag


class PolicyProblem(Struct):
    line: int
    column: int
    text: str


class PolicyTestRow(Struct):
    line: int
    passed: bool
    text: str


class PolicyCheck(Struct):
    ok: bool
    problems: list[PolicyProblem]
    tests: list[PolicyTestRow]


class PolicyTestReport(Struct):
    ok: bool
    tests: list[PolicyTestRow]


class Shift(Struct):
    sources: list[str]
    destinations: list[str]
    services: list[str]
    between: Literal["any", "own", "others"]
    """Whether all of these pairs are meant, those of one user's nodes alone, or those of different users' alone."""


class PolicyDiff(Struct):
    gained: list[Shift]
    lost: list[Shift]


class RuleRow(Struct):
    line: int
    text: str


class EndRoute(Struct):
    prefix: str
    router: str


class EndRow(Struct):
    name: str
    node: str | None
    user: str | None
    tags: list[str]
    route: EndRoute | None


class Verdict(Struct):
    allowed: bool
    reason: str
    rule: RuleRow | None
    source: EndRow
    destination: EndRow


class Token(Struct):
    id: str
    name: str
    user: str
    scopes: list[str]
    created: Time
    expires: Time
    revoked: Time | None
    valid: bool
    etag: Etag


class CreatedToken(Struct):
    """The token is shown this once."""

    token: str
    id: str


class Session(Struct):
    id: str
    user: str
    created: Time
    expires: Time
    checked: Time


class Settings(Struct):
    node_key_lifetime_s: float
    require_approval: bool
    etag: Etag


class RelayRow(Struct):
    url: str
    connected: int
    """Nodes connected to it, as far as this server knows."""


class AuditActor(Struct):
    kind: str
    id: str
    name: str
    source: str


class AuditChangeRow(Struct):
    kind: str
    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditRow(Struct):
    seq: int
    at: Time
    actor: AuditActor
    action: str
    changes: list[AuditChangeRow]


class AuditList(Struct):
    items: list[AuditRow]
    next: int | None


class PastConfiguration(Struct):
    at: Time
    configuration: dict[str, dict[str, dict[str, Any]]]


@cache
def sortable(row: type[Struct]) -> tuple[str, ...]:
    """The row's fields that it can be sorted by: those that are no lists or objects."""
    found = inspect.type_info(row)
    assert isinstance(found, inspect.StructType)
    return tuple(field.name for field in found.fields if _is_plain(field.type))


def _is_plain(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return all(map(_is_plain, kind.types))
    if isinstance(kind, inspect.Metadata):
        return _is_plain(kind.type)
    return isinstance(kind, inspect.StrType | inspect.IntType | inspect.FloatType | inspect.BoolType | inspect.NoneType)


def listing(row: type[Struct]) -> type[Struct]:
    """The type of a page of rows."""
    return msgspec.defstruct(f"{row.__name__}List", [("items", list[row]), ("next", str | None)])  # type: ignore[valid-type]


def row_of(page: type[Struct]) -> type[Struct]:
    """The rows of a listing's type."""
    (items,) = [field.type for field in inspect.type_info(page).fields if field.name == "items"]  # type: ignore[attr-defined]
    return items.item_type.cls  # type: ignore[no-any-return]


UserList, KeyList, NodeList, RouteList = listing(User), listing(Key), listing(Node), listing(Route)
TokenList, SessionList, RelayList = listing(Token), listing(Session), listing(RelayRow)
