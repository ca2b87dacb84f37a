"""The way of one login: what the browser is sent away with, and whether what it brings back belongs to it. Pure.

Three secrets tie the two together, each against another attack: ``state`` names the login and is good once, ``binding`` stays in
the browser that began it (a link with somebody else's answer does nothing), and ``verifier`` never leaves this side until the code
is redeemed (PKCE, RFC 7636: a stolen code is worth nothing).
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec

from services.auth.oidc import oidc_errors
from services.auth.oidc.client_registration import ClientRegistration
from services.auth.oidc.discovery import ClientAuthentication, Metadata
from shared import errors
from shared.types import UserId

#: Long enough to find a password, a telephone and a second factor.
PENDING_SECONDS = 600

_LONGEST_CODE = 4096
_LONGEST_PATH = 2048

#: Errors of an answer (RFC 6749 §4.1.2.1, OpenID Connect Core §3.1.2.6) after which the person may simply try again.
_AGAIN = frozenset({"login_required", "interaction_required", "account_selection_required", "consent_required"})
_AWAY = frozenset({"temporarily_unavailable", "server_error"})
#: Those that are ours or the administrator's to mend. Others are not repeated to anybody: whoever made the link chose the words.
_OURS = frozenset(
    {"invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope", "request_not_supported", "invalid_target"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPurpose:
    """What a login is to do."""

    #: The provider sends the browser back to it; registered there.
    redirect_uri: str
    #: A path of these pages, for afterwards.
    then: str = "/"
    #: Who is logged in already and wants to log in by the provider from now on.
    link_to: UserId | None = None
    #: 0: the person shows the password once more, however recently that was.
    max_age_seconds: int | None = None


class PendingLogin(msgspec.Struct, frozen=True, kw_only=True):
    """What a login has begun with, until its answer comes."""

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
class Begun:
    """``url`` is for the browser to go to; ``binding`` for a cookie of it, HttpOnly and SameSite=Lax, for ten minutes."""

    url: str
    binding: str = field(repr=False)
    state: str = field(repr=False)
    pending: PendingLogin = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderReply:
    """What the browser brings back, as it stands in the address."""

    state: str = field(repr=False)
    code: str | None = field(default=None, repr=False)
    error: str | None = None
    iss: str | None = None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    form: Mapping[str, str] = field(repr=False)
    #: None where the form says who we are.
    authorization: str | None = field(repr=False)


def begin(metadata: Metadata, registration: ClientRegistration, wish: LoginPurpose, now: float, random_text: Callable[[], str]) -> Begun:
    """``random_text`` gives 43 or more letters and digits that nobody can guess, each time others. Raises BadRequest."""
    check_path(wish.then)
    _check_redirect(wish.redirect_uri)
    state, binding, nonce, verifier = (random_text() for _ in range(4))
    asked = {
        "response_type": "code",
        "client_id": registration.client_id,
        "redirect_uri": wish.redirect_uri,
        "scope": registration.asked_scopes,
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
    }
    if wish.max_age_seconds is not None:
        asked["max_age"] = str(wish.max_age_seconds)
        if wish.max_age_seconds == 0:
            # What some providers understand, and others not.
            asked["prompt"] = "login"
    pending = PendingLogin(
        issuer=metadata.issuer,
        nonce=nonce,
        verifier=verifier,
        redirect_uri=wish.redirect_uri,
        then=wish.then,
        bound_to=_hash(binding),
        began_at=now,
        link_to=wish.link_to,
        max_age_seconds=wish.max_age_seconds,
    )
    return Begun(_with_query(metadata.authorization_endpoint, asked), binding, state, pending)


def check_answer(answer: ProviderReply, pending: PendingLogin, binding: str, metadata: Metadata) -> str:
    """The code. Raises NotAuthenticated for an answer that is not to this login, and otherwise what the provider's error means."""
    if not hmac.compare_digest(_hash(binding), pending.bound_to):
        raise oidc_errors.start_again("this login was begun in another browser, or its cookie is gone")
    if pending.issuer != metadata.issuer:
        raise oidc_errors.start_again("the login provider was changed meanwhile")
    # RFC 9207: the answer of another provider is not redeemed at this one.
    required = metadata.authorization_response_iss_parameter_supported
    if (answer.iss is not None or required) and answer.iss != metadata.issuer:
        raise oidc_errors.start_again("the answer is not of the login provider that was asked")
    if answer.error is not None:
        raise _meaning(answer.error)
    code = answer.code or ""
    if not (code.isascii() and code.isprintable() and 0 < len(code) <= _LONGEST_CODE):
        raise oidc_errors.start_again("the login provider's answer has no code")
    return code


def token_request(code: str, pending: PendingLogin, registration: ClientRegistration, way: ClientAuthentication) -> TokenRequest:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": pending.redirect_uri,
        "code_verifier": pending.verifier,
    }
    secret = registration.client_secret or ""
    if way is ClientAuthentication.BASIC:
        # Each half is encoded before (RFC 6749 §2.3.1): a secret may have a colon in it.
        pair = f"{quote_plus(registration.client_id)}:{quote_plus(secret)}"
        return TokenRequest(form, "Basic " + base64.b64encode(pair.encode()).decode())
    form["client_id"] = registration.client_id
    if way is ClientAuthentication.POST:
        form["client_secret"] = secret
    return TokenRequest(form, None)


def logout_url(metadata: Metadata, registration: ClientRegistration, id_token: str | None, then: str) -> str | None:
    """Where the browser ends its session at the provider; None where the provider has no such place. ``then`` is registered there."""
    if metadata.end_session_endpoint is None:
        return None
    _check_redirect(then)
    asked = {"client_id": registration.client_id, "post_logout_redirect_uri": then}
    if id_token is not None:
        # Without it the provider asks the person whom it means.
        asked["id_token_hint"] = id_token
    return _with_query(metadata.end_session_endpoint, asked)


def challenge_of(verifier: str) -> str:
    """RFC 7636 §4.2, S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def check_path(then: str) -> None:
    """Only a path of these pages, so that no link to us ends elsewhere. Raises BadRequest."""
    # Browsers read `\` as `/`, and leave tabs and line ends out.
    plain = then.isascii() and then.isprintable() and "\\" not in then and len(then) <= _LONGEST_PATH
    if not plain or not then.startswith("/") or then.startswith("//"):
        raise errors.BadRequest("then: a path of these pages, such as /dashboard", hint="leave it out")


def _check_redirect(address: str) -> None:
    try:
        parts = urlsplit(address)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.fragment
    except ValueError:
        whole = False
    if not whole:
        raise errors.BadRequest("redirectUri: the whole address of a page, such as https://ai.example.org/oidc", hint="check PUBLIC_URL")


def _meaning(error: str) -> errors.AimeshError:
    if error == "access_denied":
        return errors.NotAllowed("the login provider was not allowed to say who you are", hint="start the login again and agree there")
    if error in _AGAIN:
        return oidc_errors.start_again("the login at the provider was not finished")
    if error in _AWAY:
        return oidc_errors.unavailable("cannot log anybody in at the moment")
    if error in _OURS:
        return oidc_errors.misconfigured(
            f"does not accept what this mesh asks for: {error}", "compare OIDC_SCOPES with the provider's client"
        )
    return oidc_errors.start_again("the login provider refused the login")


def _with_query(address: str, asked: Mapping[str, str]) -> str:
    return address + ("&" if "?" in address else "?") + urlencode(asked)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
