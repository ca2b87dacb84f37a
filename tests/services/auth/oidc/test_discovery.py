"""Which providers are supported, judged by what they publish."""

from typing import Any

import msgspec
import pytest

from services.auth.oidc import discovery
from services.auth.oidc.discovery import ClientAuthentication
from shared import errors

ISSUER = "https://login.example.org"


def document(issuer: str = ISSUER, **changed: Any) -> bytes:
    usual = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/keys",
        "some_other_member": [1, {"a": None}],
    }
    return msgspec.json.encode({**usual, **changed})


@pytest.mark.parametrize(
    "issuer",
    [
        ISSUER,
        "https://login.example.org/",
        "https://login.example.org:8443/realms/mesh",
        "http://127.0.0.1:3000",
        "http://localhost:3000",
        "http://[::1]:3000",
    ],
)
def test_valid_issuers(issuer: str) -> None:
    assert discovery.find_issuer_mistake(issuer) is None
    assert discovery.read_metadata(document(issuer), issuer).issuer == issuer


@pytest.mark.parametrize(
    "issuer",
    [
        "",
        "login.example.org",
        "http://login.example.org",
        "http://127.0.0.1.example.org",
        "http://192.168.1.5",
        "ftp://login.example.org",
        "https://",
        "https://user:secret@login.example.org",
        "https://login.example.org?tenant=1",
        "https://login.example.org?",
        "https://login.example.org#",
        "https://login.example.org:port",
        "https://login.example.org\\@evil.example",
        "https://login.example.org\\.evil.example",
        "https://login.example.org/a b",
        "https://löwe.example",
        "https://[::1",
        "https://login.example.org\n",
    ],
)
def test_invalid_issuers(issuer: str) -> None:
    assert discovery.find_issuer_mistake(issuer)


@pytest.mark.parametrize(
    ("issuer", "where"),
    [
        pytest.param(ISSUER, f"{ISSUER}/.well-known/openid-configuration", id="plain"),
        pytest.param(f"{ISSUER}/", f"{ISSUER}/.well-known/openid-configuration", id="a slash at the end is not doubled"),
        pytest.param(f"{ISSUER}/realms/a", f"{ISSUER}/realms/a/.well-known/openid-configuration", id="behind the path"),
    ],
)
def test_where_the_discovery_document_is(issuer: str, where: str) -> None:
    assert discovery.metadata_url(issuer) == where


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b"", "does not publish", id="nothing"),
        pytest.param(b"<html>", "does not publish", id="a page"),
        pytest.param(b"\xff", "does not publish", id="not UTF-8"),
        pytest.param(b"[]", "does not publish", id="a list"),
        pytest.param(b'{"x":' + b"[" * 100_000, "does not publish", id="a bomb of brackets"),
        pytest.param(document(token_endpoint=5), "does not publish", id="a number for an address"),
        pytest.param(document(issuer=f"{ISSUER}/"), "another issuer than", id="a slash more"),
        pytest.param(document(issuer="https://LOGIN.example.org"), "another issuer than", id="other letters"),
        pytest.param(document(token_endpoint="http://login.example.org/token"), "token_endpoint", id="tokens over plain HTTP"),
        pytest.param(document(jwks_uri="http://127.0.0.1/keys"), "jwks_uri", id="keys from our own machine"),
        pytest.param(document(userinfo_endpoint="file:///etc/passwd"), "userinfo_endpoint", id="a file"),
        pytest.param(document(end_session_endpoint="javascript:alert(1)"), "end_session_endpoint", id="a script"),
        pytest.param(document(authorization_endpoint="https://a@evil.example/"), "authorization_endpoint", id="a user in the address"),
        pytest.param(document(response_types_supported=["id_token"]), "code flow", id="no code flow"),
        pytest.param(document(id_token_signing_alg_values_supported=["HS256", "none"]), "signs ID tokens", id="no good algorithm"),
    ],
)
def test_an_unusable_document_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(errors.Unavailable, match=said) as refused:
        discovery.read_metadata(body, ISSUER)
    assert refused.value.hint


def test_a_provider_on_this_machine_may_use_plain_http() -> None:
    issuer = "http://127.0.0.1:9"
    assert discovery.read_metadata(document(issuer), issuer).token_endpoint == f"{issuer}/token"
    with pytest.raises(errors.Unavailable, match="token_endpoint"):
        discovery.read_metadata(document(issuer, token_endpoint="http://192.0.2.1/token"), issuer)


@pytest.mark.parametrize(
    ("offered", "has_secret", "chosen"),
    [
        pytest.param({}, True, ClientAuthentication.BASIC, id="what the specification says where nothing is said"),
        pytest.param(["client_secret_post", "client_secret_basic"], True, ClientAuthentication.BASIC, id="both"),
        pytest.param(["client_secret_post"], True, ClientAuthentication.POST, id="only the form"),
        pytest.param(["client_secret_basic"], False, ClientAuthentication.NONE, id="a public client"),
    ],
)
def test_which_client_authentication_is_used(offered: Any, has_secret: bool, chosen: ClientAuthentication) -> None:
    body = document(token_endpoint_auth_methods_supported=offered) if offered else document()
    assert discovery.choose_authentication(discovery.read_metadata(body, ISSUER), has_secret=has_secret) is chosen


def test_a_provider_that_accepts_no_secret() -> None:
    metadata = discovery.read_metadata(document(token_endpoint_auth_methods_supported=["private_key_jwt"]), ISSUER)
    with pytest.raises(errors.Unavailable, match="accepts no client secret"):
        discovery.choose_authentication(metadata, has_secret=True)
