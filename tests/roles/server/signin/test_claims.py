"""What claims give, in the shapes that Keycloak, Entra ID, Google and Authelia document: written by hand, with names and ids of ours.

Each shape also goes the whole way: signed by a key that is published as that provider publishes its own, given to a browser's sign-in, and verified there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from calnet.errors import ForbiddenError, UnauthorizedError
from calnet.roles.server.actors import Role
from calnet.roles.server.signin.claims import groups_of, identity_of
from calnet.roles.server.signin.settings import OidcSettings
from tests.idp.provider import CLIENT_ID
from tests.roles.server.signin.world import Login, plain_world

Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """`path` is that of the issuer; `claims` stand in the ID token beside iss, iat, exp and nonce, `userinfo` is given for the access token alone."""

    path: str
    claims: Json
    publish: Callable[[Json], list[Json]]
    userinfo: Json | None = None

    @property
    def known(self) -> Json:
        """All that the provider says of the user."""
        return (self.userinfo or {}) | self.claims

    def changed(self, **claims: object) -> Shape:
        return Shape(self.path, self.claims | claims, self.publish, self.userinfo)


def without_algorithm(public: Json, **more: object) -> Json:
    return {name: value for name, value in public.items() if name != "alg"} | more


KEYCLOAK = Shape(
    "/realms/office",
    {
        "jti": "onrtac:8d0b8f7c-2d9f-4d8c-9f5c-0f6a3a1c7e55",
        "sub": "5f3c9d1e-4a57-4a57-9f1e-2a6f0f3d9c11",
        "typ": "ID",
        "azp": CLIENT_ID,
        "aud": CLIENT_ID,
        "sid": "0b7a6b1e-6a43-4b0e-8c0e-7d1f8e9a2b3c",
        "at_hash": "0123456789abcdefghijkl",
        "acr": "1",
        "email_verified": True,
        "name": "Alice Archer",
        "given_name": "Alice",
        "family_name": "Archer",
        "preferred_username": "alice.archer",
        "email": "Alice@Example.test",
        "realm_access": {"roles": ["offline_access", "calnet-admins", "default-roles-office"]},
    },
    # one key to sign, one of the same type to encrypt for, both with certificates
    lambda public: [
        public | {"x5c": ["MIIB"], "x5t": "a-thumbprint", "x5t#S256": "another"},
        public | {"kid": "an-encryption-key", "use": "enc", "alg": "RSA-OAEP", "x5c": ["MIIB"]},
    ],
)
ENTRA = Shape(
    "/11111111-2222-3333-4444-555555555555/v2.0",
    {
        "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
        "aud": CLIENT_ID,
        "nbf": 1_500_000_000,
        "aio": "Df2UVXL1ix!lMCWMSOJBcFatzcGfvFGhjKv8q5g0x732dR5MB5BisvGQO7YWByjd8iQDLq!eGbIDakyp5mnOrcdqHeYSnltepQmRp6AIZ8jY",
        "oid": "66666666-7777-8888-9999-000000000000",
        "rh": "0.AAAAA.",
        "tid": "11111111-2222-3333-4444-555555555555",
        "uti": "AAAAAAAAAAAAAAAAAAAAAA",
        "name": "Alice Archer",
        "preferred_username": "alice@example.test",
        "email": "alice@example.test",
        "groups": ["aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"],
        "ver": "2.0",
    },
    lambda public: [without_algorithm(public, x5t="a-key", x5c=["MIIB"], issuer="https://login.example/11111111-2222-3333-4444-555555555555/v2.0")],
)
GOOGLE = Shape(
    "",
    {
        "sub": "110169484474386276334",
        "aud": CLIENT_ID,
        "azp": CLIENT_ID,
        "at_hash": "0123456789abcdefghijkl",
        "hd": "example.test",
        "email": "alice@example.test",
        "email_verified": True,
        "name": "Alice Archer",
        "picture": "https://pictures.example/alice",
        "given_name": "Alice",
        "family_name": "Archer",
    },
    lambda public: [public | {"kid": "last-weeks-key"}, public],
)
AUTHELIA = Shape(
    "",
    # the ID token says no more than that somebody signed in: everything else is at the userinfo endpoint
    {
        "jti": "7c2f6b0e-91a5-4f6c-9a7e-1d6f0a8b3c4d",
        "sub": "0c1fa8a2-9e55-41b0-8f21-5e0a8a3c8f2e",
        "aud": [CLIENT_ID],
        "azp": CLIENT_ID,
        "amr": ["pwd", "kba"],
        "at_hash": "0123456789abcdefghijkl",
        "auth_time": 1_700_000_000,
    },
    lambda public: [public],
    userinfo={
        "sub": "0c1fa8a2-9e55-41b0-8f21-5e0a8a3c8f2e",
        "email": "alice@example.test",
        "email_verified": True,
        "alt_emails": ["a@example.test"],
        "groups": ["admins", "staff"],
        "name": "Alice",
        "preferred_username": "alice",
        "rat": 1_700_000_000,
        "updated_at": 1_700_000_000,
    },
)


def settings(**values: object) -> OidcSettings:
    return OidcSettings(**({"issuer": "https://id.example", "client_id": CLIENT_ID} | values))  # type: ignore[arg-type]


GIVEN = [
    (KEYCLOAK, {"groups_claim": "realm_access.roles", "admins": ("calnet-admins",)}, "alice@example.test", Role.ADMIN),
    (KEYCLOAK, {"admins": ("calnet-admins",)}, "alice@example.test", Role.USER),
    (ENTRA, {"auditors": ("aaaaaaaa-0000-4000-8000-000000000002",)}, "", Role.AUDITOR),
    (ENTRA, {"admins": ("alice@example.test",)}, "", Role.USER),  # not said to be verified
    (GOOGLE, {"owners": ("Alice@example.test",), "allowed_domains": ("example.test",)}, "alice@example.test", Role.OWNER),
    (GOOGLE, {"admins": ("110169484474386276334",)}, "alice@example.test", Role.ADMIN),
    (AUTHELIA, {"admins": ("admins",), "auditors": ("staff",)}, "alice@example.test", Role.ADMIN),
]
REFUSED = [
    (GOOGLE, {"allowed_domains": ("other.test",)}),
    (ENTRA, {"allowed_domains": ("example.test",)}),
    (GOOGLE, {"allowed_groups": ("staff",)}),
    (AUTHELIA, {"allowed_users": ("bob@example.test",)}),
    (GOOGLE.changed(email="alice@evil.test@example.test.evil"), {"allowed_domains": ("example.test",)}),
]


def signed_in(shape: Shape, configured: dict[str, Any], directory: Path) -> tuple[int, list[Json]]:
    """A browser's sign-in, with all that the provider gives: the callback's status, and the users that there are besides the first."""
    with plain_world(directory, path=shape.path, publish=shape.publish, userinfo=shape.userinfo, **configured) as world:
        tokens = lambda world, nonce: {"id_token": world.id_token(**shape.claims, nonce=nonce), "access_token": "opaque"}  # noqa: E731
        with Login(world, tokens) as login:
            status = login.comes_back().status_code
        return status, world.server.registry.users()[1:]


@pytest.mark.parametrize(("shape", "configured", "email", "role"), GIVEN)
def test_role_and_address_of_each_providers_claims(shape: Shape, configured: dict[str, object], email: str, role: Role) -> None:
    identity = identity_of(shape.known, settings(**configured))
    assert (identity.subject, identity.email, identity.role) == (shape.claims["sub"], email, role)


@pytest.mark.parametrize(("shape", "configured", "email", "role"), GIVEN)
def test_signed_claims_of_each_provider_sign_that_user_in(shape: Shape, configured: dict[str, object], email: str, role: Role, tmp_path: Path) -> None:
    status, (user,) = signed_in(shape, configured, tmp_path / "state")
    assert status == 303
    assert (user["subject"], user["email"] or "", user["role"]) == (shape.claims["sub"], email, role.value)


@pytest.mark.parametrize(("shape", "allowed"), REFUSED)
def test_who_is_in_no_list_may_not_sign_in(shape: Shape, allowed: dict[str, object]) -> None:
    with pytest.raises(ForbiddenError, match="may not sign in"):
        identity_of(shape.known, settings(**allowed))


@pytest.mark.parametrize(("shape", "allowed"), REFUSED)
def test_signed_claims_of_who_is_in_no_list_sign_nobody_in(shape: Shape, allowed: dict[str, object], tmp_path: Path) -> None:
    assert signed_in(shape, allowed, tmp_path / "state") == (403, [])


def test_userinfo_of_another_user_counts_for_nothing(tmp_path: Path) -> None:
    assert AUTHELIA.userinfo is not None
    other = Shape("", AUTHELIA.claims, AUTHELIA.publish, AUTHELIA.userinfo | {"sub": "somebody-else"})
    status, (user,) = signed_in(other, {"admins": ("admins",)}, tmp_path / "state")
    assert status == 303
    assert (user["subject"], user["email"], user["groups"], user["role"]) == (AUTHELIA.claims["sub"], "", [], "user")


@pytest.mark.parametrize("subject", [None, "", 7, "x" * 256])
def test_claims_without_a_subject_are_nobodys(subject: object) -> None:
    with pytest.raises(UnauthorizedError):
        identity_of({"sub": subject}, settings())


@pytest.mark.parametrize(
    ("claims", "path", "groups"),
    [
        ({"groups": ["a", 1, None, "b"]}, "groups", ("a", "b")),
        ({"groups": "a"}, "groups", ("a",)),
        ({"groups": {"a": 1}}, "groups", ()),
        ({}, "groups", ()),
        ({"a": {"b": {"c": ["x"]}}}, "a.b.c", ("x",)),
        ({"https://x.test/groups": ["y"]}, "https://x.test/groups", ("y",)),
        ({"a": "text"}, "a.b", ()),
    ],
)
def test_groups_are_texts_under_a_path_and_nothing_else(claims: dict[str, object], path: str, groups: tuple[str, ...]) -> None:
    assert groups_of(claims, path) == groups
