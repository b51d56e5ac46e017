"""Sign-in against a real provider: browsers, machines, bearers, and losing access."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Iterator
from random import Random
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from jose import jwk

from calnet.roles.server.signin.settings import OidcSettings
from calnet.roles.server.tokens import TokenWish
from calnet.wire import control
from tests.idp.provider import AUDIENCE, Browser
from tests.idp.signing import compact
from tests.roles.server.client import ControlClient
from tests.roles.server.client import Machine as ControlMachine
from tests.roles.server.registries import Machine, done
from tests.roles.server.signin.world import SignInWorld, eventually, sign_in_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignInWorld]:
    with sign_in_world(tmp_path_factory.mktemp("signin") / "state", audience=AUDIENCE) as found:
        yield found


def api_claims(world: SignInWorld, **changes: object) -> dict[str, object]:
    now = int(time.time())
    return {"iss": world.idp.issuer, "sub": "alice", "aud": AUDIENCE, "iat": now, "exp": now + 60, "client_id": "calnet", "groups": ["admins"]} | changes


def bearer(world: SignInWorld, token: str) -> httpx.Response:
    return httpx.get(f"{world.server.url}/api/v1/whoami", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20)


def test_browser_signs_in_and_its_cookie_opens_the_api(world: SignInWorld) -> None:
    client, page = world.sign_in("alice")
    assert "signed in as <b>alice</b>" in page.text
    (cookie,) = client.cookies.jar
    assert cookie.name == "calnet_session"
    assert cookie.has_nonstandard_attr("HttpOnly")
    who = client.get(f"{world.server.url}/api/v1/whoami").json()
    assert (who["kind"], who["user"], who["role"]) == ("user", "alice", "admin")
    row = world.server.registry.user("alice")
    assert (row["email"], row["groups"], row["issuer"], row["subject"]) == ("alice@example.test", ["admins", "staff"], world.idp.issuer, "alice")
    assert cookie.value is not None
    assert cookie.value.encode() not in world.server.registry.backup()


def test_attack_39_change_with_a_cookie_alone_is_refused(world: SignInWorld) -> None:
    client, _ = world.sign_in("alice")
    assert client.post(f"{world.server.url}/api/v1/users", json={"name": "x"}).status_code == 403
    assert client.post(f"{world.server.url}/api/v1/users", content=b'{"name": "x"}', headers={"content-type": "text/plain"}).status_code == 403
    made = client.post(f"{world.server.url}/api/v1/users", json={"name": "made"}, headers={"X-Calnet-Request": "1"})
    assert made.status_code == 201


def test_logout_ends_the_session_and_needs_our_own_form(world: SignInWorld) -> None:
    client, page = world.sign_in("bob")
    assert client.post(f"{world.server.url}/auth/logout", data={"token": "x"}).status_code == 403
    token = page.text.partition('name="token" value="')[2].partition('"')[0]
    gone = client.post(f"{world.server.url}/auth/logout", data={"token": token})
    assert gone.is_redirect
    assert gone.headers["location"].startswith(f"{world.idp.issuer}/session/end")
    assert client.get(f"{world.server.url}/api/v1/whoami").status_code == 401


def test_attack_29_unverified_email_gives_nothing(world: SignInWorld) -> None:
    world.sign_in("alice")
    client, _ = world.sign_in("mallory")
    who = client.get(f"{world.server.url}/api/v1/whoami").json()
    assert (who["user"], who["role"]) == ("mallory", "user")
    assert world.server.registry.user("mallory")["email"] == ""


def test_attack_30_missing_groups_mean_no_rights(world: SignInWorld) -> None:
    client, _ = world.sign_in("carol")
    assert client.get(f"{world.server.url}/api/v1/whoami").json()["role"] == "user"


def test_attack_31_callback_of_another_browser_and_replayed_code_are_refused(world: SignInWorld) -> None:
    with Browser("bob") as browser, httpx.Client(trust_env=False) as stranger:
        callback = browser.go(f"{world.server.url}/auth/login", stop_at=f"{world.server.url}/auth/callback")
        assert isinstance(callback, str)
        client = browser.client(world.server.url)
        assert stranger.get(callback).status_code == 401
        assert client.get(callback.replace("state=", "state=x")).status_code == 401
        assert (
            client.get(callback.replace(f"iss={world.idp.issuer.replace(':', '%3A').replace('/', '%2F')}", "iss=https%3A%2F%2Fevil.example")).status_code == 401
        )
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        assert client.get(callback).is_redirect
        again = stranger.get(callback, headers={"Cookie": cookie})
        assert again.status_code == 401
        assert "used before" in again.text


def test_attack_31_code_of_somebody_elses_sign_in_is_refused(world: SignInWorld) -> None:
    """A code that was lured into another browser's answer: that browser's verifier is not the one that the code was given for."""
    with Browser("alice") as victim, Browser("mallory") as thief:
        stolen, own = (browser.go(f"{world.server.url}/auth/login", stop_at=f"{world.server.url}/auth/callback") for browser in (victim, thief))
        assert isinstance(stolen, str)
        assert isinstance(own, str)
        code = parse_qs(urlsplit(stolen).query)["code"][0]
        client = thief.client(world.server.url)
        refused = client.get(own.replace(parse_qs(urlsplit(own).query)["code"][0], code))
        assert refused.status_code == 401
        assert "begin again" in refused.text
        assert "calnet_session" not in client.cookies
        assert client.get(own).status_code == 401


def test_attack_31_login_leads_nowhere_else(world: SignInWorld) -> None:
    with Browser("bob") as browser:
        page = browser.go(f"{world.server.url}/auth/login?next=https://evil.example&redirect_uri=https://evil.example")
    assert isinstance(page, httpx.Response)
    assert str(page.url) == f"{world.server.url}/auth/done"


def test_machine_is_admitted_the_moment_the_browser_is_done(world: SignInWorld) -> None:
    async def register() -> tuple[str, str, str]:
        async with ControlClient(world.server.url, world.server.registry.control_key.public, ControlMachine("sso")) as client:
            waiting = await client.register()
            assert isinstance(waiting, control.State)
            with Browser("bob") as browser:
                await asyncio.to_thread(browser.go, waiting.login_url)
            active = await client.expect(control.State)
            return waiting.code, waiting.login_url, active.state

    code, url, state = asyncio.run(register())
    assert url.startswith(f"{world.idp.issuer}/device?user_code=")
    assert state == "active"
    row = next(row for row in world.server.registry.nodes() if row["hostname"] == "sso")
    assert (row["user"], row["state"], row["code"]) == ("bob", "active", None)
    assert code


def test_attack_28_bearers_that_do_not_hold_are_401(world: SignInWorld) -> None:
    idp, now = world.idp, int(time.time())
    assert bearer(world, idp.sign(api_claims(world))).json()["role"] == "admin"
    changes: list[dict[str, object]] = [
        {"aud": "another"},
        {"aud": [AUDIENCE, "another"]},
        {"aud": [AUDIENCE, "another"], "azp": "another"},
        {"iss": "https://evil.example"},
        {"sub": ""},
        {"sub": 7},
        {"exp": now - 3600},
        {"exp": str(now + 60)},
        {"exp": now + 10 * 366 * 86_400},
        {"iat": now + 3600},
        {"iat": True},
        {"nbf": now + 3600},
        {"azp": "another"},
    ]
    for change in changes:
        assert bearer(world, idp.sign(api_claims(world, **change))).status_code in (401, 429), change
    for missing in ("exp", "iat", "sub", "aud", "iss"):
        claims = api_claims(world)
        del claims[missing]
        assert bearer(world, idp.sign(claims)).status_code in (401, 429), missing
    good = idp.sign(api_claims(world))
    head, body, signature = good.split(".")
    for forged in (f"{head}.{body}.", f"{head}.{body}.{signature}AAAA", f"{head}.{body}.{signature}=", f"{head}.{signature}.{body}", good + "." + body):
        assert bearer(world, forged).status_code in (401, 429)
    for header in ({"kid": "other"}, {"typ": "evil"}, {"jwk": {"kty": "oct", "k": "AA"}}, {"b64": True}):
        assert bearer(world, idp.sign(api_claims(world), **header)).status_code in (401, 429), header


def test_attack_28_bearers_without_algorithm_or_under_the_public_key_are_401(world: SignInWorld) -> None:
    (key,) = [one for one in world.idp.hook("publicKeys")["keys"] if one["kty"] == "RSA"]
    claims, kid = api_claims(world), key["kid"]
    secrets = (json.dumps(key).encode(), jwk.construct(key, "RS256").to_pem(), key["n"].encode())
    forged = [compact({"alg": "HS256", "kid": kid}, claims, lambda signed, secret=secret: hmac.digest(secret, signed, "sha256")) for secret in secrets]  # type: ignore[misc]
    forged += [compact({"alg": name, "kid": kid}, claims, lambda _: b"") for name in ("none", "None", "NONE")]
    forged += [compact(b"[" * 9_000, claims, lambda _: b"x"), compact({"alg": "RS256", "kid": kid}, b'{"a":' * 2_000, lambda _: b"x")]
    for token in forged:
        assert bearer(world, token).status_code in (401, 429)
    assert bearer(world, world.idp.sign(claims)).status_code == 200


def test_attack_32_rotated_keys_work_and_a_flood_of_unknown_ones_costs_one_fetch(world: SignInWorld) -> None:
    idp = world.idp
    before = idp.hook("counts")["keyFetches"]
    stolen = idp.sign(api_claims(world), kid="RS256-99")
    for _ in range(15):
        assert bearer(world, stolen).status_code in (401, 429)
    assert idp.hook("counts")["keyFetches"] - before <= 1


@pytest.mark.parametrize("keep", [True, False])
def test_attack_32_key_rotation_works_with_and_without_overlap(tmp_path_factory: pytest.TempPathFactory, keep: bool) -> None:
    with sign_in_world(tmp_path_factory.mktemp("rotation") / "state", audience=AUDIENCE) as world:
        before = world.idp.sign(api_claims(world))
        assert bearer(world, before).status_code == 200
        world.idp.hook("rotate", keep=keep)
        assert bearer(world, world.idp.sign(api_claims(world))).status_code == 200
        assert bearer(world, before).status_code == (200 if keep else 401)
        assert world.sign_in("bob")[1].status_code == 200


def test_removed_user_loses_sessions_nodes_and_tokens(world: SignInWorld) -> None:
    idp, registry = world.idp, world.server.registry
    idp.hook("user", sub="dora", claims={"email": "dora@example.test", "email_verified": True, "groups": ["admins"], "name": "Dora"})
    client, _ = world.sign_in("dora")
    user = registry.user("dora")
    standing = world.knock(77)
    done(registry.admit_node(standing.code, user["id"]))
    assert registry.node(str(standing.node))["state"] == "active"
    idp.hook("user", sub="dora", claims={"email": "dora@example.test", "email_verified": True, "groups": [], "name": "Dora"})
    eventually(lambda: registry.user("dora")["role"] == "user", "the lost group takes the role away")
    idp.hook("user", sub="dora", claims=None)
    eventually(lambda: client.get(f"{world.server.url}/api/v1/whoami").status_code == 401, "the session ends")
    eventually(lambda: registry.node(str(standing.node))["state"] == "expired", "the node has to log in again")


def signed_out(client: httpx.Client, page: httpx.Response, url: str) -> str:
    """The session here ends; where the provider's own sign-out is."""
    token = page.text.partition('name="token" value="')[2].partition('"')[0]
    return str(client.post(f"{url}/auth/logout", data={"token": token}).headers["location"])


def test_watch_outlives_a_sign_out_at_the_provider_and_still_sees_a_removal(world: SignInWorld) -> None:
    """Refresh tokens that were asked for with offline_access are not ended by a sign-out (OpenID Connect Back-Channel Logout section 2.7)."""
    idp, registry = world.idp, world.server.registry
    idp.hook("user", sub="erik", claims={"email": "erik@example.test", "email_verified": True, "groups": ["staff"], "name": "Erik"})
    client, page = world.sign_in("erik")
    user = registry.user("erik")
    token, key = done(registry.create_token(TokenWish("erik", "ci"))), done(registry.create_key(user="erik", reusable=True))["key"]
    there = signed_out(client, page, world.server.url)
    browser = world.browsers[-1].client(there)
    form = browser.get(there).text
    secret = form.partition('name="xsrf" value="')[2].partition('"')[0]
    browser.post(f"{idp.issuer}/session/end/confirm", data={"xsrf": secret, "logout": "yes"})
    assert "wants to log in" not in browser.get(f"{idp.issuer}/me").text
    assert all(row["user"] != "erik" for row in registry.sessions())

    def checked() -> float:
        record = registry.user_record(user["id"])
        return 0.0 if record is None or record.watch is None or not record.watch.refresh else record.watch.checked_at

    since = time.time()
    eventually(lambda: checked() > since + 1.0, "the provider is asked on, and vouches for the user")
    assert bearer(world, token["token"]).json()["user"] == "erik"
    done(registry.register(Machine(Random(78), "machine-78").request(key)))
    idp.hook("user", sub="erik", claims=None)
    eventually(lambda: bearer(world, token["token"]).status_code in (401, 429), "the token is refused")
    eventually(lambda: registry.node("machine-78")["state"] == "expired", "the node has to log in again")
    assert registry.user("erik")["access"] == "resting", "so soon after a sign-out nobody can tell why the token ended"


def test_who_is_not_allowed_is_told_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with sign_in_world(tmp_path_factory.mktemp("closed") / "state", allowed_groups=("admins",)) as world:
        client, page = world.sign_in("bob")
        assert page.status_code == 403
        assert "may not sign in" in page.text
        assert client.get(f"{world.server.url}/api/v1/whoami").status_code == 401
        assert world.sign_in("alice")[1].status_code == 200


def test_settings_are_frozen() -> None:
    assert "client_secret" not in repr(OidcSettings("https://id.example", "x", "hidden"))
