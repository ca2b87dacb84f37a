"""Access tokens: only ours, only for us, only now."""

import base64
import json
import re
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from services.auth import tokens
from services.auth.tokens import AccessTokens, SessionToken
from shared import errors
from shared.types import UserId

NOW = 1_800_000_000.0
USER = UserId(UUID(int=7))


def pem_of(key: Any) -> str:
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


KEY = tokens.load_key(pem_of(Ed25519PrivateKey.generate()))
OURS = AccessTokens(KEY, "aimesh/home")
GOOD = OURS.issue(USER, "session", NOW)
TOKEN = SessionToken.new()


def forged(header: dict[str, Any] | None = None, key: Any = KEY.private, algorithm: str | None = "EdDSA", **changes: Any) -> str:
    """A good token with some of it changed; None takes a claim away."""
    claims = {**jwt.decode(GOOD, options={"verify_signature": False}), **changes}
    headers = {"typ": "at+jwt", "kid": KEY.kid, **(header or {})}
    return jwt.encode(given_of(claims), key, algorithm=algorithm, headers=given_of(headers))


def given_of(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if value is not None}


def test_a_token_says_whose_it_is() -> None:
    claims = OURS.read(GOOD, NOW + 1)
    assert (claims.sub, claims.sid, claims.iss, claims.aud) == (USER, "session", "aimesh/home", "aimesh")
    assert claims.exp - claims.iat == 600
    assert jwt.get_unverified_header(GOOD) == {"alg": "EdDSA", "typ": "at+jwt", "kid": KEY.kid}
    assert OURS.read(OURS.issue(USER, "session", NOW), NOW).jti != claims.jti


@pytest.mark.parametrize(
    ("now", "message"),
    [
        pytest.param(NOW + 659, None, id="within the leeway after its end"),
        pytest.param(NOW + 660, "expired", id="after the leeway"),
        pytest.param(NOW - 60, None, id="from a clock that is ahead"),
        pytest.param(NOW - 61, "not valid yet", id="from the future"),
    ],
)
def test_times(now: float, message: str | None) -> None:
    if message is None:
        OURS.read(GOOD, now)
        return
    with pytest.raises(errors.NotAuthenticated, match=message):
        OURS.read(GOOD, now)


STRANGER = Ed25519PrivateKey.generate()
PUBLIC_PEM = KEY.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def unsigned() -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = jwt.decode(GOOD, options={"verify_signature": False})
    return f"{part({'alg': 'none', 'typ': 'at+jwt', 'kid': KEY.kid})}.{part(claims)}."


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(forged(key=STRANGER), id="signed by another key"),
        pytest.param(unsigned(), id="not signed"),
        pytest.param(forged(key="x" * 32, algorithm="HS256"), id="a shared secret"),
        pytest.param(forged({"kid": "../../etc/passwd"}), id="a kid that is a path"),
        pytest.param(forged({"kid": None}), id="no kid"),
        pytest.param(forged({"typ": "JWT"}), id="not an access token"),
        pytest.param(forged({"jwk": {"kty": "OKP"}, "kid": "x"}), id="brings its own key"),
        pytest.param(forged(iss="aimesh/other"), id="of another mesh"),
        pytest.param(forged(aud="other"), id="for somebody else"),
        pytest.param(forged(sub="root"), id="a user that is no id"),
        *(
            pytest.param(forged(**{claim: None}), id=f"without {claim}")
            for claim in ("iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp")
        ),
        pytest.param(forged(exp=float(2**70)), id="an end that is no whole number of ours"),
        pytest.param("", id="nothing"),
        pytest.param("a.b.c", id="three letters"),
        pytest.param("x" * 10_000, id="long"),
        pytest.param("é.é.é", id="not ASCII"),
    ],
)
def test_refused(token: str) -> None:
    with pytest.raises(errors.NotAuthenticated):
        OURS.read(token, NOW)


@given(place=st.integers(0, len(GOOD) - 2), other=st.sampled_from("ABab01-_."))
def test_one_changed_character_is_noticed(place: int, other: str) -> None:
    if GOOD[place] == other:
        return
    with pytest.raises(errors.NotAuthenticated):
        OURS.read(GOOD[:place] + other + GOOD[place + 1 :], NOW)


@given(st.text())
def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(errors.NotAuthenticated):
        OURS.read(text, NOW)


def test_the_thumbprint_is_that_of_rfc_8037_appendix_a() -> None:
    raw = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert tokens.thumbprint(Ed25519PublicKey.from_public_bytes(raw)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize(
    "pem",
    [
        pytest.param("", id="nothing"),
        pytest.param("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", id="broken"),
        pytest.param(pem_of(rsa.generate_private_key(65537, 2048)), id="RSA"),
        pytest.param(PUBLIC_PEM.decode(), id="a public key"),
    ],
)
def test_a_key_of_another_kind_is_a_wrong_setting(pem: str) -> None:
    with pytest.raises(errors.BadSettings, match="JWT_SIGNING_KEY"):
        tokens.load_key(pem)


# --- session tokens ------------------------------------------------------------------------------------------------------


def test_a_session_token_is_read_as_it_was_written() -> None:
    token = SessionToken.new()
    assert SessionToken.read(token.text) == token
    assert re.fullmatch(r"aip_rt_[0-9A-Za-z]{22}[0-9A-Za-z]{43}[0-9A-Za-z]{6}", token.text)
    assert len({SessionToken.new().text for _ in range(100)}) == 100


def test_a_successor_is_of_the_same_family_and_follows_from_token_and_nonce_alone() -> None:
    token = SessionToken.new()
    after = token.successor("ab" * 32)
    assert after.family_hash == token.family_hash
    assert after.hash != token.hash
    assert after == token.successor("ab" * 32)
    others = {token.successor("cd" * 32), SessionToken(token.family, SessionToken.new().secret).successor("ab" * 32), token}
    assert after not in others
    assert SessionToken.read(after.text) == after


@given(place=st.integers(0, 77), other=st.sampled_from("ABab01-_."))
def test_a_mistyped_session_token_is_none(place: int, other: str) -> None:
    text = TOKEN.text
    if text[place] != other:
        assert SessionToken.read(text[:place] + other + text[place + 1 :]) is None


@given(st.text())
def test_no_text_is_taken_for_a_session_token(text: str) -> None:
    assert SessionToken.read(text) is None
    assert SessionToken.read("aip_rt_" + text) is None
