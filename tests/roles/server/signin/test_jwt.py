"""Tokens that were forged, bent or blown up: each is refused with the one error, and the genuine one still holds. Whole: with the provider's keys fetched."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.roles.server.signin import jwt
from calnet.roles.server.signin.provider import Provider
from calnet.roles.server.signin.settings import OidcSettings
from tests import shared_vectors
from tests.idp.plain import PlainProvider, plain_provider
from tests.idp.signing import TokenKey, compact, encoded

NOW = 1_800_000_000
Json = dict[str, Any]
RSA, EC = TokenKey("RS256", "rsa"), TokenKey("ES256", "ec")
THIEF = TokenKey("RS256", "rsa")
NONCE = "a-nonce"
NO_KEY, ACCEPTED = "no key", "accepted"


@dataclass(frozen=True)
class Verifier:
    """The provider that publishes RSA and EC, and the whole way from a token to claims."""

    idp: PlainProvider
    claims: Callable[[str], Json]

    def body(self, **changes: object) -> Json:
        return {"iss": self.idp.issuer, "sub": "alice", "aud": "calnet", "iat": NOW, "exp": NOW + 60, "nonce": NONCE} | changes

    def genuine(self) -> str:
        return RSA.sign(self.body())

    def refuses(self, token: str, why: str = ".") -> None:
        """With one line that repeats nothing of the token."""
        with pytest.raises(jwt.TokenError, match=why) as raised:
            self.claims(token)
        text = str(raised.value)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 120


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with plain_provider([RSA.public, EC.public]) as idp, asyncio.Runner() as runner:
        provider = Provider(OidcSettings(idp.issuer, "calnet"), time.monotonic)
        yield Verifier(idp, lambda token: runner.run(provider.claims(token, audience="calnet", now=NOW, nonce=NONCE)))
        runner.run(provider.close())


@pytest.fixture(autouse=True)
def genuine_still_holds(verifier: Verifier) -> Iterator[None]:
    yield
    assert verifier.claims(verifier.genuine())["sub"] == "alice"


def hmac_signature(kind: str, secret: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.digest(secret, signed, f"sha{kind[2:]}")


@pytest.mark.parametrize("key", [RSA, EC], ids=["RS256", "ES256"])
def test_token_of_the_providers_key_holds(verifier: Verifier, key: TokenKey) -> None:
    assert verifier.claims(key.sign(verifier.body(), typ="JWT", x5t="a-thumbprint"))["nonce"] == NONCE


# --- algorithms


NONE = ["".join(letters) for letters in itertools.product("nN", "oO", "nN", "eE")]


@pytest.mark.parametrize("signature", [b"", b"\0", b"none"], ids=["no signature", "a byte", "text"])
def test_attack_28_algorithm_none_is_refused_in_every_spelling(verifier: Verifier, signature: bytes) -> None:
    for name in [*NONE, " none", "none ", "none\0", "n\u014dne", "null", ""]:
        verifier.refuses(compact({"alg": name, "kid": "rsa"}, verifier.body(), lambda _: signature), "no signed token" if not signature else "algorithm")
        verifier.refuses(RSA.sign(verifier.body(), alg=name), "algorithm")


@pytest.mark.parametrize(
    "algorithm", [None, 0, True, [], ["RS256"], {"RS256": 1}, "rs256", "RS256 ", "RS1", "PS256", "EdDSA", "ES256K", "HS256", "dir"], ids=repr
)
def test_attack_28_algorithm_that_is_no_signature_of_ours_is_refused(verifier: Verifier, algorithm: object) -> None:
    header = {"alg": algorithm, "kid": "rsa"}
    verifier.refuses(compact(header, verifier.body(), RSA.signature), "algorithm")
    verifier.refuses(compact({"kid": "rsa"}, verifier.body(), RSA.signature), "algorithm")


def public_forms() -> dict[str, bytes]:
    """All the ways in which the RSA public key may be taken for a secret."""
    pem, pkcs1, found = RSA.pem(), RSA.pem("PKCS1"), RSA.public
    bare = {name: found[name] for name in ("e", "kty", "n")}
    return {
        "PEM": pem,
        "PEM without its last newline": pem.rstrip(b"\n"),
        "PEM with CRLF": pem.replace(b"\n", b"\r\n"),
        "PKCS 1 PEM": pkcs1,
        "JWK": json.dumps(found).encode(),
        "least JWK": json.dumps(bare, separators=(",", ":")).encode(),
        "JWK set": json.dumps({"keys": [found, EC.public]}).encode(),
        "DER": base64.b64decode(b"".join(pem.splitlines()[1:-1])),
        "modulus": found["n"].encode(),
        "modulus, decoded": base64.urlsafe_b64decode(found["n"] + "=="),
        "key id": b"rsa",
        "nothing": b"",
    }


@pytest.mark.parametrize("form", public_forms())
def test_attack_28_hmac_under_the_public_key_is_refused(verifier: Verifier, form: str) -> None:
    secret = public_forms()[form]
    for kind in ("HS256", "HS384", "HS512"):
        sign = hmac_signature(kind, secret)
        verifier.refuses(compact({"alg": kind, "kid": "rsa"}, verifier.body(), sign), "algorithm")
        verifier.refuses(compact({"alg": "RS256", "kid": "rsa"}, verifier.body(), sign), "signature")
        verifier.refuses(compact({"alg": "ES256", "kid": "ec"}, verifier.body(), sign), "signature")


# --- keys


@pytest.mark.parametrize(
    ("signer", "header"),
    [
        (RSA, {"kid": "ec"}),
        (EC, {"kid": "rsa"}),
        (EC, {"kid": "rsa", "alg": "RS256"}),
        (RSA, {"kid": "ec", "alg": "ES256"}),
        (RSA, {"alg": "RS384"}),
        (RSA, {"alg": "RS512"}),
        (EC, {"alg": "ES384"}),
        (RSA, {"kid": "RSA"}),
        (RSA, {"kid": "rsa "}),
        (RSA, {"kid": "../../../../dev/null"}),
        (RSA, {"kid": "x' OR '1'='1"}),
        (RSA, {"kid": "\0"}),
        (RSA, {"kid": "\ud800"}),
        (THIEF, {}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value.algorithm,
)
def test_attack_28_key_id_of_no_key_or_of_another_is_refused(verifier: Verifier, signer: TokenKey, header: Json) -> None:
    verifier.refuses(signer.sign(verifier.body(), **header), "signed by no key|signature does not hold|holds no JSON")


@pytest.mark.parametrize("key_id", [None, "", 0, 7, True, ["rsa"], {"rsa": "rsa"}, "r" * 256], ids=lambda value: repr(value)[:20])
def test_attack_28_key_id_that_is_none_is_refused(verifier: Verifier, key_id: object) -> None:
    verifier.refuses(RSA.sign(verifier.body(), kid=key_id), "names no key")
    verifier.refuses(compact({"alg": "RS256", "kid": None}, verifier.body(), RSA.signature), "names no key")


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"use": None},
        {"key_ops": ["encrypt"]},
        {"key_ops": ["sign"]},
        {"key_ops": []},
        {"key_ops": "verify"},
        {"key_ops": None},
        {"alg": "RS512"},
        {"alg": "HS256"},
        {"kty": "oct", "k": "AA"},
        {"kty": "EC"},
        {"n": None},
        {"n": 7},
        {"n": ""},
        {"n": "\u00e9"},
        {"n": TokenKey("RS256", "rsa", bits=1024).public["n"]},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_published_key_that_is_not_for_this_is_no_key(change: Json) -> None:
    assert jwt.key_for("RS256", "rsa", [RSA.public]) == RSA.public
    assert jwt.key_for("RS256", "rsa", [RSA.public | {"key_ops": ["verify"]}]) is not None
    assert jwt.key_for("RS256", "rsa", [RSA.public | change]) is None


def test_published_key_of_another_curve_is_no_key() -> None:
    assert jwt.key_for("ES256", "ec", [EC.public]) == EC.public
    for curve in ("P-384", "P-521", "secp256k1", None, ""):
        assert jwt.key_for("ES256", "ec", [EC.public | {"crv": curve}]) is None


def test_two_published_keys_of_one_name_are_no_key() -> None:
    assert jwt.key_for("RS256", "rsa", [RSA.public, THIEF.public]) is None
    assert jwt.key_for("RS256", "rsa", [EC.public | {"kid": "rsa"}, RSA.public]) == RSA.public


@pytest.mark.parametrize(
    ("signer", "change"),
    [
        (RSA, {"e": None}),
        (RSA, {"e": 65537}),
        (RSA, {"e": 10**15}),
        (RSA, {"e": ""}),
        (RSA, {"e": "AA"}),
        (RSA, {"e": "\u00e9"}),
        (RSA, {"e": "AQ"}),
        (RSA, {"e": ["AQAB"]}),
        (RSA, {"n": RSA.public["n"][::-1]}),
        (EC, {"x": EC.public["y"]}),
        (EC, {"x": ""}),
        (EC, {"x": 10**15}),
        (EC, {"y": None}),
        (EC, {"y": "A" * 100_000}),
    ],
    ids=lambda value: json.dumps(value)[:30] if isinstance(value, dict) else value.algorithm,
)
def test_published_key_that_is_broken_verifies_nothing(verifier: Verifier, signer: TokenKey, change: Json) -> None:
    key = {name: value for name, value in (signer.public | change).items() if value is not None}
    assert outcome(signer.sign(verifier.body()), key) in (NO_KEY, "the token's signature does not hold")


def test_attack_28_key_that_the_token_brings_or_names_is_never_used_or_fetched(verifier: Verifier) -> None:
    verifier.idp.answers["/thief"] = lambda _: (200, {"keys": [THIEF.public]})
    place = f"{verifier.idp.issuer}/thief"
    certificate = encoded(THIEF.pem())
    headers: list[Json] = [
        {"jwk": THIEF.public},
        {"jwk": RSA.public},
        {"jwk": None, "kid": "thief"},
        {"jku": place},
        {"x5u": place},
        {"x5c": [certificate]},
        {"jku": place, "kid": "thief"},
        {"kid": place},
    ]
    for header in headers:
        verifier.refuses(THIEF.sign(verifier.body(), **header))
    for name, value in (("jwk", RSA.public), ("jku", f"{verifier.idp.issuer}/keys"), ("x5u", place), ("x5c", [])):
        verifier.refuses(RSA.sign(verifier.body(), **{name: value}), "header asks")
    assert "/thief" not in verifier.idp.asked


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"crit": 7},
        {"b64": True},
        {"zip": "DEF"},
        {"enc": "A256GCM"},
        {"typ": "dpop+jwt"},
        {"typ": ["JWT"]},
        {"typ": "logout+jwt"},
    ],
    ids=json.dumps,
)
def test_attack_28_header_that_asks_for_more_is_refused(verifier: Verifier, header: Json) -> None:
    verifier.refuses(RSA.sign(verifier.body(), **header), "header asks")


# --- JSON


def nested(opening: str, closing: str, depth: int) -> bytes:
    return (opening * depth + closing * depth).encode()


DEEP = [*(nested("[", "]", depth) for depth in (100, 999, 1_001, 4_000)), *(nested('{"a":', "}", depth)[:-1] + b"1}" for depth in (10, 900)), b"[" * 9_000]


@pytest.mark.parametrize("deep", DEEP, ids=lambda deep: f"{deep[:5].decode()} {len(deep)}")
def test_attack_28_deep_header_or_claims_are_refused(verifier: Verifier, deep: bytes) -> None:
    header = json.dumps({"alg": "RS256", "kid": "rsa"}).encode()
    verifier.refuses(compact(header[:-1] + b', "x5c": ' + deep + b"}", verifier.body(), RSA.signature))
    verifier.refuses(compact(deep, verifier.body(), RSA.signature))
    verifier.refuses(compact(header, json.dumps(verifier.body()).encode()[:-1] + b', "sub": ' + deep + b"}", RSA.signature))
    verifier.refuses(compact(header, deep, RSA.signature))


@pytest.mark.parametrize("size", [jwt.MAX_SIZE, 1 << 20, 16 << 20])
def test_attack_28_huge_token_is_refused_before_anything_is_read_of_it(verifier: Verifier, size: int) -> None:
    for huge in (RSA.sign(verifier.body(), filling="x" * size), RSA.sign(verifier.body(filling="x" * size)), verifier.genuine() + "A" * size):
        verifier.refuses(huge, "no signed token")


def test_token_of_the_greatest_size_holds(verifier: Verifier) -> None:
    room = (jwt.MAX_SIZE - len(RSA.sign(verifier.body(filling="")))) * 3 // 4
    assert verifier.claims(RSA.sign(verifier.body(filling="x" * (room - 2))))["sub"] == "alice"


BENT = {
    "number": b"12345",
    "text": b'"RS256"',
    "list": b'[{"alg": "RS256", "kid": "rsa"}]',
    "null": b"null",
    "nothing": b" ",
    "not finite": b'{"alg": "RS256", "kid": "rsa", "sub": NaN}',
    "infinite": b'{"alg": "RS256", "kid": "rsa", "sub": -Infinity}',
    "many digits": b'{"alg": "RS256", "kid": "rsa", "exp": ' + b"9" * 5_000 + b"}",
    "name twice": b'{"alg": "RS256", "alg": "RS256", "kid": "rsa"}',
    "name twice, once escaped": b'{"alg": "none", "\\u0061lg": "RS256", "kid": "rsa"}',
    "no UTF-8": b'{"alg": "RS256", "kid": "rsa", "sub": "\xff"}',
    "overlong UTF-8": b'{"alg": "RS256", "kid": "rsa", "sub": "\xc0\xae"}',
    "half a surrogate pair": b'{"alg": "RS256", "kid": "rsa", "sub": "\\ud800"}',
    "half a pair as a name": b'{"alg": "RS256", "kid": "rsa", "\\udfff": 1}',
    "half a pair within": b'{"alg": "RS256", "kid": "rsa", "groups": [{"a": ["\\ud800"]}]}',
    "mark before": b'\xef\xbb\xbf{"alg": "RS256", "kid": "rsa"}',
    "UTF-16": '{"alg": "RS256", "kid": "rsa"}'.encode("utf-16"),
    "UTF-32": '{"alg": "RS256", "kid": "rsa"}'.encode("utf-32-le"),
    "something behind": b'{"alg": "RS256", "kid": "rsa"} {}',
    "zero behind": b'{"alg": "RS256", "kid": "rsa"}\0',
    "unclosed": b'{"alg": "RS256", "kid": "rsa"',
    "comment": b'{"alg": "RS256", /* */ "kid": "rsa"}',
    "control character": b'{"alg": "RS256", "kid": "r\nsa"}',
}


@pytest.mark.parametrize("bent", BENT.values(), ids=BENT)
def test_attack_28_bytes_that_are_no_json_object_are_refused_as_header_and_as_claims(verifier: Verifier, bent: bytes) -> None:
    verifier.refuses(compact(bent, verifier.body(), RSA.signature), "holds no JSON")
    verifier.refuses(compact({"alg": "RS256", "kid": "rsa"}, bent, RSA.signature), "holds no JSON")


def test_attack_28_claims_that_are_no_text_to_compare_are_refused(verifier: Verifier) -> None:
    for change in ({"nonce": "\ud800"}, {"sub": "\udfff"}, {"aud": "\ud800"}, {"iss": "\ud800"}, {"azp": "\ud800"}):
        verifier.refuses(RSA.sign(verifier.body(**change)), "holds no JSON")
    for nonce in (None, "", 7, [NONCE], NONCE.upper(), "\u00e9"):
        verifier.refuses(RSA.sign(verifier.body(nonce=nonce)), "another sign-in")


TIMES: list[object] = [None, "", "1800000060", -1, 1.8e9, 1e400, True, [NOW], {}, 1 << 40, 10**300]


@pytest.mark.parametrize("value", TIMES, ids=lambda value: repr(value)[:20])
def test_attack_28_times_that_are_no_seconds_are_refused(verifier: Verifier, value: object) -> None:
    for name in ("exp", "iat", "nbf"):
        verifier.refuses(RSA.sign(verifier.body(**{name: value})), "times are none|holds no JSON")


# --- form and signature


def test_attack_28_token_in_any_other_form_is_refused(verifier: Verifier) -> None:
    genuine = verifier.genuine()
    head, body, signature = genuine.split(".")
    serialized = json.dumps({"protected": head, "payload": body, "signature": signature})
    for text in (
        "", ".", "..", "...", head, f"{head}.{body}", f"{head}.{body}.", f"{head}..{signature}", f".{body}.{signature}", f"{genuine}.", f".{genuine}",
        f"{genuine}.{signature}", f"{genuine}.{body}.{signature}", serialized, f" {genuine}", f"{genuine} ", f"{genuine}\n", f"{genuine}\0", f"{genuine}=",
        f"{head}=.{body}.{signature}", f"{head}.{body}==.{signature}", f"{head}\n.{body}.{signature}", f"{head}.{body}.+{signature[1:]}",
        f"{head}.{body}./{signature[1:]}", f"{head}.{body}.\u00e9{signature[1:]}", f"{head}.{body}.\uff21{signature[1:]}", f"{head}%2E{body}.{signature}",
    ):  # fmt: skip
        verifier.refuses(text, "no signed token")


def test_attack_28_changed_swapped_cut_or_lengthened_signature_is_refused(verifier: Verifier) -> None:
    other = RSA.sign(verifier.body(sub="bob"))
    for key in (RSA, EC):
        head, body, signature = key.sign(verifier.body()).split(".")
        size = len(signature)
        for wrong in (signature[:-4], signature + "AAAA", "AAAA" + signature, signature[4:], signature[::-1], "A" * size, "_" * (size - 1) + "w"):
            verifier.refuses(f"{head}.{body}.{wrong}", "signature|no signed token")
        for wrong in (other.split(".")[2], body, head):
            verifier.refuses(f"{head}.{body}.{wrong}", "signature")
        verifier.refuses(f"{head}.{other.split('.')[1]}.{signature}", "signature")


@pytest.mark.parametrize("key", [RSA, EC], ids=["RS256", "ES256"])
def test_attack_28_genuine_token_with_any_one_character_changed_is_refused(verifier: Verifier, key: TokenKey) -> None:
    genuine = key.sign(verifier.body())
    for place, character in enumerate(genuine):
        if character != ".":
            verifier.refuses(genuine[:place] + ("A" if character != "A" else "B") + genuine[place + 1 :])


@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}", fullmatch=True)))
def test_any_text_is_refused_with_the_one_error(text: str) -> None:
    with pytest.raises(jwt.TokenError):
        jwt.header_of(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_signed_json_is_refused_with_the_one_error(claims: object) -> None:
    with pytest.raises(jwt.TokenError):
        jwt.verify(EC.sign(claims), EC.public, issuer="https://id.example", audience="calnet", client_id="calnet", now=NOW)


# --- vectors


def wycheproof() -> Iterator[tuple[Json, Json]]:
    """(key, case) of each case of a public key, and of those of secret keys, as if a provider published them."""
    for group in shared_vectors.load("wycheproof/json_web_signature_test.json")["testGroups"]:
        for case in group["tests"]:
            yield group.get("public") or group["private"], case


def outcome(token: str, key: Json) -> str:
    """What is said to a token of a provider that publishes this key alone; ACCEPTED where the signature holds, as no vector's payload is claims."""
    try:
        algorithm, key_id = jwt.header_of(token)
        fitting = jwt.key_for(algorithm, key_id, [key])
        if fitting is None:
            return NO_KEY
        jwt.verify(token, fitting, issuer="https://id.example", audience="calnet", client_id="calnet", now=NOW)
    except jwt.TokenError as error:
        return ACCEPTED if "holds no JSON" in str(error) else str(error)
    raise AssertionError("a vector became claims")


def test_attack_28_wycheproof_signatures_that_do_not_hold_are_refused() -> None:
    outcomes = [(case["tcId"], case["comment"], outcome(case["jws"], key)) for key, case in wycheproof() if case["result"] == "invalid"]
    assert len(outcomes) > 300
    assert [found for found in outcomes if found[2] == ACCEPTED] == []


def test_wycheproof_signatures_that_hold_are_accepted() -> None:
    ours = [(key, case["jws"]) for key, case in wycheproof() if case["result"] == "valid" and key["alg"] in jwt.ALGORITHMS]
    with_payload = [(key, token) for key, token in ours if ".." not in token]
    assert len(with_payload) > 10
    assert {outcome(token, key) for key, token in with_payload} == {ACCEPTED}


def test_attack_28_wycheproof_macs_and_other_schemes_are_refused_though_they_hold() -> None:
    others = [outcome(case["jws"], key) for key, case in wycheproof() if case["result"] == "valid" and str(key["alg"]).startswith(("HS", "PS"))]
    assert len(others) > 20
    assert set(others) == {"the token's algorithm is none that is taken here", "that is no signed token"}


@pytest.mark.parametrize("digest", ["sha256", "sha512"])
def test_signature_of_another_digest_does_not_hold(verifier: Verifier, digest: str) -> None:
    verifier.refuses(compact({"alg": "RS256", "kid": "rsa"}, verifier.body(), lambda signed: RSA.signature(hashlib.new(digest, signed).digest())), "signature")
