"""Sessions and login links on a real Valkey."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import msgspec
import pytest

from services.auth import api_keys
from services.auth.sessions.session_store import (
    LINK_SECONDS,
    MAX_LINKS,
    ClosedSession,
    OpenedSession,
    SessionOver,
    SessionStore,
    StoredLogin,
    StoredLoginLink,
    StoredSession,
)
from services.auth.sessions.tokens import SessionToken
from shared.api.auth import ClientFacts, SessionKind, Step
from shared.stores.cache import Cache
from shared.types import TenantId, UserId

USER, OTHER = UserId(uuid4()), UserId(uuid4())
PROGRAM, BROWSER = StoredLogin(user_id=USER), StoredLogin(user_id=USER, kind=SessionKind.BROWSER)
HALFWAY = StoredLogin(user_id=USER, step=Step.ENTER_CODE)
LINK = StoredLoginLink(user_id=USER, password_version="a hash", session_id="an id")
DAY = 86_400


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    async with Cache.open(valkey_url) as opened:
        yield opened


@pytest.fixture
def sessions(cache: Cache, clock: Clock) -> SessionStore:
    return sessions_of(cache, clock)


def sessions_of(cache: Cache, clock: Clock, idle_seconds: float = 3600) -> SessionStore:
    return SessionStore(cache, idle_seconds=idle_seconds, longest_seconds=43_200, clock=clock)


async def resumed(sessions: SessionStore, token: str) -> StoredSession:
    found = await sessions.resume(token)
    assert isinstance(found, OpenedSession)
    assert found.token == token
    return found.session


async def refreshed(sessions: SessionStore, token: str) -> OpenedSession:
    found = await sessions.refresh(token)
    assert isinstance(found, OpenedSession)
    return found


async def everything_in(valkey_url: str) -> str:
    """Return all keys and values, as someone with a copy of Valkey sees them."""
    import redis.asyncio as redis

    found: list[object] = []
    async with redis.Redis.from_url(valkey_url) as client:
        for key in await client.keys("*"):
            kind = await client.type(key)
            if kind == b"zset":
                found += [key, await client.zrange(key, 0, -1)]
            else:
                found += [key, await (client.hgetall(key) if kind == b"hash" else client.get(key))]
    return repr(found)


# --- browser sessions --------------------------------------------------------------------------------------------------


async def test_a_browser_session_stays_open_with_its_token_until_it_is_closed(sessions: SessionStore) -> None:
    opened = await sessions.open(BROWSER)
    session = opened.session
    assert (session.user_id, session.kind, session.step) == (USER, SessionKind.BROWSER, Step.DONE)
    assert await sessions.find(session.id) == session
    assert await resumed(sessions, opened.token) == session
    assert await resumed(sessions, opened.token) == session
    assert await sessions.end_by_token(opened.token) == ClosedSession(session.id, USER)
    assert await sessions.find(session.id) is None
    assert await sessions.resume(opened.token) is SessionOver.ENDED
    assert await sessions.end_by_token(opened.token) is None


async def test_an_idle_session_expires_and_a_used_one_does_not(cache: Cache, clock: Clock) -> None:
    idle_seconds = 1.5
    sessions = sessions_of(cache, clock, idle_seconds=idle_seconds)
    used, looked_at = await sessions.open(BROWSER), await sessions.open(BROWSER)
    for _ in range(9):
        await asyncio.sleep(0.15 * idle_seconds)
        clock.now += 0.15 * idle_seconds
        await resumed(sessions, used.token)
        await sessions.find(looked_at.session.id)
    assert await sessions.find(looked_at.session.id) is None
    assert [session.id for session in await sessions.list_of(USER)] == [used.session.id]


async def test_a_browser_session_ends_after_its_maximum_time_despite_use(sessions: SessionStore, clock: Clock) -> None:
    opened = await sessions.open(BROWSER)
    clock.now += 43_199
    await resumed(sessions, opened.token)
    clock.now += 1
    assert await sessions.find(opened.session.id) is None
    assert await sessions.resume(opened.token) is SessionOver.ENDED


async def test_a_use_is_recorded_at_most_once_a_minute(sessions: SessionStore, clock: Clock) -> None:
    opened = await sessions.open(BROWSER)
    began = clock.now
    clock.now += 59
    assert (await resumed(sessions, opened.token)).last_used_at == began
    clock.now += 1
    assert (await resumed(sessions, opened.token)).last_used_at == began + 60


# --- program sessions --------------------------------------------------------------------------------------------------


async def test_each_refresh_gives_a_new_token_for_the_same_session(sessions: SessionStore, clock: Clock) -> None:
    first = await sessions.open(PROGRAM)
    second = await refreshed(sessions, first.token)
    third = await refreshed(sessions, second.token)
    assert len({first.token, second.token, third.token}) == 3
    assert first.session.id == second.session.id == third.session.id
    clock.now += 31 * DAY
    assert (await refreshed(sessions, third.token)).session.id == first.session.id, "what is used has no longest time"


async def test_a_program_session_expires_after_a_month_without_use(cache: Cache, valkey_url: str, clock: Clock) -> None:
    import redis

    await sessions_of(cache, clock).open(PROGRAM)
    with redis.Redis.from_url(valkey_url) as client:
        lives = [client.pttl(key) for key in client.keys("auth:session*")]
    assert len(lives) == 3
    assert all(30 * DAY * 1000 - 60_000 < life <= 30 * DAY * 1000 for life in lives)


async def test_reusing_a_spent_token_ends_the_session_for_both_holders(sessions: SessionStore, clock: Clock) -> None:
    first = await sessions.open(PROGRAM)
    thief = await refreshed(sessions, first.token)
    clock.now += 11
    assert await sessions.refresh(first.token) == ClosedSession(first.session.id, USER)
    assert await sessions.find(first.session.id) is None
    assert await sessions.refresh(thief.token) is SessionOver.ENDED
    assert await sessions.list_of(USER) == ()


async def test_a_token_spent_long_ago_is_still_recognized(sessions: SessionStore, clock: Clock) -> None:
    first = await sessions.open(PROGRAM)
    newest = first
    for _ in range(50):
        clock.now += 600
        newest = await refreshed(sessions, newest.token)
    assert await sessions.refresh(first.token) == ClosedSession(first.session.id, USER)
    assert await sessions.refresh(newest.token) is SessionOver.ENDED


async def test_a_lost_answer_is_repeated_for_ten_seconds(sessions: SessionStore, clock: Clock) -> None:
    first = await sessions.open(PROGRAM)
    lost = await refreshed(sessions, first.token)
    clock.now += 10
    again = await refreshed(sessions, first.token)
    assert again.token == lost.token
    clock.now += 3600
    await refreshed(sessions, again.token)


async def test_a_token_is_not_accepted_once_its_successor_was_spent(sessions: SessionStore) -> None:
    first = await sessions.open(PROGRAM)
    second = await refreshed(sessions, first.token)
    await refreshed(sessions, second.token)
    assert isinstance(await sessions.refresh(first.token), ClosedSession)


async def test_two_hundred_concurrent_refreshes_get_the_same_valid_token(cache: Cache, valkey_url: str, clock: Clock) -> None:
    first = await sessions_of(cache, clock).open(PROGRAM)
    async with contextlib.AsyncExitStack() as stack:
        replicas = [sessions_of(await stack.enter_async_context(Cache.open(valkey_url)), clock) for _ in range(4)]
        found = await asyncio.gather(*(refreshed(replicas[n % 4], first.token) for n in range(200)))
    assert len({opened.token for opened in found}) == 1
    clock.now += 3600
    assert (await refreshed(sessions_of(cache, clock), found[0].token)).session.id == first.session.id


async def test_neither_a_thief_nor_the_owner_keeps_the_session(sessions: SessionStore, clock: Clock) -> None:
    """Once both have refreshed the session, it ends, in any order and after any number of refreshes."""
    stolen = (await sessions.open(PROGRAM)).token
    thief = owner = stolen
    with contextlib.suppress(AssertionError):
        for _ in range(3):
            thief = (await refreshed(sessions, thief)).token
            clock.now += 600
            owner = (await refreshed(sessions, owner)).token
        pytest.fail("both went on for ever")
    assert await sessions.refresh(thief) is SessionOver.ENDED
    assert await sessions.refresh(owner) is SessionOver.ENDED


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda token: token[:-1], id="not copied whole"),
        pytest.param(lambda token: token + "0", id="copied with something more"),
        pytest.param(lambda token: token[:40] + ("0" if token[40] != "0" else "1") + token[41:], id="mistyped"),
        pytest.param(lambda token: token.lower(), id="in other letters"),
        pytest.param(lambda token: "é" * len(token), id="not ASCII"),
        pytest.param(lambda token: token * 1000, id="long"),
        pytest.param(lambda token: "", id="nothing"),
        pytest.param(lambda token: SessionToken.new().text, id="another's"),
    ],
)
async def test_an_invalid_token_ends_nothing(sessions: SessionStore, change: object) -> None:
    assert callable(change)
    opened = await sessions.open(PROGRAM)
    for attempt in (sessions.refresh, sessions.resume):
        assert await attempt(change(opened.token)) is SessionOver.ENDED
    assert await sessions.end_by_token(change(opened.token)) is None
    await refreshed(sessions, opened.token)


async def test_a_token_of_the_other_kind_is_refused_and_ends_nothing(sessions: SessionStore) -> None:
    program, browser = await sessions.open(PROGRAM), await sessions.open(BROWSER)
    assert await sessions.resume(program.token) is SessionOver.OTHER_KIND
    assert await sessions.refresh(browser.token) is SessionOver.OTHER_KIND
    await refreshed(sessions, program.token)
    await resumed(sessions, browser.token)


async def test_an_invented_secret_of_a_browsers_family_opens_and_ends_nothing(sessions: SessionStore) -> None:
    opened = await sessions.open(BROWSER)
    token = SessionToken.read(opened.token)
    assert token is not None
    assert await sessions.resume(SessionToken(token.family, SessionToken.new().secret).text) is SessionOver.ENDED
    await resumed(sessions, opened.token)


# --- tokens and ids ------------------------------------------------------------------------------------------------------


async def test_a_copy_of_valkey_opens_nothing(sessions: SessionStore, valkey_url: str) -> None:
    first = await sessions.open(PROGRAM)
    second = await refreshed(sessions, first.token)
    browser = await sessions.open(BROWSER)
    link = await sessions.create_link(LINK)
    stored = await everything_in(valkey_url)
    for token in (first.token, second.token, browser.token):
        apart = SessionToken.read(token)
        assert apart is not None
        assert all(secret not in stored for secret in (token, apart.family, apart.secret))
    assert link not in stored
    assert first.session.id in stored, "it is all of it"


async def test_the_id_reveals_nothing_of_the_token(sessions: SessionStore) -> None:
    opened = await sessions.open(PROGRAM)
    token = SessionToken.read(opened.token)
    assert token is not None
    assert opened.session.id not in {token.hash, token.family_hash}
    assert await sessions.find(token.hash) is None
    assert await sessions.resume(opened.session.id) is SessionOver.ENDED


async def test_completing_a_step_changes_id_and_token(sessions: SessionStore, clock: Clock) -> None:
    """A token that an attacker planted before the login is worthless after it."""
    begun = await sessions.open(HALFWAY)
    clock.now += 30
    done = await sessions.complete(begun.session)
    assert done is not None
    assert done.session.id != begun.session.id
    assert (done.session.step, done.session.has_factor, done.session.confirmed_at) == (Step.DONE, True, clock.now)
    assert await sessions.find(begun.session.id) is None
    assert await sessions.refresh(begun.token) is SessionOver.ENDED
    assert (await refreshed(sessions, done.token)).session.step is Step.DONE


async def test_one_of_many_concurrent_steps_succeeds(sessions: SessionStore) -> None:
    begun = await sessions.open(HALFWAY)
    done = await asyncio.gather(*(sessions.complete(begun.session) for _ in range(20)))
    assert len([opened for opened in done if opened is not None]) == 1
    assert len(await sessions.list_of(USER)) == 1


async def test_an_incomplete_login_ends_after_ten_minutes_despite_use(sessions: SessionStore, clock: Clock) -> None:
    for login in (HALFWAY, StoredLogin(user_id=USER, kind=SessionKind.BROWSER, step=Step.SET_UP_MFA)):
        opened = await sessions.open(login)
        clock.now += 599
        assert isinstance(await (sessions.refresh if login is HALFWAY else sessions.resume)(opened.token), OpenedSession)
        clock.now += 1
        assert await sessions.find(opened.session.id) is None
        assert await sessions.complete(opened.session) is None


async def test_switching_the_organisation_changes_id_and_token_but_not_the_end(sessions: SessionStore, clock: Clock) -> None:
    opened = await sessions.open(BROWSER)
    team = TenantId(UUID(int=9))
    clock.now += 40_000
    for_team = await sessions.switch_team(opened.session, team)
    assert for_team is not None
    assert (for_team.session.team_id, for_team.session.kind) == (team, SessionKind.BROWSER)
    assert await sessions.resume(opened.token) is SessionOver.ENDED
    assert (await resumed(sessions, for_team.token)).team_id == team
    alone = await sessions.switch_team(for_team.session, None)
    assert alone is not None
    assert (await resumed(sessions, alone.token)).team_id is None
    clock.now += 3_200
    assert await sessions.resume(alone.token) is SessionOver.ENDED


async def test_a_confirmed_session_is_fresh_again(sessions: SessionStore, clock: Clock) -> None:
    opened = await sessions.open(StoredLogin(user_id=USER, confirmed_at=0.0))
    assert opened.session.confirmed_at == 0
    clock.now += 10
    assert await sessions.confirm(opened.session, has_factor=True)
    found = await sessions.find(opened.session.id)
    assert found is not None
    assert (found.confirmed_at, found.has_factor) == (clock.now, True)
    await sessions.end_all(USER)
    assert not await sessions.confirm(opened.session, has_factor=True)
    assert await sessions.find(opened.session.id) is None, "nothing was brought back"


# --- all sessions of a user --------------------------------------------------------------------------------------------


async def test_a_user_sees_their_sessions_newest_first_with_their_origin(sessions: SessionStore, clock: Clock) -> None:
    first = await sessions.open(StoredLogin(user_id=USER, client=ClientFacts("203.0.113.7", "Mozilla/5.0 (X11)")))
    clock.now += 1
    second = await sessions.open(BROWSER)
    await sessions.open(HALFWAY)
    await sessions.open(StoredLogin(user_id=OTHER))
    listed = await sessions.list_of(USER)
    assert [session.id for session in listed] == [second.session.id, first.session.id]
    shown = listed[1].shown(first.session.id)
    assert (shown.client.address, shown.client.agent, shown.is_this) == ("203.0.113.7", "Mozilla/5.0 (X11)", True)
    assert not listed[0].shown(first.session.id).is_this


async def test_a_clients_own_name_is_shortened_and_made_printable(sessions: SessionStore) -> None:
    opened = await sessions.open(StoredLogin(user_id=USER, client=ClientFacts("1" * 1000, "a\x1b[31m\nb\0" + "c" * 1000)))
    found = await sessions.find(opened.session.id)
    assert found is not None
    assert found.client.address == "1" * 60
    assert found.client.agent.startswith("a[31mbccc")
    assert len(found.client.agent) < 200
    assert found == opened.session


async def test_of_more_than_a_hundred_sessions_the_oldest_end(sessions: SessionStore, clock: Clock) -> None:
    opened = []
    for _ in range(103):
        clock.now += 1
        opened.append(await sessions.open(PROGRAM))
    listed = await sessions.list_of(USER)
    assert [session.id for session in listed] == [each.session.id for each in reversed(opened[3:])]
    assert await sessions.refresh(opened[2].token) is SessionOver.ENDED
    assert isinstance(await sessions.refresh(opened[3].token), OpenedSession)


async def test_incomplete_logins_end_no_complete_session(sessions: SessionStore, clock: Clock) -> None:
    whole = await sessions.open(PROGRAM)
    begun = []
    for _ in range(150):
        clock.now += 1
        begun.append(await sessions.open(HALFWAY))
    assert [session.id for session in await sessions.list_of(USER)] == [whole.session.id]
    still = [each for each in begun if await sessions.find(each.session.id)]
    assert still == begun[-10:]


async def test_sessions_end_one_by_one_all_others_or_all(sessions: SessionStore) -> None:
    one, two, three = [await sessions.open(PROGRAM) for _ in range(3)]
    halfway, others = await sessions.open(HALFWAY), await sessions.open(StoredLogin(user_id=OTHER))
    assert not await sessions.end(OTHER, one.session.id), "it is not theirs"
    assert not await sessions.end(USER, "nothing")
    assert await sessions.end(USER, one.session.id)
    assert not await sessions.end(USER, one.session.id)
    assert await sessions.end_all(USER, but=two.session.id) == 2
    assert [session.id for session in await sessions.list_of(USER)] == [two.session.id]
    assert await sessions.find(three.session.id) is None
    assert await sessions.find(halfway.session.id) is None
    assert await sessions.end_all(USER) == 1
    assert await sessions.end_all(USER) == 0
    assert await sessions.find(others.session.id) == others.session


async def test_nothing_is_left_of_an_ended_session(sessions: SessionStore, valkey_url: str) -> None:
    opened = await sessions.open(StoredLogin(user_id=USER, client=ClientFacts("203.0.113.7", "canary")))
    await sessions.open(HALFWAY)
    await refreshed(sessions, opened.token)
    await sessions.create_link(LINK)
    await sessions.end_all(USER)
    assert await everything_in(valkey_url) == "[]"


# --- login links ---------------------------------------------------------------------------------------------------------


async def test_one_of_many_uses_of_a_link_succeeds(sessions: SessionStore) -> None:
    token = await sessions.create_link(LINK)
    assert await sessions.find_link(token) == LINK
    opened = await asyncio.gather(*(sessions.open_by_link(token, BROWSER) for _ in range(20)))
    assert len([session for session in opened if session is not None]) == len(await sessions.list_of(USER)) == 1
    for unknown in (token, "aip_link_nothing"):
        assert await sessions.find_link(unknown) is None
        assert await sessions.open_by_link(unknown, BROWSER) is None


@pytest.mark.parametrize("end", [SessionStore.end_all, SessionStore.end_links])
async def test_a_users_links_end_and_others_stay(sessions: SessionStore, end: Callable[[SessionStore, UserId], Awaitable[object]]) -> None:
    mine = [await sessions.create_link(LINK) for _ in range(2)]
    others = await sessions.create_link(msgspec.structs.replace(LINK, user_id=OTHER))
    await end(sessions, USER)
    assert [await sessions.open_by_link(link, BROWSER) for link in mine] == [None, None]
    assert await sessions.find_link(others) is not None


async def test_of_too_many_links_the_oldest_end(sessions: SessionStore, clock: Clock, valkey_url: str) -> None:
    links = []
    for _ in range(MAX_LINKS + 2):
        links.append(await sessions.create_link(LINK))
        clock.now += 1
    assert [await sessions.find_link(link) for link in links] == [None] * 2 + [LINK] * MAX_LINKS
    clock.now += LINK_SECONDS
    last = await sessions.create_link(LINK)
    stored = await everything_in(valkey_url)
    in_the_index = [link for link in (*links, last) if f"b'{api_keys.hash_token(link)}'" in stored]
    assert in_the_index == [last]
