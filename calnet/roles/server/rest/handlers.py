"""What each operation of REST does: one or two calls of the registry, limited to a user's own things where the caller is a plain user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from calnet.errors import ForbiddenError, NotFoundError
from calnet.roles.server.actors import Replay, Role
from calnet.roles.server.durable import durable
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest import models
from calnet.roles.server.rest.models import sortable
from calnet.roles.server.rest.operations import Access, Answer, Call, Operation
from calnet.roles.server.rest.paging import Row, page_of
from calnet.roles.server.times import parse_time
from calnet.roles.server.tokens import TokenWish
from calnet.roles.server.users import UserWish
from calnet.store.interface import AuditRecord, UserRecord

Relays = Callable[[], list[Row]]


class Handlers:
    """The handlers over one registry. `relays` are the rows of this network's relays."""

    def __init__(self, registry: Registry, relays: Relays) -> None:
        self._registry = registry
        self._relays = relays

    async def whoami(self, call: Call) -> Answer:
        who = call.principal
        user = None if who.user is None else self._registry.user_record(who.user)
        scopes = None if who.scopes is None else sorted(who.scopes)
        return Answer({"kind": who.actor.kind, "name": who.actor.name, "user": None if user is None else user.name, "role": who.role.value, "scopes": scopes})

    # --- users

    async def list_users(self, call: Call) -> Answer:
        rows = self._registry.users()
        return Answer(page_of(rows if call.owner is None else [row for row in rows if row["id"] == call.owner.id], call.query, sortable=sortable(models.User)))

    async def show_user(self, call: Call) -> Answer:
        return _row(self._user(call))

    async def create_user(self, call: Call) -> Answer:
        return _row(await durable(self._registry.create_user(call.body.name, role=call.body.role, terms=call.terms)))

    async def update_user(self, call: Call) -> Answer:
        wish = UserWish(call.body.name, call.body.role, call.body.suspended)
        return _row(await durable(self._registry.update_user(call.path["user"], wish, terms=call.terms)))

    async def delete_user(self, call: Call) -> Answer:
        await durable(self._registry.delete_user(call.path["user"], terms=call.terms))
        return Answer()

    def _user(self, call: Call) -> Row:
        row = self._registry.user(call.path["user"])
        if call.owner is not None and row["id"] != call.owner.id:
            raise NotFoundError(f"no user {call.path['user']!r}: `calnet.pyz admin users list` shows them")
        return row

    # --- pre-auth keys

    async def list_keys(self, call: Call) -> Answer:
        rows = self._registry.keys()
        if call.owner is not None:
            rows = [row for row in rows if self._is_own_key(row, call.owner)]
        return Answer(page_of(rows, call.query, sortable=sortable(models.Key)))

    async def show_key(self, call: Call) -> Answer:
        return _row(self._key(call))

    async def create_key(self, call: Call) -> Answer:
        body = call.body
        user = body.user if body.user is not None or call.principal.user is None else str(call.principal.user)
        made = self._registry.create_key(
            user=user, reusable=body.reusable, ephemeral=body.ephemeral, expires_s=body.expires_s, tags=tuple(body.tags), terms=call.terms
        )
        return Answer(await durable(made))

    async def revoke_key(self, call: Call) -> Answer:
        await durable(self._registry.revoke_key(self._key(call)["id"], terms=call.terms))
        return Answer()

    def _key(self, call: Call) -> Row:
        row = self._registry.key(call.path["id"])
        if call.owner is not None and not self._is_own_key(row, call.owner):
            raise NotFoundError(f"no key {call.path['id']!r}: `calnet.pyz admin keys list` shows them")
        return row

    def _is_own_key(self, row: Row, owner: UserRecord) -> bool:
        """Also one whose tags the user may give: it has no user, and may be the user's making."""
        return bool(row["user"] == owner.name or (row["tags"] and self._registry.may_give_tags(owner.id, row["tags"])))

    # --- nodes

    async def list_nodes(self, call: Call) -> Answer:
        return Answer(page_of(_own(self._registry.nodes(), call), call.query, sortable=sortable(models.Node)))

    async def show_node(self, call: Call) -> Answer:
        return _row(self._node(call))

    async def update_node(self, call: Call) -> Answer:
        row, name, tags = self._node(call), call.body.name, None if call.body.tags is None else tuple(call.body.tags)
        node = str(row["id"])
        if name is not None and tags is not None:
            row = await durable(self._registry.change_node(node, name, tags, terms=call.terms))
        elif tags is not None:
            row = await durable(self._registry.tag_node(node, tags, terms=call.terms))
        elif name is not None:
            row = await durable(self._registry.rename_node(node, name, terms=call.terms))
        return _row(row)

    async def delete_node(self, call: Call) -> Answer:
        await durable(self._registry.delete_node(str(self._node(call)["id"]), terms=call.terms))
        return Answer()

    async def approve_node(self, call: Call) -> Answer:
        return _row(await durable(self._registry.approve_node(call.path["node"], call.body.user, terms=call.terms)))

    async def disable_node(self, call: Call) -> Answer:
        return _row(await durable(self._registry.disable_node(call.path["node"], terms=call.terms)))

    async def enable_node(self, call: Call) -> Answer:
        return _row(await durable(self._registry.enable_node(call.path["node"], terms=call.terms)))

    async def expire_node(self, call: Call) -> Answer:
        return _row(await durable(self._registry.expire_node(str(self._node(call)["id"]), terms=call.terms)))

    def _node(self, call: Call) -> Row:
        name = call.path["node"]
        return _if_own(self._registry.node(name), call, f"no node {name!r}: `calnet.pyz admin nodes list` shows them")

    # --- routes

    async def list_routes(self, call: Call) -> Answer:
        rows = self._registry.routes()
        if call.owner is not None:
            own = {row["id"] for row in _own(self._registry.nodes(), call)}
            rows = [row for row in rows if row["node"] in own]
        return Answer(page_of(rows, call.query, sortable=sortable(models.Route), identity=("node", "route")))

    async def node_routes(self, call: Call) -> Answer:
        return Answer(page_of(self._registry.routes(str(self._node(call)["id"])), call.query, sortable=sortable(models.Route), identity=("node", "route")))

    async def approve_routes(self, call: Call) -> Answer:
        return _row(await durable(self._registry.approve_routes(call.path["node"], tuple(call.body.routes), terms=call.terms)))

    async def revoke_routes(self, call: Call) -> Answer:
        return _row(await durable(self._registry.revoke_routes(call.path["node"], tuple(call.body.routes), terms=call.terms)))

    # --- policy: what may take a while runs beside the event loop

    async def show_policy(self, _: Call) -> Answer:
        return _row(self._registry.policy())

    async def set_policy(self, call: Call) -> Answer:
        await asyncio.to_thread(self._registry.check_policy, call.body.text)  # parsed once, off the writer's thread
        return _row(await durable(self._registry.set_policy(call.body.text, terms=call.terms)))

    async def reset_policy(self, call: Call) -> Answer:
        await durable(self._registry.reset_policy(terms=call.terms))
        return Answer()

    async def check_policy(self, call: Call) -> Answer:
        return Answer(await asyncio.to_thread(self._registry.check_policy, call.body.text))

    async def test_policy(self, call: Call) -> Answer:
        return Answer(await asyncio.to_thread(self._registry.test_policy, call.body.text))

    async def diff_policy(self, call: Call) -> Answer:
        return Answer(await asyncio.to_thread(self._registry.diff_policy, call.body.text))

    async def can(self, call: Call) -> Answer:
        body = call.body
        return Answer(await asyncio.to_thread(self._registry.can, body.source, body.destination, body.protocol, body.port))

    # --- tokens and sessions

    async def list_tokens(self, call: Call) -> Answer:
        return Answer(page_of(_own(self._registry.tokens(), call), call.query, sortable=sortable(models.Token)))

    async def show_token(self, call: Call) -> Answer:
        return _row(self._token(call))

    async def create_token(self, call: Call) -> Answer:
        body, user = call.body, call.body.user
        if user is None:
            user = "1" if call.principal.user is None else str(call.principal.user)
        wish = TokenWish(user, body.name, tuple(body.scopes), body.expires_s)
        return Answer(await durable(self._registry.create_token(wish, terms=call.terms)))

    async def revoke_token(self, call: Call) -> Answer:
        token = self._token(call)
        owner = self._registry.user(token["user"])
        if owner["role"] == Role.OWNER and call.principal.role is not Role.OWNER:
            raise ForbiddenError("that takes an owner")
        await durable(self._registry.revoke_token(token["id"], terms=call.terms))
        return Answer()

    def _token(self, call: Call) -> Row:
        return _if_own(self._registry.token(call.path["id"]), call, f"no token {call.path['id']!r}: `calnet.pyz admin tokens list` shows them")

    async def list_sessions(self, call: Call) -> Answer:
        return Answer(page_of(_own(self._registry.sessions(), call), call.query, sortable=sortable(models.Session)))

    async def end_session(self, call: Call) -> Answer:
        named = [row for row in _own(self._registry.sessions(), call) if row["id"] == call.path["id"].lower()]
        if not named:
            raise NotFoundError(f"no session {call.path['id']!r}: `calnet.pyz admin sessions list` shows them")
        await durable(self._registry.end_session(named[0]["id"], terms=call.terms))
        return Answer()

    # --- settings, relays, audit

    async def show_settings(self, _: Call) -> Answer:
        return _row(self._registry.settings())

    async def update_settings(self, call: Call) -> Answer:
        return _row(await durable(self._registry.update_settings(msgspec.to_builtins(call.body), terms=call.terms)))

    async def list_relays(self, call: Call) -> Answer:
        return Answer(page_of(self._relays(), call.query, sortable=sortable(models.RelayRow), identity=("url",)))

    async def list_audit(self, call: Call) -> Answer:
        query = msgspec.to_builtins(call.query)
        actor, action, after, limit = query.get("actor"), query.get("action"), query.get("after"), query["limit"]

        def accepts(record: AuditRecord) -> bool:
            named = actor in (None, record.actor_name, f"{record.actor_kind}:{record.actor_id}", record.actor_kind)
            return named and (action is None or record.action == action or record.action.startswith(f"{action}."))

        rows = await asyncio.to_thread(
            self._registry.audit, after=after or 0, before=query.get("before"), limit=limit, newest_first=after is None, accepts=accepts
        )
        return Answer({"items": rows, "next": rows[-1]["seq"] if len(rows) == limit else None})

    async def audit_at(self, call: Call) -> Answer:
        return Answer(await asyncio.to_thread(self._registry.audit_at, parse_time(call.query.time)))


def _row(row: Any) -> Answer:
    """The row (Row) with its etag, or a create's kept answer (Replay), whose etag is sealed in it."""
    return Answer(row, None if isinstance(row, Replay) else row["etag"])


def _own(rows: list[Row], call: Call) -> list[Row]:
    return rows if call.owner is None else [row for row in rows if row["user"] == call.owner.name]


def _if_own(row: Row, call: Call, otherwise: str) -> Row:
    """The row; NotFoundError, as for one that is not there, where it is another user's."""
    if call.owner is not None and row["user"] != call.owner.name:
        raise NotFoundError(otherwise)
    return row


def operations(handlers: Handlers) -> tuple[Operation, ...]:
    """All operations below /api/v1 that take and give JSON."""
    any_, own, auditor, admin = Access.ANYBODY, Access.OWN, Access.AUDITOR, Access.ADMIN
    h, m, op = handlers, models, Operation
    return (
        op("GET", "/whoami", "Who you are, and what you may do", "", any_, h.whoami, m.Whoami),
        op("GET", "/users", "List users", "users", own, h.list_users, m.UserList, query=m.UsersPage),
        op("POST", "/users", "Make a user", "users", admin, h.create_user, m.User, m.CreateUser, status=201, create=True),
        op("GET", "/users/{user}", "Show a user", "users", own, h.show_user, m.User),
        op("PATCH", "/users/{user}", "Rename a user, change its role, suspend or resume it", "users", admin, h.update_user, m.User, m.UpdateUser, guarded=True),
        op("DELETE", "/users/{user}", "Delete a user without nodes", "users", admin, h.delete_user, status=204, guarded=True),
        op("GET", "/keys", "List pre-auth keys", "keys", own, h.list_keys, m.KeyList, query=m.KeysPage),
        op("POST", "/keys", "Make a pre-auth key, which is shown this once", "keys", own, h.create_key, m.CreatedKey, m.CreateKey, status=201, create=True),
        op("GET", "/keys/{id}", "Show a pre-auth key", "keys", own, h.show_key, m.Key),
        op("DELETE", "/keys/{id}", "Revoke a pre-auth key", "keys", own, h.revoke_key, status=204, guarded=True),
        op("GET", "/nodes", "List nodes", "nodes", own, h.list_nodes, m.NodeList, query=m.NodesPage),
        op("GET", "/nodes/{node}", "Show a node", "nodes", own, h.show_node, m.Node),
        op("PATCH", "/nodes/{node}", "Rename a node, or replace its tags", "nodes", own, h.update_node, m.Node, m.UpdateNode, guarded=True),
        op("DELETE", "/nodes/{node}", "Delete a node", "nodes", own, h.delete_node, status=204, guarded=True),
        op(
            "POST",
            "/nodes/{node}/approve",
            "Admit a waiting node, or renew its key",
            "nodes",
            admin,
            h.approve_node,
            m.Node,
            m.ApproveNode,
            guarded=True,
        ),
        op("POST", "/nodes/{node}/disable", "Shut a node out", "nodes", admin, h.disable_node, m.Node, guarded=True),
        op("POST", "/nodes/{node}/enable", "Let a disabled node in again", "nodes", admin, h.enable_node, m.Node, guarded=True),
        op("POST", "/nodes/{node}/expire", "End a node's login", "nodes", own, h.expire_node, m.Node, guarded=True),
        op("GET", "/nodes/{node}/routes", "List a node's routes", "routes", own, h.node_routes, m.RouteList, query=m.RoutesPage),
        op("POST", "/nodes/{node}/routes/approve", "Approve routes", "routes", admin, h.approve_routes, m.Node, m.NodeRoutes, guarded=True),
        op("POST", "/nodes/{node}/routes/revoke", "Revoke routes", "routes", admin, h.revoke_routes, m.Node, m.NodeRoutes, guarded=True),
        op("GET", "/routes", "List routes", "routes", own, h.list_routes, m.RouteList, query=m.RoutesPage),
        op("GET", "/policy", "Show the policy in force", "policy", auditor, h.show_policy, m.Policy),
        op("PUT", "/policy", "Set the policy", "policy", admin, h.set_policy, m.Policy, m.PolicyBody, guarded=True),
        op("DELETE", "/policy", "Go back to the built-in policy", "policy", admin, h.reset_policy, status=204, guarded=True),
        op("POST", "/policy/check", "Say what is wrong with a policy", "policy", auditor, h.check_policy, m.PolicyCheck, m.PolicyBody, reads=True),
        op("POST", "/policy/test", "Run a policy's tests", "policy", auditor, h.test_policy, m.PolicyTestReport, m.PolicyTestBody, reads=True),
        op("POST", "/policy/diff", "Say who would gain and lose what", "policy", auditor, h.diff_policy, m.PolicyDiff, m.PolicyBody, reads=True),
        op("POST", "/policy/can", "Say whether one may reach another, and why", "policy", auditor, h.can, m.Verdict, m.CanBody, reads=True),
        op("GET", "/tokens", "List API tokens", "tokens", own, h.list_tokens, m.TokenList, query=m.TokensPage),
        op(
            "POST",
            "/tokens",
            "Make an API token, shown this once",
            "tokens",
            own,
            h.create_token,
            m.CreatedToken,
            m.CreateToken,
            status=201,
            create=True,
        ),
        op("GET", "/tokens/{id}", "Show an API token", "tokens", own, h.show_token, m.Token),
        op("DELETE", "/tokens/{id}", "Revoke an API token", "tokens", own, h.revoke_token, status=204, guarded=True),
        op("GET", "/sessions", "List browser sessions", "sessions", own, h.list_sessions, m.SessionList, query=m.SessionsPage),
        op("DELETE", "/sessions/{id}", "End a browser session", "sessions", own, h.end_session, status=204),
        op("GET", "/settings", "Show the settings", "settings", auditor, h.show_settings, m.Settings),
        op("PATCH", "/settings", "Change settings", "settings", admin, h.update_settings, m.Settings, m.UpdateSettings, guarded=True),
        op("GET", "/relays", "List relays", "relays", any_, h.list_relays, m.RelayList, query=m.Page),
        op("GET", "/audit", "List changes, newest first", "audit", auditor, h.list_audit, m.AuditList, query=m.AuditPage),
        op("GET", "/audit/at", "Show the configuration as it was", "audit", auditor, h.audit_at, m.PastConfiguration, query=m.At),
    )
