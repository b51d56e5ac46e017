"""What people do with the registry: users, pre-auth keys, nodes, routes, policy, tokens, sessions, settings, and the audit log. REST and the tools call this.

Methods that change something take `terms` (who asks, which etag it must still have, whether to carry it out once) and return a future that is done once the
change is durable. Rows are JSON values that hold no secret, hash or private key; those of things that can be changed have an `etag`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Protocol, TypeVar

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.model import ControlKey, NodeId, UserId
from calnet.roles.server import audit as audits
from calnet.roles.server import authkeys, configuration, nodes, policies, registration, tokens, users, vouching
from calnet.roles.server.actors import BY_SYSTEM, Principal, Terms
from calnet.roles.server.listing import Json, etag_of, key_row, node_row, route_rows, session_row, token_row, user_row
from calnet.roles.server.netmaps import Netmaps, Presence
from calnet.roles.server.snapshot import Snapshot
from calnet.roles.server.times import time_text
from calnet.roles.server.users import Identity, UserWish
from calnet.roles.server.writer import Plan
from calnet.store.interface import AuditRecord, Change, NodeRecord, SessionRecord, Store, UserRecord, Watch

Result = TypeVar("Result")
Row = TypeVar("Row")


class Management(Protocol):
    """See the module. The registry is one; this half knows its snapshot, clock and how to submit a change, and nothing of netmaps but who routes what."""

    control_key: PrivateKey
    _state: Snapshot
    _store: Store
    _clock: Callable[[], float]
    _random: RandomBytes
    _presence: dict[NodeId, Presence]
    _netmaps: Netmaps

    @abstractmethod
    def _change(self, action: str, plan: Plan[Result], terms: Terms = ..., etag: Callable[[Snapshot], str] | None = ...) -> Future[Result]: ...

    # --- users

    def create_user(self, name: str, *, role: str = users.USER, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """InvalidError for a name that is not DNS-safe, ConflictError for a taken one, ForbiddenError for a role the asker may not give."""
        return self._change("users.create", _as_row(lambda state: users.plan_create_user(state, name, self._clock(), role, terms.by), user_row), terms)

    def users(self) -> list[Json]:
        """Every user's row, by id."""
        return [user_row(user) for _, user in sorted(self._state.users.items())]

    def user(self, user: str) -> Json:
        """NotFoundError."""
        return user_row(self._state.user(user))

    def update_user(self, user: str, wish: UserWish, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Another name or role, shut out or let in again; see users.plan_update_user. A suspended user's nodes, tokens and sessions are of no use at once."""
        plan = _as_row(lambda state: users.plan_update_user(state, user, wish, terms.by), user_row)
        return self._change("users.update", plan, terms, lambda state: etag_of(state.user(user)))

    def rename_user(self, user: str, name: str, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """As create_user; NotFoundError for an unknown user."""
        return self.update_user(user, UserWish(name=name), terms=terms)

    def delete_user(self, user: str, *, terms: Terms = BY_SYSTEM) -> Future[None]:
        """ConflictError while the user has nodes, or is the last owner; its keys, tokens and sessions go with it."""
        return self._change("users.delete", lambda state: users.plan_delete_user(state, user, terms.by), terms, lambda state: etag_of(state.user(user)))

    def sign_in(
        self, identity: Identity, *, refresh: bytes = b"", until: float | None = None, anew: bool = True, terms: Terms = BY_SYSTEM
    ) -> Future[UserRecord]:
        """The user of this identity, made at the first time; see users.plan_sign_in. ForbiddenError for one that is shut out."""
        plan: Plan[UserRecord] = lambda state: users.plan_sign_in(state, identity, self._clock(), refresh=refresh, until=until, anew=anew)  # noqa: E731
        return self._change("users.sign-in", plan, terms)

    def user_of_identity(self, issuer: str, subject: str) -> UserRecord | None:
        """The user that signed in as this identity, if one did."""
        state = self._state
        user = state.by_identity.get((issuer, subject))
        return None if user is None else state.users[user]

    def ask_about(self, user: UserId, every_s: float) -> Future[Watch | None]:
        """Whether it is this server's turn to ask the provider about the user, and with what; see vouching.plan_ask."""
        return self._change("users.recheck", lambda state: vouching.plan_ask(state, user, every_s, self._clock()))

    def confirm(self, user: UserId, identity: Identity | None, refresh: bytes) -> Future[UserRecord]:
        """The provider vouches for the user still; see vouching.plan_confirm. NotFoundError where it is asked no more."""
        return self._change("users.recheck", lambda state: vouching.plan_confirm(state, user, identity, refresh, self._clock()))

    def lose_access(self, user: UserId) -> Future[None]:
        """The provider no longer vouches for the user: sessions, tokens, keys, nodes and access tokens are of no use at once."""
        return self._change("users.lose-access", lambda state: vouching.plan_lose_access(state, user, self._clock()))

    def lapse(self, user: UserId, until: float) -> Future[None]:
        """The provider can't be asked about the user any more: its last word holds until `until`."""
        return self._change("users.lapse", lambda state: vouching.plan_lapse(state, user, until, self._clock()))

    def rest(self, user: UserId) -> Future[None]:
        """Where the provider's last word holds no longer: the user's tokens and keys rest until it signs in."""
        return self._change("users.rest", lambda state: vouching.plan_rest(state, user, self._clock()))

    def signed_out(self, user: UserId) -> Future[None]:
        """The user is sent on to the provider's sign-out, which may end the refresh token."""
        return self._change("users.sign-out", lambda state: vouching.plan_signed_out(state, user, self._clock()))

    def depended_on(self) -> set[UserId]:
        """The users with sessions, tokens, pre-auth keys or machines that open anything."""
        return vouching.depended_on(self._state, self._clock())

    def user_records(self) -> list[UserRecord]:
        """All users."""
        return list(self._state.users.values())

    def user_record(self, user: UserId) -> UserRecord | None:
        """The user, if it is there."""
        return self._state.users.get(user)

    # --- pre-auth keys

    def create_key(
        self,
        *,
        user: str | None = None,
        reusable: bool = False,
        ephemeral: bool = False,
        expires_s: float = 86400.0,
        tags: tuple[str, ...] = (),
        terms: Terms = BY_SYSTEM,
    ) -> Future[Json]:
        """{"key": the printable key, shown this once, "id": …}. `user` None is the first user; a key with tags has no user."""
        wish = authkeys.KeyWish(user, reusable, ephemeral, expires_s, tags)

        def plan(state: Snapshot) -> tuple[Sequence[Change], Json]:
            policies.check_tags_allowed(state, terms.by, tags)
            server = ControlKey(self.control_key.public)
            changes, (key, key_id) = authkeys.plan_create_key(state, wish, server, self._clock(), self._random, terms.by)
            return changes, {"key": key, "id": key_id}

        return self._change("keys.create", plan, terms)

    def keys(self) -> list[Json]:
        """Every key's row, the oldest first."""
        state, now = self._state, self._clock()
        return [key_row(state, key, now) for key in sorted(state.keys.values(), key=lambda key: (key.created_at, key.id))]

    def key(self, key_id: str) -> Json:
        """NotFoundError."""
        return key_row(self._state, authkeys.key_of(self._state, key_id), self._clock())

    def may_give_tags(self, user: UserId, tags: Sequence[str]) -> bool:
        """Whether the user, who is no admin, is an owner of all these tags: keys that carry them are its own too, as it could have made them."""
        return policies.may_give_tags(self._state, self._state.users.get(user), tags)

    def revoke_key(self, key_id: str, *, terms: Terms = BY_SYSTEM) -> Future[None]:
        """The key admits nobody from now on; nodes that used it stay."""

        plan: Plan[None] = lambda state: authkeys.plan_revoke_key(state, key_id, self._clock())  # noqa: E731
        return self._change("keys.revoke", plan, terms, lambda state: etag_of(authkeys.key_of(state, key_id)))

    # --- nodes, named by id, name, address or approval code

    def nodes(self) -> list[Json]:
        """Every node's row, by id."""
        state = self._state
        return [self._row(state, node) for _, node in sorted(state.nodes.items())]

    def node(self, node: str) -> Json:
        """The node's row; NotFoundError."""
        state = self._state
        return self._row(state, nodes.find(state, node))

    def rename_node(self, node: str, name: str, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """From now on its hostname does not move its name. InvalidError, ConflictError as for users."""
        return self._changed_node("nodes.rename", node, name, None, terms)

    def tag_node(self, node: str, tags: tuple[str, ...], *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Replace its tags: a tagged node has no owner and its key does not expire. InvalidError for an empty list (`approve --user` gives it an owner)."""
        return self._changed_node("nodes.tag", node, None, tags, terms)

    def change_node(self, node: str, name: str, tags: tuple[str, ...], *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """rename_node and tag_node in one change."""
        return self._changed_node("nodes.update", node, name, tags, terms)

    def _changed_node(self, action: str, node: str, name: str | None, tags: tuple[str, ...] | None, terms: Terms) -> Future[Json]:
        def plan(state: Snapshot) -> tuple[Sequence[Change], NodeRecord]:
            policies.check_tags_allowed(state, terms.by, tags or ())
            return nodes.plan_change_node(state, node, name, tags, self._clock())

        return self._node(action, node, plan, terms)

    def approve_node(self, code_or_node: str, user: str | None = None, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Admit a pending node, or renew the key expiry of an active or expired one. `user` None: its owner so far, else the first user."""
        return self._node("nodes.approve", code_or_node, lambda state: registration.plan_approve(state, code_or_node, user, self._clock()), terms)

    def waiting_node(self, code: str, user: UserId) -> Json:
        """The row of the machine that waits with this code, and that this user may sign in for.
        NotFoundError where none waits with that code, ForbiddenError for a user that is shut out, ConflictError where another has signed in for it."""
        state = self._state
        return self._row(state, registration.waiting_for(state, code, user))

    def is_signed_in_for(self, code: str) -> bool:
        """Whether somebody has signed in for the machine that waits with this code, and an admin's approval is what it waits for."""
        state = self._state
        waiting = state.by_code.get(code)
        return waiting is not None and state.nodes[waiting].signed_in

    def admit_node(self, code: str, user: UserId, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """The user signed in for the machine that waits with this code: it is the user's, and admitted unless the settings ask for an admin's approval too:
        then it waits on, and is nobody else's to sign in for. Errors as of waiting_node."""

        def plan(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, record = registration.plan_admit(state, code, user, self._clock())
            return changes, self._row(state, record)

        return self._change("nodes.admit", plan, terms)

    def disable_node(self, node: str, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Nobody sees it and it may do nothing until it is enabled."""
        return self._node("nodes.disable", node, lambda state: nodes.plan_disable_node(state, node, True), terms)

    def enable_node(self, node: str, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Undo disable_node."""
        return self._node("nodes.enable", node, lambda state: nodes.plan_disable_node(state, node, False), terms)

    def expire_node(self, node: str, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Its key expires now: it has to log in again."""
        return self._node("nodes.expire", node, lambda state: nodes.plan_expire_node(state, node, self._clock()), terms)

    def delete_node(self, node: str, *, terms: Terms = BY_SYSTEM) -> Future[None]:
        """Forget the machine; its name is free, its address is given out again last. ForbiddenError for a disabled one where the asker may not enable it."""
        plan: Plan[None] = lambda state: nodes.plan_delete_node(state, node, self._clock(), terms.by)  # noqa: E731
        return self._change("nodes.delete", plan, terms, lambda state: etag_of(nodes.find(state, node)))

    def routes(self, node: str | None = None) -> list[Json]:
        """Rows {node, name, route, advertised, approved, primary, online, overlaps}, of one node or all."""
        state = self._state
        found = sorted(state.nodes.values(), key=lambda record: record.id) if node is None else [nodes.find(state, node)]
        primaries = {str(route): router for route, router in self._netmaps.routers.primaries().items()}
        online = {router for router, presence in list(self._presence.items()) if presence.online}
        offered: dict[str, list[NodeRecord]] = {}
        for record in state.nodes.values():
            for route in record.approved_routes:
                if route in record.advertised_routes:
                    offered.setdefault(route, []).append(record)
        return [row for record in found for row in route_rows(record, primaries, online, offered)]

    def approve_routes(self, node: str, routes: tuple[str, ...], *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """InvalidError for a route that overlaps the overlay, a default route, or no unicast prefix. Several nodes may have one: one of them routes it."""
        return self._node("routes.approve", node, lambda state: nodes.plan_approve_routes(state, node, routes), terms)

    def revoke_routes(self, node: str, routes: tuple[str, ...], *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Routes not approved are passed over."""
        return self._node("routes.revoke", node, lambda state: nodes.plan_revoke_routes(state, node, routes), terms)

    # --- policy

    def policy(self) -> Json:
        """The policy in force: {"source": "built-in" or "set", "text", "etag"}."""
        return policies.policy_row(self._state)

    def set_policy(self, text: str, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """Another policy, in force everywhere within a second. PolicyError where it does not compile or fails its own tests: then the old one stays."""

        return self._change("policy.set", lambda state: policies.plan_set_policy(state, text), terms, lambda state: str(policies.policy_row(state)["etag"]))

    def reset_policy(self, *, terms: Terms = BY_SYSTEM) -> Future[None]:
        """The built-in policy holds again."""

        return self._change("policy.reset", policies.plan_reset_policy, terms, lambda state: str(policies.policy_row(state)["etag"]))

    def check_policy(self, text: str) -> Json:
        """{"ok", "problems": [{line, column, text}], "tests": …}: what `set_policy` would say."""
        return policies.check(self._state, text)

    def test_policy(self, text: str | None = None) -> Json:
        """Run the tests of this policy, or of the one in force: {"ok", "tests": […]}. PolicyError where it does not compile."""
        return policies.test(self._state, text)

    def diff_policy(self, text: str) -> Json:
        """Who would gain and lose what: {"gained": […], "lost": […]}. PolicyError where it does not compile."""
        return policies.diff(self._state, text, self._clock())

    def can(self, source: str, destination: str, protocol: str, port: int | None) -> Json:
        """Whether policy lets source reach destination, and why. NotFoundError for an unknown name."""
        return policies.can(self._state, source, destination, protocol, port, self._clock(), self._netmaps.routers.primaries())

    # --- tokens and sessions

    def create_token(self, wish: tokens.TokenWish, *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """{"token": the text, shown this once, "id": …}."""

        def plan(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, (text, record) = tokens.plan_create_token(state, wish, self._clock(), self._random, terms.by)
            return changes, {"token": text, "id": record.id}

        return self._change("tokens.create", plan, terms)

    def tokens(self) -> list[Json]:
        """Every token's row, the oldest first."""
        state, now = self._state, self._clock()
        return [token_row(state, token, now) for token in sorted(state.tokens.values(), key=lambda token: (token.created_at, token.id))]

    def token(self, token_id: str) -> Json:
        """NotFoundError."""
        return token_row(self._state, tokens.token_of(self._state, token_id), self._clock())

    def revoke_token(self, token_id: str, *, terms: Terms = BY_SYSTEM) -> Future[None]:
        """It opens nothing from now on."""
        plan: Plan[None] = lambda state: tokens.plan_revoke_token(state, token_id, self._clock())  # noqa: E731
        return self._change("tokens.revoke", plan, terms, lambda state: etag_of(tokens.token_of(state, token_id)))

    def principal_of_token(self, text: str, source: str) -> Principal:
        """Who the token speaks for; UnauthorizedError."""
        return tokens.principal_of_token(self._state, text, source, self._clock())

    def create_session(self, user: UserId, *, expires_s: float, terms: Terms = BY_SYSTEM) -> Future[tuple[str, SessionRecord]]:
        """(the cookie's secret, the session)."""
        return self._change("sessions.create", lambda state: tokens.plan_create_session(state, user, expires_s, self._clock(), self._random), terms)

    def session_of(self, secret: str) -> tuple[SessionRecord, UserRecord] | None:
        """The session and user behind a cookie; None for one that is not valid, or no longer."""
        return tokens.user_of_session(self._state, secret, self._clock())

    def sessions(self) -> list[Json]:
        """Every session's row, the oldest first."""
        state = self._state
        return [session_row(state, session) for session in sorted(state.sessions.values(), key=lambda session: session.created_at)]

    def end_session(self, session: str, *, terms: Terms = BY_SYSTEM) -> Future[None]:
        """By its id, or the part of it that rows show. NotFoundError."""
        return self._change("sessions.end", lambda state: tokens.plan_end_session(state, tokens.session_named(state, session)), terms)

    def end_sessions(self, user: UserId) -> Future[None]:
        """All of the user's."""
        return self._change("sessions.end", lambda state: vouching.plan_end_sessions(state, user))

    # --- settings and audit

    def settings(self) -> Json:
        """What admins may change while the server runs, with the etag of all of it."""
        return _settings_row(configuration.configuration_of(self._state))

    def update_settings(self, wishes: Mapping[str, object], *, terms: Terms = BY_SYSTEM) -> Future[Json]:
        """InvalidError names the setting that does not exist or the value that can't be."""

        def plan(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, values = configuration.plan_configure(state, wishes)
            return changes, _settings_row(values)

        return self._change("settings.update", plan, terms, lambda state: configuration.etag_of(configuration.configuration_of(state)))

    def audit(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        newest_first: bool = True,
        accepts: Callable[[AuditRecord], bool] = lambda _: True,
    ) -> list[Json]:
        """A page of the audit log: rows that `accepts`, at most `limit`."""
        found: list[AuditRecord] = []
        while len(found) < limit:
            page = self._store.audit(after=after, before=before, limit=500, newest_first=newest_first)
            found += [record for record in page if accepts(record)]
            if len(page) < 500:
                break
            after, before = (after, page[-1].seq) if newest_first else (page[-1].seq, before)
        return [audits.audit_row(record) for record in found[:limit]]

    def audit_at(self, at: float) -> Json:
        """The whole configuration as it was at that time, in public values."""
        state = self._state
        records = audits.pages(self._store.audit, until=lambda record: record.at <= at)
        return {"at": time_text(at), "configuration": audits.undone(audits.configuration(state), records)}

    # --- inside

    def _row(self, state: Snapshot, node: NodeRecord) -> Json:
        return node_row(state, node, self._presence.get(node.id, Presence()), self._clock())

    def _node(self, action: str, node: str, plan: Plan[NodeRecord], terms: Terms) -> Future[Json]:
        def with_row(state: Snapshot) -> tuple[Sequence[Change], Json]:
            changes, record = plan(state)
            return changes, self._row(state, record)

        return self._change(action, with_row, terms, lambda state: etag_of(nodes.find(state, node)))


def _as_row(plan: Plan[Row], row: Callable[[Row], Json]) -> Plan[Json]:
    def with_row(state: Snapshot) -> tuple[Sequence[Change], Json]:
        changes, record = plan(state)
        return changes, row(record)

    return with_row


def _settings_row(values: configuration.Configuration) -> Json:
    return asdict(values) | {"etag": configuration.etag_of(values)}
