"""Sign-in by OpenID Connect: browsers by code and PKCE, with sessions in cookies; nodes by device authorization; access tokens as bearers; and the watch
over users that the provider no longer vouches for.

Theory of operation. The browser's state between login and callback lives in a sealed cookie, so that any server on the store can finish what another began,
and a callback without the browser that began it is refused. A user's refresh token is kept sealed with the user, and outlives its browsers; the watch asks the
provider with it, and takes over what the claims say now (vouching.py). An access token is judged by its own claims each time it is shown. Identity is
(issuer, subject).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from calnet.crypto.hash import equal, hmac_blake2s
from calnet.crypto.keys import RandomBytes
from calnet.errors import AuthenticationError, CalnetError, ForbiddenError, NotFoundError, UnauthorizedError
from calnet.roles.server.actors import Access, Actor, Principal, Role, Terms, lesser
from calnet.roles.server.durable import durable
from calnet.roles.server.registry import Registry
from calnet.roles.server.rest.authentication import Authenticator, bearer, source_of
from calnet.roles.server.rest.serving import bounded_body
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.signin import jwt, pages
from calnet.roles.server.signin.claims import identity_of
from calnet.roles.server.signin.devices import DeviceFlows
from calnet.roles.server.signin.provider import GrantEndedError, Provider, ProviderError
from calnet.roles.server.signin.sealing import Sealer
from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.standing import Login, NodeState
from calnet.roles.server.tokens import PREFIX
from calnet.roles.server.users import Identity, with_claims
from calnet.roles.server.vouching import ended_by_sign_out
from calnet.store.interface import SessionRecord, UserRecord, Watch

log = logging.getLogger(__name__)

STATE_S: Final = 600.0
MAX_USED: Final = 10_000
UNCHECKED_S: Final = 86_400.0
"""Sessions of a user that the provider could not be asked about for so long end."""
IDLE_RECHECK_S: Final = 86_400.0
"""How often the provider is asked about a user with no session, token, key or machine."""
_STATE: Final = b"state"
_REFRESH: Final = b"refresh"
Json = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]


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
            Route("/auth/login", _or_page(self._login, "Not signed in"), methods=["GET"]),
            Route("/auth/callback", _or_page(self._callback, "Not signed in"), methods=["GET"]),
            Route("/auth/done", _or_page(self._done, "Not signed in"), methods=["GET"]),
            Route("/auth/logout", _or_page(self._logout, "Not signed out"), methods=["POST"]),
            Route("/auth/device/{code}", _or_page(self._device_page, "Not let in"), methods=["GET", "POST"]),
        ]

    def authenticators(self) -> tuple[Authenticator, ...]:
        """Session cookies, and the provider's access tokens as bearers."""
        return self._by_cookie, self._by_access_token

    async def login(self, code: str) -> Login:
        """Where a person signs in for the waiting machine with this code; where somebody has, the page that says so. Nowhere while the provider can't be
        reached: an admin may approve it all the same."""
        try:
            if not self._registry.is_signed_in_for(code) and (await self.provider.endpoints()).device:
                return await self._devices.begin(code)
        except ProviderError as error:  # it has a device flow, and not for this client
            log.warning("device_flow_refused reason=%s", error)
        except CalnetError as error:
            log.warning("device_flow_failed reason=%s", error)
            return Login()
        return Login(f"{self._public_url()}/auth/device/{code}")

    async def run(self) -> None:
        """Ask the provider again and again whether its users are what they were."""
        while True:
            await asyncio.sleep(min(self.settings.recheck_s, 60.0) / 2)
            depended_on = self._registry.depended_on()
            for user in self._registry.user_records():
                if user.subject and user.issuer == self.settings.issuer and user.access == Access.GRANTED:
                    try:
                        await self._look_after(user, user.id in depended_on)
                    except CalnetError as error:  # a full disk, say: the next round tries again
                        log.error("recheck_failed user=%s reason=%s", user.name, error)

    def take_over(self, settings: OidcSettings) -> None:
        """Other settings of the same issuer from now on. Roles and access of those signed in follow at their next check."""
        self.settings = self.provider.settings = settings

    async def close(self) -> None:
        """End device flows and connections."""
        self._devices.close()
        await self.provider.close()

    # --- browsers

    async def _login(self, request: Request) -> Response:
        return await self._to_provider(request, "")

    async def _to_provider(self, request: Request, device: str) -> Response:
        state, nonce, verifier = (self._text() for _ in range(3))
        url = await self.provider.authorization_url(self._redirect_url(), state=state, nonce=nonce, verifier=verifier)
        sealed = self._sealer.seal({"state": state, "nonce": nonce, "verifier": verifier, "device": device, "at": self._clock()}, _STATE)
        answer = RedirectResponse(url, 303, pages.HEADERS)
        answer.set_cookie(
            "calnet_login", base64.urlsafe_b64encode(sealed).decode(), max_age=int(STATE_S), path="/auth", secure=self._secure(), httponly=True, samesite="lax"
        )
        return answer

    async def _callback(self, request: Request) -> Response:
        session, user, device = await self._finish(request)
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
        try:
            tokens = await self.provider.exchange(values["code"], begun["verifier"], self._redirect_url())
        except GrantEndedError as error:
            raise UnauthorizedError(f"{error}: that code was used, is too old, or was given to another sign-in: begin again") from error
        claims = await self._claims(tokens, nonce=begun["nonce"])
        user = await self._user(claims, tokens, source_of(request))
        secret, _ = await durable(self._registry.create_session(user.id, expires_s=self.settings.session_s, terms=self._terms(user, request)))
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
        """The session here ends in any case; then the browser goes on to the provider's own sign-out, if that can be found. The watch over the user's tokens
        and machines goes on."""
        found = self._registry.session_of(request.cookies.get(self._cookie(), ""))
        if found is not None:
            session, user = found
            await self._check_form(request, session)
            await durable(self._registry.end_session(session.id, terms=self._terms(user, request)))
        answer = await self._signed_out(None if found is None else found[1])
        # without Secure, browsers do not take a deletion of a __Host- cookie either
        answer.delete_cookie(self._cookie(), path="/", secure=self._secure(), httponly=True, samesite="lax")
        return answer

    async def _signed_out(self, user: UserRecord | None) -> Response:
        try:
            place = (await self.provider.endpoints()).end_session
        except CalnetError as error:
            return _page("Signed out", f"You are signed out here, but may be signed in at the provider still: {error}.")
        if not place:
            return _page("Signed out", "You are signed out here.")
        if user is not None:
            await durable(self._registry.signed_out(user.id))
        return RedirectResponse(f"{place}{'&' if '?' in place else '?'}{urlencode({'client_id': self.settings.client_id})}", 303, pages.HEADERS)

    async def _device_page(self, request: Request) -> Response:
        """For providers without device flow: sign in, look at the code, and let the machine in."""
        code = request.path_params["code"]
        found = self._registry.session_of(request.cookies.get(self._cookie(), ""))
        if found is None:
            return await self._to_provider(request, code)
        session, user = found
        row = self._registry.waiting_node(code, user.id)
        if row["code"] != code:
            raise NotFoundError("no machine waits with that code")
        if request.method == "GET" and not self._registry.is_signed_in_for(code):
            return HTMLResponse(pages.confirm(user.name, row["hostname"], code, self._form_token(session)), headers=pages.HEADERS)
        if request.method == "POST":
            await self._check_form(request, session)
            row = await durable(self._registry.admit_node(code, user.id, terms=self._terms(user, request)))
        if row["state"] == NodeState.PENDING.value:
            return _page("Waiting for an admin", f"{row['hostname']} joins as {user.name}'s once an admin approves it: calnet.pyz admin nodes approve {code}")
        return _page("Done", f"{row['hostname']} is on its way in.")

    # --- nodes

    async def _admit_by_device(self, code: str, tokens: Json) -> None:
        """The browser is done: the machine is the user's. One ID token admits one machine (attack 31)."""
        claims = await self._claims(tokens, nonce=None)
        self._use_once(hashlib.sha256(str(tokens["id_token"]).encode()).hexdigest())
        user = await self._user(claims, tokens, "")
        row = await durable(self._registry.admit_node(code, user.id, terms=Terms(self._actor(user, ""))))
        log.info("node_signed_in user=%s code=%s state=%s", user.name, code, row["state"])

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
        """An access token is judged by its own claims whenever it is shown, and never gives more than the user has."""
        token = bearer(request)
        if token is None or token.startswith(PREFIX):
            return None
        if not jwt.may_be_one(token):
            raise UnauthorizedError(f"that is neither an API token of this server (they begin with {PREFIX}) nor a signed token of the sign-in provider")
        claims = await self.provider.claims(token, audience=self.settings.audience or self.settings.client_id, now=self._clock())
        known = self._registry.user_of_identity(self.settings.issuer, claims["sub"])
        if known is not None and known.suspended:
            raise UnauthorizedError(f"the user {known.name} is suspended: ask an admin")
        if known is not None and known.access == Access.LOST:
            raise UnauthorizedError(f"the user {known.name} lost access at the sign-in provider: sign in again at {self._public_url()}/auth/login")
        identity = identity_of(claims, self.settings, known)
        user = await self._vouched_for(known, identity, claims["iat"], source_of(request))
        role = Role(user.role) if user.role_by_hand else lesser(Role(user.role), identity.role)
        return Principal(replace(self._actor(user, source_of(request)), at_most=role), role, user.id)

    async def _vouched_for(self, known: UserRecord | None, identity: Identity, issued: float, source: str) -> UserRecord:
        """The user that an access token speaks for. Where the provider is not asked about it, access tokens are its only word: the newest is taken over."""
        if known is not None and known.watch is not None and known.watch.refresh:
            return known
        until = issued + self.settings.session_s
        held = 0.0 if known is None or known.watch is None else known.watch.until or 0.0
        newer = known is None or (issued >= int(known.last_login_at or 0.0) and with_claims(known, identity) != known)
        if known is not None and not newer and (until <= self._clock() or until - held < self.settings.session_s / 2):
            return known
        return await durable(self._registry.sign_in(identity, until=until, anew=False, terms=Terms(Actor("system", name="sign-in", source=source))))

    # --- the watch

    async def _look_after(self, user: UserRecord, depended_on: bool) -> None:
        """Ask the provider about the user if that is due, or let its access rest where the provider's last word holds no longer."""
        now, watch = self._clock(), user.watch
        if watch is None:
            await durable(self._registry.lapse(user.id, now + self.settings.session_s))
        elif not watch.refresh:
            if watch.until is not None and watch.until <= now:
                log.warning("user_rests user=%s reason=the provider can't be asked about it", user.name)
                await durable(self._registry.rest(user.id))
        else:
            every_s = self.settings.recheck_s if depended_on else max(self.settings.recheck_s, IDLE_RECHECK_S)
            if watch.asked_at + every_s <= now and (turn := await durable(self._registry.ask_about(user.id, every_s))) is not None:
                await self._recheck(user, turn)
            elif watch.checked_at + max(UNCHECKED_S, every_s + STATE_S) < now:
                await durable(self._registry.end_sessions(user.id))

    async def _recheck(self, user: UserRecord, watch: Watch) -> None:
        """Whether the provider still vouches for the user, and for what. A provider that is away changes nothing for a day."""
        try:
            tokens = await self.provider.refresh(self._sealer.open(watch.refresh, _REFRESH))
        except (GrantEndedError, AuthenticationError) as error:
            await self._out_of_reach(user, watch, error)
            return
        except CalnetError as error:
            log.warning("recheck_failed user=%s reason=%s", user.name, error)
            return
        refresh = self._sealed(tokens) or watch.refresh
        try:
            claims = await self._claims(tokens, nonce=None) if tokens.get("id_token") else await self.provider.userinfo(str(tokens.get("access_token", "")))
        except CalnetError as error:  # the new refresh token is kept all the same: the one before is of no use any more
            log.warning("recheck_failed user=%s reason=%s", user.name, error)
            claims = {}
        try:
            if claims and claims.get("sub") != user.subject:
                raise ForbiddenError("the provider speaks of another user")
            identity = identity_of(claims, self.settings) if claims else None
        except ForbiddenError as error:
            await self._lose(user, error)
            return
        await durable(self._registry.confirm(user.id, identity, refresh))

    async def _out_of_reach(self, user: UserRecord, watch: Watch, reason: CalnetError) -> None:
        """The refresh token is of no use any more: the user was removed, unless its own sign-out ended the token, or it was sealed under another key.

        A sign-out should leave tokens alone that were asked for with offline_access (OpenID Connect Back-Channel Logout section 2.7): where one ends all the
        same, nobody can tell it from a removal, so that access rests at once. Others end by it as a rule: the provider's last word holds for a while.
        """
        refused = isinstance(reason, GrantEndedError)
        if refused and not ended_by_sign_out(watch):
            await self._lose(user, reason)
            return
        log.warning("user_unwatched user=%s reason=%s", user.name, reason)
        at_once = refused and self.settings.offline
        await durable(self._registry.lapse(user.id, self._clock() + (0.0 if at_once else self.settings.session_s)))

    async def _lose(self, user: UserRecord, reason: CalnetError) -> None:
        log.warning("user_lost_access user=%s reason=%s", user.name, reason)
        await durable(self._registry.lose_access(user.id))

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

    async def _user(self, claims: Json, tokens: Json, source: str) -> UserRecord:
        """The user who has just signed in."""
        until = self._clock() + self.settings.session_s
        terms = Terms(Actor("system", name="sign-in", source=source))
        return await durable(self._registry.sign_in(identity_of(claims, self.settings), refresh=self._sealed(tokens), until=until, terms=terms))

    def _sealed(self, tokens: Json) -> bytes:
        """The refresh token among the tokens, for the store; empty where there is none."""
        refresh = tokens.get("refresh_token")
        return self._sealer.seal(refresh, _REFRESH) if isinstance(refresh, str) and refresh else b""

    def _terms(self, user: UserRecord, request: Request) -> Terms:
        return Terms(self._actor(user, source_of(request)))

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


def _or_page(handler: Handler, title: str) -> Handler:
    """The handler, whose failures a browser is told in a page."""

    async def handled(request: Request) -> Response:
        try:
            return await handler(request)
        except CalnetError as error:
            return _page(title, str(error), error.http_status)

    return handled


def _page(title: str, text: str, status: int = 200) -> Response:
    return HTMLResponse(pages.message(title, text), status, pages.HEADERS)
