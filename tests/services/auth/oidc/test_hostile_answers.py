"""Providers, browsers and networks that lie: a login ends with a proven identity, or with an error that says what to do."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from services.auth.oidc import provider as provider_module
from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.flow import BegunLogin, LoginPurpose, ProviderReply
from services.auth.oidc.oidc_login import FinishedLogin, OidcLogins
from shared import errors
from shared.stores.cache import Cache
from shared.types import UserId
from tests.services.auth.oidc import keys
from tests.services.auth.oidc.scripted_provider import (
    ACCESS_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    SIGNING_KEY,
    FromNow,
    Reply,
    ScriptedProvider,
)
from tests.services.auth.oidc.surroundings import Clock, OpenOidc

PURPOSE = LoginPurpose(redirect_uri="http://127.0.0.1:3000/oidc", then="/keys")
CODE = "the-code"
OTHER_KEY = keys.make("ES256", SIGNING_KEY.kid)


@dataclass
class World:
    provider: ScriptedProvider
    oidc: OidcLogins

    async def begin(self, purpose: LoginPurpose = PURPOSE) -> BegunLogin:
        begun = await self.oidc.begin(purpose)
        self.provider.nonce = parse_qs(urlsplit(begun.url).query)["nonce"][0]
        return begun

    async def log_in(self, purpose: LoginPurpose = PURPOSE) -> FinishedLogin:
        begun = await self.begin(purpose)
        return await self.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)

    async def refused(self, kind: type[errors.AimeshError] = errors.NotAuthenticated, purpose: LoginPurpose = PURPOSE) -> str:
        """Return the error text of a login. It contains no secret, and always has a hint."""
        with pytest.raises(kind) as caught:
            await self.log_in(purpose)
        said = f"{caught.value.message} {caught.value.hint}"
        assert caught.value.hint
        for secret in (CODE, CLIENT_SECRET, ACCESS_TOKEN, self.provider.nonce, "eyJ"):
            assert secret not in said
        return said


@pytest.fixture
async def world(scripted: ScriptedProvider, open_oidc: OpenOidc) -> AsyncIterator[World]:
    registration = ClientRegistration(issuer=scripted.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    async with open_oidc(registration) as oidc:
        yield World(scripted, oidc)


async def test_a_valid_answer_is_accepted(world: World) -> None:
    finished = await world.log_in(replace(PURPOSE, link_to=UserId(msgspec.convert("00000000-0000-4000-8000-000000000001", UserId))))
    assert (finished.identity.subject, finished.identity.groups, finished.then) == ("ann-1", ("staff",), "/keys")
    assert str(finished.link_to).endswith("0001")
    assert world.provider.form["code"] == CODE
    assert world.provider.asked["/userinfo"] == 0


# --- ID tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        pytest.param({"iss": "https://evil.example"}, "another provider issued it", id="another issuer"),
        pytest.param({"aud": "another"}, "meant for another client", id="another audience"),
        pytest.param({"aud": []}, "meant for another client", id="no audience"),
        pytest.param({"aud": [CLIENT_ID, "another"]}, "issued to another client", id="two audiences and no party"),
        pytest.param({"aud": [CLIENT_ID, "another"], "azp": "another"}, "issued to another client", id="two audiences, another party"),
        pytest.param({"azp": "another"}, "issued to another client", id="another party"),
        pytest.param({"exp": FromNow(-3600)}, "expired", id="expired"),
        pytest.param({"exp": None}, "lacks claims", id="no end"),
        pytest.param({"exp": "tomorrow"}, "malformed", id="an end that is no time"),
        pytest.param({"iat": FromNow(3600)}, "not valid yet", id="of the future"),
        pytest.param({"iat": FromNow(-3600)}, "older than this login", id="of an earlier login"),
        pytest.param({"nbf": FromNow(3600)}, "not valid yet", id="for later"),
        pytest.param({"nonce": "another"}, "belongs to another login", id="another nonce"),
        pytest.param({"nonce": None}, "belongs to another login", id="no nonce"),
        pytest.param({"nonce": "ü"}, "belongs to another login", id="a nonce that is not ASCII"),
        pytest.param({"at_hash": "AAAA"}, "access token", id="another access token"),
        pytest.param({"sub": ""}, "no valid subject", id="nobody"),
        pytest.param({"sub": "a" * 256}, "no valid subject", id="too long a name"),
        pytest.param({"sub": "a\0b"}, "no valid subject", id="a name that no table takes"),
    ],
)
async def test_a_token_with_wrong_claims_is_refused(world: World, claims: dict[str, Any], said: str) -> None:
    world.provider.claims = claims
    assert said in await world.refused()


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"aud": [CLIENT_ID]}, id="its audience in a list"),
        pytest.param({"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID}, id="for several, issued to us"),
        pytest.param({"exp": FromNow(3600), "iat": FromNow(30.5)}, id="a clock that is half a minute ahead"),
    ],
)
async def test_unusual_but_valid_tokens_are_accepted(world: World, claims: dict[str, Any]) -> None:
    world.provider.claims = claims
    assert (await world.log_in()).identity.subject == "ann-1"


def unsigned(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, "", algorithm="none", headers={"kid": SIGNING_KEY.kid})


def signed_with_the_public_key(claims: dict[str, Any]) -> str:
    """Use the public key as a shared secret. Signed by hand, because PyJWT refuses to do it."""
    pem = SIGNING_KEY.private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = _part({"alg": "HS256", "kid": SIGNING_KEY.kid})
    text = f"{head}.{_part(claims)}"
    return f"{text}.{_base64url(hmac.digest(pem, text.encode(), hashlib.sha256))}"


def without_its_signature(claims: dict[str, Any]) -> str:
    return SIGNING_KEY.sign(claims).rpartition(".")[0] + "."


def with_another_subject(claims: dict[str, Any]) -> str:
    head, _, signature = SIGNING_KEY.sign(claims).split(".")
    return f"{head}.{_part({**claims, 'sub': 'the-admin'})}.{signature}"


def bringing_its_own_key(claims: dict[str, Any]) -> str:
    return OTHER_KEY.sign(claims, jwk=OTHER_KEY.jwk(), jku="http://evil.example/keys")


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        signed_with_the_public_key,
        without_its_signature,
        with_another_subject,
        bringing_its_own_key,
        pytest.param(OTHER_KEY.sign, id="signed with another key of the same name"),
        pytest.param(lambda claims: SIGNING_KEY.sign(claims, crit=["exp"]), id="with an extension that must be understood"),
        pytest.param(lambda claims: SIGNING_KEY.sign(claims) + ".x.y", id="encrypted"),
        pytest.param(lambda claims: "x", id="no token"),
        pytest.param(lambda claims: "x" * 300_000, id="a very long one"),
        pytest.param(lambda claims: "\u00fc.\u00fc.\u00fc", id="not ASCII"),
        pytest.param(lambda claims: f"{_part(['ES256'])}.{_part(claims)}.x", id="a head that is a list"),
        pytest.param(lambda claims: f"{_base64url(b'[' * 10_000)}.{_part(claims)}.x", id="a head that is nested too deeply"),
    ],
)
async def test_a_forged_token_is_refused(world: World, forge: Callable[[dict[str, Any]], str]) -> None:
    begun = await world.begin()
    world.provider.id_token = forge(world.provider.usual_claims())
    with pytest.raises(errors.NotAuthenticated, match="was rejected"):
        await world.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)


def _part(value: object) -> str:
    return _base64url(json.dumps(value).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_an_old_login_is_refused_if_a_fresh_one_is_required(world: World) -> None:
    fresh = replace(PURPOSE, max_age_seconds=0)
    world.provider.claims = {"auth_time": int(time.time()) - 3600}
    assert "too long ago" in await world.refused(purpose=fresh)
    world.provider.claims = {}
    assert "too long ago" in await world.refused(purpose=fresh)
    world.provider.claims = {"auth_time": int(time.time())}
    assert (await world.log_in(fresh)).identity.subject == "ann-1"


async def test_another_users_userinfo_is_refused(world: World) -> None:
    world.provider.claims = {"email": None}
    world.provider.userinfo = {"sub": "the-admin", "email": "admin@example.com", "groups": ["admins"]}
    assert "about another user" in await world.refused()


async def test_userinfo_never_overrides_the_token(world: World) -> None:
    world.provider.claims = {"email": None}
    world.provider.userinfo = {"sub": "ann-1", "email": "new@example.com", "groups": ["admins"]}
    identity = (await world.log_in()).identity
    assert (identity.email, identity.groups) == ("new@example.com", ("staff",))


async def test_a_null_claim_in_the_token_is_looked_up_in_the_userinfo(world: World) -> None:
    world.provider.userinfo = {"sub": "ann-1", "email": "ann@example.org"}
    begun = await world.begin()
    world.provider.id_token = SIGNING_KEY.sign({**world.provider.usual_claims(), "email": None})
    finished = await world.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)
    assert finished.identity.email == "ann@example.org"


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_many_unknown_keys_ask_the_provider_once_in_ten_seconds(world: World, clock: Clock) -> None:
    await world.log_in()
    assert world.provider.asked["/keys"] == 1
    clock.ahead = 11
    world.provider.key = keys.make("ES256", "unknown")
    world.provider.published = [SIGNING_KEY.jwk()]
    begun = [await world.begin() for _ in range(20)]
    answers = (world.oidc.finish(ProviderReply(state=each.state, code=CODE), each.binding) for each in begun)
    refused = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(each, errors.NotAuthenticated) for each in refused), refused
    assert world.provider.asked["/keys"] == 2
    clock.ahead = 22
    await world.refused()
    assert world.provider.asked["/keys"] == 3


async def test_document_and_keys_are_cached_for_an_hour(world: World, clock: Clock) -> None:
    for ahead in (0, 1800, 3590):
        clock.ahead = ahead
        world.provider.claims = {"iat": int(clock()), "exp": int(clock()) + 300}
        await world.log_in()
    assert (world.provider.asked["/keys"], world.provider.asked["/.well-known/openid-configuration"]) == (1, 1)
    clock.ahead = 3601
    world.provider.claims = {"iat": int(clock()), "exp": int(clock()) + 300}
    await world.log_in()
    assert (world.provider.asked["/keys"], world.provider.asked["/.well-known/openid-configuration"]) == (2, 2)


async def test_many_concurrent_logins_fetch_the_document_once(world: World) -> None:
    await asyncio.gather(*(world.oidc.begin(PURPOSE) for _ in range(20)))
    assert world.provider.asked["/.well-known/openid-configuration"] == 1


async def test_callers_waiting_for_an_unreachable_provider_fail_together(world: World) -> None:
    world.provider.replies["/.well-known/openid-configuration"] = Reply("", 503)
    refused = await asyncio.gather(*(world.oidc.begin(PURPOSE) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(each, errors.Unavailable) for each in refused)
    assert world.provider.asked["/.well-known/openid-configuration"] == 1


# --- states and browsers ----------------------------------------------------------------------------------------------


async def test_a_state_works_once_however_many_use_it(world: World) -> None:
    begun = await world.begin()
    answers = [world.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding) for _ in range(10)]
    finished = await asyncio.gather(*answers, return_exceptions=True)
    assert sum(isinstance(each, FinishedLogin) for each in finished) == 1
    assert world.provider.asked["/token"] == 1


@pytest.mark.parametrize("state", ["", "unknown", "x" * 10_000, "*", "ü"])
async def test_an_invented_state_is_refused(world: World, state: str) -> None:
    await world.begin()
    with pytest.raises(errors.NotAuthenticated, match="this login was already completed, or started more than ten minutes ago"):
        await world.oidc.finish(ProviderReply(state=state, code=CODE), "")
    assert world.provider.asked["/token"] == 0


async def test_an_answer_in_another_browser_is_refused(world: World) -> None:
    """An attacker sends a link that completes the attacker's login; a victim who follows it would use the attacker's account."""
    attackers, victims = await world.begin(), await world.begin()
    for binding in (victims.binding, ""):
        attackers = await world.begin()
        with pytest.raises(errors.NotAuthenticated, match="another browser"):
            await world.oidc.finish(ProviderReply(state=attackers.state, code=CODE), binding)
    assert world.provider.asked["/token"] == 0


async def test_stored_logins_cannot_be_finished_by_a_reader_of_the_store(world: World, cache: Cache) -> None:
    begun = await world.begin()
    key = "auth:oidc:" + hashlib.sha256(begun.state.encode()).hexdigest()
    stored = await cache.get(key)
    assert stored is not None
    assert begun.state.encode() not in stored
    assert begun.binding.encode() not in stored


async def test_a_login_from_before_an_upgrade_must_start_again(world: World, cache: Cache) -> None:
    begun = await world.begin()
    key = "auth:oidc:" + hashlib.sha256(begun.state.encode()).hexdigest()
    await cache.set(key, b'{"another": "form"}', ttl_seconds=60)
    with pytest.raises(errors.NotAuthenticated, match="this login was already completed, or started more than ten minutes ago"):
        await world.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)


async def test_another_providers_answer_is_not_redeemed_here(world: World) -> None:
    """The mix-up attack of RFC 9207."""
    begun = await world.begin()
    with pytest.raises(errors.NotAuthenticated, match="expected login provider"):
        await world.oidc.finish(ProviderReply(state=begun.state, code=CODE, iss="https://evil.example"), begun.binding)
    assert world.provider.asked["/token"] == 0


async def test_a_provider_that_names_itself_must_always_do_so(scripted: ScriptedProvider, open_oidc: OpenOidc) -> None:
    scripted.metadata = {"authorization_response_iss_parameter_supported": True}
    async with open_oidc(ClientRegistration(issuer=scripted.issuer, client_id=CLIENT_ID)) as oidc:
        begun = await oidc.begin(PURPOSE)
        with pytest.raises(errors.NotAuthenticated, match="expected login provider"):
            await oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)


# --- unusable providers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param(Reply('{"id_token": '), "ID token", id="half of JSON"),
        pytest.param(Reply("[" * 100_000), "ID token", id="a bomb of brackets"),
        pytest.param(Reply('{"scope": ' + "[" * 100_000), "ID token", id="a bomb of brackets in an object"),
        pytest.param(Reply(b"\xff\xfe"), "ID token", id="not UTF-8"),
        pytest.param(Reply({"access_token": ACCESS_TOKEN}), "ID token", id="no ID token"),
        pytest.param(Reply("x" * (1024 * 1024 + 1)), "more than", id="a huge answer"),
        pytest.param(Reply("x" * 65536, repeat_every_seconds=0), "more than", id="an answer without end"),
        pytest.param(Reply("", 302, {"Location": "/elsewhere"}), "302", id="a redirect"),
        pytest.param(Reply("", 307, {"Location": "/elsewhere"}), "307", id="a redirect that takes the code along"),
        pytest.param(Reply("oops", 500), "500", id="a failure"),
        pytest.param(Reply("", headers={"Content-Encoding": "gzip"}), "compresses", id="a packed answer"),
        pytest.param(Reply({"error": "invalid_client"}, 401), "OIDC_CLIENT_SECRET", id="a client that it does not know"),
        pytest.param(Reply("", 401), "OIDC_CLIENT_SECRET", id="a client that it does not know, without a word"),
        pytest.param(Reply({"error": "unauthorized_client"}, 400), "OIDC_CLIENT_SECRET", id="a client that may not"),
    ],
)
async def test_an_unusable_token_endpoint(world: World, reply: Reply, said: str) -> None:
    world.provider.replies["/token"] = reply
    assert said in await world.refused(errors.Unavailable)
    assert world.provider.asked["/elsewhere"] == 0


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply("{", repeat_every_seconds=0.02), id="a byte now and then"),
        pytest.param(Reply("", headers={"Content-Length": "10"}), id="nothing at all"),
    ],
)
async def test_a_slow_provider_times_out(world: World, reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = await world.begin()
    monkeypatch.setattr(provider_module, "ANSWER_SECONDS", 0.2)
    world.provider.replies["/token"] = reply
    with pytest.raises(errors.Unavailable, match=r"within 0\.2 s"):
        await world.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)


async def test_a_code_refused_by_the_provider(world: World) -> None:
    world.provider.replies["/token"] = Reply({"error": "invalid_grant", "error_description": CODE}, 400)
    assert "start the login again" in await world.refused()


async def test_an_unreachable_provider(open_oidc: OpenOidc) -> None:
    async with open_oidc(ClientRegistration(issuer="http://127.0.0.1:1", client_id=CLIENT_ID)) as oidc:
        with pytest.raises(errors.Unavailable, match="cannot be reached"):
            await oidc.begin(PURPOSE)


@pytest.mark.parametrize("issuer", ["https://evil.example", "{issuer}/", "{issuer}/tenant"])
async def test_a_document_of_another_issuer_is_refused(world: World, issuer: str) -> None:
    world.provider.metadata = {"issuer": issuer.format(issuer=world.provider.issuer)}
    with pytest.raises(errors.Unavailable, match="another issuer than"):
        await world.oidc.begin(PURPOSE)


@pytest.mark.parametrize(
    "keys_reply",
    [Reply("{}"), Reply('{"x":' + "[" * 100_000), Reply('{"keys": 1}'), Reply("", 404), Reply("", 302, {"Location": "/elsewhere"})],
)
async def test_unreadable_keys(world: World, keys_reply: Reply) -> None:
    world.provider.replies["/keys"] = keys_reply
    await world.refused(errors.Unavailable)
    assert world.provider.asked["/elsewhere"] == 0


@pytest.mark.parametrize(
    "reply",
    [
        Reply("[]"),
        Reply("[" * 100_000),
        Reply('{"x":' + "[" * 100_000),
        Reply("eyJ"),
        Reply("", 401),
        Reply("", 302, {"Location": "/elsewhere"}),
    ],
)
async def test_unreadable_userinfo(world: World, reply: Reply) -> None:
    world.provider.userinfo = {"sub": "ann-1"}
    world.provider.claims = {"email": None}
    world.provider.replies["/userinfo"] = reply
    await world.refused(errors.Unavailable)
    assert world.provider.asked["/elsewhere"] == 0


async def test_neither_a_proxy_nor_a_netrc_is_used(scripted: ScriptedProvider, open_oidc: OpenOidc, monkeypatch: Any) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with open_oidc(ClientRegistration(issuer=scripted.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)) as oidc:
        assert (await World(scripted, oidc).log_in()).identity.subject == "ann-1"


# --- client authentication ----------------------------------------------------------------------------------------------


async def test_the_secret_is_sent_in_the_header_if_the_provider_accepts_it(world: World) -> None:
    await world.log_in()
    scheme, _, encoded = world.provider.authorization.partition(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", "mesh:a+client%27s+secret%3A+with+a+colon+%26+more")
    assert "client_secret" not in world.provider.form


async def test_the_secret_is_sent_in_the_form_if_the_provider_accepts_nothing_else(world: World) -> None:
    world.provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    await world.log_in()
    assert world.provider.authorization == ""
    assert (world.provider.form["client_id"], world.provider.form["client_secret"]) == (CLIENT_ID, CLIENT_SECRET)


async def test_requests_show_no_secret_in_logs(world: World) -> None:
    begun = await world.begin()
    finished = await world.oidc.finish(ProviderReply(state=begun.state, code=CODE), begun.binding)
    shown = repr(
        (
            begun,
            finished,
            ProviderReply(state=begun.state, code=CODE),
            ClientRegistration(issuer="i", client_id="c", client_secret=CLIENT_SECRET),
        )
    )
    for secret in (begun.binding, begun.pending.verifier, CODE, CLIENT_SECRET, finished.identity.id_token):
        assert secret not in shown
