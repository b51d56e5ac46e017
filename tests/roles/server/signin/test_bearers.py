"""Access tokens at REST: judged by their own claims each time, in the shapes that Keycloak, Entra ID, Google and Authelia give them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from calnet.roles.server.actors import Role
from calnet.roles.server.users import Identity, UserWish
from tests.idp.provider import CLIENT_ID
from tests.roles.server.registries import done
from tests.roles.server.signin.test_claims import ENTRA, KEYCLOAK
from tests.roles.server.signin.world import Login, PlainWorld, plain_world

Json = dict[str, Any]
API = "https://calnet.example/api"


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainWorld]:
    with plain_world(tmp_path_factory.mktemp("bearers") / "state", admins=("admins",), allowed_groups=("staff",), recheck_s=3600.0) as found:
        yield found


def ask(world: PlainWorld, token: str, path: str = "whoami", **body: object) -> httpx.Response:
    method = "POST" if body else "GET"
    url = f"{world.server.url}/api/v1/{path}"
    return httpx.request(method, url, json=body or None, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20)


def sign_in(world: PlainWorld, *groups: str, refresh: bool = True) -> None:
    """A browser's sign-in as alice, in these groups, with a refresh token or without."""

    def tokens(world: PlainWorld, nonce: str) -> Json:
        return {"id_token": world.id_token(nonce=nonce, groups=list(groups), preferred_username="alice")} | ({"refresh_token": "r"} if refresh else {})

    with Login(world, tokens) as login:
        assert login.comes_back().status_code == 303


def test_attack_28_bearer_of_who_is_in_no_group_any_more_gives_nothing(world: PlainWorld) -> None:
    sign_in(world, "staff", "admins")
    assert ask(world, world.id_token(groups=["staff", "admins"])).json()["role"] == "admin"
    out = world.id_token(groups=[])
    assert ask(world, out).status_code == 403
    assert ask(world, out, "users", name="evil", role="admin").status_code == 403
    assert ask(world, out, "tokens", name="backdoor").status_code == 403
    demoted = world.id_token(groups=["staff"])
    assert ask(world, demoted).json()["role"] == "user"
    assert ask(world, demoted, "users", name="evil", role="admin").status_code == 403
    assert ask(world, demoted, "tokens", name="x", user="admin").status_code == 403
    assert [row["name"] for row in world.server.registry.users()] == ["admin", "alice"]


def test_attack_28_bearer_of_a_user_who_lost_access_is_refused_until_it_signs_in(world: PlainWorld) -> None:
    registry = world.server.registry
    sign_in(world, "staff", "admins")
    alice = registry.user("alice")["id"]
    done(registry.lose_access(alice))
    for groups in ([], ["staff", "admins"]):
        refused = ask(world, world.id_token(groups=groups))
        assert refused.status_code == 401
        assert "lost access" in refused.json()["detail"]
        assert "/auth/login" in refused.json()["detail"]
    sign_in(world, "staff", "admins")
    assert ask(world, world.id_token(groups=["staff", "admins"])).json()["role"] == "admin"


def test_bearer_without_groups_is_as_the_provider_last_said(world: PlainWorld) -> None:
    assert ask(world, world.id_token()).status_code == 403, "nobody knows more of a stranger"
    sign_in(world, "staff", "admins")
    assert ask(world, world.id_token()).json()["role"] == "admin"
    alice = world.server.registry.user("alice")["id"]
    done(world.server.registry.confirm(alice, Identity(world.idp.issuer, "alice", groups=("staff",)), b"next"))
    assert ask(world, world.id_token()).json()["role"] == "user"


def test_bearer_never_gives_more_than_the_watched_user_has(world: PlainWorld) -> None:
    sign_in(world, "staff")
    assert ask(world, world.id_token(groups=["staff", "admins"])).json()["role"] == "user"


def test_role_set_by_hand_is_not_moved_by_a_bearer(world: PlainWorld) -> None:
    sign_in(world, "staff")
    done(world.server.registry.update_user("alice", UserWish(role="auditor")))
    for groups in (["staff", "admins"], ["staff"]):
        assert ask(world, world.id_token(groups=groups)).json()["role"] == "auditor"
    assert ask(world, world.id_token(groups=[])).status_code == 403


def test_newest_bearer_is_the_word_about_a_user_whom_nobody_watches(world: PlainWorld) -> None:
    registry, now = world.server.registry, int(time.time())
    assert ask(world, world.id_token(groups=["staff"], preferred_username="alice")).json()["role"] == "user"
    assert ask(world, world.id_token(groups=["staff", "admins"])).json()["role"] == "admin"
    assert registry.user("alice")["groups"] == ["admins", "staff"]
    old = world.id_token(groups=["staff"], iat=now - 100)
    assert ask(world, old).json()["role"] == "user"
    assert registry.user("alice")["groups"] == ["admins", "staff"], "an older token says nothing of now"
    before = registry.user("alice")
    assert ask(world, world.id_token(groups=["staff", "admins"])).status_code == 200
    assert registry.user("alice") == before


def test_bearer_wakes_what_rests_and_a_resting_users_tokens_go_on(world: PlainWorld) -> None:
    sign_in(world, "staff", refresh=False)
    registry = world.server.registry
    done(registry.lapse(registry.user("alice")["id"], 0.0))
    done(registry.rest(registry.user("alice")["id"]))
    assert registry.user("alice")["access"] == "resting"
    assert ask(world, world.id_token(groups=["staff"])).status_code == 200
    assert registry.user("alice")["access"] == "granted"


def test_text_that_is_no_token_of_any_kind_names_both(world: PlainWorld) -> None:
    for text in ("calnet-tokne-abcdef", "ya29.a0AfH6SMBx-opaque_access_token", "authelia_at_cmo9l0nYwSbVQ", "secret"):
        refused = ask(world, text)
        assert refused.status_code == 401
        assert "neither an API token of this server (they begin with calnet-token-) nor a signed token" in refused.json()["detail"]


# --- providers' own shapes: access tokens, not ID tokens

KEYCLOAK_ACCESS: Json = {name: value for name, value in KEYCLOAK.claims.items() if name not in ("at_hash", "aud")} | {
    "typ": "Bearer",
    "aud": [CLIENT_ID, "account"],
    "allowed-origins": ["https://calnet.example"],
    "resource_access": {"account": {"roles": ["manage-account", "manage-account-links", "view-profile"]}},
    "scope": "openid email profile",
    "session_state": "0b7a6b1e-6a43-4b0e-8c0e-7d1f8e9a2b3c",
}
KEYCLOAK_LIGHTWEIGHT: Json = {name: KEYCLOAK_ACCESS[name] for name in ("jti", "sub", "typ", "azp", "sid", "scope")} | {"aud": CLIENT_ID}
ENTRA_ACCESS: Json = {name: value for name, value in ENTRA.claims.items() if name != "email"} | {
    "azp": CLIENT_ID,
    "azpacr": "1",
    "roles": ["Calnet.Use"],
    "scp": "access_as_user",
}
ENTRA_OVERAGE: Json = {name: value for name, value in ENTRA_ACCESS.items() if name != "groups"} | {
    "_claim_names": {"groups": "src1"},
    "_claim_sources": {"src1": {"endpoint": "https://graph.example/users/66666666-7777-8888-9999-000000000000/getMemberObjects"}},
}
AUTHELIA_ACCESS: Json = {  # RFC 9068
    "sub": "0c1fa8a2-9e55-41b0-8f21-5e0a8a3c8f2e",
    "aud": [API],
    "client_id": CLIENT_ID,
    "auth_time": 1_700_000_000,
    "jti": "2d5a4f0e-0b8e-4f0e-9a3e-3f4f5a6b7c8d",
    "scp": ["openid", "profile"],
    "scope": "openid profile",
}
GROUP = ENTRA.claims["groups"][0]
SHAPES: list[tuple[str, Json, Json, tuple[str, ...], str, Role]] = [
    # (path of the issuer, claims, header, groups known from a sign-in, audience, role)
    ("/realms/office", KEYCLOAK_ACCESS, {"typ": "JWT"}, (), "", Role.ADMIN),
    ("/realms/office", KEYCLOAK_LIGHTWEIGHT, {"typ": "JWT"}, ("calnet-admins",), "", Role.ADMIN),
    ("/realms/office", KEYCLOAK_LIGHTWEIGHT, {"typ": "at+jwt"}, (), "", Role.USER),
    (ENTRA.path, ENTRA_ACCESS, {"typ": "JWT"}, (), "", Role.ADMIN),
    (ENTRA.path, ENTRA_OVERAGE, {"typ": "JWT", "x5t": "a-thumbprint"}, (GROUP,), "", Role.ADMIN),
    (ENTRA.path, ENTRA_OVERAGE, {"typ": "JWT"}, (), "", Role.USER),
    ("", AUTHELIA_ACCESS, {"typ": "at+jwt"}, ("admins",), API, Role.ADMIN),
    ("", AUTHELIA_ACCESS, {"typ": "at+jwt"}, (), API, Role.USER),
]
NAMES = ["Keycloak", "Keycloak light", "Keycloak light stranger", "Entra", "Entra overage", "Entra overage stranger", "Authelia", "Authelia stranger"]
REFUSED: list[tuple[str, Json, str]] = [
    ("/realms/office", KEYCLOAK_ACCESS | {"aud": "account"}, "another audience"),
    ("/realms/office", KEYCLOAK_ACCESS | {"azp": "another-client"}, "another client"),
    (ENTRA.path, ENTRA_ACCESS | {"aud": "00000003-0000-0000-c000-000000000000"}, "another audience"),
    (ENTRA.path, ENTRA_ACCESS | {"iss": "https://sts.windows.net/11111111-2222-3333-4444-555555555555/", "ver": "1.0"}, "another issuer"),
    ("", AUTHELIA_ACCESS | {"aud": []}, "another audience"),
]


@pytest.mark.parametrize(("path", "claims", "header", "groups", "audience", "role"), SHAPES, ids=NAMES)
def test_role_that_each_providers_access_token_gives(
    path: str, claims: Json, header: Json, groups: tuple[str, ...], audience: str, role: Role, tmp_path_factory: pytest.TempPathFactory
) -> None:
    claim = "realm_access.roles" if "realms" in path else "groups"
    directory = tmp_path_factory.mktemp("shape") / "state"
    with plain_world(directory, path=path, groups_claim=claim, admins=("calnet-admins", GROUP, "admins"), audience=audience) as world:
        if groups:
            done(world.server.registry.sign_in(Identity(world.idp.issuer, claims["sub"], groups=groups, role=Role.ADMIN), refresh=b"sealed"))
        now = int(time.time())
        answer = ask(world, world.key.sign({"iss": world.idp.issuer, "iat": now, "exp": now + 4000} | claims, **header))
        assert (answer.status_code, answer.json().get("role")) == (200, role.value), answer.text


@pytest.mark.parametrize(("path", "claims", "why"), REFUSED)
def test_access_token_for_others_is_refused(path: str, claims: Json, why: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with plain_world(tmp_path_factory.mktemp("shape") / "state", path=path) as world:
        now = int(time.time())
        answer = ask(world, world.key.sign({"iss": world.idp.issuer, "iat": now, "exp": now + 4000} | claims))
        assert answer.status_code == 401
        assert why in answer.json()["detail"]
