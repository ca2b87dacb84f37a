"""One-time links that log a browser in: what they end with, and what they don't pass on. On real PostgreSQL and Valkey."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from services.auth.sessions import session_store
from services.auth.settings import AuthSettings
from shared import errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, auth
from shared.api.auth import Step
from tests.services.auth import by_hand
from tests.services.auth.mfa.equipment import WEB, ApiClient
from tests.services.auth.surroundings import PASSWORD, Surroundings, fields_of

NEW_PASSWORD = "another password"


@pytest.fixture
def api_client(world: Surroundings) -> ApiClient:
    return ApiClient(world)


async def link_of(world: Surroundings, credential: str) -> str:
    return (await world.ask(auth.create_login_link, auth.CreateLoginLink(), credential)).token


async def redeem(world: Surroundings, link: str) -> auth.LoginSession:
    return await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link), peer=WEB)


@dataclass(frozen=True)
class Anna:
    """A user with two sessions and a key, and the links of one session and of the key."""

    world: Surroundings
    settings: AuthSettings
    mine: auth.LoginSession
    stolen: auth.LoginSession
    key: auth.CreatedApiKey
    session_link: str
    key_link: str

    @classmethod
    async def registered(cls, world: Surroundings, settings: AuthSettings) -> "Anna":
        await world.register("anna")
        mine, stolen = await world.login("anna"), await world.login("anna")
        key = await world.new_key(mine.access_token)
        links = await link_of(world, stolen.access_token), await link_of(world, key.api_key)
        return cls(world, settings, mine, stolen, key, *links)

    async def end_others(self) -> None:
        await self.world.ask(accounts.end_session, accounts.EndSession(), self.mine.access_token)

    async def end_all_with_the_key(self) -> None:
        await self.world.ask(accounts.end_session, accounts.EndSession(), self.key.api_key)

    async def change_password(self) -> None:
        await self.world.ask(accounts.change_password, accounts.ChangePassword(NEW_PASSWORD), self.mine.access_token)

    async def change_password_by_hand(self) -> None:
        other = "SELECT password_hash FROM auth.users WHERE username = 'admin'"
        await by_hand.run(self.settings.database_url, f"UPDATE auth.users SET password_hash = ({other}) WHERE username = 'anna'")

    async def close_and_reopen(self) -> None:
        for is_active in (False, True):
            await self.world.administer(auth.set_active, auth.SetActive("anna", is_active=is_active))

    async def log_out(self) -> None:
        await self.world.ask(auth.logout_user, auth.LogoutUser(self.stolen.session_token))

    async def revoke(self) -> None:
        await self.world.ask(auth.revoke_api_key, auth.RevokeApiKey(str(self.key.key.id)), self.mine.access_token)

    async def rotate(self) -> None:
        request = auth.RotateApiKey(str(self.key.key.id), overlap_seconds=0)
        await self.world.ask(auth.rotate_api_key, request, self.mine.access_token)


@pytest.fixture
async def anna(world: Surroundings, settings: AuthSettings) -> Anna:
    return await Anna.registered(world, settings)


Ending = Callable[[Anna], Awaitable[None]]


@pytest.mark.parametrize(
    "end", [Anna.end_others, Anna.end_all_with_the_key, Anna.change_password, Anna.change_password_by_hand, Anna.close_and_reopen]
)
async def test_a_link_ends_with_all_sessions_and_with_the_password(anna: Anna, end: Ending) -> None:
    await end(anna)
    for link in (anna.session_link, anna.key_link):
        with pytest.raises(errors.NotAuthenticated, match="login link"):
            await redeem(anna.world, link)


async def test_a_sessions_link_ends_with_its_session_only(anna: Anna) -> None:
    await anna.log_out()
    with pytest.raises(errors.NotAuthenticated, match="login link"):
        await redeem(anna.world, anna.session_link)
    assert (await redeem(anna.world, anna.key_link)).step is Step.DONE


@pytest.mark.parametrize(("end", "reason"), [(Anna.revoke, "was revoked"), (Anna.rotate, "does not exist|was rotated")])
async def test_a_keys_link_ends_with_its_secret_only(anna: Anna, end: Ending, reason: str) -> None:
    await end(anna)
    with pytest.raises(errors.NotAuthenticated, match=reason):
        await redeem(anna.world, anna.key_link)
    assert (await redeem(anna.world, anna.session_link)).step is Step.DONE


async def test_a_link_ends_with_a_reset_of_the_password(anna: Anna) -> None:
    code = "r" * 43
    await by_hand.run(
        anna.settings.database_url,
        "INSERT INTO auth.password_resets (user_id, token_hash, expires_at)"
        " SELECT id, encode(sha256($1::bytea), 'hex'), now() + interval '1 minute' FROM auth.users WHERE username = 'anna'",
        code.encode(),
    )
    await anna.world.ask(accounts.reset_password, accounts.ResetPassword(code, NEW_PASSWORD))
    for link in (anna.session_link, anna.key_link):
        with pytest.raises(errors.NotAuthenticated, match="login link"):
            await redeem(anna.world, link)


@pytest.mark.parametrize("of_key", [False, True])
async def test_a_links_session_is_not_freshly_confirmed(anna: Anna, api_client: ApiClient, *, of_key: bool) -> None:
    opened = await redeem(anna.world, anna.key_link if of_key else anna.session_link)
    assert (await api_client.identify(opened)).confirmed_at == 0
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await anna.world.new_key(opened.access_token, "a thief's")
    await api_client.confirm_again(opened, PASSWORD)
    await anna.world.new_key(opened.access_token, "hers")


async def test_a_link_is_used_up_by_one_of_many(anna: Anna) -> None:
    uses = [asyncio.create_task(redeem(anna.world, anna.key_link)) for _ in range(8)]
    done = await asyncio.gather(*uses, return_exceptions=True)
    refused = [each for each in done if isinstance(each, BaseException)]
    assert len(done) - len(refused) == 1
    assert all(isinstance(each, errors.NotAuthenticated) and "login link" in each.message for each in refused)


async def test_no_session_survives_that_a_link_opens_while_all_sessions_end(anna: Anna, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sessions end between the check of the link and the opening of its session."""
    sessions = anna.world.parts.sessions
    find = sessions.find_link

    async def find_and_end(token: str) -> session_store.StoredLoginLink | None:
        found = await find(token)
        await anna.end_others()
        return found

    monkeypatch.setattr(sessions, "find_link", find_and_end)
    with pytest.raises(errors.NotAuthenticated, match="login link"):
        await redeem(anna.world, anna.key_link)
    assert [session.is_this for session in await listed(anna)] == [True]


async def test_a_links_answer_tells_nothing_of_its_maker(anna: Anna) -> None:
    link = await anna.world.ask(auth.create_login_link, auth.CreateLoginLink(), anna.key.api_key)
    assert link == auth.LoginLink(link.token, session_store.LINK_SECONDS)
    assert anna.key.api_key not in fields_of(await redeem(anna.world, link.token))


async def listed(anna: Anna) -> tuple[accounts.OpenSession, ...]:
    return (await anna.world.ask(accounts.list_sessions, accounts.ListSessions(), anna.mine.access_token)).sessions
