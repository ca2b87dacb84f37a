"""Which keys of a provider may sign a token, the hash of the access token, and malformed tokens."""

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from services.auth.oidc import id_tokens
from services.auth.oidc.id_tokens import ExpectedClaims, IdTokenClaims, TokenHeader, VerifiedToken
from shared import errors
from tests.services.auth.oidc import keys
from tests.services.auth.oidc.keys import Key

RSA, EC, ED = keys.make("RS256", "r"), keys.make("ES256", "e"), keys.make("EdDSA", "d")
NOW = 1_800_000_000


def published(*jwks: dict[str, Any]) -> tuple[id_tokens.ProviderKey, ...]:
    return id_tokens.read_keys(msgspec.json.encode({"keys": jwks}))


@pytest.mark.parametrize(
    ("jwk", "algorithms"),
    [
        pytest.param(RSA.jwk(), {"RS256"}, id="an RSA key for one algorithm"),
        pytest.param(RSA.jwk(alg=None), {"RS256", "PS256"}, id="an RSA key for either"),
        pytest.param(EC.jwk(alg=None, use=None), {"ES256"}, id="a P-256 key"),
        pytest.param(ED.jwk(), {"EdDSA"}, id="an Ed25519 key"),
        pytest.param(RSA.jwk(private=True), {"RS256"}, id="a private key: only its public half is taken"),
    ],
)
def test_keys_that_may_sign(jwk: dict[str, Any], algorithms: set[str]) -> None:
    [key] = published({"kty": "oct", "k": "AAAA", "kid": "shared"}, jwk)
    assert key.algorithms == algorithms
    assert not key.public.is_private
    assert set(key.public.as_dict()) <= {"kty", "n", "e", "crv", "x", "y"}


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param(RSA.jwk(use="enc"), id="for encryption"),
        pytest.param(RSA.jwk(alg="RS1"), id="for SHA-1"),
        pytest.param(RSA.jwk(alg="HS256"), id="an RSA key that says it is a shared secret"),
        pytest.param(EC.jwk(alg="RS256"), id="another kind's algorithm"),
        pytest.param(Key("w", "RS256", rsa.generate_private_key(public_exponent=65537, key_size=1024)).jwk(), id="a weak one"),
        pytest.param(Key("w", "ES384", ec.generate_private_key(ec.SECP384R1())).jwk(), id="another curve"),
        pytest.param(RSA.jwk(n=None), id="half of it missing"),
        pytest.param(RSA.jwk(n="=*="), id="not base64"),
        pytest.param(RSA.jwk(n="AAAA"), id="no modulus"),
        pytest.param(EC.jwk(x=EC.jwk()["y"]), id="not on the curve"),
        pytest.param({"kty": 5}, id="no key at all"),
    ],
)
def test_keys_that_may_not_sign_are_ignored(jwk: dict[str, Any]) -> None:
    [left] = published(jwk, ED.jwk())
    assert left.kid == "d"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        pytest.param(TokenHeader("ES256", "e"), "e", id="by its name"),
        pytest.param(TokenHeader("ES256", "r"), None, id="the name of another kind of key"),
        pytest.param(TokenHeader("ES256", "x"), None, id="an unknown name"),
        pytest.param(TokenHeader("ES256"), "e", id="without a name, the only one of its kind"),
        pytest.param(TokenHeader("RS256"), None, id="without a name, and there are two"),
    ],
)
def test_which_key_verifies_a_token(header: TokenHeader, found: str | None) -> None:
    key = id_tokens.find_key(published(RSA.jwk(), RSA.jwk(kid="r2"), EC.jwk(), ED.jwk()), header)
    assert (key and key.kid) == found


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"alg": "none"}, "must be signed with one of"),
        ({"alg": "HS256"}, "must be signed with one of"),
        ({"alg": "es256"}, "must be signed with one of"),
        ({"alg": "ES256", "crit": ["exp"]}, "an extension"),
        ({"alg": "ES256", "crit": None}, "an extension"),
        ({"alg": ["ES256"]}, "not a signed JWT"),
        ({"alg": "ES256", "kid": 5}, "not a signed JWT"),
        (["alg"], "not a signed JWT"),
    ],
)
def test_unsupported_headers_are_refused(header: dict[str, Any] | list[str], said: str) -> None:
    first = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    with pytest.raises(errors.NotAuthenticated, match=said):
        id_tokens.read_header(f"{first}.e30.x")


def proven(algorithm: str, **changed: Any) -> VerifiedToken:
    claims = IdTokenClaims(iss="i", sub="s", aud="c", exp=NOW + 300, iat=NOW, nonce="n", **changed)
    return VerifiedToken(TokenHeader(algorithm), claims, {})


EXPECTED = ExpectedClaims(issuer="i", client_id="c", nonce="n", began_at=NOW)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_the_hash_of_the_access_token_is_compared(algorithm: str) -> None:
    digest = (hashlib.sha512 if algorithm == "EdDSA" else hashlib.sha256)(b"token").digest()
    right = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    id_tokens.check_claims(proven(algorithm, at_hash=right), EXPECTED, "token", NOW)
    for access_token in ("another", None):
        with pytest.raises(errors.NotAuthenticated, match="access token"):
            id_tokens.check_claims(proven(algorithm, at_hash=right), EXPECTED, access_token, NOW)


@pytest.mark.parametrize(
    ("now", "good"),
    [
        pytest.param(NOW - 61, False, id="a clock that is too far behind"),
        pytest.param(NOW - 59, True, id="a clock that is behind"),
        pytest.param(NOW + 359, True, id="a clock that is ahead"),
        pytest.param(NOW + 360, False, id="the end, and what clocks may differ"),
    ],
)
def test_validity_times(now: float, good: bool) -> None:
    if good:
        id_tokens.check_claims(proven("ES256"), EXPECTED, None, now)
    else:
        with pytest.raises(errors.NotAuthenticated, match="clocks"):
            id_tokens.check_claims(proven("ES256"), EXPECTED, None, now)


@given(st.text() | st.builds(lambda *parts: ".".join(parts), st.text(), st.text(), st.text()))
def test_any_text_is_refused_as_a_token(text: str) -> None:
    with pytest.raises(errors.NotAuthenticated, match="the login provider's answer was rejected: the ID token is not a"):
        id_tokens.read_header(text)


JSON: st.SearchStrategy[Any] = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
MEMBERS = st.sampled_from(["kty", "kid", "use", "alg", "crv", "n", "e", "x", "y", "d"])
WORDS = st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "RS256", "AQAB", "", "AAAA"])


@given(st.lists(st.dictionaries(MEMBERS, WORDS | JSON), max_size=4))
def test_any_key_is_read_or_ignored(jwks: list[dict[str, Any]]) -> None:
    assert len(id_tokens.read_keys(json.dumps({"keys": jwks}).encode())) <= len(jwks)


@given(st.binary())
def test_any_bytes_are_keys_or_refused(body: bytes) -> None:
    with pytest.raises(errors.Unavailable, match="the login provider does not publish readable keys"):
        id_tokens.read_keys(body)


@given(st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "iat", "nonce", "azp", "auth_time", "at_hash"]), JSON))
def test_any_signed_claims_are_verified_or_refused(claims: dict[str, Any]) -> None:
    token = ED.sign(claims)
    header = id_tokens.read_header(token)
    key = id_tokens.find_key(published(ED.jwk()), header)
    assert key is not None
    with pytest.raises(errors.NotAuthenticated, match="the ID token lacks claims"):
        id_tokens.check_claims(id_tokens.verify_signature(token, header, key), EXPECTED, None, NOW)
