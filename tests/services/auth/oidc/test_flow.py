"""What auth sends a browser to the provider with, and what errors mean. test_hostile_answers tests the rest of an answer."""

import itertools
from urllib.parse import parse_qs, urlsplit

import pytest

from services.auth.oidc import flow
from services.auth.oidc.discovery import ClientRegistration, ProviderMetadata
from services.auth.oidc.flow import BegunLogin, LoginPurpose, ProviderReply
from shared import errors

ISSUER = "https://login.example.org"
METADATA = ProviderMetadata(
    issuer=ISSUER,
    authorization_endpoint=f"{ISSUER}/authorize",
    token_endpoint=f"{ISSUER}/token",
    jwks_uri=f"{ISSUER}/keys",
    end_session_endpoint=f"{ISSUER}/logout?all=1",
)
REGISTRATION = ClientRegistration(issuer=ISSUER, client_id="mesh & more", client_secret="secret")
PURPOSE = LoginPurpose(redirect_uri="https://ai.example.org/oidc")


def begin(
    purpose: LoginPurpose = PURPOSE, registration: ClientRegistration = REGISTRATION, metadata: ProviderMetadata = METADATA
) -> BegunLogin:
    counted = itertools.count()
    return flow.begin_login(metadata, registration, purpose, 1000.0, lambda: f"random-{next(counted)}")


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, strict_parsing=True).items()}


def test_what_the_authorization_request_contains() -> None:
    begun = begin()
    assert begun.url.startswith(f"{ISSUER}/authorize?")
    assert query_of(begun.url) == {
        "response_type": "code",
        "client_id": "mesh & more",
        "redirect_uri": "https://ai.example.org/oidc",
        "scope": "openid profile email",
        "state": begun.state,
        "nonce": begun.pending.nonce,
        "code_challenge": flow.make_challenge(begun.pending.verifier),
        "code_challenge_method": "S256",
    }
    secrets = (begun.state, begun.binding, begun.pending.nonce, begun.pending.verifier)
    assert len(set(secrets)) == 4
    assert begun.binding not in begun.url
    assert begun.pending.verifier not in begun.url


def test_the_challenge_matches_the_specification() -> None:
    # RFC 7636, appendix B.
    assert flow.make_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_openid_is_requested_even_if_the_setting_omits_it() -> None:
    registration = ClientRegistration(issuer=ISSUER, client_id="mesh", scopes=("email", "groups"))
    assert query_of(begin(registration=registration).url)["scope"] == "openid email groups"


def test_a_fresh_login_is_requested() -> None:
    begun = begin(LoginPurpose(redirect_uri=PURPOSE.redirect_uri, max_age_seconds=0))
    assert (query_of(begun.url)["max_age"], query_of(begun.url)["prompt"], begun.pending.max_age_seconds) == ("0", "login", 0)


@pytest.mark.parametrize("then", ["/", "/keys?new=1", "/a/b#c"])
def test_a_login_ends_on_one_of_our_pages(then: str) -> None:
    assert begin(LoginPurpose(redirect_uri=PURPOSE.redirect_uri, then=then)).pending.then == then


@pytest.mark.parametrize(
    "then",
    ["", "keys", "//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "/\tb", "/\n", "/ü", "/" + "a" * 2048],
)
def test_other_redirect_addresses_are_refused(then: str) -> None:
    with pytest.raises(errors.BadRequest, match="then must be a path of these pages, such as /dashboard"):
        begin(LoginPurpose(redirect_uri=PURPOSE.redirect_uri, then=then))


@pytest.mark.parametrize("address", ["", "/oidc", "javascript:alert(1)", "https://", "https://a/#b", "https://[::1"])
def test_an_invalid_return_path_is_refused(address: str) -> None:
    with pytest.raises(
        errors.BadRequest, match=r"redirectUri must be the complete address of a page, such as https://ai\.example\.org/oidc"
    ):
        begin(LoginPurpose(redirect_uri=address))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("access_denied", errors.NotAllowed),
        ("login_required", errors.NotAuthenticated),
        ("server_error", errors.Unavailable),
        ("invalid_scope", errors.Unavailable),
        ("<b>call 555</b>", errors.NotAuthenticated),
    ],
)
def test_provider_errors_are_translated(error: str, kind: type[errors.AimeshError]) -> None:
    begun = begin()
    with pytest.raises(kind) as refused:
        flow.check_answer(ProviderReply(state=begun.state, error=error, code="c"), begun.pending, begun.binding, METADATA)
    assert "<b>" not in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("code", [None, "", "a" * 4097, "a\r\nb", "ü"])
def test_an_answer_without_a_usable_code_is_refused(code: str | None) -> None:
    begun = begin()
    with pytest.raises(errors.NotAuthenticated, match="has no code"):
        flow.check_answer(ProviderReply(state=begun.state, code=code, iss=ISSUER), begun.pending, begun.binding, METADATA)


def test_a_login_begun_at_another_provider_must_end_there() -> None:
    begun = begin()
    other = ProviderMetadata(
        issuer="https://b.example", authorization_endpoint="https://b", token_endpoint="https://b", jwks_uri="https://b"
    )
    with pytest.raises(errors.NotAuthenticated, match="changed in the meantime"):
        flow.check_answer(ProviderReply(state=begun.state, code="c"), begun.pending, begun.binding, other)


def test_logging_out_keeps_the_query_of_the_address() -> None:
    url = flow.make_logout_url(METADATA, REGISTRATION, "a.b.c", "https://ai.example.org/")
    assert url is not None
    assert query_of(url) == {
        "all": "1",
        "client_id": "mesh & more",
        "post_logout_redirect_uri": "https://ai.example.org/",
        "id_token_hint": "a.b.c",
    }
    without = flow.make_logout_url(METADATA, REGISTRATION, None, "https://ai.example.org/")
    assert without is not None
    assert "id_token_hint" not in without


def test_a_provider_without_logout() -> None:
    plain = ProviderMetadata(issuer=ISSUER, authorization_endpoint="https://a", token_endpoint="https://a", jwks_uri="https://a")
    assert flow.make_logout_url(plain, REGISTRATION, None, "https://ai.example.org/") is None
