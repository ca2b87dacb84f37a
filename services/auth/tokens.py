"""Access tokens: EdDSA JWTs that name a user and the session they belong to. Pure; the caller brings the clock.

A good token alone admits nobody: its session must be open and its user active, which only `identities` can see.
"""

import base64
import hashlib
import uuid
from dataclasses import dataclass

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.types import Options

from shared import errors
from shared.types import Credential, UserId

LIFETIME_SECONDS = 600
#: How far the clocks of two machines may be apart.
LEEWAY_SECONDS = 60
AUDIENCE = "aimesh"

#: RFC 9068: says that this JWT is an access token, so that no other kind of ours will ever pass for one.
_TYPE = "at+jwt"
#: Ours have some 400 characters.
_LONGEST = 4096


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    iss: str
    aud: str
    sub: UserId
    #: The session, as `sessions` names it.
    sid: str
    jti: str
    iat: int
    nbf: int
    exp: int


@dataclass(frozen=True, slots=True)
class SigningKey:
    private: Ed25519PrivateKey
    public: Ed25519PublicKey
    #: RFC 7638 thumbprint.
    kid: str


def load_key(pem: str) -> SigningKey:
    """Raises BadSettings for anything but an Ed25519 private key."""
    try:
        private = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise errors.BadSettings("JWT_SIGNING_KEY is not a private key in PEM", hint="aicli stack init makes one") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise errors.BadSettings("JWT_SIGNING_KEY is not an Ed25519 key", hint="openssl genpkey -algorithm ed25519")
    public = private.public_key()
    return SigningKey(private, public, thumbprint(public))


def thumbprint(public: Ed25519PublicKey) -> str:
    """RFC 7638, with the members that RFC 8037 §2 requires of an Ed25519 key."""
    x = _base64url(public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))
    return _base64url(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest())


class AccessTokens:
    """Signs and reads the tokens of one mesh."""

    def __init__(self, key: SigningKey, issuer: str) -> None:
        self._key = key
        self._issuer = issuer
        # A dict, so that the `kid` of a token can only choose among our own keys. A second one comes with rotation.
        self._known = {key.kid: key.public}

    def issue(self, user_id: UserId, session_id: str, now: float) -> Credential:
        issued_at = int(now)
        claims = Claims(
            iss=self._issuer,
            aud=AUDIENCE,
            sub=user_id,
            sid=session_id,
            jti=uuid.uuid4().hex,
            iat=issued_at,
            nbf=issued_at,
            exp=issued_at + LIFETIME_SECONDS,
        )
        headers = {"typ": _TYPE, "kid": self._key.kid}
        return Credential(jwt.encode(msgspec.to_builtins(claims), self._key.private, algorithm="EdDSA", headers=headers))

    def read(self, token: str, now: float) -> Claims:
        """Raises NotAuthenticated for a token that is not ours, not for us, or not valid now."""
        if len(token) > _LONGEST:
            raise _refused("the credential is neither an API key nor an access token")
        try:
            header = jwt.get_unverified_header(token)
            public = self._known.get(str(header.get("kid")))
            if public is None or header.get("typ") != _TYPE:
                raise _refused("the access token was not made by this mesh")
            # The times are compared below, with our clock.
            options: Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
            payload = jwt.decode(token, public, algorithms=["EdDSA"], audience=AUDIENCE, issuer=self._issuer, options=options)
            claims = msgspec.convert(payload, Claims)
        except (jwt.InvalidTokenError, msgspec.ValidationError, UnicodeError) as error:
            raise _refused("the credential is neither an API key nor an access token of this mesh") from error
        if now >= claims.exp + LEEWAY_SECONDS:
            raise errors.NotAuthenticated("the access token has expired", hint="get a new one with refreshSession, or log in again")
        if now < min(claims.nbf, claims.iat) - LEEWAY_SECONDS:
            raise errors.NotAuthenticated("the access token is not valid yet", hint="check the clocks of this machine and the auth service")
        return claims


def _refused(message: str) -> errors.NotAuthenticated:
    return errors.NotAuthenticated(message, hint="log in, or make a key with `aicli keys create`")


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
