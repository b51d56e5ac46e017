"""REST as an attacker sees it: every route as everybody, hostile bodies, paths and heads, secrets in answers (attacks 33, 35-37)."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from calnet.roles.server import web_protocol
from calnet.roles.server.tokens import TokenWish
from tests.roles.server.registries import Machine, done
from tests.roles.server.running import Running, running

ROLES = ("owner", "admin", "auditor", "user")
NAMES = {"owner": "admin", "admin": "manager", "auditor": "auditor", "user": "mine"}
SCOPES = ("read", "write", "nodes:read", "users:write", "policy:read")
OWN_NOUNS = {"nodes", "keys", "tokens", "users", "routes", "sessions", "events"}
"""What a user has of its own: each has something of another user in the fixture, or a test of its own."""


@dataclass
class Site:
    """A server with a user of each role and another user who owns things; tokens by role."""

    running: Running
    tokens: dict[str, str]
    other: dict[str, str]
    """What the other user has, by the name of the path parameter's noun."""

    def client(self, token: str | None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.running.url, headers=headers, timeout=20, trust_env=False)

    def token(self, user: str, *scopes: str) -> str:
        return str(done(self.running.registry.create_token(TokenWish(user, "matrix", scopes)))["token"])

    def session(self, user: str) -> str:
        """A new session's id, as rows show it."""
        registry = self.running.registry
        before = {row["id"] for row in registry.sessions()}
        done(registry.create_session(registry.user(user)["id"], expires_s=3600.0))
        (made,) = {row["id"] for row in registry.sessions()} - before
        return str(made)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("server") / "state") as server:
        registry = server.registry
        for role in ROLES[1:]:
            done(registry.create_user(NAMES[role], role=role))
        done(registry.create_user("other"))
        key = done(registry.create_key(user="other"))
        standing = done(registry.register(Machine(Random(1), "theirs").request(key["key"], ("192.168.1.0/24",))))
        done(registry.register(Machine(Random(2), "ours").request(done(registry.create_key(user="mine"))["key"])))
        theirs = done(registry.create_token(TokenWish("other", "theirs")))
        found = Site(server, {}, {"nodes": str(standing.node), "keys": key["id"], "tokens": theirs["id"], "users": "other"})
        found.session("mine")
        found.session("other")
        found.tokens = {role: found.token(NAMES[role]) for role in ROLES}
        yield found


@pytest.fixture(scope="module")
def document(site: Site) -> dict[str, Any]:
    with site.client(None) as client:
        found: dict[str, Any] = client.get("/api/v1/openapi.json").json()
    return found


BODIES: dict[str, Any] = {
    "/users": {"name": "made"},
    "/users/{user}": {},
    "/keys": {"user": "other"},
    "/nodes/{node}": {},
    "/nodes/{node}/approve": {},
    "/nodes/{node}/routes/approve": {"routes": ["192.168.1.0/24"]},
    "/nodes/{node}/routes/revoke": {"routes": ["192.168.99.0/24"]},
    "/policy": {"text": "{"},
    "/policy/check": {"text": "{}"},
    "/policy/test": {},
    "/policy/diff": {"text": "{}"},
    "/policy/can": {"source": "theirs", "destination": "ours", "protocol": "icmp"},
    "/tokens": {"name": "x", "user": "other"},
    "/settings": {},
}
"""A body for each path that takes one; those of changes change nothing, or are refused when they get through, so that the matrix can go on."""


def routes(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method.upper(), path, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]


def call(site: Site, client: httpx.Client, method: str, path: str) -> int:
    noun = path.split("/")[1]
    if path == "/events":
        with client.stream(method, "/api/v1/events") as stream:
            return stream.status_code
    other = site.session("other") if path == "/sessions/{id}" else site.other.get(noun, "none")  # who gets through ends it
    where = re.sub(r"{\w+}", lambda _: other, path)
    query = {"time": "2026-01-01"} if path == "/audit/at" else {}
    headers = {"If-Match": '"000000000000000000000000"'} if "{" in path else {}  # who gets through changes nothing: 412
    return client.request(
        method, f"/api/v1{where}", params=query, json=BODIES[path] if path in BODIES and method != "GET" else None, headers=headers
    ).status_code


def may(role: str, access: str, verb: str) -> bool:
    """The matrix in words: anonymous nothing; auditors read; users their own things; admins and owners all."""
    if verb == "write" and role == "auditor":
        return False
    if access == "admin":
        return role in ("admin", "owner")
    return access != "auditor" or role != "user"


def test_attack_33_every_route_is_closed_to_who_has_no_credentials(site: Site, document: dict[str, Any]) -> None:
    with site.client(None) as client:
        assert {call(site, client, method, path) for method, path, _ in routes(document)} == {401}
        assert client.get("/metrics").status_code == 401


@pytest.mark.parametrize("role", ROLES)
def test_attack_33_every_route_answers_each_role_as_the_document_says(site: Site, document: dict[str, Any], role: str) -> None:
    wrong = []
    with site.client(site.tokens[role]) as client:
        for method, path, operation in routes(document):
            verb = operation["x-calnet-scope"].partition(":")[2]
            status = call(site, client, method, path)
            if not may(role, operation["x-calnet-access"], verb):
                expected = status == 403
            elif role == "user" and "{" in path and operation["x-calnet-access"] == "own":
                expected = status == 404  # another user's: as if it were not there
            else:
                expected = status not in (401, 403) or (status == 403 and role in ("admin", "user") and path in ("/tokens", "/keys"))
            if not expected:
                wrong.append((method, path, status))
    assert not wrong


def test_attack_33_users_list_their_own_things_alone(site: Site) -> None:
    with site.client(site.tokens["user"]) as client:
        assert [row["name"] for row in client.get("/api/v1/nodes").json()["items"]] == ["ours"]
        assert [row["name"] for row in client.get("/api/v1/users").json()["items"]] == ["mine"]
        assert {row["user"] for row in client.get("/api/v1/tokens").json()["items"]} == {"mine"}
        assert {row["user"] for row in client.get("/api/v1/keys").json()["items"]} == {"mine"}
        assert client.get("/api/v1/routes").json()["items"] == []
        assert {row["user"] for row in client.get("/api/v1/sessions").json()["items"]} == {"mine"}
        for noun in ("tokens", "keys"):
            assert client.post(f"/api/v1/{noun}", json={"name": "x", "user": "other"} if noun == "tokens" else {"user": "other"}).status_code == 403


def test_attack_33_nothing_that_users_have_of_their_own_is_left_out_here(site: Site, document: dict[str, Any]) -> None:
    own = {(path, operation["x-calnet-scope"].partition(":")[0]) for _, path, operation in routes(document) if operation["x-calnet-access"] == "own"}
    assert {noun for _, noun in own} == OWN_NOUNS
    assert {path.split("/")[1] for path, _ in own if "{" in path} == {*site.other, "sessions"}


def test_attack_33_users_end_their_own_sessions_alone(site: Site) -> None:
    registry = site.running.registry
    theirs, mine = site.session("other"), site.session("mine")
    with site.client(site.tokens["user"]) as client:
        assert client.delete(f"/api/v1/sessions/{theirs}").status_code == 404
        assert theirs in {row["id"] for row in registry.sessions()}
        assert client.delete(f"/api/v1/sessions/{mine}").status_code == 204
        assert mine not in {row["id"] for row in registry.sessions()}
        assert client.delete(f"/api/v1/sessions/{theirs[:-1]}").status_code == 404
    with site.client(site.tokens["admin"]) as client:
        assert client.delete(f"/api/v1/sessions/{theirs}").status_code == 204


@pytest.mark.parametrize("scope", SCOPES)
def test_attack_33_a_token_does_what_its_scopes_name_and_nothing_else(site: Site, document: dict[str, Any], scope: str) -> None:
    noun, _, verb = scope.rpartition(":")
    with site.client(site.token("admin", scope)) as client:
        for method, path, operation in routes(document):
            asked_noun, _, asked_verb = operation["x-calnet-scope"].partition(":")
            allowed = not asked_noun or (noun in ("", asked_noun) and (verb == "write" or asked_verb == "read"))
            assert (call(site, client, method, path) == 403) is not allowed or path in ("/tokens", "/keys"), (method, path)


def test_token_of_any_scope_may_ask_who_it_is(site: Site) -> None:
    for scope in ("nodes:read", "metrics:read", "keys:write"):
        with site.client(site.token("auditor", scope)) as client:
            answer = client.get("/api/v1/whoami")
            assert (answer.status_code, answer.json()["user"], answer.json()["scopes"]) == (200, "auditor", [scope])


def test_node_is_given_name_and_tags_in_one_change_or_in_none(site: Site) -> None:
    registry = site.running.registry
    node = done(registry.register(Machine(Random(8), "both").request(done(registry.create_key())["key"]))).node
    with site.client(site.tokens["owner"]) as client:
        etag = client.get(f"/api/v1/nodes/{node}").headers["etag"]
        before = registry.newest_audit()
        assert client.patch(f"/api/v1/nodes/{node}", json={"name": "theirs", "tags": ["tag:both"]}).status_code == 409
        assert client.patch(f"/api/v1/nodes/{node}", json={"name": "new-name", "tags": ["no tag"]}).status_code == 422
        assert client.get(f"/api/v1/nodes/{node}").headers["etag"] == etag
        row = client.patch(f"/api/v1/nodes/{node}", json={"name": "new-name", "tags": ["tag:both"]}, headers={"If-Match": etag}).json()
        assert (row["name"], row["tags"], row["user"]) == ("new-name", ["tag:both"], None)
    assert registry.newest_audit() == before + 1
    done(registry.delete_node(str(node)))


def test_owner_of_a_tag_sees_and_revokes_keys_with_it_and_nobody_else_does(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        registry = server.registry
        for name in ("maker", "other"):
            done(registry.create_user(name))
        done(registry.set_policy('{"tagOwners": {"tag:web": ["maker@"], "tag:db": []}, "acls": []}'))
        site = Site(server, {}, {})
        both = done(registry.create_key(tags=("tag:web", "tag:db")))["id"]
        with site.client(site.token("maker")) as client:
            made = client.post("/api/v1/keys", json={"tags": ["tag:web"]}).json()["id"]
            assert [row["id"] for row in client.get("/api/v1/keys").json()["items"]] == [made]
            assert client.get(f"/api/v1/keys/{made}").status_code == 200
            assert client.delete(f"/api/v1/keys/{both}").status_code == 404
        with site.client(site.token("other")) as client:
            assert client.get("/api/v1/keys").json()["items"] == []
            assert client.get(f"/api/v1/keys/{made}").status_code == client.delete(f"/api/v1/keys/{made}").status_code == 404
        with site.client(site.token("maker")) as client:
            assert client.delete(f"/api/v1/keys/{made}").status_code == 204
            done(registry.set_policy('{"tagOwners": {"tag:web": [], "tag:db": []}, "acls": []}'))
            assert client.get("/api/v1/keys").json()["items"] == []


def test_attack_33_a_token_ends_with_its_user(site: Site) -> None:
    registry = site.running.registry
    done(registry.create_user("leaver"))
    token = site.token("leaver")
    with site.client(token) as client:
        assert client.get("/api/v1/whoami").status_code == 200
        done(registry.delete_user("leaver"))
        assert client.get("/api/v1/whoami").status_code == 401


def test_attack_35_no_answer_holds_a_secret(site: Site, document: dict[str, Any]) -> None:
    registry = site.running.registry
    made = done(registry.create_key(user="other"))
    secrets = [made["key"], registry.control_key.secret_bytes().hex(), *site.tokens.values()]
    with site.client(site.tokens["owner"]) as client:
        paths = [path for _, path, _ in routes(document) if "{" not in path and path != "/events"]
        said = [client.get(f"/api/v1{path}", params={"time": "2026-01-01"} if path == "/audit/at" else {}).text for path in paths]
        said += [client.get(path).text for path in ("/metrics", "/api/docs", "/healthz", "/readyz", "/control/key")]
        for path in ("/local/backup", "/local/restore", "/local/import"):
            assert client.post(path).status_code == 404
    assert not [secret for secret in secrets for text in said if secret in text]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"name":' * 50_000,
        b'{"name": "' + b"x" * (2 << 20) + b'"}',
        b"\xff\xfe",
        b"",
        b"null",
        b'{"name": 1e999999}',
        b'{"name": "\\ud800"}',
        b'{"name": "ok", "name": "again", "role": {}}',
        b'{"__proto__": {}, "name": "x"}',
    ],
)
def test_attack_36_hostile_json_is_refused_and_others_are_served(site: Site, body: bytes) -> None:
    with site.client(site.tokens["owner"]) as client:
        for path in ("/api/v1/users", "/api/v1/tokens", "/api/v1/policy/check"):
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert 400 <= answer.status_code < 500, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/api/v1/whoami").status_code == 200


def test_attack_36_body_that_trickles_is_given_up_and_others_are_served_meanwhile(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "BODY_TIMEOUT_S", 1.0)
    host, port = site.running.url.removeprefix("http://").split(":")
    head = f"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.tokens['owner']}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    slow = [socket.create_connection((host, int(port)), timeout=20) for _ in range(40)]
    try:
        for connection in slow:
            connection.sendall(head.encode())
        with site.client(site.tokens["owner"]) as client:
            assert client.get("/api/v1/whoami").status_code == 200
        answers = [connection.recv(4096) for connection in slow]
    finally:
        for connection in slow:
            connection.close()
    assert all(answer.startswith(b"HTTP/1.1 408 ") and answer.endswith(b'"code": "too-slow"}') for answer in answers)


@pytest.mark.parametrize(("path", "status"), [("/api/v1/users", 401), ("/healthz", 405), ("/nothing", 404), ("/auth/logout", 404), ("/metrics", 405)])
def test_attack_36_body_that_nobody_reads_has_its_time_too(site: Site, monkeypatch: pytest.MonkeyPatch, path: str, status: int) -> None:
    monkeypatch.setattr(web_protocol, "BODY_TIMEOUT_S", 1.0)
    connection = connected(site)
    with connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n".encode())
        assert connection.recv(4096).startswith(f"HTTP/1.1 {status} ".encode())
        assert trickled(connection, b"x", 10.0)


def test_attack_36_what_comes_after_an_answer_and_is_no_request_keeps_no_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "HEAD_TIMEOUT_S", 1.0)
    connection = connected(site)
    with connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
        assert connection.recv(4096).startswith(b"HTTP/1.1 405 ")
        connection.sendall(b"x\r\n")
        connection.settimeout(20)
        assert b" 408 " in connection.recv(4096)


def connected(site: Site) -> socket.socket:
    host, port = site.running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def trickled(connection: socket.socket, data: bytes, within: float) -> bool:
    """Whether the other side ends the connection while it is sent `data` again and again."""
    deadline = time.monotonic() + within
    connection.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            connection.sendall(data)
            if not connection.recv(4096):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_attack_36_tokens_that_do_not_hold_are_answered_more_slowly_the_more_they_are(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        statuses = [client.get("/api/v1/whoami", headers={"Authorization": f"Bearer calnet-token-{'a' * 45}"}).status_code for _ in range(60)]
    assert set(statuses) == {401, 429}


@pytest.mark.parametrize("token", ["calnet-token-", "calnet-token-" + "a" * 45, "calnet-token-" + "0" * 45, "x" * 20_000, "\u00e9", "a.b.c"])
def test_attack_28_what_is_no_token_is_401(site: Site, token: str) -> None:
    with site.client(None) as client:
        answer = client.get("/api/v1/whoami", headers={b"Authorization": f"Bearer {token}".encode("latin-1")})
    assert answer.status_code in (401, 429)
    assert "bearer" in answer.headers["www-authenticate"].lower() or answer.status_code == 429


PATHS = (
    "/../../etc/passwd",
    "/api/v1/../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/api/docs/../../x",
    "//etc/passwd",
    "/api/v1/nodes/%2e%2e%2fusers",
    "/api/v1/nodes/%00",
)


@pytest.mark.parametrize("path", PATHS)
def test_attack_37_paths_lead_nowhere(site: Site, path: str) -> None:
    host, port = site.running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.tokens['owner']}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer


def test_attack_37_many_ranges_and_odd_hosts_are_harmless(site: Site) -> None:
    ranges = "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(0, 4000, 2))
    with site.client(site.tokens["owner"]) as client:
        assert client.get("/api/docs", headers={"Range": ranges}).status_code in (200, 416)
        for host in ("", "a b", "x" * 5000, "[::1", "\x7f", "a,b"):
            assert client.get("/api/v1/whoami", headers={"Host": host}).status_code < 500


def test_idempotency_key_makes_one_thing_however_often_it_is_sent_and_keeps_no_secret(site: Site) -> None:
    registry = site.running.registry
    with site.client(site.tokens["owner"]) as client:
        body, headers = {"name": "once"}, {"Idempotency-Key": "a-key"}
        first = client.post("/api/v1/tokens", json=body, headers=headers)
        again = client.post("/api/v1/tokens", json=body, headers=headers)
        assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        assert client.post("/api/v1/tokens", json={"name": "other"}, headers=headers).status_code == 422
        assert sum(token["name"] == "once" for token in registry.tokens()) == 1
        secret = first.json()["token"].removeprefix("calnet-token-").encode()
        assert secret not in registry.backup()
        assert not [answer for answer in registry._state.answers.values() if secret in answer.body]


@pytest.mark.parametrize(("noun", "body"), [("users", {"name": "repeated"}), ("keys", {}), ("tokens", {"name": "repeated"})])
def test_idempotency_key_of_every_create_gives_the_same_answer_again(site: Site, noun: str, body: dict[str, Any]) -> None:
    with site.client(site.tokens["owner"]) as client:
        first, again = (client.post(f"/api/v1/{noun}", json=body, headers={"Idempotency-Key": f"twice-{noun}"}) for _ in range(2))
    assert (again.status_code, again.content, again.headers.get("etag")) == (first.status_code, first.content, first.headers.get("etag"))
    assert (first.status_code, first.headers.get("etag") is not None) == (201, noun == "users")
    assert again.headers["idempotency-replayed"] == "true"


NO_TIMES = (
    "9999-12-31T23:59:59-12:00",
    "9999-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00+12:00",
    "0000-01-01",
    "2026-01-01T00:00:60Z",
    "-1",
    "x",
    "2026-02-30",
)


@pytest.mark.parametrize("text", NO_TIMES)
def test_time_that_is_none_in_utc_is_refused(site: Site, text: str) -> None:
    with site.client(site.tokens["owner"]) as client:
        assert client.get("/api/v1/audit/at", params={"time": text}).status_code == 422


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59Z", "0001-01-01", "0001-01-01T12:00:00+12:00", "9999-12-31T11:59:59-12:00"])
def test_time_at_either_end_is_one(site: Site, text: str) -> None:
    with site.client(site.tokens["owner"]) as client:
        assert client.get("/api/v1/audit/at", params={"time": text}).status_code == 200


def test_etags_keep_two_admins_from_overwriting_each_other(site: Site) -> None:
    done(site.running.registry.create_user("edited"))
    with site.client(site.tokens["owner"]) as client:
        seen = client.get("/api/v1/users/edited")
        etag = seen.headers["etag"]
        assert client.get("/api/v1/users/edited", headers={"If-None-Match": etag}).status_code == 304
        assert client.patch("/api/v1/users/edited", json={"role": "auditor"}, headers={"If-Match": etag}).status_code == 200
        late = client.patch("/api/v1/users/edited", json={"role": "admin"}, headers={"If-Match": etag})
        assert (late.status_code, late.json()["code"]) == (412, "stale")
        assert client.patch("/api/v1/users/edited", json={"role": "user"}, headers={"If-Match": "*"}).status_code == 200
        assert client.request("TRACE", "/api/v1/users").status_code == 405
        assert "GET" in client.put("/api/v1/users").headers["allow"]
        assert client.post("/api/v1/users", content=b"name=x").status_code == 415


def test_pages_are_filtered_sorted_and_whole(site: Site) -> None:
    registry = site.running.registry
    for number in range(7):
        done(registry.create_user(f"page-{number}"))
    with site.client(site.tokens["owner"]) as client:
        names: list[str] = []
        cursor: str | None = None
        while True:
            query: dict[str, str | int] = {"limit": 3, "sort": "-name", "role": "user"}
            page = client.get("/api/v1/users", params=query if cursor is None else query | {"cursor": cursor}).json()
            names += [row["name"] for row in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert names == sorted((user["name"] for user in registry.users() if user["role"] == "user"), reverse=True)
        for bad in ({"sort": "etagg"}, {"sort": "groups"}, {"cursor": "x"}, {"limit": 0}, {"limit": "a"}, {"color": "red"}):
            assert client.get("/api/v1/users", params=bad).status_code == 422, bad


LISTS = ("users", "keys", "nodes", "routes", "tokens", "sessions", "relays")


@pytest.mark.parametrize("noun", LISTS)
def test_order_by_what_is_not_there_is_refused_with_and_without_rows(site: Site, document: dict[str, Any], noun: str) -> None:
    (sort,) = [parameter for parameter in document["paths"][f"/{noun}"]["get"]["parameters"] if parameter["name"] == "sort"]
    with site.client(site.tokens["owner"]) as client:
        for query in ({}, {"user": "nobody"}, {"name": "nobody"}):
            statuses = {client.get(f"/api/v1/{noun}", params=query | {"sort": word}).status_code for word in ("nope", "-nope", "tags", "-")}
            assert statuses == {422}, query
        for word in sort["schema"]["enum"]:
            assert client.get(f"/api/v1/{noun}", params={"sort": word}).status_code == 200, word


@pytest.mark.parametrize(("path", "name", "choices"), [("nodes", "state", "pending|active|expired|disabled"), ("users", "role", "user|auditor|admin|owner")])
def test_filter_by_what_can_not_be_is_refused_and_names_what_can(site: Site, document: dict[str, Any], path: str, name: str, choices: str) -> None:
    (parameter,) = [parameter for parameter in document["paths"][f"/{path}"]["get"]["parameters"] if parameter["name"] == name]
    assert sorted(parameter["schema"]["enum"]) == sorted(choices.split("|"))
    with site.client(site.tokens["owner"]) as client:
        for word in choices.split("|"):
            assert client.get(f"/api/v1/{path}", params={name: word}).status_code == 200
        answer = client.get(f"/api/v1/{path}", params={name: "frob"})
        assert answer.status_code == 422
        assert all(word in answer.json()["detail"] for word in (name, *choices.split("|")))


@pytest.mark.parametrize("query", ["users?suspended=null", "keys?valid=null", "nodes?online=null", "nodes?state=null", "audit?before=null", "audit?after=null"])
def test_filter_by_null_is_no_missing_filter(site: Site, query: str) -> None:
    with site.client(site.tokens["owner"]) as client:
        assert client.get(f"/api/v1/{query}").status_code == 422
        assert client.get("/api/v1/users?name=null").json()["items"] == []


def test_events_tell_changes_and_can_be_taken_up_again(site: Site) -> None:
    registry = site.running.registry
    with site.client(site.tokens["auditor"]) as client:
        with client.stream("GET", "/api/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": calnet events"
            done(registry.create_user("seen"))
            next(line for line in lines if line == "event: change")
            number = str(registry.newest_audit())
        done(registry.create_user("missed"))
        with client.stream("GET", "/api/v1/events", headers={"Last-Event-ID": number}) as stream:
            data = next(json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))
    assert data["changes"][0]["after"]["name"] == "missed"
    assert data["seq"] == int(number) + 1


def test_list_of_a_thousand_nodes_costs_little_beside_a_naive_copy(tmp_path: Path) -> None:
    """A ratio in one run: rendering by the API against json.dumps of the same document."""
    with running(tmp_path / "state") as server:
        registry = server.registry
        key = done(registry.create_key(tags=("tag:x",), reusable=True))["key"]
        for future in [registry.register(Machine(Random(n), f"h{n}").request(key)) for n in range(200)]:
            done(future)
        token = done(registry.create_token(TokenWish("admin", "t")))["token"]
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
            client.get("/api/v1/nodes?limit=1000")
            started = time.perf_counter()
            rows = client.get("/api/v1/nodes?limit=1000").json()["items"]
            took = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(20):
            json.dumps(rows, indent=1)
        assert took < 20 * (time.perf_counter() - started)
        assert len(rows) == 200
