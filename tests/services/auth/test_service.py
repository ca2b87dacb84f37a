"""auth's methods as callers see them, on real PostgreSQL and Valkey."""

import asyncio
import contextlib
from datetime import date
from uuid import UUID, uuid4

import argon2
import asyncpg
import msgspec
import pytest

from services.auth import api_keys, passwords
from services.auth.accounts import request_limits
from services.auth.accounts.api_key_rpc import NO_SUCH_KEY
from services.auth.api_keys import NOT_A_KEY
from services.auth.roles import NOT_YOURS
from services.auth.service import AuthService
from services.auth.sessions.identities import SESSION_OVER, WRONG_PASSWORD
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, business, events, organizations, usage_report
from shared.rpc import bodies
from shared.types import Credential, KeyId, MicroCredits, TenantId, Tier, UserId, UserRole
from tests.cases import case
from tests.servers import PostgresServer, ValkeyServer
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD, Surroundings, fields_of

LIMITS = auth.ApiKeyLimits(
    requests_per_hour=50, requests_per_minute=5, tokens_per_minute=10_000, concurrency=2, budget_micro=MicroCredits(2_500_000)
)


async def test_register_login_key_and_back(world: Surroundings) -> None:
    user = await world.register()
    session = await world.login()
    assert session.user == user
    assert (session.token_type, session.expires_in) == ("Bearer", 600)
    new = await world.new_key(session.access_token, "My CLI Key", LIMITS)
    principal = await world.ask(auth.validate_api_key, auth.ValidateApiKey(new.api_key))
    assert (principal.user_id, principal.username, principal.tier) == (user.id, "john_doe", Tier.FREE)
    assert (principal.key_id, principal.key_name, principal.key_limits) == (new.key.id, "My CLI Key", LIMITS)
    assert [type(event) for event in world.published] == [events.UserRegistered, events.KeyCreated]
    listed = await world.ask(auth.list_api_keys, auth.ListApiKeys(), new.api_key)
    assert [key.id for key in listed.keys] == [new.key.id]
    assert new.api_key not in fields_of(listed)
    assert (await world.login("JOHN_DOE@example.com")).user == user


async def test_stored_data_reveals_no_secret(world: Surroundings, settings: AuthSettings) -> None:
    _, new = await world.user_with_key()
    connection = await asyncpg.connect(settings.database_url)
    try:
        rows = [*await connection.fetch("SELECT * FROM auth.users"), *await connection.fetch("SELECT * FROM auth.api_keys")]
    finally:
        await connection.close()
    stored = repr([tuple(row) for row in rows])
    assert new.api_key not in stored
    assert new.api_key[9:52] not in stored
    assert PASSWORD not in stored


async def test_one_of_twenty_concurrent_registrations_succeeds(world: Surroundings) -> None:
    outcomes = await asyncio.gather(*(world.register(email=f"{n}@example.com") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, auth.User) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.AlreadyExists) for outcome in outcomes) == 19
    assert len(world.published) == 1


async def test_invalid_registrations(world: Surroundings) -> None:
    for reason, name, password, email, error in (
        ("short password", "john_doe", "short", None, errors.BadRequest),
        ("common password", "john_doe", "password123", None, errors.BadRequest),
        ("the name as password", "john_doe", "john_doe1", None, errors.BadRequest),
        ("SQL", "'; DROP TABLE users; --", PASSWORD, "a@b.c", errors.BadRequest),
        ("HTML", "<img src=x onerror=alert(1)>", PASSWORD, "a@b.c", errors.BadRequest),
        ("no address", "john_doe", PASSWORD, "nonsense", errors.BadRequest),
        ("the administrator's name", "Admin", PASSWORD, "a@b.c", errors.AlreadyExists),
    ):
        with case(reason), pytest.raises(error):
            await world.register(name, password, email)
    assert world.published == []


async def test_closed_registration_is_for_administrators(settings: AuthSettings) -> None:
    world = Surroundings()
    async with AuthService.open(msgspec.structs.replace(settings, open_registration=False), world.as_node()) as world.service:
        with pytest.raises(errors.NotAllowed, match="OPEN_REGISTRATION=false"):
            await world.register()
        body = auth.RegisterUser(auth.UserData("john_doe", "a@b.c", PASSWORD))
        await world.ask(auth.register_user, body, await world.admin_token())
        token = (await world.login()).access_token
        with pytest.raises(errors.NotAllowed, match="john_doe is no administrator"):
            await world.ask(auth.register_user, auth.RegisterUser(auth.UserData("other", "o@b.c", PASSWORD)), token)


async def test_with_closed_registration_an_invitation_admits_only_its_addressee(settings: AuthSettings) -> None:
    world = Surroundings()
    async with AuthService.open(msgspec.structs.replace(settings, open_registration=False), world.as_node()) as world.service:
        admin = await world.admin_token()
        team = await world.ask(organizations.create_organisation, organizations.CreateOrganization("Lab"), admin)
        invite = organizations.InviteMember(team.id, "John@Example.com", organizations.TeamRole.MEMBER)
        invitation = await world.ask(organizations.invite_member, invite, admin)

        async def register(name: str, email: str, code: str | None) -> auth.User:
            body = auth.RegisterUser(auth.UserData(name, email, PASSWORD), invitation=code)
            return await world.ask(auth.register_user, body)

        for name, email, code in (
            ("john_doe", "john@example.com", None),
            ("john_doe", "john@example.com", "wrong" * 8),
            ("somebody", "somebody@example.com", invitation.token),
        ):
            with pytest.raises(errors.NotAllowed, match="registration is closed"):
                await register(name, email, code)
        await register("john_doe", "john@example.com", invitation.token)
        session = await world.login()
        accept = organizations.AcceptInvitation(invitation.token)
        assert (await world.ask(organizations.accept_invitation, accept, session.access_token)).id == team.id
        with pytest.raises(errors.NotAllowed, match="registration is closed"):
            await register("john_two", "john@example.com", invitation.token)


async def test_with_closed_registration_an_inviter_admits_few_people_a_day(settings: AuthSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "MAX_INVITED_A_DAY", 2)
    world = Surroundings()
    closed = msgspec.structs.replace(settings, open_registration=False, organisations_per_user=5)
    async with AuthService.open(closed, world.as_node()) as world.service:

        async def invited(number: int, by: str, team: TenantId) -> auth.User:
            invite = organizations.InviteMember(team, f"user{number}@example.com", organizations.TeamRole.OWNER)
            code = (await world.ask(organizations.invite_member, invite, by)).token
            body = auth.RegisterUser(auth.UserData(f"user{number}", invite.email, PASSWORD), invitation=code)
            made = await world.ask(auth.register_user, body)
            token = (await world.login(f"user{number}")).access_token
            await world.ask(organizations.accept_invitation, organizations.AcceptInvitation(code), token)
            return made

        async def found(by: str) -> TenantId:
            return (await world.ask(organizations.create_organisation, organizations.CreateOrganization("Lab"), by)).id

        admin = await world.admin_token()
        first, second = await found(admin), await found(admin)
        await invited(1, admin, first)
        await invited(2, admin, second)
        owner = (await world.login("user1")).access_token
        with pytest.raises(errors.Limited, match="2 people have registered with") as refused:
            await invited(3, admin, second)
        assert refused.value.hint == "try again tomorrow, or ask an administrator for an account"
        assert refused.value.code == errors.Limited.code
        assert 23 * 3600 < (refused.value.retry_after_seconds or 0) <= 24 * 3600
        invite = organizations.InviteMember(first, "user4@example.com", organizations.TeamRole.OWNER)
        code = (await world.ask(organizations.invite_member, invite, owner)).token
        for _ in range(3):
            with pytest.raises(errors.AlreadyExists, match="this user name is taken"):
                await world.ask(auth.register_user, auth.RegisterUser(auth.UserData("user1", invite.email, PASSWORD), invitation=code))
        await world.ask(auth.register_user, auth.RegisterUser(auth.UserData("user4", invite.email, PASSWORD), invitation=code))
        with pytest.raises(errors.Limited, match="2 people have registered with"):
            await invited(5, owner, first)
        with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
            await world.login("user5")


# --- logging in ------------------------------------------------------------------------------------------------------


async def test_neither_the_answer_nor_the_work_reveals_whether_a_user_exists(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.register()
    compared: list[str] = []
    verify = argon2.PasswordHasher.verify

    def counting(self: argon2.PasswordHasher, hash: str | bytes, password: str | bytes) -> bool:  # noqa: A002
        compared.append(str(argon2.extract_parameters(str(hash))))
        return verify(self, hash, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)
    answers = []
    for name in ("john_doe", "nobody", "nobody@example.com", "x\0y", "' OR 1=1 --"):
        with pytest.raises(errors.NotAuthenticated) as refused:
            await world.login(name, "wrong_password")
        answers.append((refused.value.message, refused.value.hint))
    assert len(set(answers)) == 1
    assert len(compared) == 5
    assert len(set(compared)) == 1, "all with the same parameters"
    assert world.refusals("wrong_password") == 5


@pytest.mark.parametrize("name", ["john_doe", "nobody_at_all"])
async def test_the_sixth_attempt_from_one_address_must_wait_whether_or_not_the_user_exists(world: Surroundings, name: str) -> None:
    await world.register()
    name = name if name == "john_doe" else f"nobody{uuid4().hex[:8]}"
    outcomes = await asyncio.gather(*(world.login(name, "wrong_password") for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(outcome, errors.NotAuthenticated) for outcome in outcomes) == 5
    limited = [outcome for outcome in outcomes if isinstance(outcome, errors.Limited)]
    assert len(limited) == 25
    with pytest.raises(errors.Limited, match="too many failed logins for this account from your address"):
        await world.login(name)


async def test_a_success_resets_the_attempts(world: Surroundings) -> None:
    await world.register()
    for _ in range(3):
        for _ in range(4):
            with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
                await world.login(password="wrong_password")
        await world.login()


@pytest.mark.parametrize("credentials", [auth.Credentials(PASSWORD), auth.Credentials(PASSWORD, "john_doe", "john_doe@example.com")])
async def test_exactly_one_name_is_needed(world: Surroundings, credentials: auth.Credentials) -> None:
    with pytest.raises(errors.BadRequest, match="either username or email"):
        await world.ask(auth.login_user, auth.LoginUser(credentials))


async def test_an_outdated_hash_is_renewed_at_login(world: Surroundings, settings: AuthSettings) -> None:
    await world.register()
    old = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute("UPDATE auth.users SET password_hash = $1 WHERE username = 'john_doe'", old)
        await world.login()
        new = await connection.fetchval("SELECT password_hash FROM auth.users WHERE username = 'john_doe'")
    finally:
        await connection.close()
    assert argon2.extract_parameters(new) == argon2.extract_parameters(passwords._argon2id().hash(PASSWORD))
    await world.login()


# --- sessions --------------------------------------------------------------------------------------------------------


async def identify(world: Surroundings, credential: str) -> auth.Principal:
    return await world.ask(auth.identify, auth.Identify(Credential(credential)))


async def test_a_token_ends_with_its_session(world: Surroundings) -> None:
    await world.register()
    session = await world.login()
    other = await world.login()
    assert (await identify(world, session.access_token)).key_id is None
    refreshed = await world.ask(auth.refresh_session, auth.RefreshSession(session.session_token))
    assert refreshed.access_token != session.access_token
    await world.ask(auth.logout_user, auth.LogoutUser(session.session_token))
    for token in (session.access_token, refreshed.access_token):
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await identify(world, token)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await world.ask(auth.refresh_session, auth.RefreshSession(session.session_token))
    await identify(world, other.access_token)


async def test_closing_an_account_stops_everything_and_reopening_restores_it(world: Surroundings) -> None:
    user, new = await world.user_with_key()
    session = await world.login()
    admin = await world.admin_token()
    link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), new.api_key)
    closed = await world.ask(auth.set_active, auth.SetActive("john_doe", is_active=False), admin)
    assert not closed.is_active
    for credential in (new.api_key, session.access_token):
        with pytest.raises(errors.NotAuthenticated, match="closed"):
            await identify(world, credential)
    with pytest.raises(errors.NotAuthenticated, match="closed"):
        await world.login()
    with pytest.raises(errors.NotAuthenticated, match="wrong"):
        await world.login(password="wrong_password")
    with pytest.raises(errors.NotAuthenticated, match="closed"):
        await world.ask(auth.refresh_session, auth.RefreshSession(session.session_token))
    await world.ask(auth.set_active, auth.SetActive(str(user.id), is_active=True), admin)
    with pytest.raises(errors.NotAuthenticated, match="this login link was used, has expired or was revoked"):
        await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token))
    await identify(world, new.api_key)
    await identify(world, session.access_token)


async def test_a_login_link_opens_one_session(world: Surroundings) -> None:
    user, new = await world.user_with_key()
    link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), new.api_key)
    assert link.expires_in == 60
    session = await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token))
    assert session.user == user
    with pytest.raises(errors.NotAuthenticated, match="was used, has expired"):
        await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token))


async def test_a_limited_key_cannot_remove_its_limit(world: Surroundings) -> None:
    await world.register()
    limited = await world.new_key((await world.login()).access_token, limits=LIMITS)
    with pytest.raises(errors.NotAllowed, match="a key with its own limit cannot create keys"):
        await world.new_key(limited.api_key)
    with pytest.raises(errors.NotAllowed, match="cannot create keys"):
        await world.new_key(limited.api_key, limits=LIMITS)
    with pytest.raises(errors.NotAllowed, match="a key with its own limit cannot open a session"):
        await world.ask(auth.create_login_link, auth.CreateLoginLink(), limited.api_key)


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_malformed_key_never_reaches_the_database(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    find = world.parts.store.find_owner_of_key

    async def counting(key_hash: str) -> object:
        asked.append(key_hash)
        return await find(key_hash)

    monkeypatch.setattr(world.parts.store, "find_owner_of_key", counting)
    malformed = (
        *("", "aip_live_", "aip_live_" + "0" * 49, "aip_live_' OR '1'='1' --" + "0" * 34, "sk-1234567890", "a" * 65536, "aip_live_\0"),
        # A character that no key has, and a key that is cut off.
        *(api_keys.generate()[:-1] + "!", api_keys.generate()[:-2]),
    )
    for key in malformed:
        with case(key), pytest.raises(errors.NotAuthenticated, match=NOT_A_KEY):
            await world.ask(auth.validate_api_key, auth.ValidateApiKey(Credential(key)))
    assert asked == []
    assert world.refusals("malformed") == len(malformed)
    with pytest.raises(errors.NotAuthenticated, match="this API key does not exist"):
        await world.ask(auth.validate_api_key, auth.ValidateApiKey(api_keys.generate()))
    assert len(asked) == 1
    assert world.refusals("unknown_key") == 1


async def test_a_revoked_key_is_refused_immediately(world: Surroundings) -> None:
    _, new = await world.user_with_key()
    other = await world.new_key(new.api_key, "other")
    revoked = await world.ask(auth.revoke_api_key, auth.RevokeApiKey("default"), other.api_key)
    assert not revoked.is_active
    with pytest.raises(errors.NotAuthenticated, match="revoked"):
        await identify(world, new.api_key)
    again = await world.ask(auth.revoke_api_key, auth.RevokeApiKey(str(new.key.id)), other.api_key)
    assert again.id == new.key.id
    assert [type(event) for event in world.published].count(events.KeyRevoked) == 1
    with pytest.raises(errors.NotFound, match="you have no active key of this name"):
        await world.ask(auth.revoke_api_key, auth.RevokeApiKey("default"), other.api_key)


async def test_a_name_shared_by_two_keys_revokes_neither(world: Surroundings) -> None:
    _, new = await world.user_with_key()
    await world.new_key(new.api_key)
    with pytest.raises(errors.BadRequest, match="several") as refused:
        await world.ask(auth.revoke_api_key, auth.RevokeApiKey("default"), new.api_key)
    assert str(new.key.id) in refused.value.hint


@pytest.mark.parametrize("key", ["", "nothing", "a\0b", "x" * 1000, str(UUID(int=1))])
async def test_an_unknown_key_is_not_found(world: Surroundings, key: str) -> None:
    _, new = await world.user_with_key()
    with pytest.raises(errors.NotFound, match="you have no"):
        await world.ask(auth.revoke_api_key, auth.RevokeApiKey(key), new.api_key)


async def test_other_users_data_is_refused_except_to_administrators(world: Surroundings) -> None:
    anna, annas = await world.user_with_key("anna")
    _, bens = await world.user_with_key("ben")
    admin = await world.admin_token()
    ben = bens.api_key
    with pytest.raises(errors.NotAllowed, match=NOT_YOURS):
        await world.ask(auth.generate_api_key, auth.GenerateApiKey(user_id=anna.id), ben)
    with pytest.raises(errors.NotAllowed, match=NOT_YOURS):
        await world.ask(auth.list_api_keys, auth.ListApiKeys(anna.id), ben)
    with pytest.raises(errors.NotAllowed, match=NOT_YOURS):
        await world.ask(usage_report.get_user_usage, usage_report.GetUserUsage(anna.id), ben)
    with pytest.raises(errors.NotFound, match=NO_SUCH_KEY):
        await world.ask(auth.revoke_api_key, auth.RevokeApiKey(str(annas.key.id)), ben)
    await identify(world, annas.api_key)
    made = await world.ask(auth.generate_api_key, auth.GenerateApiKey("by the admin", anna.id), admin)
    assert made.key.user_id == anna.id
    assert len((await world.ask(auth.list_api_keys, auth.ListApiKeys(anna.id), admin)).keys) == 2
    assert (await world.ask(usage_report.get_user_usage, usage_report.GetUserUsage(anna.id), admin)).user_id == anna.id
    assert not (await world.ask(auth.revoke_api_key, auth.RevokeApiKey(str(annas.key.id)), admin)).is_active
    with pytest.raises(errors.NotFound, match="there is no user with this id"):
        await world.ask(auth.generate_api_key, auth.GenerateApiKey(user_id=UserId(uuid4())), admin)


async def test_usage_is_read_from_the_gateway(world: Surroundings) -> None:
    user, new = await world.user_with_key()
    usage = await world.ask(usage_report.get_user_usage, usage_report.GetUserUsage(), new.api_key)
    assert (usage.user_id, usage.request_count, usage.tokens_used) == (user.id, 3, 30)
    assert world.rpc.asked == [user.id]


async def test_usage_has_the_names_of_the_keys_that_its_reader_sees(world: Surroundings) -> None:
    """A key with the usual scopes may read usage, but not list keys."""
    admin = await world.admin_token()
    _, usual = await world.user_with_key("anna")
    annas = (await world.login("anna")).access_token
    ended = await world.ask(auth.generate_api_key, auth.GenerateApiKey("ci"), annas)
    await world.ask(auth.revoke_api_key, auth.RevokeApiKey(str(ended.key.id)), annas)
    _, others = await world.user_with_key("ben")
    used: tuple[KeyId | None, ...] = (usual.key.id, ended.key.id, others.key.id, None)
    world.rpc.days = tuple(usage_report.DailyUsage(date(2026, 1, 2), key_id, 1, 2) for key_id in used)

    async def names(credential: Credential, user_id: UserId | None = None) -> list[str | None]:
        usage = await world.ask(usage_report.get_user_usage, usage_report.GetUserUsage(user_id), credential)
        return [day.api_key_name for day in usage.days]

    assert await names(usual.api_key) == [usual.key.name, "ci", None, None]
    assert await names(admin, usual.key.user_id) == [usual.key.name, "ci", None, None]
    assert await names(admin) == [None] * 4


async def test_the_last_use_of_a_key_is_recorded(world: Surroundings) -> None:
    _, new = await world.user_with_key()
    assert new.key.last_used_at is None
    await identify(world, new.api_key)
    await world.service._wiring.last_used.write()
    listed = await world.ask(auth.list_api_keys, auth.ListApiKeys(), new.api_key)
    assert listed.keys[0].last_used_at is not None


# --- administration ---------------------------------------------------------------------------------------------------


async def test_a_tier_is_a_plan_that_the_gateway_knows(world: Surroundings) -> None:
    user, new = await world.user_with_key()
    admin = await world.admin_token()
    with pytest.raises(errors.NotFound, match="there is no plan 'gold'") as unknown:
        await world.ask(auth.set_tier, auth.SetTier(user.username, "gold"), admin)
    assert unknown.value.hint.startswith("use free, pro, enterprise, or add it")
    world.rpc.plans += ("gold",)
    assert (await world.ask(auth.set_tier, auth.SetTier(user.username, "gold"), admin)).tier == "gold"
    assert (await identify(world, new.api_key)).tier == "gold"
    world.rpc.away = True
    with pytest.raises(errors.Unavailable, match="whether there is a plan 'gold'"):
        await world.ask(auth.set_tier, auth.SetTier(user.username, "gold"), admin)
    assert (await world.ask(auth.set_tier, auth.SetTier(user.username, Tier.PRO), admin)).tier == Tier.PRO, "is built in"


async def test_only_administrators_administer(world: Surroundings) -> None:
    user, new = await world.user_with_key()
    for credential, error in ((None, errors.NotAuthenticated), (new.api_key, errors.NotAllowed)):
        with pytest.raises(error):
            await world.ask(auth.set_tier, auth.SetTier("john_doe", Tier.PRO), credential)
        with pytest.raises(error):
            await world.ask(auth.set_active, auth.SetActive("admin", is_active=False), credential)
        with pytest.raises(error):
            await world.ask(auth.list_users, auth.ListUsers(), credential)
    admin = await world.admin_token()
    assert (await world.ask(auth.set_tier, auth.SetTier(user.email, Tier.PRO), admin)).tier == Tier.PRO
    assert (await identify(world, new.api_key)).tier == Tier.PRO
    assert {found.username for found in (await world.ask(auth.list_users, auth.ListUsers(), admin)).users} == {"admin", "john_doe"}
    assert (await world.ask(auth.get_user, auth.GetUser(user.id), admin)).tier == Tier.PRO
    for someone in (user.id, UserId(uuid4())):
        with pytest.raises(errors.NotAllowed, match="john_doe is no administrator"):
            await world.ask(auth.get_user, auth.GetUser(someone), new.api_key)
    with pytest.raises(errors.NotFound, match="there is no user with this id"):
        await world.ask(auth.get_user, auth.GetUser(UserId(uuid4())), admin)
    with pytest.raises(errors.NotFound, match="there is no user 'nobody"):
        await world.ask(auth.set_tier, auth.SetTier("nobody", Tier.PRO), admin)
    for name in (user.username.upper(), user.email, str(user.id)):
        assert (await world.ask(auth.get_user_called, auth.GetUserCalled(name), admin)).id == user.id
    with pytest.raises(errors.NotFound, match="there is no user 'nobody"):
        await world.ask(auth.get_user_called, auth.GetUserCalled("nobody"), admin)
    for name in (user.username, "nobody"):
        with pytest.raises(errors.NotAllowed, match="john_doe is no administrator"):
            await world.ask(auth.get_user_called, auth.GetUserCalled(name), new.api_key)
    with pytest.raises(errors.NotAllowed, match="own account"):
        await world.ask(auth.set_active, auth.SetActive("admin", is_active=False), admin)


async def test_users_are_found_by_part_of_their_name_and_listed_in_pages(world: Surroundings) -> None:
    admin = await world.admin_token()
    made = [await world.register(f"dana{number}") for number in range(5)]
    read, last = [], None
    while True:
        page = await world.ask(auth.list_users, auth.ListUsers(2, "DANA", last), admin)
        read.append([user.id for user in page.users])
        if not page.more:
            break
        last = page.users[-1].id
    assert read == [[made[4].id, made[3].id], [made[2].id, made[1].id], [made[0].id]]
    for search, found in ((made[1].email, [made[1]]), (str(made[2].id).upper(), [made[2]]), ("dana%", []), ("_ana1", [])):
        assert list((await world.ask(auth.list_users, auth.ListUsers(search=search), admin)).users) == found, search
    assert not (await world.ask(auth.list_users, auth.ListUsers(after=UserId(uuid4())), admin)).users
    asked = business.NameUsers((made[0].id, UserId(uuid4()), made[4].id))
    assert (await world.ask(business.name_users, asked, admin)).names == {str(made[0].id): "dana0", str(made[4].id): "dana4"}
    lab = await world.ask(organizations.create_organisation, organizations.CreateOrganization("Lab"), admin)
    of_lab = business.NameUsers((UserId(lab.id),))
    assert (await world.ask(business.name_users, of_lab, admin)).names == {str(lab.id): "Lab"}
    key = (await world.ask(auth.generate_api_key, auth.GenerateApiKey("ci", made[0].id), admin)).key
    of_key = business.NameUsers((key.id,))
    assert (await world.ask(business.name_users, of_key, admin)).names == {str(key.id): "dana0/ci"}
    with pytest.raises(errors.NotAllowed, match="dana1 is no administrator"):
        await world.ask(business.name_users, asked, (await world.login("dana1")).access_token)
    for search in ("x" * 201, "a\0b"):
        with pytest.raises(errors.BadRequest, match=r"auth\.listUsers: search (must|is)"):
            bodies.decode_request(auth.ListUsers, bodies.encode(auth.ListUsers(search=search)), "auth.listUsers")


async def test_the_first_administrator_is_created_once(settings: AuthSettings) -> None:
    async def start(password: str) -> auth.User:
        world = Surroundings()
        async with AuthService.open(msgspec.structs.replace(settings, admin_password=password), world.as_node()) as world.service:
            return (await world.login("admin", ADMIN_PASSWORD)).user

    started = await asyncio.gather(*(start(ADMIN_PASSWORD) for _ in range(5)))
    assert len({user.id for user in started}) == 1
    assert (started[0].role, started[0].tier) == (UserRole.ADMIN, Tier.ENTERPRISE)
    assert await start("another good password") == started[0]


async def test_a_bad_first_password_is_a_wrong_setting(settings: AuthSettings) -> None:
    with pytest.raises(errors.BadSettings, match="ADMIN_PASSWORD"):
        async with AuthService.open(msgspec.structs.replace(settings, admin_password="admin123"), Surroundings().as_node()):
            pass


# --- changes and faults ------------------------------------------------------------------------------------------------


async def test_a_watcher_learns_of_a_change_made_by_hand(world: Surroundings, settings: AuthSettings) -> None:
    user, _ = await world.user_with_key()
    async with contextlib.aclosing(world.service._wiring.changes.watch(0)) as changes:
        assert (await asyncio.wait_for(anext(changes), 30)).user_id is None
        connection = await asyncpg.connect(settings.database_url)
        try:
            await connection.execute("UPDATE auth.users SET is_active = false WHERE id = $1", user.id)
        finally:
            await connection.close()
        change = await asyncio.wait_for(anext(changes), 30)
        while change.user_id is None:  # the service's own notification that it listens may come first
            change = await asyncio.wait_for(anext(changes), 30)
        assert change.user_id == user.id
    assert world.service._wiring.changes._watchers == set()


async def test_a_watch_ends_when_the_service_drains(world: Surroundings) -> None:
    async def watch() -> int:
        async with contextlib.aclosing(world.service._wiring.changes.watch(0)) as changes:
            return len([change async for change in changes])

    watching = asyncio.ensure_future(watch())
    world.drain_started.set()
    assert await asyncio.wait_for(watching, 30) >= 1


async def test_a_slow_watcher_is_told_to_forget_everything(world: Surroundings) -> None:
    user = await world.register()
    async with contextlib.aclosing(world.service._wiring.changes.watch(0)) as changes:
        await anext(changes)
        for number in range(1, 150):
            world.service._wiring.changes._notify(auth.Change(number, user.id))
        heard = [await anext(changes) for _ in range(40)]
    # The queue holds 100; the registration's own change may arrive late and be among them.
    (forgotten,) = [change.sequence for change in heard if change.user_id is None]
    assert 95 < forgotten <= 101
    assert heard[-1].sequence > forgotten


async def test_checks_name_the_missing_store(world: Surroundings) -> None:
    checks = await world.service.checks()
    assert [(check.name, check.ok) for check in checks] == [("postgresql", True), ("valkey", True), ("mail", True)]


async def test_without_valkey_nobody_logs_in_but_keys_still_work(world: Surroundings, valkey: ValkeyServer) -> None:
    _, new = await world.user_with_key()
    session = await world.login()
    valkey.kill()
    await asyncio.sleep(0.02)  # let the event loop notice the closed connections
    assert (await identify(world, new.api_key)).key_id == new.key.id
    for attempt in (world.login(), identify(world, session.access_token)):
        with pytest.raises(errors.Unavailable, match="Valkey"):
            await attempt
    assert [(check.name, check.ok) for check in await world.service.checks()] == [("postgresql", True), ("valkey", False), ("mail", True)]
    valkey.start()
    assert (await world.login()).user.username == "john_doe"


async def test_without_postgresql_a_key_is_not_called_wrong(world: Surroundings, postgres: PostgresServer) -> None:
    _, new = await world.user_with_key()
    postgres.kill()
    await asyncio.sleep(0.02)  # let the event loop notice the closed connections
    with pytest.raises(errors.Unavailable, match="PostgreSQL"):
        await identify(world, new.api_key)
    last = "y" if new.api_key.endswith("x") else "x"
    with pytest.raises(errors.NotAuthenticated, match=NOT_A_KEY):
        await identify(world, new.api_key[:-1] + last)
    postgres.start()
    answer = None
    async with asyncio.timeout(10):
        while answer is None:
            # A closed connection that auth has not noticed yet costs one failed call.
            with contextlib.suppress(errors.Unavailable):
                answer = await identify(world, new.api_key)
    assert answer.key_id == new.key.id
