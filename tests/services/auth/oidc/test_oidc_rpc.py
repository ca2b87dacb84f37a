"""The calls of web: begin, finish, list and remove, at a running auth with a scripted provider."""

import base64
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import redis

from services.auth.logins import LoginRpc
from services.auth.oidc.oidc_rpc import OidcDependencies, OidcRpc
from services.auth.oidc.oidc_store import OidcStore
from services.auth.sessions.identities import SESSION_OVER
from services.auth.sessions.session_store import StoredLogin
from services.auth.settings import AuthSettings
from shared import errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, auth
from shared.api.audit import AuditedAct, Result
from shared.api.auth import SessionKind, Step
from shared.stores.cache import Cache
from shared.types import NodeId, Peer, Role, UserRole
from tests.services.auth import by_hand
from tests.services.auth.oidc.scripted_provider import CLIENT_ID, CLIENT_SECRET, ScriptedProvider
from tests.services.auth.surroundings import Surroundings

CALLBACK = "https://ai.example.org/oidc"
WEB = Peer(Role.WEB, NodeId("U" + "W" * 55))


class Remembered:
    def __init__(self) -> None:
        self.acts: list[AuditedAct] = []

    async def add(self, transaction: object, act: AuditedAct) -> None:
        self.acts.append(act)

    def note(self, act: AuditedAct) -> None:
        self.acts.append(act)


@dataclass
class Web:
    """The calls of web for one browser."""

    #: The running auth, and beside it the handlers under test: they have the same gate, but a trail to inspect.
    world: Surroundings
    beside: Surroundings
    provider: ScriptedProvider
    oidc_rpc: OidcRpc
    trail: Remembered

    async def begin(self, session: auth.LoginSession | None = None, then: str = "/keys") -> accounts.FinishOidc:
        """Begin a login, and return the request that web makes from the provider's answer."""
        token = None if session is None else session.session_token
        start = await self.beside.ask(accounts.begin_oidc, accounts.BeginOidc(CALLBACK, then, token))
        asked = {name: values[0] for name, values in parse_qs(urlsplit(start.url).query).items()}
        self.provider.nonce = asked["nonce"]
        return accounts.FinishOidc(asked["state"], start.binding, "code", client=auth.ClientFacts("203.0.113.7", "Firefox"))

    async def log_in(self, session: auth.LoginSession | None = None) -> accounts.OidcEnd:
        return await self.beside.ask(accounts.finish_oidc, await self.begin(session))

    async def session(self) -> auth.LoginSession:
        session = (await self.log_in()).session
        assert session is not None
        return session

    async def password_session(self, name: str = "anna") -> auth.LoginSession:
        """Open a browser session with a password."""
        await self.world.register(name)
        request = auth.LoginUser(auth.Credentials("secure_password", username=name), kind=SessionKind.BROWSER)
        return await self.world.ask(auth.login_user, request, peer=WEB)

    async def links(self, session: auth.LoginSession) -> list[str]:
        listed = await self.beside.ask(accounts.list_oidc_links, accounts.ListOidcLinks(), session.access_token)
        return [link.subject for link in listed.links]

    async def remove(self, session: auth.LoginSession, subject: str = "ann-1") -> None:
        request = accounts.RemoveOidcLink(self.provider.issuer, subject)
        await self.beside.ask(accounts.remove_oidc_link, request, session.access_token)

    def actions(self) -> list[str]:
        return [act.action for act in self.trail.acts]


def open_oidc_rpc(world: Surroundings, made: OidcDependencies, trail: Remembered) -> tuple[OidcRpc, Surroundings]:
    logins = world.dispatcher.find(auth.login_user.name, WEB).function.__self__  # type: ignore[attr-defined]
    assert isinstance(logins, LoginRpc)
    beside = Surroundings(metrics=world.metrics, published=world.published)
    beside.dispatcher.gate = world.dispatcher.gate
    oidc_rpc = OidcRpc(replace(world.parts, trail=trail), made, logins)
    beside.dispatcher.add(oidc_rpc)
    return oidc_rpc, beside


@contextlib.asynccontextmanager
async def opened_web(world: Surroundings, settings: AuthSettings, scripted: ScriptedProvider, **changed: object) -> AsyncIterator[Web]:
    chosen = msgspec.structs.replace(settings, **changed)
    trail = Remembered()
    links = OidcStore(world.parts.store._db, trail)
    async with OidcDependencies.open(chosen, world.service._opened.cache, links) as equipment:
        oidc_rpc, beside = open_oidc_rpc(world, equipment, trail)
        yield Web(world, beside, scripted, oidc_rpc, trail)


@pytest.fixture
async def web(world: Surroundings, settings: AuthSettings, scripted: ScriptedProvider) -> AsyncIterator[Web]:
    own = {"oidc_issuer": scripted.issuer, "oidc_client_id": CLIENT_ID, "oidc_client_secret": CLIENT_SECRET}
    async with opened_web(world, settings, scripted, oidc_roles={"makers": UserRole.DEVELOPER}, **own) as opened:
        yield opened


async def test_a_new_user_logs_in(web: Web) -> None:
    web.provider.claims = {"groups": ["makers"]}
    end = await web.log_in()
    assert end.then == "/keys"
    assert end.session is not None
    user = end.session.user
    assert (user.username, user.email, user.role, end.session.step) == ("ann", "ann@example.com", UserRole.DEVELOPER, Step.DONE)
    assert (await web.world.ask(auth.identify, auth.Identify(end.session.access_token))).user_id == user.id
    assert [type(event).__name__ for event in web.world.published] == ["UserRegistered"]
    assert (await web.session()).user.id == user.id
    assert len(web.world.published) == 1
    assert web.actions() == ["user.register"]


async def test_an_unproven_login_is_counted_and_logged(web: Web) -> None:
    web.provider.claims = {"aud": "another"}
    with pytest.raises(
        errors.NotAuthenticated, match="the login provider's answer was rejected: the ID token is invalid: it is meant for another"
    ):
        await web.log_in()
    [act] = web.trail.acts
    assert (act.action, act.result, act.address) == ("session.open", Result.REFUSED, "203.0.113.7")
    assert web.world.refusals("oidc") == 1


async def test_a_closed_account_stays_closed(web: Web, settings: AuthSettings) -> None:
    user = (await web.session()).user
    await by_hand.run(settings.database_url, "UPDATE auth.users SET is_active = false WHERE id = $1", user.id)
    with pytest.raises(errors.NotAuthenticated, match="closed"):
        await web.log_in()


async def test_an_account_with_a_password_is_linked_by_its_owner(web: Web) -> None:
    anna = await web.password_session("anna")
    web.provider.claims = {"email": anna.user.email}
    with pytest.raises(errors.AlreadyExists, match="with your email address"):
        await web.log_in()
    assert (await web.log_in(anna)).session is None
    assert await web.links(anna) == ["ann-1"]
    assert (await web.session()).user.id == anna.user.id
    await web.remove(anna)
    assert await web.links(anna) == []
    with pytest.raises(errors.NotFound, match="your account has no such link"):
        await web.remove(anna)
    assert web.actions() == ["oidc.link", "oidc.unlink"]


async def test_the_only_way_to_log_in_cannot_be_removed(web: Web) -> None:
    web.provider.claims = {"auth_time": int(time.time())}
    session = await web.session()
    with pytest.raises(errors.NotAllowed, match="could no longer log in"):
        await web.remove(session)
    assert await web.links(session) == ["ann-1"]


async def test_a_login_without_a_recent_password_cannot_do_sensitive_actions(web: Web) -> None:
    for auth_time in (None, int(time.time()) - 3600):
        web.provider.claims = {"auth_time": auth_time}
        session = await web.session()
        with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
            await web.remove(session)
        with pytest.raises(errors.ConfirmationNeeded, match="your login is too old for this"):
            await web.begin(session)


async def test_a_login_that_lacks_its_second_factor_links_nothing(web: Web) -> None:
    user = await web.world.register("anna")
    halfway = await web.world.parts.sessions.open(StoredLogin(user_id=user.id, kind=SessionKind.BROWSER, step=Step.ENTER_CODE))
    with pytest.raises(errors.SecondFactorNeeded, match="this login still lacks its second factor"):
        await web.beside.ask(accounts.begin_oidc, accounts.BeginOidc(CALLBACK, "", halfway.token))


async def test_an_ended_session_links_nothing(web: Web) -> None:
    anna = await web.password_session()
    await web.world.ask(auth.logout_user, auth.LogoutUser(anna.session_token))
    for token in (anna.session_token, "", "aip_rt_invented"):
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await web.begin(msgspec.structs.replace(anna, session_token=token))


async def test_a_user_of_the_provider_is_logged_out_there_too(web: Web) -> None:
    session, by_password = await web.session(), await web.password_session()
    url = (await web.beside.ask(accounts.leave_oidc, accounts.LeaveOidc(session.session_token, "https://ai.example.org/"))).url
    assert url is not None
    assert url.startswith(f"{web.provider.issuer}/logout?")
    assert "id_token_hint=eyJ" in url
    assert (await web.beside.ask(accounts.leave_oidc, accounts.LeaveOidc(session.session_token, "https://ai.example.org/"))).url is None
    assert (await web.beside.ask(accounts.leave_oidc, accounts.LeaveOidc(by_password.session_token, "https://ai.example.org/"))).url is None


async def left(web: Web, session: auth.LoginSession) -> dict[str, str]:
    """Leave the provider, and return the parameters of its logout URL."""
    url = (await web.beside.ask(accounts.leave_oidc, accounts.LeaveOidc(session.session_token, "https://ai.example.org/"))).url
    assert url is not None
    assert url.startswith(f"{web.provider.issuer}/logout?")
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def test_what_is_stored_for_the_logout_names_nobody(web: Web, valkey_url: str) -> None:
    session = await web.session()
    with redis.Redis.from_url(valkey_url) as client:
        kept = {key: client.get(key) for key in client.keys("auth:oidc:session:*")}
    [(key, sealed)] = kept.items()
    assert session.session_token.encode() not in key
    for open_text in (b"eyJ", b"ann-1", b"ann@example.com", web.provider.issuer.encode()):
        assert open_text not in sealed
    assert (await left(web, session))["id_token_hint"].startswith("eyJ")


async def test_after_a_change_of_the_data_key_the_provider_learns_whom_to_log_out(
    web: Web, settings: AuthSettings, scripted: ScriptedProvider
) -> None:
    session = await web.session()
    new = {"data_key": base64.b64encode(bytes(32)).decode(), "data_key_old": settings.data_key}
    own = {"oidc_issuer": scripted.issuer, "oidc_client_id": CLIENT_ID}
    async with opened_web(web.world, settings, scripted, **own, **new) as changed:
        assert (await left(changed, session))["id_token_hint"].startswith("eyJ")


@pytest.mark.parametrize("spoilt", ["another key", "another session's", "in the open", "cut", "changed"])
async def test_an_unreadable_token_is_logged_out_without_it(
    web: Web, settings: AuthSettings, scripted: ScriptedProvider, valkey_url: str, spoilt: str
) -> None:
    session = await web.session()
    with redis.Redis.from_url(valkey_url) as client:
        [mine] = client.keys("auth:oidc:session:*")
        sealed = client.get(mine)
        other = await web.session()
        [theirs] = set(client.keys("auth:oidc:session:*")) - {mine}
        instead = {
            "another key": sealed,
            "another session's": client.get(theirs),
            "in the open": b"eyJhbGciOiJFUzI1NiJ9.e30.x",
            "cut": sealed[:-1],
            "changed": sealed[:-1] + bytes((sealed[-1] ^ 1,)),
        }[spoilt]
        client.set(mine, instead)
    changed = {"data_key": base64.b64encode(bytes(32)).decode()} if spoilt == "another key" else {}
    own = {"oidc_issuer": scripted.issuer, "oidc_client_id": CLIENT_ID, **changed}
    async with opened_web(web.world, settings, scripted, **own) as opened:
        assert set(await left(opened, session)) == {"client_id", "post_logout_redirect_uri"}
        # The stored token is used up all the same.
        asked = accounts.LeaveOidc(session.session_token, "https://ai.example.org/")
        assert (await opened.beside.ask(accounts.leave_oidc, asked)).url is None
        assert ("id_token_hint" in await left(opened, other)) is (spoilt != "another key")


async def test_without_a_provider_oidc_is_not_found(world: Surroundings, settings: AuthSettings, scripted: ScriptedProvider) -> None:
    async with opened_web(world, settings, scripted) as web:
        with pytest.raises(errors.NotFound, match="no login provider"):
            await web.begin()
        with pytest.raises(errors.NotFound, match="no login provider"):
            await web.beside.ask(accounts.finish_oidc, accounts.FinishOidc("state", "binding", "code"))
        assert (await web.beside.ask(accounts.leave_oidc, accounts.LeaveOidc("token", "https://ai.example.org/"))).url is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        pytest.param({"oidc_issuer": "http://login.example.org"}, "OIDC_ISSUER", id="over plain HTTP"),
        pytest.param({"oidc_client_id": ""}, "OIDC_CLIENT_ID", id="no client"),
        pytest.param({"oidc_ca_file": Path("/nowhere/ca.pem")}, "OIDC_CA_FILE", id="no file of authorities"),
    ],
)
async def test_unusable_settings_are_refused(settings: AuthSettings, cache: Cache, changed: dict[str, object], named: str) -> None:
    chosen = msgspec.structs.replace(settings, **{"oidc_issuer": "https://a.example", "oidc_client_id": "mesh", **changed})
    with pytest.raises(errors.BadSettings, match=named):
        async with OidcDependencies.open(chosen, cache, cast("OidcStore", None)):
            pass
