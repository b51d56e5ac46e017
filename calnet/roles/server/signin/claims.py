"""What a provider's claims say of a user: who it is, whether it may sign in, which role it has. Pure.

Identity is (issuer, subject). An e-mail address counts only where the provider says that it verified it; groups that are missing are none.
"""

from __future__ import annotations

from collections.abc import Mapping

from calnet.errors import ForbiddenError, UnauthorizedError
from calnet.roles.server.actors import Role
from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.users import Identity

Claims = Mapping[str, object]
MAX_GROUPS = 500


def identity_of(claims: Claims, settings: OidcSettings) -> Identity:
    """The identity; ForbiddenError for one that may not sign in here."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise UnauthorizedError("the provider named no subject")
    email = _text(claims, "email") if claims.get("email_verified") in (True, "true") else ""
    groups = groups_of(claims, settings.groups_claim)
    identity = Identity(
        issuer=settings.issuer,
        subject=subject,
        email=email.lower(),
        display_name=_text(claims, "name"),
        preferred_name=_text(claims, settings.username_claim),
        groups=groups,
        role=_role(subject, email.lower(), groups, settings),
    )
    if not _may_sign_in(identity, settings):
        raise ForbiddenError("the provider knows you, but you may not sign in to this network: ask an admin (allowed_domains, allowed_groups, allowed_users)")
    return identity


def groups_of(claims: Claims, path: str) -> tuple[str, ...]:
    """The groups under a dotted path: a list of texts, or one text; anything else is none. A claim whose own name has dots comes first."""
    value: object = claims.get(path)
    if value is None:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        return ()
    return tuple(item for item in value[:MAX_GROUPS] if isinstance(item, str))


def _may_sign_in(identity: Identity, settings: OidcSettings) -> bool:
    lists = (settings.allowed_domains, settings.allowed_groups, settings.allowed_users)
    if not any(lists):
        return True
    domain = identity.email.rpartition("@")[2]
    return (
        (bool(domain) and domain in (allowed.lower() for allowed in settings.allowed_domains))
        or not set(identity.groups).isdisjoint(settings.allowed_groups)
        or _named(identity.subject, identity.email, (), settings.allowed_users)
    )


def _role(subject: str, email: str, groups: tuple[str, ...], settings: OidcSettings) -> Role:
    for role, names in ((Role.OWNER, settings.owners), (Role.ADMIN, settings.admins), (Role.AUDITOR, settings.auditors)):
        if _named(subject, email, groups, names):
            return role
    return Role.USER


def _named(subject: str, email: str, groups: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return subject in names or (bool(email) and email in (name.lower() for name in names)) or not set(groups).isdisjoint(names)


def _text(claims: Claims, name: str) -> str:
    value = claims.get(name)
    return value[:255] if isinstance(value, str) else ""
