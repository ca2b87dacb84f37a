"""Administrators are recognized while PostgreSQL cannot be asked; nobody else is, and nobody who was revoked before."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from services.auth.sessions.principal_cache import MAX_AGE_SECONDS, MAX_ANSWERS, PrincipalCache
from shared import errors
from shared.api import auth
from shared.types import UserId
from tests.servers import PostgresServer
from tests.services.auth.surroundings import Surroundings

ANN, BEN = UserId("ann"), UserId("ben")


class Source:
    """Stands for PostgreSQL: answers, is away, or hangs."""

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
            await world.ask(auth.identify, auth.Identify(user_key))
    finally:
        postgres.start()


async def test_an_announced_change_invalidates_the_cache(world: Surroundings) -> None:
    """By the whole service, not only by ``PrincipalCache``."""
    admin = await world.admin_token()
    assembly = world.service._wiring
    known = assembly.identities.principal_cache
    async with asyncio.timeout(30):
        user_id = (await world.ask(auth.identify, auth.Identify(admin))).user_id
        # What the service hears when it begins to listen empties it, too.
        while not known._answers:
            await world.ask(auth.identify, auth.Identify(admin))
    assembly.changes._notify(auth.Change(1, UserId(uuid4())))
    assert known._answers
    assembly.changes._notify(auth.Change(2, user_id))
    assert not known._answers
