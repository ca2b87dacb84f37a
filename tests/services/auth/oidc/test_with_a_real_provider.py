"""Whole logins with npm's oidc-provider in its own process: login, consent, tokens, userinfo, new keys, logout."""

import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.flow import LoginPurpose, ProviderReply
from shared import errors
from tests.services.auth.oidc.real_provider import (
    AFTER_LOGOUT,
    ALGORITHMS,
    PUBLIC,
    REDIRECT_URI,
    SECRET,
    Browser,
    new_keys,
    real_provider,
    usual_options,
)
from tests.services.auth.oidc.surroundings import Clock, OpenOidc

PURPOSE = LoginPurpose(redirect_uri=REDIRECT_URI, then="/dashboard?tab=keys")
LOGIN, CONSENT = "Log in at the test provider", "May this mesh know who you are?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def issuer() -> AsyncIterator[str]:
    """One provider for all tests, because each browser is new to it."""
    async with real_provider() as address:
        yield address


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with Browser.open() as opened:
        yield opened


def registration(issuer: str, client_id: str = "ES256", **changed: Any) -> ClientRegistration:
    usual = {"client_secret": SECRET, "scopes": ("openid", "profile", "email", "groups")}
    return ClientRegistration(issuer=issuer, client_id=client_id, **{**usual, **changed})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_user_logs_in(issuer: str, browser: Browser, open_oidc: OpenOidc, algorithm: str) -> None:
    async with open_oidc(registration(issuer, algorithm)) as oidc:
        begun = await oidc.begin(PURPOSE)
        finished = await oidc.finish(await browser.log_in(begun.url), begun.binding)
    identity = finished.identity
    assert browser.seen == [LOGIN, CONSENT]
    assert finished.then == "/dashboard?tab=keys"
    assert (identity.issuer, identity.subject, identity.username) == (issuer, "ann-1", "Ann")
    assert (identity.email, identity.email_verified) == ("ann@example.com", True)
    assert identity.groups == ("staff", "makers")
    assert identity.methods == ("pwd",)


async def test_a_public_client_has_no_secret(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    async with open_oidc(registration(issuer, PUBLIC, client_secret=None)) as oidc:
        begun = await oidc.begin(PURPOSE)
        assert (await oidc.finish(await browser.log_in(begun.url, "bob-2"), begun.binding)).identity.subject == "bob-2"


async def test_a_wrong_secret_is_reported_to_the_administrator(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    async with open_oidc(registration(issuer, client_secret="another one")) as oidc:
        begun = await oidc.begin(PURPOSE)
        answer = await browser.log_in(begun.url)
        with pytest.raises(errors.Unavailable, match="rejects the credentials") as refused:
            await oidc.finish(answer, begun.binding)
    assert "OIDC_CLIENT_SECRET" in refused.value.hint
    assert "another one" not in f"{refused.value.message} {refused.value.hint}"


async def test_a_user_who_refuses_consent_is_not_logged_in(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    async with open_oidc(registration(issuer)) as oidc:
        begun = await oidc.begin(PURPOSE)
        answer = await browser.log_in(begun.url, consent="refuse")
        assert (answer.code, answer.error, answer.iss) == (None, "access_denied", issuer)
        with pytest.raises(errors.NotAllowed, match="the login provider was not allowed to share who you are"):
            await oidc.finish(answer, begun.binding)


async def test_an_answer_works_once(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    async with open_oidc(registration(issuer)) as oidc:
        begun = await oidc.begin(PURPOSE)
        answer = await browser.log_in(begun.url)
        await oidc.finish(answer, begun.binding)
        with pytest.raises(errors.NotAuthenticated, match="already completed"):
            await oidc.finish(answer, begun.binding)


async def test_a_stolen_code_is_useless_in_another_login(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    """PKCE: the provider compares the verifier of the thief's login with the challenge of the victim's."""
    async with open_oidc(registration(issuer)) as oidc:
        stolen = await browser.log_in((await oidc.begin(PURPOSE)).url)
        thiefs = await oidc.begin(PURPOSE)
        with pytest.raises(errors.NotAuthenticated, match="refuses its code") as refused:
            await oidc.finish(ProviderReply(state=thiefs.state, code=stolen.code, iss=stolen.iss), thiefs.binding)
    assert stolen.code is not None
    assert stolen.code not in f"{refused.value.message} {refused.value.hint}"


async def test_logging_out_ends_the_providers_session_too(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    async with open_oidc(registration(issuer)) as oidc:
        begun = await oidc.begin(PURPOSE)
        first = await oidc.finish(await browser.log_in(begun.url), begun.binding)
        # The provider knows the browser, so it asks nothing.
        again = await oidc.begin(PURPOSE)
        assert (await oidc.finish(await browser.log_in(again.url), again.binding)).identity.subject == "ann-1"
        assert browser.seen == [LOGIN, CONSENT]

        url = await oidc.logout_url(first.identity.id_token, AFTER_LOGOUT)
        assert url is not None
        assert urlsplit(await browser.log_out(url)).path == "/"

        browser.seen.clear()
        third = await oidc.begin(PURPOSE)
        assert (await oidc.finish(await browser.log_in(third.url, "bob-2"), third.binding)).identity.subject == "bob-2"
        assert LOGIN in browser.seen


async def test_a_fresh_login_asks_for_the_password_again(issuer: str, browser: Browser, open_oidc: OpenOidc) -> None:
    async with open_oidc(registration(issuer)) as oidc:
        begun = await oidc.begin(PURPOSE)
        await oidc.finish(await browser.log_in(begun.url), begun.binding)
        browser.seen.clear()
        fresh = await oidc.begin(LoginPurpose(redirect_uri=REDIRECT_URI, max_age_seconds=0))
        finished = await oidc.finish(await browser.log_in(fresh.url), fresh.binding)
    assert browser.seen == [LOGIN]
    assert finished.identity.authenticated_at is not None


async def test_new_provider_keys_are_fetched(browser: Browser, open_oidc: OpenOidc, clock: Clock) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first_life = await stack.enter_async_context(contextlib.AsyncExitStack())
        issuer = await first_life.enter_async_context(real_provider())
        oidc = await stack.enter_async_context(open_oidc(registration(issuer)))
        begun = await oidc.begin(PURPOSE)
        await oidc.finish(await browser.log_in(begun.url), begun.binding)
        await first_life.aclose()

        port = urlsplit(issuer).port
        assert await stack.enter_async_context(real_provider(**usual_options(new_keys("2")), port=port)) == issuer
        browser.http.cookies.clear()
        clock.ahead = 11
        again = await oidc.begin(PURPOSE)
        assert (await oidc.finish(await browser.log_in(again.url), again.binding)).identity.subject == "ann-1"


async def test_a_provider_with_a_private_ca(open_oidc: OpenOidc, tmp_path: Path) -> None:
    key, certificate = self_signed()
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(certificate, encoding="utf-8")
    async with (
        real_provider(tls={"key": key, "cert": certificate}) as issuer,
        Browser.open(verify=ssl.create_default_context(cafile=ca_file)) as browser,
    ):
        assert issuer.startswith("https://")
        async with open_oidc(registration(issuer, ca_file=ca_file)) as oidc:
            begun = await oidc.begin(PURPOSE)
            assert (await oidc.finish(await browser.log_in(begun.url), begun.binding)).identity.subject == "ann-1"
        async with open_oidc(registration(issuer)) as trusting_others:
            with pytest.raises(errors.Unavailable, match="cannot be reached"):
                await trusting_others.begin(PURPOSE)


def self_signed() -> tuple[str, str]:
    """Return a key and a certificate for 127.0.0.1, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the provider's own authority")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()
