"""What a provider's claims say of a user: who it is, whether it may sign in, which role it has. Pure.

Identity is (issuer, subject). An e-mail address counts only where the provider says that it verified it; groups that are missing are none. Access tokens
often carry neither groups nor addresses: what such a token leaves out is as it was when the provider last spoke of the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from calnet.errors import ForbiddenError, UnauthorizedError
from calnet.model import UserId
from calnet.roles.server.actors import Role
from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.users import Identity
from calnet.store.interface import UserRecord

Claims = Mapping[str, object]
MAX_GROUPS: Final = 500
_MISSING: Final = object()
_NOBODY: Final = UserRecord(UserId(0), "", Role.USER.value, 0.0)


def identity_of(claims: Claims, settings: OidcSettings, known: UserRecord | None = None) -> Identity:
    """The identity; ForbiddenError for one that may not sign in here. Claims that are not there at all are taken from `known`, which has the same subject."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise UnauthorizedError("the provider named no subject")
    if known is None:
        known = _NOBODY
    verified = claims.get("email_verified") in (True, "true")
    email = known.email if "email" not in claims else _text(claims, "email") if verified else ""
    value = _under(claims, settings.groups_claim)
    groups = known.groups if value is _MISSING else _texts(value)
    identity = Identity(
        issuer=settings.issuer,
        subject=subject,
        email=email.lower(),
        display_name=_text(claims, "name") if "name" in claims else known.display_name,
        preferred_name=_text(claims, settings.username_claim),
        groups=groups,
        role=_role(subject, email.lower(), groups, settings),
    )
    if not _may_sign_in(identity, settings):
        raise ForbiddenError("the provider knows you, but you may not sign in to this network: ask an admin (allowed_domains, allowed_groups, allowed_users)")
    return identity


def groups_of(claims: Claims, path: str) -> tuple[str, ...]:
    """The groups under a dotted path: a list of texts, or one text; anything else is none. A claim whose own name has dots comes first."""
    return _texts(_under(claims, path))


def _under(claims: Claims, path: str) -> object:
    """The claim's value, or _MISSING."""
    if path in claims:
        return claims[path]
    value: object = claims
    for part in path.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _texts(value: object) -> tuple[str, ...]:
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
