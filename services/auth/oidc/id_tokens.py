"""Whether an ID token proves who somebody is: its signature, and the rules of OpenID Connect Core §3.1.3.7. Pure.

The token comes straight from the provider; it is checked as if it came from anybody.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.auth.oidc import oidc_errors
from services.auth.oidc.discovery import ALGORITHMS

#: How far the clocks of the two machines may be apart.
LEEWAY_SECONDS = 60

#: With a few hundred groups a token has some 20,000 characters.
_LONGEST_TOKEN = 200_000
#: OpenID Connect Core §2.
_LONGEST_SUBJECT = 255
_SMALLEST_RSA_BITS = 2048
#: A larger one takes too long to compute with.
_LARGEST_RSA_BITS = 8192

#: Key type and curve -> what may be signed with it, and the members of the public key: never the private ones, if they should be there.
_KINDS: Mapping[tuple[str, str | None], tuple[frozenset[str], tuple[str, ...]]] = {
    ("RSA", None): (frozenset({"RS256", "PS256"}), ("kty", "n", "e")),
    ("EC", "P-256"): (frozenset({"ES256"}), ("kty", "crv", "x", "y")),
    ("OKP", "Ed25519"): (frozenset({"EdDSA"}), ("kty", "crv", "x")),
}
#: at_hash is made with the hash of the signature; that of Ed25519 is SHA-512.
_HASHES = {"RS256": hashlib.sha256, "PS256": hashlib.sha256, "ES256": hashlib.sha256, "EdDSA": hashlib.sha512}

_JWS = jwt.PyJWS(algorithms=list(ALGORITHMS))


class TokenHeader(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None
    #: Extensions that must be understood; we understand none.
    crit: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True, slots=True)
class ProviderKey:
    kid: str | None
    algorithms: frozenset[str]
    public: jwt.algorithms.AllowedPublicKeys


class IdTokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    """Those that prove something; who it is stands in the others."""

    iss: str
    sub: str
    aud: str | tuple[str, ...]
    exp: float
    iat: float
    nonce: str | None = None
    azp: str | None = None
    nbf: float | None = None
    auth_time: float | None = None
    at_hash: str | None = None

    @property
    def audiences(self) -> tuple[str, ...]:
        return (self.aud,) if isinstance(self.aud, str) else self.aud


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a token of this very login says."""

    issuer: str
    client_id: str
    nonce: str = field(repr=False)
    #: Seconds since 1970; nothing that is older is an answer.
    began_at: float
    max_age_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Proven:
    """The claims of a token whose signature is right; nothing else about it has been looked at yet."""

    header: TokenHeader
    claims: IdTokenClaims
    #: All of them.
    said: Mapping[str, object]


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    crv: str | None = None


class _KeySet(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, object], ...]


def read_keys(body: bytes) -> tuple[ProviderKey, ...]:
    """Of a provider's keys, those that an ID token may be signed with. Raises Unavailable for what is no list of keys."""
    try:
        listed = msgspec.json.decode(body, type=_KeySet).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise oidc_errors.unavailable("does not publish its keys in a form that can be read") from error
    return tuple(key for each in listed if (key := _read_key(each)) is not None)


def read_header(token: str) -> TokenHeader:
    """Raises NotAuthenticated for what is no signed token, or is signed in a way that we do not take."""
    if len(token) > _LONGEST_TOKEN or token.count(".") != 2:
        raise oidc_errors.not_vouched_for("the ID token is not a signed one")
    first = token.partition(".")[0]
    try:
        header = msgspec.json.decode(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)), type=TokenHeader)
    except (ValueError, UnicodeDecodeError) as error:  # msgspec's errors are ValueErrors too
        raise oidc_errors.not_vouched_for("the ID token is not a signed one") from error
    if header.alg not in ALGORITHMS:
        raise oidc_errors.not_vouched_for("the ID token is signed with none of " + ", ".join(ALGORITHMS))
    if bytes(header.crit):
        raise oidc_errors.not_vouched_for("the ID token asks for an extension that is not known here")
    return header


def find_key(keys: tuple[ProviderKey, ...], header: TokenHeader) -> ProviderKey | None:
    """The one key that the token can be signed with. Without a `kid`, only if there is no choice."""
    fitting = [key for key in keys if header.alg in key.algorithms and header.kid in (None, key.kid)]
    return fitting[0] if len(fitting) == 1 else None


def prove(token: str, header: TokenHeader, key: ProviderKey) -> Proven:
    """Raises NotAuthenticated where the signature is wrong, or claims are missing."""
    try:
        # One algorithm: the key's, and not whatever the token would like.
        payload = _JWS.decode(token, key.public, algorithms=[header.alg])
        said = msgspec.json.decode(payload, type=dict[str, object])
        return Proven(header, msgspec.convert(said, IdTokenClaims), said)
    except jwt.InvalidTokenError as error:
        raise oidc_errors.not_vouched_for("the ID token's signature is wrong") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise oidc_errors.not_vouched_for("the ID token lacks claims, or they have another form") from error


def check(proven: Proven, expected: Expected, access_token: str | None, now: float) -> None:
    """Raises NotAuthenticated with the rule that is broken."""
    claims = proven.claims
    rules = (
        (claims.iss == expected.issuer, "it is of another provider"),
        (expected.client_id in claims.audiences, "it is for somebody else"),
        (_is_party(claims, expected.client_id), "it was issued to somebody else"),
        (now < claims.exp + LEEWAY_SECONDS, "it has expired; are the clocks right?"),
        (_is_of_now(claims, now), "it is not valid yet; are the clocks right?"),
        (claims.iat >= expected.began_at - LEEWAY_SECONDS, "it is older than this login; are the clocks right?"),
        (hmac.compare_digest((claims.nonce or "").encode(), expected.nonce.encode()), "it is of another login"),
        (_is_fresh(claims, expected.max_age_seconds, now), "the password was shown too long ago"),
        (_is_beside(proven, access_token), "it does not belong to the access token beside it"),
        (0 < len(claims.sub) <= _LONGEST_SUBJECT and claims.sub.isprintable(), "it does not say whose it is"),
    )
    for holds, what in rules:
        if not holds:
            raise oidc_errors.not_vouched_for(f"the ID token does not fit: {what}")


def _is_party(claims: IdTokenClaims, client_id: str) -> bool:
    """``azp`` is there where a token is for several; if it is there at all it names us."""
    return claims.azp == client_id or (claims.azp is None and len(claims.audiences) == 1)


def _is_of_now(claims: IdTokenClaims, now: float) -> bool:
    return now >= max(claims.iat, claims.nbf or claims.iat) - LEEWAY_SECONDS


def _is_fresh(claims: IdTokenClaims, max_age_seconds: int | None, now: float) -> bool:
    if max_age_seconds is None:
        return True
    return claims.auth_time is not None and now <= claims.auth_time + max_age_seconds + LEEWAY_SECONDS


def _is_beside(proven: Proven, access_token: str | None) -> bool:
    if proven.claims.at_hash is None:
        return True
    if access_token is None:
        return False
    digest = _HASHES[proven.header.alg](access_token.encode()).digest()
    half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
    return hmac.compare_digest(half, proven.claims.at_hash.encode())


def _read_key(jwk: Mapping[str, object]) -> ProviderKey | None:
    """None for a key of another use or kind: there may be such ones beside ours."""
    try:
        known = msgspec.convert(jwk, _Jwk)
    except msgspec.ValidationError:
        return None
    kind = _KINDS.get((known.kty, known.crv))
    if kind is None or known.use not in (None, "sig"):
        return None
    algorithms, members = kind
    if known.alg is not None:
        algorithms &= {known.alg}
    if not algorithms:
        return None
    try:
        public = jwt.PyJWK({name: jwk[name] for name in members}, min(algorithms)).key
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        return None
    if isinstance(public, RSAPublicKey) and not _SMALLEST_RSA_BITS <= public.key_size <= _LARGEST_RSA_BITS:
        return None
    return ProviderKey(known.kid, algorithms, public)
