"""The REST API, typed: a method for each operation. Written by `./dev client` from the server's table of operations: change that, not this."""

from __future__ import annotations

from calnet.roles.cli.rest import Rest, given, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypedDict

    class Whoami(TypedDict):
        kind: str
        name: str
        user: str | None
        role: str
        scopes: list[str] | None

    class User(TypedDict):
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
        created: str
        last_login: str | None
        etag: str

    class Key(TypedDict):
        id: str
        user: str | None
        tags: list[str]
        reusable: bool
        ephemeral: bool
        created: str
        expires: str
        used: str | None
        revoked: str | None
        valid: bool
        etag: str

    class CreatedKey(TypedDict):
        key: str
        id: str

    class NodeRoutesRow(TypedDict):
        advertised: list[str]
        approved: list[str]

    class HealthLine(TypedDict):
        code: str
        severity: str
        text: str

    class Node(TypedDict):
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
        last_seen: str | None
        key_expires: str | None
        disabled: bool
        pending: bool
        code: str | None
        ephemeral: bool
        routes: NodeRoutesRow
        created: str
        node_key: str
        control_key: str
        endpoints: list[str]
        health: list[HealthLine]
        etag: str

    class Overlap(TypedDict):
        node: int
        name: str
        route: str

    class Route(TypedDict):
        node: int
        name: str
        route: str
        advertised: bool
        approved: bool
        primary: bool
        online: bool
        overlaps: list[Overlap]

    class Policy(TypedDict):
        source: str
        text: str
        etag: str

    class PolicyProblem(TypedDict):
        line: int
        column: int
        text: str

    class PolicyTestRow(TypedDict):
        line: int
        passed: bool
        text: str

    class PolicyCheck(TypedDict):
        ok: bool
        problems: list[PolicyProblem]
        tests: list[PolicyTestRow]

    class PolicyTestReport(TypedDict):
        ok: bool
        tests: list[PolicyTestRow]

    class Shift(TypedDict):
        sources: list[str]
        destinations: list[str]
        services: list[str]
        between: Literal["any", "own", "others"]

    class PolicyDiff(TypedDict):
        gained: list[Shift]
        lost: list[Shift]

    class RuleRow(TypedDict):
        line: int
        text: str

    class EndRoute(TypedDict):
        prefix: str
        router: str

    class EndRow(TypedDict):
        name: str
        node: str | None
        user: str | None
        tags: list[str]
        route: EndRoute | None

    class Verdict(TypedDict):
        allowed: bool
        reason: str
        rule: RuleRow | None
        source: EndRow
        destination: EndRow

    class Token(TypedDict):
        id: str
        name: str
        user: str
        scopes: list[str]
        created: str
        expires: str
        revoked: str | None
        valid: bool
        etag: str

    class CreatedToken(TypedDict):
        token: str
        id: str

    class Session(TypedDict):
        id: str
        user: str
        created: str
        expires: str
        checked: str

    class Settings(TypedDict):
        node_key_lifetime_s: float
        require_approval: bool
        etag: str

    class RelayRow(TypedDict):
        url: str
        connected: int

    class AuditActor(TypedDict):
        kind: str
        id: str
        name: str
        source: str

    class AuditChangeRow(TypedDict):
        kind: str
        id: str
        before: dict[str, Any] | None
        after: dict[str, Any] | None

    class AuditRow(TypedDict):
        seq: int
        at: str
        actor: AuditActor
        action: str
        changes: list[AuditChangeRow]

    class PastConfiguration(TypedDict):
        at: str
        configuration: dict[str, dict[str, dict[str, Any]]]


class Api(Rest):
    """See the module. Rows are JSON as it came: fields of a newer server are there too."""

    def whoami(self) -> Whoami:
        """Who you are, and what you may do."""
        found: Whoami = self.get("/whoami")
        return found

    def list_users(self, *, name: str | None = None, role: str | None = None, suspended: bool | None = None) -> list[User]:
        """List users."""
        found: list[User] = self.list("/users", name=name, role=role, suspended=suspended)
        return found

    def create_user(self, *, name: str, role: str | None = None) -> User:
        """Make a user."""
        found: User = self.send("POST", "/users", given({"name": name, "role": role}))
        return found

    def show_user(self, user: str) -> User:
        """Show a user."""
        found: User = self.get(f"/users/{quoted(user)}")
        return found

    def update_user(self, user: str, *, name: str | None = None, role: str | None = None, suspended: bool | None = None, etag: str | None = None) -> User:
        """Rename a user, change its role, suspend or resume it."""
        found: User = self.send("PATCH", f"/users/{quoted(user)}", given({"name": name, "role": role, "suspended": suspended}), etag=etag)
        return found

    def delete_user(self, user: str, *, etag: str | None = None) -> None:
        """Delete a user without nodes."""
        self.send("DELETE", f"/users/{quoted(user)}", etag=etag)

    def list_keys(self, *, user: str | None = None, valid: bool | None = None) -> list[Key]:
        """List pre-auth keys."""
        found: list[Key] = self.list("/keys", user=user, valid=valid)
        return found

    def create_key(
        self,
        *,
        user: str | None = None,
        reusable: bool | None = None,
        ephemeral: bool | None = None,
        expires_s: float | None = None,
        tags: list[str] | None = None,
    ) -> CreatedKey:
        """Make a pre-auth key, which is shown this once."""
        found: CreatedKey = self.send(
            "POST", "/keys", given({"user": user, "reusable": reusable, "ephemeral": ephemeral, "expires_s": expires_s, "tags": tags})
        )
        return found

    def show_key(self, id_: str) -> Key:
        """Show a pre-auth key."""
        found: Key = self.get(f"/keys/{quoted(id_)}")
        return found

    def revoke_key(self, id_: str, *, etag: str | None = None) -> None:
        """Revoke a pre-auth key."""
        self.send("DELETE", f"/keys/{quoted(id_)}", etag=etag)

    def list_nodes(
        self, *, name: str | None = None, user: str | None = None, tag: str | None = None, state: str | None = None, online: bool | None = None
    ) -> list[Node]:
        """List nodes."""
        found: list[Node] = self.list("/nodes", name=name, user=user, tag=tag, state=state, online=online)
        return found

    def show_node(self, node: str) -> Node:
        """Show a node."""
        found: Node = self.get(f"/nodes/{quoted(node)}")
        return found

    def update_node(self, node: str, *, name: str | None = None, tags: list[str] | None = None, etag: str | None = None) -> Node:
        """Rename a node, or replace its tags."""
        found: Node = self.send("PATCH", f"/nodes/{quoted(node)}", given({"name": name, "tags": tags}), etag=etag)
        return found

    def delete_node(self, node: str, *, etag: str | None = None) -> None:
        """Delete a node."""
        self.send("DELETE", f"/nodes/{quoted(node)}", etag=etag)

    def approve_node(self, node: str, *, user: str | None = None, etag: str | None = None) -> Node:
        """Admit a waiting node, or renew its key."""
        found: Node = self.send("POST", f"/nodes/{quoted(node)}/approve", given({"user": user}), etag=etag)
        return found

    def disable_node(self, node: str, *, etag: str | None = None) -> Node:
        """Shut a node out."""
        found: Node = self.send("POST", f"/nodes/{quoted(node)}/disable", etag=etag)
        return found

    def enable_node(self, node: str, *, etag: str | None = None) -> Node:
        """Let a disabled node in again."""
        found: Node = self.send("POST", f"/nodes/{quoted(node)}/enable", etag=etag)
        return found

    def expire_node(self, node: str, *, etag: str | None = None) -> Node:
        """End a node's login."""
        found: Node = self.send("POST", f"/nodes/{quoted(node)}/expire", etag=etag)
        return found

    def node_routes(
        self, node: str, *, name: str | None = None, route: str | None = None, approved: bool | None = None, advertised: bool | None = None
    ) -> list[Route]:
        """List a node's routes."""
        found: list[Route] = self.list(f"/nodes/{quoted(node)}/routes", name=name, route=route, approved=approved, advertised=advertised)
        return found

    def approve_routes(self, node: str, *, routes: list[str], etag: str | None = None) -> Node:
        """Approve routes."""
        found: Node = self.send("POST", f"/nodes/{quoted(node)}/routes/approve", given({"routes": routes}), etag=etag)
        return found

    def revoke_routes(self, node: str, *, routes: list[str], etag: str | None = None) -> Node:
        """Revoke routes."""
        found: Node = self.send("POST", f"/nodes/{quoted(node)}/routes/revoke", given({"routes": routes}), etag=etag)
        return found

    def list_routes(self, *, name: str | None = None, route: str | None = None, approved: bool | None = None, advertised: bool | None = None) -> list[Route]:
        """List routes."""
        found: list[Route] = self.list("/routes", name=name, route=route, approved=approved, advertised=advertised)
        return found

    def show_policy(self) -> Policy:
        """Show the policy in force."""
        found: Policy = self.get("/policy")
        return found

    def set_policy(self, *, text: str, etag: str | None = None) -> Policy:
        """Set the policy."""
        found: Policy = self.send("PUT", "/policy", given({"text": text}), etag=etag)
        return found

    def reset_policy(self, *, etag: str | None = None) -> None:
        """Go back to the built-in policy."""
        self.send("DELETE", "/policy", etag=etag)

    def check_policy(self, *, text: str) -> PolicyCheck:
        """Say what is wrong with a policy."""
        found: PolicyCheck = self.send("POST", "/policy/check", given({"text": text}))
        return found

    def test_policy(self, *, text: str | None = None) -> PolicyTestReport:
        """Run a policy's tests."""
        found: PolicyTestReport = self.send("POST", "/policy/test", given({"text": text}))
        return found

    def diff_policy(self, *, text: str) -> PolicyDiff:
        """Say who would gain and lose what."""
        found: PolicyDiff = self.send("POST", "/policy/diff", given({"text": text}))
        return found

    def can(self, *, source: str, destination: str, protocol: str, port: int | None = None) -> Verdict:
        """Say whether one may reach another, and why."""
        found: Verdict = self.send("POST", "/policy/can", given({"source": source, "destination": destination, "protocol": protocol, "port": port}))
        return found

    def list_tokens(self, *, user: str | None = None, valid: bool | None = None) -> list[Token]:
        """List API tokens."""
        found: list[Token] = self.list("/tokens", user=user, valid=valid)
        return found

    def create_token(self, *, name: str, user: str | None = None, scopes: list[str] | None = None, expires_s: float | None = None) -> CreatedToken:
        """Make an API token, shown this once."""
        found: CreatedToken = self.send("POST", "/tokens", given({"name": name, "user": user, "scopes": scopes, "expires_s": expires_s}))
        return found

    def show_token(self, id_: str) -> Token:
        """Show an API token."""
        found: Token = self.get(f"/tokens/{quoted(id_)}")
        return found

    def revoke_token(self, id_: str, *, etag: str | None = None) -> None:
        """Revoke an API token."""
        self.send("DELETE", f"/tokens/{quoted(id_)}", etag=etag)

    def list_sessions(self, *, user: str | None = None) -> list[Session]:
        """List browser sessions."""
        found: list[Session] = self.list("/sessions", user=user)
        return found

    def end_session(self, id_: str) -> None:
        """End a browser session."""
        self.send("DELETE", f"/sessions/{quoted(id_)}")

    def show_settings(self) -> Settings:
        """Show the settings."""
        found: Settings = self.get("/settings")
        return found

    def update_settings(self, *, node_key_lifetime_s: float | None = None, require_approval: bool | None = None, etag: str | None = None) -> Settings:
        """Change settings."""
        found: Settings = self.send("PATCH", "/settings", given({"node_key_lifetime_s": node_key_lifetime_s, "require_approval": require_approval}), etag=etag)
        return found

    def list_relays(self) -> list[RelayRow]:
        """List relays."""
        found: list[RelayRow] = self.list("/relays")
        return found

    def list_audit(self, *, limit: int | None = None, actor: str | None = None, action: str | None = None) -> list[AuditRow]:
        """List changes, newest first."""
        rows: list[AuditRow] = self.newest("/audit", limit=limit, actor=actor, action=action)
        return rows

    def audit_at(self, *, time: str) -> PastConfiguration:
        """Show the configuration as it was."""
        found: PastConfiguration = self.get("/audit/at", time=time)
        return found
