"""Access tokens and session tokens. Pure but for the randomness, and for keys that may have to be looked for; the caller brings the clock.

An access token is an EdDSA JWT that names a user, the session it belongs to, for whom it acts and what it was good for when it was made.
A good one alone admits nobody: its session must be open and act for the same tenant, and its user active, which only `identities` can
see; what a user may do is looked up each time.

A session token is opaque: `aip_rt_`, 22 characters of the session's family, 43 of a secret and 6 of checksum (see
`shared.identity.credentials`). It gives new access tokens; only hashes of it are kept.
"""

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import jwt
import msgspec
from jwt.types import Options

from services.auth.signing.signing_keys import VerificationKeys
from shared import errors
from shared.identity import credentials
from shared.types import Credential, TenantId, UserId

LIFETIME_SECONDS = 600
#: How far the clocks of two machines may be apart.
LEEWAY_SECONDS = 60
AUDIENCE = "aimesh"

#: RFC 9068: says that this JWT is an access token, so that no other kind of ours will ever pass for one.
_TYPE = "at+jwt"
#: Ours have some 600 characters.
_LONGEST = 4096

_SESSION_PREFIX = "aip_rt_"
#: 131 bits and 256 bits of base62.
_FAMILY_CHARACTERS, _SECRET_CHARACTERS = 22, 43
_SESSION_TOKEN_CHARACTERS = len(_SESSION_PREFIX) + _FAMILY_CHARACTERS + _SECRET_CHARACTERS + credentials.CHECKSUM_CHARACTERS


class AccessTokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    iss: str
    aud: str
    sub: UserId
    #: The session, as `session_store` names it.
    sid: str
    #: Who is charged and shown: an organisation, or the user's own. None in tokens that an older auth has made.
    tid: TenantId | None = None
    #: Of `shared.access.access_table`, with spaces between (RFC 9068 §2.2.3).
    scope: str = ""
    jti: str
    iat: int
    nbf: int
    exp: int


class AccessTokens:
    """Signs and reads the tokens of one mesh. The `kid` of a token can only choose among our own keys."""

    def __init__(self, keys: VerificationKeys, issuer: str) -> None:
        self._keys = keys
        self._issuer = issuer

    def issue(self, user_id: UserId, session_id: str, now: float, *, tenant_id: TenantId, scopes: Iterable[str]) -> Credential:
        issued_at = int(now)
        key = self._keys.signer()
        claims = AccessTokenClaims(
            iss=key.issuer(self._issuer),
            aud=AUDIENCE,
            sub=user_id,
            sid=session_id,
            tid=tenant_id,
            scope=" ".join(sorted(scopes)),
            jti=uuid.uuid4().hex,
            iat=issued_at,
            nbf=issued_at,
            exp=issued_at + LIFETIME_SECONDS,
        )
        headers = {"typ": _TYPE, "kid": key.kid}
        return Credential(jwt.encode(msgspec.to_builtins(claims), key.private, algorithm="EdDSA", headers=headers))

    async def read(self, token: str, now: float) -> AccessTokenClaims:
        """Raises NotAuthenticated for a token that is not ours, not for us, or not valid now, and Unavailable where its key is not
        known and cannot be looked for."""
        if len(token) > _LONGEST:
            raise _refused("the credential is neither an API key nor an access token")
        try:
            header = jwt.get_unverified_header(token)
            key = await self._keys.find(str(header.get("kid"))) if header.get("typ") == _TYPE else None
            if key is None:
                raise _refused("the access token was not made by this mesh")
            # The times are compared below, with our clock.
            options: Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
            payload = jwt.decode(
                token, key.public, algorithms=["EdDSA"], audience=AUDIENCE, issuer=key.issuer(self._issuer), options=options
            )
            claims = msgspec.convert(payload, AccessTokenClaims)
        except (jwt.InvalidTokenError, msgspec.ValidationError, UnicodeError) as error:
            raise _refused("the credential is neither an API key nor an access token of this mesh") from error
        if now >= claims.exp + LEEWAY_SECONDS:
            raise errors.NotAuthenticated("the access token has expired", hint="get a new one with refreshSession, or log in again")
        if now < min(claims.nbf, claims.iat) - LEEWAY_SECONDS:
            raise errors.NotAuthenticated("the access token is not valid yet", hint="check the clocks of this machine and the auth service")
        return claims


def _refused(message: str) -> errors.NotAuthenticated:
    return errors.NotAuthenticated(message, hint="log in, or make a key with `aicli keys create`")


@dataclass(frozen=True, slots=True)
class SessionToken:
    """The token of a session, taken apart. The family is the same for all tokens of a session, so that one that was spent long ago is
    still known for what it is."""

    family: str
    secret: str

    @classmethod
    def new(cls) -> "SessionToken":
        return cls(random_text(_FAMILY_CHARACTERS), random_text())

    @classmethod
    def read(cls, text: str) -> "SessionToken | None":
        """None for what cannot be one: a mistyped token must not pass for a spent one."""
        if len(text) != _SESSION_TOKEN_CHARACTERS or not text.startswith(_SESSION_PREFIX) or not text.isascii():
            return None
        random, checksum = text[len(_SESSION_PREFIX) : -credentials.CHECKSUM_CHARACTERS], text[-credentials.CHECKSUM_CHARACTERS :]
        if credentials.checksum(random) != checksum:
            return None
        return cls(random[:_FAMILY_CHARACTERS], random[_FAMILY_CHARACTERS:])

    def successor(self, nonce: str) -> "SessionToken":
        """The same for whoever has this token and the nonce, which is nobody but a caller and Valkey together."""
        made = hmac.digest(bytes.fromhex(nonce), self.secret.encode(), hashlib.sha256)
        return SessionToken(self.family, _base62(made, _SECRET_CHARACTERS))

    @property
    def text(self) -> str:
        random = self.family + self.secret
        return _SESSION_PREFIX + random + credentials.checksum(random)

    @property
    def family_hash(self) -> str:
        return hash_of(self.family)

    @property
    def hash(self) -> str:
        return hash_of(self.family + self.secret)


def hash_of(text: str) -> str:
    """What is kept of an opaque token; 256 random bits need nothing slower."""
    return hashlib.sha256(text.encode()).hexdigest()


def random_text(characters: int = _SECRET_CHARACTERS) -> str:
    """In base62; 256 bits where nobody says otherwise."""
    return _base62(secrets.token_bytes(32), characters)


def _base62(raw: bytes, characters: int) -> str:
    number, digits = int.from_bytes(raw, "big"), []
    for _ in range(characters):
        number, digit = divmod(number, len(credentials.ALPHABET))
        digits.append(credentials.ALPHABET[digit])
    return "".join(digits)
