"""An access token names its principal and the login behind it. While PostgreSQL is down, only unrevoked administrators are recognized."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from services.auth.sessions.identities import MAX_AGE_SECONDS, MAX_ANSWERS, NEEDS_LOGIN, SESSION_OVER, PrincipalCache
from services.auth.sessions.session_store import OpenedSession, StoredLogin
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth
from shared.api.auth import Principal, SessionKind, Step
from shared.types import Credential, TenantId, Tier, UserId, UserRole
from tests.servers import PostgresServer
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Surroundings
from tests.services.auth.test_logins import organisation
from tests.stopwatch import HANG_SECONDS


async def opened(world: Surroundings, user: auth.User, **changed: object) -> tuple[OpenedSession, Credential]:
    """Open a session of this kind without a login, and return it with its access token."""
    made = await world.service._wiring._parts.sessions.open(StoredLogin(user_id=user.id, **changed))  # type: ignore[arg-type]
    return made, world.service._wiring._parts.identities.answer(user, made).access_token


async def test_the_principal_reflects_the_login(world: Surroundings) -> None:
    user = await world.register("anna")
    for login in (
        {"confirmed_at": 12.5},
        {"step": Step.ENTER_CODE, "confirmed_at": 0.0},
        {"kind": SessionKind.BROWSER, "confirmed_at": 7.0},
    ):
        _, token = await opened(world, user, **login)
        assert await world.service._wiring._parts.identities.of(token) == Principal(
            user_id=user.id,
            username="anna",
            role=UserRole.USER,
            tier=Tier.FREE,
            step=login.get("step", Step.DONE),  # type: ignore[arg-type]
            confirmed_at=login["confirmed_at"],  # type: ignore[arg-type]
        )


async def test_an_organisations_tier_replaces_the_users(world: Surroundings, settings: AuthSettings) -> None:
    user = await world.register("anna")
    pro = await organisation(settings, user.id, tier="pro")
    none_of_theirs = await organisation(settings, tier="enterprise")
    _, token = await opened(world, user, team_id=pro)
    principal = await world.service._wiring._parts.identities.of(token)
    assert (principal.team_id, principal.tenant_id, principal.tier) == (pro, pro, Tier.PRO)
    for team in (none_of_theirs, TenantId(user.id)):
        _, token = await opened(world, user, team_id=team)
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await world.service._wiring._parts.identities.of(token)


async def test_a_token_is_useless_without_its_session(world: Surroundings) -> None:
    user = await world.register("anna")
    made, token = await opened(world, user)
    await world.service._wiring._parts.identities.of(token)
    await world.service._wiring._parts.sessions.end_all(user.id)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await world.service._wiring._parts.identities.of(token)
    assert world.refusals("session_over") == 1
    assert made.session.user_id == user.id


async def test_a_token_for_another_session_or_tenant_is_refused(world: Surroundings) -> None:
    """Only auth signs tokens, so this guards against a bug in auth."""
    anna, ben = await world.register("anna"), await world.register("ben")
    made, _ = await opened(world, ben)
    for user, tenant in ((anna, made.session.tenant_id), (ben, TenantId(anna.id)), (ben, TenantId(uuid4()))):
        forged = world.parts.tokens.issue(user.id, made.session.id, time.time(), tenant_id=tenant, scopes=())
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await world.parts.identities.of(forged)


async def test_a_token_names_its_tenant_and_scopes(world: Surroundings, settings: AuthSettings) -> None:
    user = await world.register("anna")
    team = await organisation(settings, user.id)
    own = "account:write inference:execute key:write usage:read"
    for login, tenant, scope in (
        ({}, TenantId(user.id), own),
        ({"team_id": team}, team, own),
        ({"step": Step.ENTER_CODE}, TenantId(user.id), ""),
    ):
        _, token = await opened(world, user, **login)
        claims = await world.parts.tokens.read(token, time.time())
        assert (claims.tid, claims.scope) == (tenant, scope)
        assert (await world.parts.identities.of(token)).tenant_id == tenant
    admin = await world.parts.tokens.read(await world.admin_token(), time.time())
    assert admin.scope == "*"


async def test_the_session_of_a_deleted_or_closed_user_is_over(world: Surroundings, settings: AuthSettings) -> None:
    user = await world.register("anna")
    _, token = await opened(world, user)
    await by_hand.run(settings.database_url, "UPDATE auth.users SET is_active = false WHERE id = $1", user.id)
    with pytest.raises(errors.NotAuthenticated, match="closed"):
        await world.service._wiring._parts.identities.of(token)
    await by_hand.run(settings.database_url, "DELETE FROM auth.users WHERE id = $1", user.id)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await world.service._wiring._parts.identities.of(token)


async def test_only_a_login_has_a_session(world: Surroundings) -> None:
    user, new = await world.user_with_key("anna")
    made, token = await opened(world, user)
    assert (await world.service._wiring._parts.identities.session_of(token)).id == made.session.id
    for credential in (None, new.api_key):
        with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN) as refused:
            await world.service._wiring._parts.identities.session_of(credential)
        assert "log in" in refused.value.hint
    with pytest.raises(errors.NotAuthenticated, match="the credential is neither an API key nor an access token of this mesh"):
        await world.service._wiring._parts.identities.session_of(Credential("a.b.c"))
    assert world.refusals("bad_token") == 1


async def test_the_answer_to_a_login_describes_the_session(world: Surroundings) -> None:
    user = await world.register("anna")
    made, _ = await opened(world, user, step=Step.ENTER_CODE)
    answer = world.service._wiring._parts.identities.answer(user, made)
    assert (answer.session_token, answer.step, answer.team_id, answer.expires_in) == (made.token, Step.ENTER_CODE, None, 600)


ANN, BEN = UserId("ann"), UserId("ben")


class Source:
    """Replaces PostgreSQL: answers, is down, or hangs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.state = "well"

    def says(self, value: str | None) -> Callable[[], Awaitable[str | None]]:
        async def answer() -> str | None:
            if self.state == "away":
                raise errors.Unavailable("PostgreSQL is not reachable")
            if self.state == "hangs":
                await asyncio.Event().wait()
            return value

        return answer


def owner(value: str | None) -> UserId | None:
    return UserId(value) if value in (ANN, BEN) else None


@pytest.mark.parametrize("state", ["away", "hangs"])
async def test_the_cached_answer_is_used_while_there_is_no_newer_one(state: str) -> None:
    source = Source()
    known = PrincipalCache(lambda: source.now)
    assert await known.ask("k", source.says(ANN), owner) == ANN
    source.state = state
    async with asyncio.timeout(30):
        assert await known.ask("k", source.says("newer"), owner) == ANN
    source.state = "well"
    assert await known.ask("k", source.says("newer"), owner) == "newer"


async def test_a_forgotten_expired_or_uncacheable_answer_is_not_used() -> None:
    source = Source()
    known = PrincipalCache(lambda: source.now)
    for key, value in (("of ann", ANN), ("of ben", BEN), ("of a user", "carol")):
        await known.ask(key, source.says(value), owner)
    known.forget(ANN)
    source.state = "away"
    for key in ("of ann", "of a user", "never asked"):
        with pytest.raises(errors.Unavailable, match="PostgreSQL is not reachable"):
            await known.ask(key, source.says(None), owner)
    assert await known.ask("of ben", source.says(None), owner) == BEN
    source.now += MAX_AGE_SECONDS
    with pytest.raises(errors.Unavailable, match="PostgreSQL is not reachable"):
        await known.ask("of ben", source.says(None), owner)


async def test_an_answer_requested_before_a_change_is_not_cached_after_it() -> None:
    source = Source()
    known = PrincipalCache(lambda: source.now)

    async def revoked_meanwhile() -> str:
        known.forget(ANN)
        return ANN

    await known.ask("k", revoked_meanwhile, owner)
    source.state = "away"
    with pytest.raises(errors.Unavailable, match="PostgreSQL is not reachable"):
        await known.ask("k", source.says(None), owner)


async def test_the_cache_is_bounded() -> None:
    source = Source()
    known = PrincipalCache(lambda: source.now)
    for number in range(MAX_ANSWERS + 1):
        await known.ask(number, source.says(ANN), owner)
    source.state = "away"
    with pytest.raises(errors.Unavailable, match="PostgreSQL is not reachable"):
        await known.ask(0, source.says(None), owner)
    assert await known.ask(1, source.says(None), owner) == ANN


async def test_without_postgresql_an_administrator_is_recognized_by_key_and_session(world: Surroundings, postgres: PostgresServer) -> None:
    admin = await world.admin_token()
    key = (await world.new_key(admin)).api_key
    user_key = (await world.user_with_key())[1].api_key
    for credential in (admin, key, user_key):
        await world.ask(auth.identify, auth.Identify(credential))
    postgres.kill()
    try:
        for credential in (admin, key):
            assert (await world.ask(auth.identify, auth.Identify(credential))).username == "admin"
        with pytest.raises(errors.Unavailable, match="PostgreSQL"):
            async with asyncio.timeout(HANG_SECONDS):
                # PostgreSQL's child processes outlive their killed parent for a moment, and still answer.
                while True:
                    await world.ask(auth.identify, auth.Identify(user_key))
    finally:
        postgres.start()


async def test_an_announced_change_invalidates_the_cache(world: Surroundings) -> None:
    """This tests the whole service, not only ``PrincipalCache``."""
    admin = await world.admin_token()
    assembly = world.service._wiring
    known = assembly.identities.principal_cache
    async with asyncio.timeout(30):
        user_id = (await world.ask(auth.identify, auth.Identify(admin))).user_id
        # The service empties the cache, too, when it begins to listen for changes.
        while not known._answers:
            await world.ask(auth.identify, auth.Identify(admin))
    assembly.changes._notify(auth.Change(1, UserId(uuid4())))
    assert known._answers
    assembly.changes._notify(auth.Change(2, user_id))
    assert not known._answers
