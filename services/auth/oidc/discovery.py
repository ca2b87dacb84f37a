"""What a provider publishes about itself (OpenID Connect Discovery 1.0), and whether we can work with it. Pure.

The issuer is named by the administrator, letter by letter; everything else follows from the document that is found there.
"""

from collections.abc import Iterator
from enum import StrEnum
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

import msgspec

from services.auth.oidc import oidc_errors

#: With which keys an ID token may be signed. Never `none`, and no HMAC: a public key must not pass for a shared secret.
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")

_WELL_KNOWN = "/.well-known/openid-configuration"
_HINT = "check OIDC_ISSUER against the provider's own documentation"


class ClientAuthentication(StrEnum):
    """How we show the token endpoint who we are."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"
    #: There is no secret; PKCE alone ties the code to us.
    NONE = "none"


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """Of the document, what we use. The defaults are those of the specification (§3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    response_types_supported: tuple[str, ...] = ("code",)
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = (ClientAuthentication.BASIC.value,)
    #: RFC 9207: each answer names the provider that it comes from.
    authorization_response_iss_parameter_supported: bool = False


def document_of(issuer: str) -> str:
    """Where the provider publishes its document."""
    return issuer.removesuffix("/") + _WELL_KNOWN


def find_fault(issuer: str) -> str | None:
    """What is wrong with the address of an issuer, as a sentence."""
    parts = _split(issuer)
    if parts is None or parts.query or parts.fragment or "?" in issuer or "#" in issuer:
        return "it is not an address like https://login.example.org, without `?` and `#`"
    if not _is_safe(parts, loopback_allowed=True):
        return "it must begin with https:// (http:// is for a provider on this machine)"
    return None


def read(body: bytes, issuer: str) -> Metadata:
    """Raises Unavailable for a document that is not this issuer's, or of a provider that we cannot work with."""
    try:
        metadata = msgspec.json.decode(body, type=Metadata)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise oidc_errors.misconfigured("does not publish what OpenID Connect asks for", _HINT) from error
    if metadata.issuer != issuer:
        # Also by a slash at the end: the ID tokens are compared with it, letter by letter.
        raise oidc_errors.misconfigured("names itself otherwise than OIDC_ISSUER does", _HINT)
    plain_allowed = issuer.startswith("http:")
    for name, address in _endpoints(metadata):
        parts = _split(address)
        if parts is None or not _is_safe(parts, loopback_allowed=plain_allowed):
            raise oidc_errors.misconfigured(f"publishes an address that is not https: {name}", _HINT)
    if "code" not in metadata.response_types_supported:
        raise oidc_errors.misconfigured("does not offer the authorization code flow", _HINT)
    if not set(ALGORITHMS) & set(metadata.id_token_signing_alg_values_supported):
        raise oidc_errors.misconfigured("signs ID tokens with none of " + ", ".join(ALGORITHMS), "choose one of them at the provider")
    return metadata


def choose_authentication(metadata: Metadata, *, has_secret: bool) -> ClientAuthentication:
    """Raises Unavailable where the provider takes none of those that we know."""
    if not has_secret:
        return ClientAuthentication.NONE
    for way in (ClientAuthentication.BASIC, ClientAuthentication.POST):
        if way.value in metadata.token_endpoint_auth_methods_supported:
            return way
    raise oidc_errors.misconfigured("takes no client secret", "allow client_secret_basic at the provider")


def _endpoints(metadata: Metadata) -> Iterator[tuple[str, str]]:
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint", "end_session_endpoint"):
        address: str | None = getattr(metadata, name)
        if address is not None:
            yield name, address


def _split(address: str) -> SplitResult | None:
    if not address.isascii() or not address.isprintable() or " " in address or "\\" in address:
        return None
    try:
        parts = urlsplit(address)
        # Reading the port is what finds a wrong one.
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname and "@" not in parts.netloc and not parts.fragment else None


def _is_safe(parts: SplitResult, *, loopback_allowed: bool) -> bool:
    return parts.scheme == "https" or (loopback_allowed and parts.scheme == "http" and _is_loopback(parts.hostname or ""))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
