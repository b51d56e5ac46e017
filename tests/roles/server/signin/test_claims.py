"""What claims give, in the shapes that providers send them: as recorded from Keycloak, Entra ID, Google and Authelia, with names and ids changed."""

from __future__ import annotations

import pytest

from calnet.errors import ForbiddenError, UnauthorizedError
from calnet.roles.server.actors import Role
from calnet.roles.server.signin.claims import groups_of, identity_of
from calnet.roles.server.signin.settings import OidcSettings

KEYCLOAK: dict[str, object] = {
    "iss": "https://id.example/realms/office",
    "sub": "5f3c9d1e-4a57-4a57-9f1e-2a6f0f3d9c11",
    "typ": "ID",
    "azp": "calnet",
    "aud": "calnet",
    "email_verified": True,
    "name": "Alice Archer",
    "preferred_username": "alice.archer",
    "email": "Alice@Example.test",
    "realm_access": {"roles": ["offline_access", "calnet-admins", "default-roles-office"]},
}
ENTRA: dict[str, object] = {
    "iss": "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "aud": "calnet",
    "oid": "66666666-7777-8888-9999-000000000000",
    "tid": "11111111-2222-3333-4444-555555555555",
    "name": "Alice Archer",
    "preferred_username": "alice@example.test",
    "email": "alice@example.test",
    "groups": ["aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"],
    "ver": "2.0",
}
GOOGLE: dict[str, object] = {
    "iss": "https://accounts.google.com",
    "sub": "110169484474386276334",
    "aud": "calnet",
    "azp": "calnet",
    "hd": "example.test",
    "email": "alice@example.test",
    "email_verified": True,
    "name": "Alice Archer",
}
AUTHELIA: dict[str, object] = {
    "iss": "https://auth.example",
    "sub": "0c1fa8a2-9e55-41b0-8f21-5e0a8a3c8f2e",
    "aud": ["calnet"],
    "azp": "calnet",
    "email": "alice@example.test",
    "email_verified": True,
    "alt_emails": ["a@example.test"],
    "groups": ["admins", "staff"],
    "name": "Alice",
    "preferred_username": "alice",
}


def settings(**values: object) -> OidcSettings:
    return OidcSettings(**({"issuer": "https://id.example", "client_id": "calnet"} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "configured", "email", "role"),
    [
        (KEYCLOAK, {"groups_claim": "realm_access.roles", "admins": ("calnet-admins",)}, "alice@example.test", Role.ADMIN),
        (KEYCLOAK, {"admins": ("calnet-admins",)}, "alice@example.test", Role.USER),
        (ENTRA, {"auditors": ("aaaaaaaa-0000-4000-8000-000000000002",)}, "", Role.AUDITOR),
        (ENTRA, {"admins": ("alice@example.test",)}, "", Role.USER),  # not said to be verified
        (GOOGLE, {"owners": ("Alice@example.test",), "allowed_domains": ("example.test",)}, "alice@example.test", Role.OWNER),
        (GOOGLE, {"admins": ("110169484474386276334",)}, "alice@example.test", Role.ADMIN),
        (AUTHELIA, {"admins": ("admins",), "auditors": ("staff",)}, "alice@example.test", Role.ADMIN),
    ],
)
def test_role_and_address_of_each_providers_claims(claims: dict[str, object], configured: dict[str, object], email: str, role: Role) -> None:
    identity = identity_of(claims, settings(**configured))
    assert (identity.subject, identity.email, identity.role) == (claims["sub"], email, role)


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        (GOOGLE, {"allowed_domains": ("other.test",)}),
        (ENTRA, {"allowed_domains": ("example.test",)}),
        (GOOGLE, {"allowed_groups": ("staff",)}),
        (AUTHELIA, {"allowed_users": ("bob@example.test",)}),
        ({**GOOGLE, "email": "alice@evil.test@example.test.evil"}, {"allowed_domains": ("example.test",)}),
    ],
)
def test_who_is_in_no_list_may_not_sign_in(claims: dict[str, object], allowed: dict[str, object]) -> None:
    with pytest.raises(ForbiddenError, match="may not sign in"):
        identity_of(claims, settings(**allowed))


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
