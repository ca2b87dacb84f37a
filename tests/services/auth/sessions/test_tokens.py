"""Access tokens are accepted only if they are signed by us, meant for us, and valid now."""

import base64
import json
import re
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from services.auth.sessions.signing_keys import PrivateSigningKey
from services.auth.sessions.tokens import AccessTokens, SessionToken
from shared import errors
from shared.types import Credential, TenantId, UserId

NOW = 1_800_000_000.0
USER = UserId(UUID(int=7))


class OneKey:
    """``VerificationKeys`` of a mesh that has never rotated its key."""

    def signer(self) -> PrivateSigningKey:
        return KEY

    async def find(self, kid: str) -> PrivateSigningKey | None:
        return KEY if kid == KEY.kid else None


KEY = PrivateSigningKey.generate(0)
OURS = AccessTokens(OneKey(), "aimesh/home")
TEAM = TenantId(UUID(int=8))


def issued() -> Credential:
    return OURS.issue(USER, "session", NOW, tenant_id=TEAM, scopes={"usage:read", "key:write"})


GOOD = issued()
TOKEN = SessionToken.new()


def forged(header: dict[str, Any] | None = None, key: Any = KEY.private, algorithm: str | None = "EdDSA", **changes: Any) -> str:
    """Return a valid token with some of it changed. None removes a claim."""
    claims = {**jwt.decode(GOOD, options={"verify_signature": False}), **changes}
    headers = {"typ": "at+jwt", "kid": KEY.kid, **(header or {})}
    return jwt.encode(given_of(claims), key, algorithm=algorithm, headers=given_of(headers))


def given_of(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if value is not None}


async def test_a_token_names_its_user() -> None:
    claims = await OURS.read(GOOD, NOW + 1)
    assert (claims.sub, claims.sid, claims.iss, claims.aud) == (USER, "session", "aimesh/home", "aimesh")
    assert (claims.tid, claims.scope) == (TEAM, "key:write usage:read")
    assert claims.exp - claims.iat == 600
    assert jwt.get_unverified_header(GOOD) == {"alg": "EdDSA", "typ": "at+jwt", "kid": KEY.kid}
    assert (await OURS.read(issued(), NOW)).jti != claims.jti


@pytest.mark.parametrize(
    ("now", "message"),
    [
        pytest.param(NOW + 659, None, id="within the leeway after its end"),
        pytest.param(NOW + 660, "expired", id="after the leeway"),
        pytest.param(NOW - 60, None, id="from a clock that is ahead"),
        pytest.param(NOW - 61, "not valid yet", id="from the future"),
    ],
)
async def test_lifetimes(now: float, message: str | None) -> None:
    if message is None:
        await OURS.read(GOOD, now)
        return
    with pytest.raises(errors.NotAuthenticated, match=message):
        await OURS.read(GOOD, now)


STRANGER = Ed25519PrivateKey.generate()


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
        pytest.param(forged(tid="acme"), id="a tenant that is no id"),
        pytest.param(forged(scope=["*"]), id="scopes in a list"),
        *(
            pytest.param(forged(**{claim: None}), id=f"without {claim}")
            for claim in ("iss", "aud", "sub", "sid", "tid", "scope", "jti", "iat", "nbf", "exp")
        ),
        pytest.param(forged(exp=float(2**70)), id="an end that is no whole number of ours"),
        pytest.param("", id="nothing"),
        pytest.param("a.b.c", id="three letters"),
        pytest.param(f"{base64.urlsafe_b64encode(b'[' * 2500).decode().rstrip('=')}.e30.x", id="a header that is nested too deeply"),
        pytest.param(f"{base64.urlsafe_b64encode(json.dumps(['alg']).encode()).decode().rstrip('=')}.e30.x", id="a header that is a list"),
        pytest.param("x" * 10_000, id="long"),
        pytest.param("é.é.é", id="not ASCII"),
    ],
)
async def test_invalid_tokens_are_refused(token: str) -> None:
    with pytest.raises(errors.NotAuthenticated, match="access token"):
        await OURS.read(token, NOW)


@given(place=st.integers(0, len(GOOD) - 2), other=st.sampled_from("ABab01-_."))
async def test_one_changed_character_is_detected(place: int, other: str) -> None:
    if GOOD[place] == other:
        return
    with pytest.raises(errors.NotAuthenticated, match="access token"):
        await OURS.read(GOOD[:place] + other + GOOD[place + 1 :], NOW)


@given(st.text())
async def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(errors.NotAuthenticated, match="the credential is neither an API key nor an access token of this mesh"):
        await OURS.read(text, NOW)


# --- session tokens ------------------------------------------------------------------------------------------------------


def test_a_session_token_is_read_as_written() -> None:
    token = SessionToken.new()
    assert SessionToken.read(token.text) == token
    assert re.fullmatch(r"aip_rt_[0-9A-Za-z]{22}[0-9A-Za-z]{43}[0-9A-Za-z]{6}", token.text)
    assert len({SessionToken.new().text for _ in range(100)}) == 100


def test_a_successor_belongs_to_the_family_and_derives_from_token_and_nonce() -> None:
    token = SessionToken.new()
    after = token.successor("ab" * 32)
    assert after.family_hash == token.family_hash
    assert after.hash != token.hash
    assert after == token.successor("ab" * 32)
    others = {token.successor("cd" * 32), SessionToken(token.family, SessionToken.new().secret).successor("ab" * 32), token}
    assert after not in others
    assert SessionToken.read(after.text) == after


@given(place=st.integers(0, 77), other=st.sampled_from("ABab01-_."))
def test_a_mistyped_session_token_is_invalid(place: int, other: str) -> None:
    text = TOKEN.text
    if text[place] != other:
        assert SessionToken.read(text[:place] + other + text[place + 1 :]) is None


@given(st.text())
def test_no_text_is_taken_for_a_session_token(text: str) -> None:
    assert SessionToken.read(text) is None
    assert SessionToken.read("aip_rt_" + text) is None
