"""Make and read access tokens and session tokens. Pure but for the randomness, and for keys that may have to be looked up.

An access token is a JWT signed with EdDSA. It names a user, their session, the tenant that the session acts for, and its scopes when the
token was made. A valid token is not enough: `identities` also checks that the session is open and acts for the same tenant, and that the
user is active. Permissions are looked up for each call.

A session token is opaque: `aip_rt_`, 22 characters of the session's family, 43 of a secret and 6 of checksum (see
`shared.identity.credentials`). It buys new access tokens. Only hashes of it are stored.
"""

import hashlib
import hmac
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from joserfc import jws

from services.auth import api_keys
from services.auth.jws_algorithms import AllowedAlgorithms
from services.auth.sessions.signing_keys import VerificationKeys
from shared import errors
from shared.identity import credentials
from shared.types import Credential, TenantId, UserId

LIFETIME_SECONDS = 600
#: Allowed difference between the clocks of two machines.
LEEWAY_SECONDS = 60
AUDIENCE = "aimesh"

#: RFC 9068: no other kind of JWT can be used as an access token.
_TYPE = "at+jwt"
#: Ours have about 600 characters.
_MAX_LENGTH = 4096

_REGISTRY = AllowedAlgorithms("EdDSA", max_header_length=512, max_payload_length=_MAX_LENGTH)

_SESSION_PREFIX = "aip_rt_"
#: 131 bits and 256 bits of base62.
_FAMILY_CHARACTERS, _SECRET_CHARACTERS = 22, 43
_SESSION_TOKEN_CHARACTERS = len(_SESSION_PREFIX) + _FAMILY_CHARACTERS + _SECRET_CHARACTERS + credentials.CHECKSUM_CHARACTERS


class AccessTokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    iss: str
    aud: str
    sub: UserId
    sid: str
    #: The tenant that is charged: an organization, or the user.
    tid: TenantId
    #: Scopes of `shared.access_table`, separated by spaces (RFC 9068 §2.2.3).
    scope: str
    jti: str
    iat: int
    nbf: int
    exp: int


class AccessTokens:
    """Sign and read the access tokens of one mesh. The `kid` of a token only selects among our own keys."""

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
        header = {"alg": "EdDSA", "typ": _TYPE, "kid": key.kid}
        return Credential(jws.serialize_compact(header, msgspec.json.encode(claims), key.jwk, registry=_REGISTRY))

    async def read(self, token: str, now: float) -> AccessTokenClaims:
        """Raises NotAuthenticated for a token that is not ours, not for us, or invalid now; Unavailable if its key cannot be found out."""
        if len(token) > _MAX_LENGTH:
            raise _refused("the credential is neither an API key nor an access token")
        try:
            signature = _REGISTRY.read(token)
            header = signature.protected
            key = await self._keys.find(str(header.get("kid"))) if header.get("typ") == _TYPE else None
            if key is None or not _REGISTRY.verify(signature, key.jwk):
                raise _refused("the access token was not made by this mesh")
            claims = msgspec.json.decode(signature.payload, type=AccessTokenClaims)
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise _refused("the credential is neither an API key nor an access token of this mesh") from error
        if claims.aud != AUDIENCE or claims.iss != key.issuer(self._issuer):
            raise _refused("the access token was not made by this mesh")
        if now >= claims.exp + LEEWAY_SECONDS:
            raise errors.NotAuthenticated("the access token has expired", hint="get a new one with refreshSession, or log in again")
        if now < min(claims.nbf, claims.iat) - LEEWAY_SECONDS:
            raise errors.NotAuthenticated("the access token is not valid yet", hint="check the clocks of this machine and the auth service")
        return claims


def _refused(message: str) -> errors.NotAuthenticated:
    return errors.NotAuthenticated(message, hint="log in, or create a key with `aicli keys create`")


@dataclass(frozen=True, slots=True)
class SessionToken:
    """The parts of a session token. All tokens of a session share the family, so a token that was used long ago is still recognized."""

    family: str
    secret: str

    @classmethod
    def new(cls) -> "SessionToken":
        return cls(api_keys.random_text(_FAMILY_CHARACTERS), api_keys.random_text(_SECRET_CHARACTERS))

    @classmethod
    def read(cls, text: str) -> "SessionToken | None":
        """Return None for anything malformed: a mistyped token must not count as a used one."""
        if len(text) != _SESSION_TOKEN_CHARACTERS or not text.startswith(_SESSION_PREFIX) or not text.isascii():
            return None
        random, checksum = text[len(_SESSION_PREFIX) : -credentials.CHECKSUM_CHARACTERS], text[-credentials.CHECKSUM_CHARACTERS :]
        if credentials.checksum(random) != checksum:
            return None
        return cls(random[:_FAMILY_CHARACTERS], random[_FAMILY_CHARACTERS:])

    def successor(self, nonce: str) -> "SessionToken":
        """Derive the next token. It takes this token and the nonce, which only the caller and Valkey have together."""
        made = hmac.digest(bytes.fromhex(nonce), self.secret.encode(), hashlib.sha256)
        return SessionToken(self.family, _base62(made, _SECRET_CHARACTERS))

    @property
    def text(self) -> str:
        random = self.family + self.secret
        return _SESSION_PREFIX + random + credentials.checksum(random)

    @property
    def family_hash(self) -> str:
        return api_keys.hash_token(self.family)

    @property
    def hash(self) -> str:
        return api_keys.hash_token(self.family + self.secret)


def _base62(raw: bytes, characters: int) -> str:
    number, digits = int.from_bytes(raw, "big"), []
    for _ in range(characters):
        number, digit = divmod(number, len(credentials.ALPHABET))
        digits.append(credentials.ALPHABET[digit])
    return "".join(digits)
