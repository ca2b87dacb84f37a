"""Build what the browser is sent away with, and check that what it brings back belongs to the same login. Pure.

Three secrets tie the two together, each against another attack. ``state`` names the login and works once. ``binding`` stays in the
browser that began it, so a link with someone else's answer does nothing. ``verifier`` stays here until the code is redeemed, so a stolen
code is worthless (PKCE, RFC 7636).
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec

from services.auth import api_keys
from services.auth.oidc import discovery
from services.auth.oidc.discovery import ClientAuthentication, ClientRegistration, ProviderMetadata
from shared import errors
from shared.identity import base64url
from shared.types import UserId

_MAX_CODE_LENGTH = 4096
_MAX_PATH_LENGTH = 2048

#: Error codes of an answer: RFC 6749 §4.1.2.1, OpenID Connect Core §3.1.2.6.
_UNFINISHED = frozenset({"login_required", "interaction_required", "account_selection_required", "consent_required"})
_UNAVAILABLE = frozenset({"temporarily_unavailable", "server_error"})
#: Errors that an administrator must fix. Only these are quoted: anyone can write a link with an `error` of their own.
_MISCONFIGURED = frozenset(
    {"invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope", "request_not_supported", "invalid_target"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPurpose:
    #: Where the provider sends the browser back to; registered there.
    redirect_uri: str
    #: The path of our page to open after the login.
    then: str = "/"
    #: The logged-in user who links their account to the provider.
    link_to: UserId | None = None
    #: 0: the provider must ask for the password again.
    max_age_seconds: int | None = None


class PendingLogin(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a login until the browser comes back."""

    issuer: str
    nonce: str
    verifier: str
    redirect_uri: str
    then: str
    #: SHA-256 of the binding.
    bound_to: str
    #: Seconds since 1970.
    began_at: float
    link_to: UserId | None = None
    max_age_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class BegunLogin:
    """``url`` is where the browser goes; ``binding`` belongs in a cookie that is HttpOnly, SameSite=Lax and expires in ten minutes."""

    url: str
    binding: str = field(repr=False)
    state: str = field(repr=False)
    pending: PendingLogin = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderReply:
    """The query parameters that the browser brings back."""

    state: str = field(repr=False)
    code: str | None = field(default=None, repr=False)
    error: str | None = None
    iss: str | None = None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    form: Mapping[str, str] = field(repr=False)
    #: None if the form authenticates us.
    authorization: str | None = field(repr=False)


def start_again(message: str) -> errors.NotAuthenticated:
    """This login can't succeed; a new one may."""
    return errors.NotAuthenticated(message, hint="start the login again")


def begin_login(
    metadata: ProviderMetadata, registration: ClientRegistration, purpose: LoginPurpose, now: float, random_text: Callable[[], str]
) -> BegunLogin:
    """``random_text`` must return at least 43 unguessable letters and digits. Raises BadRequest."""
    _check_path(purpose.then)
    _check_redirect(purpose.redirect_uri)
    state, binding, nonce, verifier = (random_text() for _ in range(4))
    query = {
        "response_type": "code",
        "client_id": registration.client_id,
        "redirect_uri": purpose.redirect_uri,
        "scope": registration.requested_scopes,
        "state": state,
        "nonce": nonce,
        "code_challenge": make_challenge(verifier),
        "code_challenge_method": "S256",
    }
    if purpose.max_age_seconds is not None:
        query["max_age"] = str(purpose.max_age_seconds)
        if purpose.max_age_seconds == 0:
            # Some providers ignore max_age and only know this.
            query["prompt"] = "login"
    pending = PendingLogin(
        issuer=metadata.issuer,
        nonce=nonce,
        verifier=verifier,
        redirect_uri=purpose.redirect_uri,
        then=purpose.then,
        bound_to=api_keys.hash_token(binding),
        began_at=now,
        link_to=purpose.link_to,
        max_age_seconds=purpose.max_age_seconds,
    )
    return BegunLogin(_with_query(metadata.authorization_endpoint, query), binding, state, pending)


def check_answer(answer: ProviderReply, pending: PendingLogin, binding: str, metadata: ProviderMetadata) -> str:
    """Return the code. Raises NotAuthenticated for an answer to another login, and otherwise what the provider's error means."""
    if not hmac.compare_digest(api_keys.hash_token(binding), pending.bound_to):
        raise start_again("this login was started in another browser, or its cookie is gone")
    if pending.issuer != metadata.issuer:
        raise start_again("the login provider was changed in the meantime")
    # RFC 9207: another provider's code must not be redeemed at this one.
    required = metadata.authorization_response_iss_parameter_supported
    if (answer.iss is not None or required) and answer.iss != metadata.issuer:
        raise start_again("the answer does not come from the expected login provider")
    if answer.error is not None:
        raise _translate_error(answer.error)
    code = answer.code or ""
    if not (code.isascii() and code.isprintable() and 0 < len(code) <= _MAX_CODE_LENGTH):
        raise start_again("the login provider's answer has no code")
    return code


def make_token_request(code: str, pending: PendingLogin, registration: ClientRegistration, method: ClientAuthentication) -> TokenRequest:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": pending.redirect_uri, "code_verifier": pending.verifier}
    secret = registration.client_secret or ""
    if method is ClientAuthentication.BASIC:
        # RFC 6749 §2.3.1: each half is encoded first, because a secret may contain a colon.
        pair = f"{quote_plus(registration.client_id)}:{quote_plus(secret)}"
        return TokenRequest(form, "Basic " + base64.b64encode(pair.encode()).decode())
    form["client_id"] = registration.client_id
    if method is ClientAuthentication.POST:
        form["client_secret"] = secret
    return TokenRequest(form, None)


def make_logout_url(metadata: ProviderMetadata, registration: ClientRegistration, id_token: str | None, then: str) -> str | None:
    """Return where the browser ends its session at the provider, or None if it can't. ``then`` must be registered there."""
    if metadata.end_session_endpoint is None:
        return None
    _check_redirect(then)
    query = {"client_id": registration.client_id, "post_logout_redirect_uri": then}
    if id_token is not None:
        # Without it the provider asks which session to end.
        query["id_token_hint"] = id_token
    return _with_query(metadata.end_session_endpoint, query)


def make_challenge(verifier: str) -> str:
    """RFC 7636 §4.2, S256."""
    return base64url.encode(hashlib.sha256(verifier.encode()).digest())


def _check_path(then: str) -> None:
    """Allow only a path of our own pages, so no login link redirects elsewhere."""
    # Browsers read `\` as `/`, and drop tabs and line ends.
    is_plain = then.isascii() and then.isprintable() and "\\" not in then and len(then) <= _MAX_PATH_LENGTH
    if not is_plain or not then.startswith("/") or then.startswith("//"):
        raise errors.BadRequest("then must be a path of these pages, such as /dashboard", hint="leave it out")


def _check_redirect(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.fragment
    except ValueError:
        is_complete = False
    if not is_complete:
        raise errors.BadRequest(
            "redirectUri must be the complete address of a page, such as https://ai.example.org/oidc", hint="check PUBLIC_URL"
        )


def _translate_error(error: str) -> errors.AimeshError:
    if error == "access_denied":
        return errors.NotAllowed(
            "the login provider was not allowed to share who you are", hint="start the login again and give your consent there"
        )
    if error in _UNFINISHED:
        return start_again("the login at the provider was not completed")
    if error in _UNAVAILABLE:
        return discovery.unavailable("cannot log anyone in at the moment")
    if error in _MISCONFIGURED:
        return discovery.misconfigured(f"rejects this mesh's request: {error}", "compare OIDC_SCOPES with the provider's client")
    return start_again("the login provider refused the login")


def _with_query(address: str, query: Mapping[str, str]) -> str:
    return address + ("&" if "?" in address else "?") + urlencode(query)
