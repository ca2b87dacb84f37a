"""Users from the header of Google's Identity-Aware Proxy, at a running auth that fetches the keys from a server on loopback."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.auth.oidc import iap
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import accounts, auth
from shared.api.audit import Result
from shared.types import UserRole
from tests.services.auth import by_hand
from tests.services.auth.oidc import keys
from tests.services.auth.oidc.scripted_provider import SIGNING_KEY, ScriptedProvider
from tests.services.auth.oidc.test_oidc_rpc import Web, opened_web
from tests.services.auth.surroundings import Surroundings

AUDIENCE = "/projects/1234/global/backendServices/5678"
FACTS = auth.ClientFacts("203.0.113.7", "Firefox")


def assertion(key: keys.Key = SIGNING_KEY, **changed: Any) -> str:
    now = int(time.time())
    claims = {"iss": iap.ISSUER, "aud": AUDIENCE, "sub": "accounts.google.com:11", "email": "ann@example.com", "iat": now, "exp": now + 600}
    return key.sign(claims | changed)


@pytest.fixture
async def web(world: Surroundings, settings: AuthSettings, scripted: ScriptedProvider) -> AsyncIterator[Web]:
    own = {"iap_audience": AUDIENCE, "iap_keys_url": f"{scripted.issuer}/keys", "oidc_roles": {"makers": UserRole.DEVELOPER}}
    async with opened_web(world, settings, scripted, **own) as opened:
        yield opened


async def log_in(web: Web, token: str, session: auth.LoginSession | None = None) -> auth.LoginSession | None:
    request = accounts.LoginByIap(token, FACTS, None if session is None else session.session_token)
    return (await web.beside.ask(accounts.login_by_iap, request)).session


async def test_new_user_gets_an_account_and_keeps_it(web: Web) -> None:
    first, second = await log_in(web, assertion()), await log_in(web, assertion(email="ann@other.example"))
    assert first is not None
    assert second is not None
    assert (first.user.username, first.user.email, first.user.role) == ("ann", "ann@example.com", UserRole.USER)
    assert second.user.id == first.user.id
    assert web.provider.asked["/keys"] == 1
    assert web.actions() == ["user.register"]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        pytest.param(lambda: assertion(aud="/projects/1234/global/backendServices/9"), "meant for another service", id="audience"),
        pytest.param(lambda: assertion(aud=[AUDIENCE, "x"]), "meant for another service", id="several audiences"),
        pytest.param(lambda: assertion(iss="https://accounts.google.com"), "somebody else issued it", id="issuer"),
        pytest.param(lambda: assertion(exp=int(time.time()) - 61), "it has expired", id="expired"),
        pytest.param(lambda: assertion(iat=int(time.time()) + 90), "not valid yet", id="future"),
        pytest.param(lambda: assertion(sub=""), "no valid subject", id="subject"),
        pytest.param(lambda: assertion(keys.make("ES256", SIGNING_KEY.kid)), "wrong signature", id="another key of that name"),
        pytest.param(lambda: assertion(keys.make("ES256", "new")), "does not publish", id="unknown key"),
        pytest.param(lambda: assertion(keys.make("RS256")), "signs with ES256 only", id="algorithm"),
        pytest.param(lambda: "ann@example.com", "not a signed JWT", id="no token"),
    ],
)
async def test_header_that_iap_did_not_sign_for_us_is_refused(web: Web, token: Any, reason: str) -> None:
    with pytest.raises(errors.NotAuthenticated, match=reason):
        await log_in(web, token())
    [act] = web.trail.acts
    assert (act.action, act.result, act.address) == ("session.open", Result.REFUSED, "203.0.113.7")
    assert web.world.refusals("oidc") == 1


async def test_owner_links_an_account_and_keeps_its_role(web: Web, settings: AuthSettings) -> None:
    anna = await web.password_session("anna")
    token = assertion(email=anna.user.email)
    with pytest.raises(errors.AlreadyExists, match="with your email address"):
        await log_in(web, token)
    await by_hand.run(settings.database_url, "UPDATE auth.users SET role = 'developer' WHERE id = $1", anna.user.id)
    assert await log_in(web, token, anna) is None
    again = await log_in(web, token)
    assert again is not None
    # OIDC_ROLES maps groups, and IAP reports none.
    assert (again.user.id, again.user.role) == (anna.user.id, UserRole.DEVELOPER)


async def test_iap_is_off_by_default(world: Surroundings, settings: AuthSettings, scripted: ScriptedProvider) -> None:
    async with opened_web(world, settings, scripted) as web:
        with pytest.raises(errors.NotFound, match="logins by IAP are off"):
            await log_in(web, assertion())
