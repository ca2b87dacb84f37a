"""Read what a provider publishes about itself (OpenID Connect Discovery 1.0) and decide whether we can work with it. Pure.

The administrator sets the issuer; every other address comes from the document found there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from shared import addresses, errors

T = TypeVar("T")

#: Algorithms that may sign an ID token. Never `none` or HMAC: a public key must not be accepted as a shared secret.
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
SCOPES = ("openid", "profile", "email")
GROUPS_CLAIM = "groups"

_WELL_KNOWN = "/.well-known/openid-configuration"
_HINT = "check OIDC_ISSUER against the provider's documentation"


class ClientAuthentication(StrEnum):
    """How we authenticate to the token endpoint."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"
    #: A public client: only PKCE ties the code to us.
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistration:
    """The client that the administrator registered with the provider."""

    #: Exactly as the provider writes it.
    issuer: str
    client_id: str
    #: None for a public client.
    client_secret: str | None = field(default=None, repr=False)
    scopes: tuple[str, ...] = SCOPES
    #: The claim with the user's groups; `realm_access.roles` is nested in another claim.
    groups_claim: str = GROUPS_CLAIM
    #: Certificate authorities for the provider; None for those of this machine.
    ca_file: Path | None = None

    @property
    def requested_scopes(self) -> str:
        """Always include `openid`, without which it isn't OpenID Connect."""
        return " ".join(self.scopes if "openid" in self.scopes else ("openid", *self.scopes))


class ProviderMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the document that we use, with the specification's defaults (§3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    response_types_supported: tuple[str, ...] = ("code",)
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = (ClientAuthentication.BASIC.value,)
    #: RFC 9207: each answer names its provider.
    authorization_response_iss_parameter_supported: bool = False


def unavailable(what: str) -> errors.Unavailable:
    """The provider is unreachable or its answer is unusable. No message quotes what the provider wrote."""
    return errors.Unavailable(f"the login provider {what}", hint="try again in a minute, or log in with a password")


def misconfigured(what: str, hint: str) -> errors.Unavailable:
    """Only an administrator can fix it; the hint is for them."""
    return errors.Unavailable(f"the login provider {what}", hint=f"an administrator: {hint}")


def decode_json(body: bytes, kind: type[T]) -> T | None:
    """Return None for anything that isn't JSON of this kind, including JSON nested deeply enough to exhaust the stack."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def find_issuer_mistake(issuer: str) -> str | None:
    """Describe what is wrong with an issuer's address, or return None."""
    parts = _split(issuer)
    if parts is None or parts.query or parts.fragment or "?" in issuer or "#" in issuer:
        return "it is not an address like https://login.example.org, without `?` and `#`"
    if not _is_safe(parts, loopback_allowed=True):
        return "it must begin with https:// (http:// is only for a provider on this machine)"
    return None


def metadata_url(issuer: str) -> str:
    return issuer.removesuffix("/") + _WELL_KNOWN


def read_metadata(body: bytes, issuer: str) -> ProviderMetadata:
    """Raises Unavailable for another issuer's document, or a provider that we can't work with."""
    metadata = decode_json(body, ProviderMetadata)
    if metadata is None:
        raise misconfigured("does not publish a valid OpenID Connect document", _HINT)
    if metadata.issuer != issuer:
        # A trailing slash counts too: ID tokens are compared with the issuer character by character.
        raise misconfigured("publishes another issuer than OIDC_ISSUER", _HINT)
    plain_allowed = issuer.startswith("http:")
    for name, address in _endpoints(metadata):
        parts = _split(address)
        if parts is None or not _is_safe(parts, loopback_allowed=plain_allowed):
            raise misconfigured(f"publishes an address that is not https: {name}", _HINT)
    if "code" not in metadata.response_types_supported:
        raise misconfigured("does not offer the authorization code flow", _HINT)
    if not set(ALGORITHMS) & set(metadata.id_token_signing_alg_values_supported):
        raise misconfigured("signs ID tokens with none of " + ", ".join(ALGORITHMS), "choose one of them at the provider")
    return metadata


def choose_authentication(metadata: ProviderMetadata, *, has_secret: bool) -> ClientAuthentication:
    """Raises Unavailable if the provider supports no method that we know."""
    if not has_secret:
        return ClientAuthentication.NONE
    for method in (ClientAuthentication.BASIC, ClientAuthentication.POST):
        if method.value in metadata.token_endpoint_auth_methods_supported:
            return method
    raise misconfigured("accepts no client secret", "allow client_secret_basic at the provider")


def _endpoints(metadata: ProviderMetadata) -> Iterator[tuple[str, str]]:
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint", "end_session_endpoint"):
        address: str | None = getattr(metadata, name)
        if address is not None:
            yield name, address


def _split(address: str) -> SplitResult | None:
    if not address.isascii() or not address.isprintable() or " " in address or "\\" in address:
        return None
    try:
        parts = urlsplit(address)
        # Only reading the port finds an invalid one.
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname and "@" not in parts.netloc and not parts.fragment else None


def _is_safe(parts: SplitResult, *, loopback_allowed: bool) -> bool:
    return parts.scheme == "https" or (loopback_allowed and parts.scheme == "http" and _is_loopback(parts.hostname or ""))


def _is_loopback(host: str) -> bool:
    found = addresses.parse(host)
    return host == "localhost" or (found is not None and found.is_loopback)
