"""Logging in, staying logged in and logging out, on real PostgreSQL and Valkey. Second factors are tested in the folder mfa."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal
from uuid import uuid4

import argon2
import pytest

from services.auth.nodes.gateway_releases import ReleaseGate
from services.auth.organizations.membership_rules import NOT_A_MEMBER
from services.auth.session_opening import CompleteLogin
from services.auth.sessions.identities import NEEDS_LOGIN, SESSION_OVER, WRONG_PASSWORD
from services.auth.sessions.session_store import GRACE_SECONDS, StoredLogin
from services.auth.settings import AuthSettings
from shared import access_table, errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, auth
from shared.api.audit import Result
from shared.api.auth import SessionKind, Step
from shared.api.organizations import TeamRole
from shared.types import NodeId, Peer, Role, TenantId, UserId
from tests.services.auth import by_hand
from tests.services.auth.mfa.equipment import WEB, ApiClient, Clock
from tests.services.auth.surroundings import PASSWORD, Surroundings

GATEWAY = Peer(Role.GATEWAY, NodeId("U" + "G" * 55))


@pytest.fixture
def api_client(world: Surroundings) -> ApiClient:
    return ApiClient(world)


class CheapHasher(argon2.PasswordHasher):
    """Counts its comparisons, at a thousandth of the cost."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.compared = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
        self.compared += 1
        return super().verify(hash, password)


@pytest.fixture
def hasher(api_client: ApiClient) -> CheapHasher:
    made = CheapHasher()
    passwords = api_client.world.service._opened.passwords
    passwords._hasher = made
    passwords._dummy_hash = made.hash("nobody's")
    return made


async def refresh(api_client: ApiClient, token: str) -> auth.LoginSession:
    return await api_client.world.ask(auth.refresh_session, auth.RefreshSession(token))


async def resume(api_client: ApiClient, token: str) -> auth.LoginSession:
    return await api_client.world.ask(auth.resume_session, auth.ResumeSession(token))


async def listed(api_client: ApiClient, credential: str) -> tuple[accounts.OpenSession, ...]:
    return (await api_client.world.ask(accounts.list_sessions, accounts.ListSessions(), credential)).sessions


# --- kinds ------------------------------------------------------------------------------------------------------------------


async def test_program_sessions_are_refreshed_and_browser_sessions_resumed(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    program, browser = await api_client.login(), await api_client.browse()
    second = await refresh(api_client, program.session_token)
    assert second.session_token != program.session_token
    assert (await resume(api_client, browser.session_token)).session_token == browser.session_token
    for session in (second, browser):
        assert (await api_client.identify(session)).username == "anna"


async def test_a_token_of_the_other_kind_is_refused_with_the_right_method(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    program, browser = await api_client.login(), await api_client.browse()
    with pytest.raises(errors.BadRequest) as refused:
        await resume(api_client, program.session_token)
    assert "refreshSession" in refused.value.hint
    with pytest.raises(errors.BadRequest) as refused:
        await refresh(api_client, browser.session_token)
    assert "resumeSession" in refused.value.hint
    await refresh(api_client, program.session_token)
    await resume(api_client, browser.session_token)


@pytest.mark.parametrize("role", [Role.CLIENT, Role.GATEWAY, Role.OPERATOR])
async def test_only_web_opens_a_browser_session(api_client: ApiClient, role: Role) -> None:
    await api_client.world.register("anna")
    with pytest.raises(errors.NotAllowed, match="only the web pages"):
        await api_client.login(kind=SessionKind.BROWSER, peer=Peer(role, NodeId("U" * 56)))


# --- refreshing ---------------------------------------------------------------------------------------------------------------


async def test_reusing_a_spent_token_ends_the_session_and_is_logged(api_client: ApiClient) -> None:
    user = await api_client.world.register("anna")
    stolen = await api_client.login()
    thief = await refresh(api_client, stolen.session_token)
    sessions = api_client.parts.sessions
    sessions._clock = Clock(GRACE_SECONDS + 1.0)
    with pytest.raises(errors.NotAuthenticated, match="already used") as refused:
        await refresh(api_client, stolen.session_token)
    assert "change your password" in refused.value.hint
    assert api_client.world.refusals("session_reused") == 1
    reuse = [act for act in api_client.trail.acts if act.action == "session.reuse"]
    assert [act.tenant_id for act in reuse] == [user.id]
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await refresh(api_client, thief.session_token)
    for token in (stolen, thief):
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await api_client.identify(token)


async def test_two_hundred_concurrent_refreshes_leave_one_valid_session(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    first = await api_client.login()
    found = await asyncio.gather(*(refresh(api_client, first.session_token) for _ in range(200)))
    assert len({session.session_token for session in found}) == 1
    await asyncio.gather(*(api_client.identify(session) for session in found))
    await refresh(api_client, found[0].session_token)
    assert api_client.trail.actions("session.reuse") == []


async def test_a_failed_refresh_spends_nothing(api_client: ApiClient, settings: AuthSettings) -> None:
    user = await api_client.world.register("anna")
    session = await api_client.login()
    await by_hand.run(settings.database_url, "UPDATE auth.users SET is_active = false WHERE id = $1", user.id)
    with pytest.raises(errors.NotAuthenticated, match="closed"):
        await refresh(api_client, session.session_token)
    await by_hand.run(settings.database_url, "UPDATE auth.users SET is_active = true WHERE id = $1", user.id)
    api_client.parts.sessions._clock = Clock(GRACE_SECONDS + 1.0)
    await refresh(api_client, session.session_token)


# --- the list of sessions ---------------------------------------------------------------------------------------------------


async def test_a_user_sees_their_sessions_and_ends_unknown_ones(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    await api_client.world.register("ben")
    mine, other = await api_client.login(), await api_client.browse()
    bens = await api_client.login("ben")
    sessions = await listed(api_client, mine.access_token)
    assert [(each.kind, each.is_this) for each in sessions] == [(SessionKind.BROWSER, False), (SessionKind.PROGRAM, True)]
    assert sessions[0].client == auth.ClientFacts("203.0.113.7", "Mozilla/5.0")
    with pytest.raises(errors.NotFound, match="you have no open session with this id"):
        await api_client.world.ask(accounts.end_session, accounts.EndSession(sessions[0].id), bens.access_token)
    await api_client.world.ask(accounts.end_session, accounts.EndSession(sessions[0].id), mine.access_token)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(other)
    with pytest.raises(errors.NotFound, match="you have no open session with this id"):
        await api_client.world.ask(accounts.end_session, accounts.EndSession(sessions[0].id), mine.access_token)
    assert [each.is_this for each in await listed(api_client, mine.access_token)] == [True]


async def test_all_others_end_at_once_and_a_key_ends_all(api_client: ApiClient) -> None:
    _, new = await api_client.world.user_with_key("anna")
    mine, others = await api_client.login(), [await api_client.login() for _ in range(3)]
    assert not any(each.is_this for each in await listed(api_client, new.api_key))
    await api_client.world.ask(accounts.end_session, accounts.EndSession(), mine.access_token)
    for other in others:
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await api_client.identify(other)
    await api_client.identify(mine)
    await api_client.world.ask(accounts.end_session, accounts.EndSession(), new.api_key)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(mine)
    assert api_client.trail.actions("session.end") == ["session.end"] * 2


@pytest.mark.parametrize("kind", SessionKind)
async def test_a_logout_ends_either_kind_by_any_of_its_tokens_and_only_once(api_client: ApiClient, kind: SessionKind) -> None:
    await api_client.world.register("anna")
    session = await (api_client.login() if kind is SessionKind.PROGRAM else api_client.browse())
    if kind is SessionKind.PROGRAM:
        await refresh(api_client, session.session_token)
    for _ in range(2):
        await api_client.world.ask(auth.logout_user, auth.LogoutUser(session.session_token))
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(session)
    assert api_client.trail.actions("session.end") == ["session.end"]
    for token in ("", "nonsense", "aip_rt_" + "0" * 71):
        await api_client.world.ask(auth.logout_user, auth.LogoutUser(token))


async def test_a_clients_origin_is_its_own_claim(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login(client=auth.ClientFacts("198.51.100.1", "aicli/1"))
    assert (await listed(api_client, session.access_token))[0].client == auth.ClientFacts("", "aicli/1")
    seen = await api_client.login(client=auth.ClientFacts("198.51.100.1", "curl"), peer=GATEWAY)
    assert (await listed(api_client, seen.access_token))[0].client == auth.ClientFacts("198.51.100.1", "curl")


# --- guessing ---------------------------------------------------------------------------------------------------------------


async def test_ten_of_hundreds_of_attempts_from_everywhere_are_compared(api_client: ApiClient, hasher: CheapHasher) -> None:
    await api_client.world.register("anna")
    hasher.compared = 0

    async def guess(number: int) -> None:
        client = auth.ClientFacts(f"203.{number // 250}.113.{number % 250}")
        with pytest.raises(
            (errors.NotAuthenticated, errors.Limited),
            match=r"the user name or the password is wrong|too many failed logins for this account",
        ):
            await api_client.login("anna", f"wrong_password{number}", client=client, peer=WEB)

    for began in range(0, 500, 250):
        await asyncio.gather(*(guess(number) for number in range(began, began + 250)))
    assert hasher.compared == 10
    refused = [act for act in api_client.trail.acts if act.result is Result.REFUSED]
    assert len(refused) == 10
    assert all(act.address.startswith("203.") and act.action == "session.open" for act in refused)


async def lock_out(api_client: ApiClient, name: str) -> None:
    """Fail to log in, like strangers with many addresses."""
    for number in range(20):
        with pytest.raises(
            (errors.NotAuthenticated, errors.Limited),
            match=r"the user name or the password is wrong|too many failed logins for this account",
        ):
            await api_client.login(name, "wrong_password", client=auth.ClientFacts(f"198.51.100.{number}"), peer=WEB)


async def test_strangers_cannot_lock_the_owner_out_of_a_known_browser(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    await api_client.world.register("ben")
    mark, bens = (await api_client.browse()).browser, (await api_client.browse("ben")).browser
    assert mark
    assert bens
    await lock_out(api_client, "anna")
    for other in ("", bens, mark[:-1] + ("0" if mark[-1] != "0" else "1"), mark.partition(".")[0], "." * 300, "é.é"):
        with pytest.raises(errors.Limited, match="too many failed logins for this account"):
            await api_client.browse(browser=other)
    again = await api_client.browse(browser=mark)
    assert again.browser == mark
    for _ in range(10):
        with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
            await api_client.browse(password="wrong_password", browser=mark)
    with pytest.raises(errors.Limited, match="from this browser"):
        await api_client.browse(browser=mark)


async def test_a_browser_stays_known_when_a_login_renews_the_hash(api_client: ApiClient, postgres_url: str) -> None:
    await api_client.world.register("anna")
    outdated = argon2.PasswordHasher(time_cost=1, memory_cost=16, parallelism=1).hash(PASSWORD)
    await by_hand.run(postgres_url, "UPDATE auth.users SET password_hash = $1", outdated)
    mark = (await api_client.browse()).browser
    assert await by_hand.value(postgres_url, "SELECT password_hash FROM auth.users WHERE username = 'anna'") != outdated
    await lock_out(api_client, "anna")
    assert (await api_client.browse(browser=mark or "")).browser == mark


async def test_only_a_browser_that_entered_the_current_password_is_marked(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    assert (await api_client.login()).browser is None
    first = await api_client.browse()
    link = await api_client.world.ask(auth.create_login_link, auth.CreateLoginLink(), first.access_token)
    redeemed = await api_client.world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert redeemed.browser is None
    changed = accounts.ChangePassword("another good sentence")
    await api_client.world.ask(accounts.change_password, changed, first.access_token)
    await lock_out(api_client, "anna")
    with pytest.raises(errors.Limited, match="too many failed logins for this account"):
        await api_client.browse(password="another good sentence", browser=first.browser or "")


async def test_an_address_has_thirty_attempts_for_all_accounts(api_client: ApiClient, hasher: CheapHasher) -> None:
    for number in range(10):
        await api_client.world.register(f"user{number}")
    hasher.compared = 0
    for number in range(100):
        with pytest.raises(
            (errors.NotAuthenticated, errors.Limited),
            match=r"the user name or the password is wrong|too many failed logins from your address",
        ):
            await api_client.login(f"user{number % 20}", "wrong_password", client=auth.ClientFacts("203.0.113.7"), peer=WEB)
    assert hasher.compared == 30
    await api_client.login("user0", client=auth.ClientFacts("203.0.113.8"), peer=WEB)
    with pytest.raises(errors.Limited, match="from your address"):
        await api_client.login("user0", client=auth.ClientFacts("203.0.113.7"), peer=GATEWAY)


async def test_a_client_that_claims_other_addresses_is_counted_all_the_same(api_client: ApiClient, hasher: CheapHasher) -> None:
    hasher.compared = 0
    for number in range(60):
        with pytest.raises(
            (errors.NotAuthenticated, errors.Limited),
            match=r"the user name or the password is wrong|too many failed logins from your address",
        ):
            await api_client.login(f"nobody{number}", "wrong_password", client=auth.ClientFacts(f"203.0.113.{number}"))
    assert hasher.compared == 30


async def test_a_login_with_an_unknown_name_costs_the_same_queries(
    api_client: ApiClient, hasher: CheapHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every wrong password takes the same slow steps. A clock would only show that on average."""
    await api_client.world.register("anna")
    asked: list[str] = []

    def counting(owner: object, name: str) -> None:
        found: Callable[..., Awaitable[object]] = getattr(owner, name)

        async def counted(*args: object, **named: object) -> object:
            asked.append(name)
            return await found(*args, **named)

        monkeypatch.setattr(owner, name, counted)

    counting(api_client.parts.store, "find_account")
    counting(api_client.world.service._opened.cache, "run")
    counting(api_client.parts.passwords, "_run")
    work = []
    for name in ("anna", "nobody", "anna@example.com", "nobody@example.com"):
        asked.clear()
        with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
            await api_client.login(name, "wrong_password") if "@" not in name else await _by_address(api_client, name)
        work.append(tuple(asked))
    assert set(work) == {("find_account", "run", "_run")}


async def test_an_overloaded_login_does_not_count_as_an_attempt(api_client: ApiClient, hasher: CheapHasher) -> None:
    """An account and an address make more attempts than they have. All get Overloaded, and none is checked."""
    await api_client.world.register("anna")
    passwords, client = api_client.parts.passwords, auth.ClientFacts("203.0.113.7")
    session = await api_client.login(client=client, peer=WEB)
    hasher.compared, passwords._at_once = 0, passwords._most_at_once
    for name in ["anna", "nobody"] * 20:
        with pytest.raises(errors.Overloaded, match="too many logins at once"):
            await api_client.login(name, client=client, peer=WEB)
        with pytest.raises(errors.Overloaded, match="too many logins at once"):
            await api_client.confirm_again(session, PASSWORD)
    passwords._at_once = 0
    assert hasher.compared == 0
    for _ in range(5):
        with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
            await api_client.login(password="wrong_password", client=client, peer=WEB)
    with pytest.raises(errors.Limited, match="too many failed logins for this account from your address"):
        await api_client.login(client=client, peer=WEB)


async def test_without_valkey_an_overloaded_login_still_says_overloaded(
    api_client: ApiClient, hasher: CheapHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(guess: object) -> None:
        raise errors.Unavailable("Valkey does not answer", hint="is it running?")

    await api_client.world.register("anna")
    passwords = api_client.parts.passwords
    monkeypatch.setattr(passwords, "_at_once", passwords._most_at_once)
    monkeypatch.setattr(api_client.parts.guesses, "refund", away)
    with pytest.raises(errors.Overloaded, match="too many logins at once"):
        await api_client.login()


async def _by_address(api_client: ApiClient, email: str) -> None:
    await api_client.world.ask(auth.login_user, auth.LoginUser(auth.Credentials("wrong_password", email=email)))


async def test_an_account_without_a_password_is_refused_like_any_other(
    api_client: ApiClient, settings: AuthSettings, hasher: CheapHasher
) -> None:
    """The account was created by a login with a provider."""
    await api_client.world.register("anna")
    await by_hand.run(settings.database_url, "UPDATE auth.users SET password_hash = NULL")
    hasher.compared = 0
    for password in (PASSWORD, "", "None"):
        with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
            await api_client.login(password=password)
    assert hasher.compared == 3
    user = await api_client.parts.store.find_account("anna")
    assert user is not None
    session = await api_client.logins.begin(user.user, StoredLogin(user_id=user.user.id))
    with pytest.raises(errors.BadRequest, match="password"):
        await api_client.confirm_again(session, "None")


# --- concurrent changes -------------------------------------------------------------------------------------------------------


async def test_a_login_with_a_just_changed_password_opens_nothing(api_client: ApiClient, settings: AuthSettings) -> None:
    await api_client.world.register("anna")
    verify = api_client.logins._passwords.verify

    async def changed_meanwhile(password: str, password_hash: str | None) -> bool:
        right = await verify(password, password_hash)
        await by_hand.run(settings.database_url, "UPDATE auth.users SET password_hash = 'another' WHERE username = 'anna'")
        return right

    api_client.logins._passwords.verify = changed_meanwhile  # type: ignore[method-assign]
    try:
        with pytest.raises(errors.Unavailable, match="just changed"):
            await api_client.login()
    finally:
        api_client.logins._passwords.verify = verify  # type: ignore[method-assign]


async def test_actions_at_login_happen_with_complete_logins_only(api_client: ApiClient) -> None:
    called: list[UserId] = []

    async def call_off(transaction: object, login: CompleteLogin) -> None:
        called.append(login.session.user_id)

    session, phone, _ = await api_client.with_factor()
    api_client.logins._opening._at_login = (call_off,)
    half = await api_client.login()
    assert called == []
    await api_client.confirm(half, phone.next_code())
    assert called == [session.user.id]
    await api_client.login(code=phone.next_code())
    assert len(called) == 2


# --- login links ------------------------------------------------------------------------------------------------------------


async def test_a_keys_link_opens_a_browser_session_that_is_not_fresh(api_client: ApiClient) -> None:
    _, new = await api_client.world.user_with_key("anna")
    link = await api_client.world.ask(auth.create_login_link, auth.CreateLoginLink(), new.api_key)
    session = await api_client.world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token, auth.ClientFacts("192.0.2.9", "Firefox")))
    assert (await resume(api_client, session.session_token)).step is Step.DONE
    assert (await api_client.identify(session)).confirmed_at == 0
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.world.new_key(session.access_token, "another")
    await api_client.confirm_again(session, PASSWORD)
    await api_client.world.new_key(session.access_token, "another")


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param({"scopes": ("account:write",)}, id="scopes"),
        pytest.param({"scopes": ("account:write", "key:write", "usage:read", "inference:execute"), "models": ("llama",)}, id="models"),
        pytest.param(
            {"scopes": ("account:write", "key:write", "usage:read", "inference:execute"), "networks": ("10.0.0.0/8",)}, id="networks"
        ),
        pytest.param(
            {"scopes": ("account:write", "key:write", "usage:read", "inference:execute"), "team_id": TenantId(uuid4())},
            id="an organisation's",
        ),
    ],
)
async def test_a_key_with_fewer_permissions_than_its_owner_opens_no_session(
    api_client: ApiClient, bounds: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    _, new = await api_client.world.user_with_key("anna")
    principal = await api_client.world.ask(auth.validate_api_key, auth.ValidateApiKey(new.api_key))
    whole = msgspec.structs.replace(principal, scopes=("account:write", "key:write", "usage:read", "inference:execute"))
    gate = api_client.world.dispatcher.gate
    assert isinstance(gate, ReleaseGate)
    for found, opens in ((whole, True), (msgspec.structs.replace(principal, **bounds), False)):

        async def identified(credential: object, found: auth.Principal = found) -> auth.Principal:
            return found

        monkeypatch.setattr(gate._gate, "_identify", identified)
        monkeypatch.setattr(access_table, "check_network", lambda *_: None)
        asking = api_client.world.ask(auth.create_login_link, auth.CreateLoginLink(), new.api_key)
        if opens:
            await asking
            continue
        with pytest.raises(errors.NotAllowed, match="cannot open a session"):
            await asking


# --- organizations --------------------------------------------------------------------------------------------------------------


async def organisation(settings: AuthSettings, *members: UserId, tier: str = "enterprise") -> TenantId:
    team = TenantId(uuid4())
    await by_hand.run(
        settings.database_url, "INSERT INTO auth.organisations (id, name, subscription_tier) VALUES ($1, 'Team', $2)", team, tier
    )
    for member in members:
        await by_hand.run(
            settings.database_url,
            "INSERT INTO auth.organisation_members (organisation_id, user_id, role) VALUES ($1, $2, $3)",
            team,
            member,
            TeamRole.MEMBER.value,
        )
    return team


async def switch(api_client: ApiClient, session: auth.LoginSession, team: TenantId | None) -> auth.LoginSession:
    return await api_client.world.ask(accounts.switch_organisation, accounts.SwitchTeam(team), session.access_token)


async def test_a_member_switches_to_the_organisation_with_a_new_token_and_back(api_client: ApiClient, settings: AuthSettings) -> None:
    user = await api_client.world.register("anna")
    team = await organisation(settings, user.id)
    before = await api_client.login()
    as_team = await switch(api_client, before, team)
    assert (as_team.team_id, as_team.step) == (team, Step.DONE)
    principal = await api_client.identify(as_team)
    assert (principal.tenant_id, principal.tier, principal.user_id) == (team, "enterprise", user.id)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(before)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await refresh(api_client, before.session_token)
    refreshed = await refresh(api_client, as_team.session_token)
    assert refreshed.team_id == team
    alone = await switch(api_client, refreshed, None)
    assert (await api_client.identify(alone)).tenant_id == user.id
    assert api_client.trail.actions("session.switch") == ["session.switch"] * 2


async def test_another_organisation_is_not_found(api_client: ApiClient, settings: AuthSettings) -> None:
    ben = await api_client.world.register("ben")
    team = await organisation(settings, ben.id)
    await api_client.world.register("anna")
    session = await api_client.login()
    for other in (team, TenantId(uuid4()), TenantId(ben.id)):
        with pytest.raises(errors.NotFound, match=NOT_A_MEMBER):
            await switch(api_client, session, other)
    assert (await api_client.identify(session)).team_id is None, "and the session is as it was"


async def test_a_removed_member_cannot_act_for_the_organisation(api_client: ApiClient, settings: AuthSettings) -> None:
    user = await api_client.world.register("anna")
    team = await organisation(settings, user.id)
    session = await switch(api_client, await api_client.login(), team)
    await by_hand.run(settings.database_url, "DELETE FROM auth.organisation_members WHERE user_id = $1", user.id)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(session)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await refresh(api_client, session.session_token)


async def test_a_key_cannot_switch_organisations(api_client: ApiClient, settings: AuthSettings) -> None:
    user, new = await api_client.world.user_with_key("anna")
    team = await organisation(settings, user.id)
    with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN):
        await api_client.world.ask(accounts.switch_organisation, accounts.SwitchTeam(team), new.api_key)


# --- caches of other services ---------------------------------------------------------------------------------------------


async def test_services_that_cache_a_token_learn_when_its_session_changes(api_client: ApiClient, settings: AuthSettings) -> None:
    """A gateway trusts a cached answer for a minute, unless it hears of a change."""
    user = await api_client.world.register("anna")
    team = await organisation(settings, user.id)

    async def told() -> int:
        found: int = await by_hand.value(settings.database_url, "SELECT count(*) FROM auth.changes WHERE user_id = $1", user.id)
        return found

    async def reuse(session: auth.LoginSession) -> None:
        await refresh(api_client, (await refresh(api_client, session.session_token)).session_token)
        with pytest.raises(errors.NotAuthenticated, match="this session token was already used, so the session was ended"):
            await refresh(api_client, session.session_token)

    ways: list[Callable[[auth.LoginSession], Awaitable[object]]] = [
        lambda session: api_client.world.ask(auth.logout_user, auth.LogoutUser(session.session_token)),
        lambda session: api_client.world.ask(accounts.end_session, accounts.EndSession(), session.access_token),
        lambda session: switch(api_client, session, team),
        lambda session: api_client.confirm_again(session, PASSWORD),
        reuse,
    ]
    for way in ways:
        session, before = await api_client.login(), await told()
        await way(session)
        assert await told() == before + 1


# --- the audit log ----------------------------------------------------------------------------------------------------------


async def test_every_login_and_logout_is_logged_with_its_origin(api_client: ApiClient) -> None:
    user = await api_client.world.register("anna")
    session = await api_client.browse()
    await api_client.world.ask(auth.logout_user, auth.LogoutUser(session.session_token))
    opened, ended = [act for act in api_client.trail.acts if act.action.startswith("session.")]
    assert (opened.action, opened.actor, opened.address) == ("session.open", user.id, "203.0.113.7")
    assert opened.tenant_id == TenantId(user.id)
    assert opened.details == {"kind": "browser", "agent": "Mozilla/5.0"}
    assert (ended.action, ended.target) == ("session.end", opened.target)
    assert abs(opened.at.timestamp() - time.time()) < 60
