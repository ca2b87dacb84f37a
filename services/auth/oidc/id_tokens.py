"""Verify ID tokens: the signature, and the rules of OpenID Connect Core §3.1.3.7. Pure.

The token comes straight from the provider, but is checked as if anyone could have sent it.
"""

import hashlib
import hmac
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc import jwk
from joserfc.errors import JoseError, SecurityWarning

from services.auth.jws_algorithms import AllowedAlgorithms
from services.auth.oidc import discovery
from services.auth.oidc.discovery import ALGORITHMS
from shared import errors
from shared.identity import base64url

#: Allowed difference between the two machines' clocks.
LEEWAY_SECONDS = 60

#: With a few hundred groups a token has about 20,000 characters.
_MAX_TOKEN_LENGTH = 200_000
#: Enough for a certificate chain (`x5c`) in the header.
_MAX_HEADER_LENGTH = 16_384
#: OpenID Connect Core §2.
_MAX_SUBJECT_LENGTH = 255
_MIN_RSA_BITS = 2048
#: Larger keys cost too much CPU time.
_MAX_RSA_BITS = 8192

#: Key type and curve -> allowed algorithms, and the members of the public key. Private members are dropped if a provider publishes them.
_KEY_KINDS: Mapping[tuple[str, str | None], tuple[frozenset[str], tuple[str, ...]]] = {
    ("RSA", None): (frozenset({"RS256", "PS256"}), ("kty", "n", "e")),
    ("EC", "P-256"): (frozenset({"ES256"}), ("kty", "crv", "x", "y")),
    ("OKP", "Ed25519"): (frozenset({"EdDSA"}), ("kty", "crv", "x")),
}
#: at_hash uses the hash of the signature algorithm; for Ed25519 that is SHA-512.
_HASHES = {"RS256": hashlib.sha256, "PS256": hashlib.sha256, "ES256": hashlib.sha256, "EdDSA": hashlib.sha512}

_REGISTRY = AllowedAlgorithms(*ALGORITHMS, max_header_length=_MAX_HEADER_LENGTH, max_payload_length=_MAX_TOKEN_LENGTH, strict_headers=False)


class TokenHeader(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderKey:
    kid: str | None
    algorithms: frozenset[str]
    public: jwk.Key


class IdTokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims that prove something; the profile claims stay in ``VerifiedToken.all_claims``."""

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
class ExpectedClaims:
    """What the token of this login must contain."""

    issuer: str
    client_id: str
    nonce: str = field(repr=False)
    #: Seconds since 1970. Older tokens belong to another login.
    began_at: float
    max_age_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token with a valid signature, whose claims have not been checked yet."""

    header: TokenHeader
    claims: IdTokenClaims
    all_claims: Mapping[str, object]


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    crv: str | None = None


class _KeySet(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, object], ...]


def rejected(what: str) -> errors.NotAuthenticated:
    """The provider's answer doesn't prove who this is. ``what`` must not quote it."""
    return errors.NotAuthenticated(
        f"the login provider's answer was rejected: {what}", hint="start the login again; if it happens again, tell an administrator"
    )


def read_keys(body: bytes) -> tuple[ProviderKey, ...]:
    """Return the provider's keys that may sign an ID token. Raises Unavailable if it is not a list of keys."""
    key_set = discovery.decode_json(body, _KeySet)
    if key_set is None:
        raise discovery.unavailable("does not publish readable keys")
    return tuple(key for each in key_set.keys if (key := _read_key(each)) is not None)


def read_header(token: str) -> TokenHeader:
    """Raises NotAuthenticated for anything but a JWT signed with an allowed algorithm."""
    try:
        protected = _REGISTRY.read(token).protected
        header = msgspec.convert(protected, TokenHeader)
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise rejected("the ID token is not a signed JWT") from error
    if header.alg not in ALGORITHMS:
        raise rejected("the ID token must be signed with one of " + ", ".join(ALGORITHMS))
    if "crit" in protected:
        raise rejected("the ID token requires an extension that is not supported")
    return header


def find_key(keys: tuple[ProviderKey, ...], header: TokenHeader) -> ProviderKey | None:
    """Return the only key that can have signed the token. Without a `kid` there must be exactly one candidate."""
    matching = [key for key in keys if header.alg in key.algorithms and header.kid in (None, key.kid)]
    return matching[0] if len(matching) == 1 else None


def verify_signature(token: str, header: TokenHeader, key: ProviderKey) -> VerifiedToken:
    """``token`` is one whose header was read. Raises NotAuthenticated if the signature is wrong or claims are missing."""
    signature = _REGISTRY.read(token)
    if not _REGISTRY.verify(signature, key.public):
        raise rejected("the ID token has a wrong signature")
    all_claims = discovery.decode_json(signature.payload, dict[str, object])
    try:
        return VerifiedToken(header, msgspec.convert(all_claims, IdTokenClaims), all_claims or {})
    except msgspec.ValidationError as error:
        raise rejected("the ID token lacks claims, or has malformed ones") from error


def check_claims(token: VerifiedToken, expected: ExpectedClaims, access_token: str | None, now: float) -> None:
    """Raises NotAuthenticated with the broken rule."""
    claims = token.claims
    rules = (
        (claims.iss == expected.issuer, "another provider issued it"),
        (expected.client_id in claims.audiences, "it is meant for another client"),
        (_is_authorized_party(claims, expected.client_id), "it was issued to another client"),
        *validity(claims, now),
        (claims.iat >= expected.began_at - LEEWAY_SECONDS, "it is older than this login; check the clocks"),
        (hmac.compare_digest((claims.nonce or "").encode(), expected.nonce.encode()), "it belongs to another login"),
        (_is_fresh(claims, expected.max_age_seconds, now), "the password was entered too long ago"),
        (_matches_access_token(token, access_token), "it does not match the access token"),
        (is_subject(claims.sub), "it has no valid subject"),
    )
    for holds, what in rules:
        if not holds:
            raise rejected(f"the ID token is invalid: {what}")


def validity(claims: IdTokenClaims, now: float) -> tuple[tuple[bool, str], ...]:
    """Return the rules about the time, each with what is wrong if it does not hold."""
    return (
        (now < claims.exp + LEEWAY_SECONDS, "it has expired; check the clocks"),
        (now >= max(claims.iat, claims.nbf or claims.iat) - LEEWAY_SECONDS, "it is not valid yet; check the clocks"),
    )


def is_subject(text: str) -> bool:
    return 0 < len(text) <= _MAX_SUBJECT_LENGTH and text.isprintable()


def _is_authorized_party(claims: IdTokenClaims, client_id: str) -> bool:
    """``azp`` is required with several audiences, and must always name us."""
    return claims.azp == client_id or (claims.azp is None and len(claims.audiences) == 1)


def _is_fresh(claims: IdTokenClaims, max_age_seconds: int | None, now: float) -> bool:
    if max_age_seconds is None:
        return True
    return claims.auth_time is not None and now <= claims.auth_time + max_age_seconds + LEEWAY_SECONDS


def _matches_access_token(token: VerifiedToken, access_token: str | None) -> bool:
    if token.claims.at_hash is None:
        return True
    if access_token is None:
        return False
    digest = _HASHES[token.header.alg](access_token.encode()).digest()
    half = base64url.encode(digest[: len(digest) // 2]).encode()
    return hmac.compare_digest(half, token.claims.at_hash.encode())


def _read_key(members: Mapping[str, object]) -> ProviderKey | None:
    """Return None for a key of another use or kind: providers may publish those too."""
    try:
        known = msgspec.convert(members, _Jwk)
    except msgspec.ValidationError:
        return None
    kind = _KEY_KINDS.get((known.kty, known.crv))
    if kind is None or known.use not in (None, "sig"):
        return None
    algorithms, names = kind
    if known.alg is not None:
        algorithms &= {known.alg}
    public = _import_key({name: members.get(name) for name in names}) if algorithms else None
    return None if public is None else ProviderKey(known.kid, algorithms, public)


def _import_key(members: dict[str, object]) -> jwk.Key | None:
    try:
        with warnings.catch_warnings():
            # The warning is about short RSA keys, which the next check refuses.
            warnings.simplefilter("ignore", SecurityWarning)
            key = jwk.import_key(members)  # type: ignore[arg-type]  # joserfc checks the types of the members
    except (JoseError, ValueError):
        return None
    if isinstance(key.public_key, RSAPublicKey) and not _MIN_RSA_BITS <= key.public_key.key_size <= _MAX_RSA_BITS:
        return None
    return key
