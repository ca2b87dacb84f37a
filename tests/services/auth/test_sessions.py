"""Sessions and login links on a real Valkey."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from services.auth.failed_logins import FailedLogins
from services.auth.sessions import Sessions
from shared import errors
from shared.cache import Cache
from shared.types import UserId

USER = UserId(uuid4())


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    async with Cache.open(valkey_url) as opened:
        yield opened


def sessions_of(cache: Cache, clock: Clock, idle_seconds: float = 3600) -> Sessions:
    return Sessions(cache, idle_seconds=idle_seconds, longest_seconds=43_200, clock=clock)


async def test_a_session_is_open_until_it_is_closed(cache: Cache) -> None:
    sessions = sessions_of(cache, Clock())
    token, session = await sessions.open(USER)
    assert session.user_id == USER
    assert await sessions.find(session.id) == session
    assert await sessions.prolong(token) == session
    assert await sessions.close(token) == session
    assert await sessions.find(session.id) is None
    assert await sessions.prolong(token) is None
    assert await sessions.close(token) is None


async def test_the_token_is_not_in_valkey(cache: Cache) -> None:
    sessions = sessions_of(cache, Clock())
    token, session = await sessions.open(USER)
    assert token.startswith("aip_rt_")
    assert token not in session.id
    assert await cache.get(f"auth:session:{token}") is None
    assert await sessions.find(token) is None


async def test_an_unused_session_ends_and_a_used_one_does_not(cache: Cache) -> None:
    sessions = sessions_of(cache, Clock(), idle_seconds=0.2)
    used, _ = await sessions.open(USER)
    _, looked_at = await sessions.open(USER)
    for _ in range(6):
        await asyncio.sleep(0.045)
        assert await sessions.prolong(used)
        await sessions.find(looked_at.id)
    assert await sessions.find(looked_at.id) is None


async def test_every_session_ends_after_its_longest_time(cache: Cache) -> None:
    clock = Clock()
    sessions = sessions_of(cache, clock)
    token, session = await sessions.open(USER)
    clock.now += 43_199
    assert await sessions.prolong(token)
    clock.now += 1
    assert await sessions.find(session.id) is None
    assert await sessions.prolong(token) is None


async def test_of_many_uses_of_a_link_one_succeeds(cache: Cache) -> None:
    sessions = sessions_of(cache, Clock())
    token = await sessions.offer_link(USER)
    taken = await asyncio.gather(*(sessions.take_link(token) for _ in range(20)))
    assert [user for user in taken if user is not None] == [USER]
    assert await sessions.take_link("aip_link_nothing") is None


async def test_of_many_guesses_at_once_ten_are_allowed(cache: Cache) -> None:
    failed = FailedLogins(cache)
    account = str(uuid4())
    outcomes = await asyncio.gather(*(failed.charge(account) for _ in range(200)), return_exceptions=True)
    assert outcomes.count(None) == 10
    refused = [outcome for outcome in outcomes if isinstance(outcome, errors.Limited)]
    assert len(refused) == 190
    assert all(0 < (error.retry_after_seconds or 0) <= 900 for error in refused)
    await failed.charge(str(uuid4()))
    await failed.forgive(account)
    await failed.charge(account)
