"""Sign-in by OpenID Connect: browsers by code and PKCE, with sessions in cookies; nodes by device authorization; access tokens as bearers; and the watch
over users that the provider no longer vouches for.

Theory of operation. The browser's state between login and callback lives in a sealed cookie, so that any server on the store can finish what another began,
and a callback without the browser that began it is refused. A user's refresh token is kept sealed in its session; the watch asks the provider with it, and
takes over what the claims say now. Identity is (issuer, subject).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from calnet.crypto.hash import equal, hmac_blake2s
from calnet.crypto.keys import RandomBytes
from calnet.errors import AuthenticationError, CalnetError, ForbiddenError, NotFoundError, RefusedError, UnauthorizedError
from calnet.roles.server.actors import Actor, Principal, Role, Terms
from calnet.roles.server.durable import durable
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest.authentication import Authenticator, bearer, source_of
from calnet.roles.server.rest.serving import bounded_body
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.signin import pages
from calnet.roles.server.signin.claims import identity_of
from calnet.roles.server.signin.devices import DeviceFlows
from calnet.roles.server.signin.provider import GrantEndedError, Provider
from calnet.roles.server.signin.sealing import Sealer
from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.tokens import PREFIX
from calnet.store.interface import SessionRecord, UserRecord

log = logging.getLogger(__name__)

STATE_S: Final = 600.0
MAX_USED: Final = 10_000
UNCHECKED_S: Final = 86_400.0
"""A session that the provider could not be asked about for so long ends."""
_STATE: Final = b"state"
_REFRESH: Final = b"refresh"
Json = dict[str, Any]


class SignIn:
    """See the module. Made once a server; one event loop owns it. `clock` gives Unix seconds; `public_url` is where browsers reach this server."""

    def __init__(
        self, registry: Registry, settings: OidcSettings, *, public_url: Callable[[], PublicUrl], clock: Callable[[], float], random: RandomBytes
    ) -> None:
        self.settings = settings
        self._registry = registry
        self._public_url = public_url
        self._clock = clock
        self._random = random
        self._sealer = Sealer(registry.control_key, random)
        self.provider = Provider(settings, asyncio.get_running_loop().time)
        self._used: OrderedDict[str, float] = OrderedDict()
        self._devices = DeviceFlows(self.provider, self._admit_by_device, asyncio.get_running_loop())

    # --- what the server takes of it

    def routes(self) -> list[BaseRoute]:
        """The pages below /auth."""
        return [
            Route("/auth/login", self._login, methods=["GET"]),
            Route("/auth/callback", self._callback, methods=["GET"]),
            Route("/auth/done", self._done, methods=["GET"]),
            Route("/auth/logout", self._logout, methods=["POST"]),
            Route("/auth/device/{code}", self._device_page, methods=["GET", "POST"]),
        ]

    def authenticators(self) -> tuple[Authenticator, ...]:
        """Session cookies, and the provider's access tokens as bearers."""
        return self._by_cookie, self._by_access_token

    async def login_url(self, code: str) -> str:
        """Where a person signs in for the waiting machine with this code. Empty where the provider can't be reached: an admin may approve it all the same."""
        try:
            if (await self.provider.endpoints()).device:
                return await self._devices.begin(code)
        except CalnetError as error:
            log.warning("device_flow_failed reason=%s", error)
            return ""
        return f"{self._public_url()}/auth/device/{code}"

    async def run(self) -> None:
        """Ask the provider again and again whether its users are what they were."""
        while True:
            await asyncio.sleep(min(self.settings.recheck_s, 60.0) / 2)
            now = self._clock()
            for session in self._registry.session_records():
                if session.checked_at + self.settings.recheck_s <= now:
                    await self._recheck(session)

    async def close(self) -> None:
        """End device flows and connections."""
        self._devices.close()
        await self.provider.close()

    # --- browsers

    async def _login(self, request: Request) -> Response:
        return await self._to_provider(request, "")

    async def _to_provider(self, request: Request, device: str) -> Response:
        endpoints = await self.provider.endpoints()
        state, nonce, verifier = (self._text() for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "client_id": self.settings.client_id,
            "response_type": "code",
            "redirect_uri": self._redirect_url(),
            "scope": " ".join(self.settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        if "offline_access" in self.settings.scopes:
            query["prompt"] = "consent"
        sealed = self._sealer.seal({"state": state, "nonce": nonce, "verifier": verifier, "device": device, "at": self._clock()}, _STATE)
        joint = "&" if "?" in endpoints.authorization else "?"
        answer = RedirectResponse(f"{endpoints.authorization}{joint}{urlencode(query)}", 303, pages.HEADERS)
        answer.set_cookie(
            "calnet_login", base64.urlsafe_b64encode(sealed).decode(), max_age=int(STATE_S), path="/auth", secure=self._secure(), httponly=True, samesite="lax"
        )
        return answer

    async def _callback(self, request: Request) -> Response:
        try:
            session, user, device = await self._finish(request)
        except RefusedError as error:
            return _page("Not signed in", str(error), error.http_status)
        answer = RedirectResponse(f"/auth/device/{device}" if device else "/auth/done", 303, pages.HEADERS)
        answer.delete_cookie("calnet_login", path="/auth")
        answer.set_cookie(self._cookie(), session, max_age=int(self.settings.session_s), path="/", secure=self._secure(), httponly=True, samesite="lax")
        log.info("signed_in user=%s", user.name)
        return answer

    async def _finish(self, request: Request) -> tuple[str, UserRecord, str]:
        """(the session's secret, the user, the device's code or nothing). UnauthorizedError where the callback answers no login of this browser (attack 31)."""
        values = request.query_params
        begun = self._begun(request)
        if len(values.multi_items()) != len(values) or not equal(values.get("state", "").encode(), begun["state"].encode()):
            raise UnauthorizedError("that answer belongs to another sign-in: begin again")
        endpoints = await self.provider.endpoints()
        if values.get("iss", self.settings.issuer if not endpoints.names_issuer else "") != self.settings.issuer:
            raise UnauthorizedError("that answer comes from another provider")
        self._use_once(f"state {begun['state']}")
        if "error" in values or "code" not in values:
            raise UnauthorizedError(f"the provider did not sign you in ({values.get('error', 'no code')[:100]})")
        tokens = await self.provider.exchange(values["code"], begun["verifier"], self._redirect_url())
        claims = await self._claims(tokens, nonce=begun["nonce"])
        user = await self._user(claims, source_of(request))
        secret, _ = await self._session(user, tokens, source_of(request), self.settings.session_s)
        return secret, user, begun["device"]

    def _begun(self, request: Request) -> Json:
        try:
            begun: Json = self._sealer.open(base64.urlsafe_b64decode(request.cookies.get("calnet_login", "")), _STATE)
        except (AuthenticationError, ValueError) as error:
            raise UnauthorizedError("this browser began no sign-in here, or too long ago: begin again") from error
        if begun["at"] + STATE_S < self._clock():
            raise UnauthorizedError("that took too long: begin again")
        return begun

    async def _done(self, request: Request) -> Response:
        found = self._registry.session_of(request.cookies.get(self._cookie(), ""))
        if found is None:
            return await self._to_provider(request, "")
        session, user = found
        return HTMLResponse(pages.signed_in(user.name, self._form_token(session)), headers=pages.HEADERS)

    async def _logout(self, request: Request) -> Response:
        found = self._registry.session_of(request.cookies.get(self._cookie(), ""))
        if found is not None:
            session, user = found
            await self._check_form(request, session)
            await durable(self._registry.end_session(session.id, terms=Terms(self._actor(user, source_of(request)))))
        endpoints = await self.provider.endpoints()
        answer: Response = _page("Signed out", "You are signed out here.")
        if endpoints.end_session:
            query = urlencode({"client_id": self.settings.client_id})
            answer = RedirectResponse(f"{endpoints.end_session}{'&' if '?' in endpoints.end_session else '?'}{query}", 303, pages.HEADERS)
        answer.delete_cookie(self._cookie(), path="/")
        return answer

    async def _device_page(self, request: Request) -> Response:
        """For providers without device flow: sign in, look at the code, and let the machine in."""
        code = request.path_params["code"]
        found = self._registry.session_of(request.cookies.get(self._cookie(), ""))
        if found is None:
            return await self._to_provider(request, code)
        session, user = found
        try:
            row = self._registry.node(code)
            if row["code"] != code:
                raise NotFoundError("no machine waits with that code")
            if request.method == "GET":
                return HTMLResponse(pages.confirm(user.name, row["hostname"], code, self._form_token(session)), headers=pages.HEADERS)
            await self._check_form(request, session)
            await durable(self._registry.admit_node(code, user.id, terms=Terms(self._actor(user, source_of(request)))))
        except RefusedError as error:
            return _page("Not let in", str(error), error.http_status)
        return _page("Done", f"{row['hostname']} is on its way in.")

    # --- nodes

    async def _admit_by_device(self, code: str, tokens: Json) -> None:
        """The browser is done: the machine is the user's. One ID token admits one machine (attack 31)."""
        claims = await self._claims(tokens, nonce=None)
        self._use_once(hashlib.sha256(str(tokens["id_token"]).encode()).hexdigest())
        user = await self._user(claims, "")
        await durable(self._registry.admit_node(code, user.id, terms=Terms(self._actor(user, ""))))
        if tokens.get("refresh_token"):
            await self._session(user, tokens, "", self._registry.settings()["node_key_lifetime_s"])
        log.info("node_admitted user=%s code=%s", user.name, code)

    # --- REST

    async def _by_cookie(self, request: Request) -> Principal | None:
        secret = request.cookies.get(self._cookie())
        if secret is None or bearer(request) is not None:
            return None
        found = self._registry.session_of(secret)
        if found is None:
            return None
        _, user = found
        return Principal(self._actor(user, source_of(request)), Role(user.role), user.id, cookie=True)

    async def _by_access_token(self, request: Request) -> Principal | None:
        token = bearer(request)
        if token is None or token.startswith(PREFIX):
            return None
        claims = await self.provider.claims(token, audience=self.settings.audience or self.settings.client_id, now=self._clock())
        user = self._registry.user_of_identity(self.settings.issuer, claims["sub"])
        if user is None:
            user = await self._user(claims, source_of(request))
        if user.suspended:
            raise UnauthorizedError(f"the user {user.name} is suspended: ask an admin")
        return Principal(self._actor(user, source_of(request)), Role(user.role), user.id)

    # --- the watch

    async def _recheck(self, session: SessionRecord) -> None:
        """Whether the provider still vouches for the session's user, and for what. A provider that is away changes nothing for a day."""
        now = self._clock()
        try:
            if not session.refresh:
                return
            tokens = await self.provider.refresh(self._sealer.open(session.refresh, _REFRESH))
            claims = await self._claims(tokens, nonce=None) if tokens.get("id_token") else await self.provider.userinfo(str(tokens.get("access_token", "")))
            user = self._registry.user_record(session.user)
            if user is None or claims.get("sub") != user.subject:
                raise ForbiddenError("the provider speaks of another user")
            await durable(self._registry.sign_in(identity_of(claims, self.settings)))
            refresh = self._sealer.seal(tokens["refresh_token"], _REFRESH) if tokens.get("refresh_token") else session.refresh
            await durable(self._registry.update_session(session.id, checked_at=now, refresh=refresh))
        except (GrantEndedError, ForbiddenError, AuthenticationError) as error:
            log.warning("user_lost_access user=%s reason=%s", session.user, error)
            await durable(self._registry.lose_access(session.user))
        except CalnetError as error:
            log.warning("recheck_failed reason=%s", error)
            if session.checked_at + UNCHECKED_S < now:
                await durable(self._registry.end_session(session.id))

    # --- pieces

    async def _claims(self, tokens: Json, *, nonce: str | None) -> Json:
        """The ID token's claims, with those that are at the userinfo endpoint alone."""
        token = tokens.get("id_token")
        if not isinstance(token, str):
            raise UnauthorizedError("the provider gave no ID token: is openid among the scopes?")
        claims = await self.provider.claims(token, audience=self.settings.client_id, now=self._clock(), nonce=nonce)
        if isinstance(tokens.get("access_token"), str) and ("email" not in claims or self.settings.groups_claim.split(".")[0] not in claims):
            more = await self.provider.userinfo(tokens["access_token"])
            claims = claims if more.get("sub") != claims["sub"] else more | claims
        return claims

    async def _user(self, claims: Json, source: str) -> UserRecord:
        return await durable(self._registry.sign_in(identity_of(claims, self.settings), terms=Terms(Actor("system", name="sign-in", source=source))))

    async def _session(self, user: UserRecord, tokens: Json, source: str, lifetime_s: float) -> tuple[str, SessionRecord]:
        refresh = tokens.get("refresh_token")
        sealed = self._sealer.seal(refresh, _REFRESH) if isinstance(refresh, str) else b""
        return await durable(self._registry.create_session(user.id, expires_s=lifetime_s, refresh=sealed, terms=Terms(self._actor(user, source))))

    def _actor(self, user: UserRecord, source: str) -> Actor:
        return Actor("user", str(user.id), user.name, source, user.id)

    def _use_once(self, what: str) -> None:
        """UnauthorizedError for what was used before."""
        if what in self._used:
            raise UnauthorizedError("that answer was used before: begin again")
        self._used[what] = self._clock()
        while len(self._used) > MAX_USED:
            self._used.popitem(last=False)

    def _text(self) -> str:
        return base64.urlsafe_b64encode(self._random(32)).decode().rstrip("=")

    def _form_token(self, session: SessionRecord) -> str:
        """What a form of ours carries, and no other site knows."""
        return hmac_blake2s(b"calnet form", session.id.encode(), self._registry.control_key.secret_bytes()).hex()

    async def _check_form(self, request: Request, session: SessionRecord) -> None:
        form = dict(parse_qsl((await bounded_body(request, 4096)).decode("latin-1")))
        if not equal(form.get("token", "").encode(), self._form_token(session).encode()):
            raise ForbiddenError("that form is not from here: open the page again")

    def _redirect_url(self) -> str:
        return self.settings.redirect_url or f"{self._public_url()}/auth/callback"

    def _secure(self) -> bool:
        return self._public_url().scheme == "https"

    def _cookie(self) -> str:
        return "__Host-calnet_session" if self._secure() else "calnet_session"


def _page(title: str, text: str, status: int = 200) -> Response:
    return HTMLResponse(pages.message(title, text), status, pages.HEADERS)
