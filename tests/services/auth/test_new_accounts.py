"""Counts of registrations and created keys by UTC day, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime

import pytest

from services.auth.store import AccountTables, opened
from shared import errors
from shared.api import business
from shared.api.business import CountNewAccounts, NewOfDay
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Surroundings
from tests.services.auth.test_store import add_key, add_user


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[AccountTables]:
    async with opened(postgres_url) as db:
        yield AccountTables(db)


async def test_each_day_ends_at_midnight_utc(store: AccountTables, postgres_url: str) -> None:
    moments = ("2026-03-01T23:59:59.999999Z", "2026-03-02T00:00:00Z", "2026-03-03T23:59:59Z", "2026-03-04T00:00:00Z")
    for number, moment in enumerate(moments):
        user = await add_user(store, f"user{number}")
        key = await add_key(store, user, f"key{number}")
        at = datetime.fromisoformat(moment).astimezone(UTC)
        await by_hand.run(postgres_url, "UPDATE auth.users SET created_at = $1 WHERE id = $2", at, user.id)
        await by_hand.run(postgres_url, "UPDATE auth.api_keys SET created_at = $1 WHERE id = $2", at, key.id)
    second = await add_key(store, await store.get_user_called("user2"), "another")
    await by_hand.run(postgres_url, "UPDATE auth.api_keys SET created_at = '2026-03-03T00:00:00Z' WHERE id = $1", second.id)
    assert await store.count_new(date(2026, 3, 2), date(2026, 3, 4)) == (NewOfDay(date(2026, 3, 2), 1, 1), NewOfDay(date(2026, 3, 3), 1, 2))


async def test_only_administrators_may_count_new_accounts(world: Surroundings) -> None:
    today = datetime.now(UTC).date()
    asked = CountNewAccounts(today, date.fromordinal(today.toordinal() + 1))
    _, new = await world.user_with_key()
    with pytest.raises(errors.NotAllowed, match="john_doe is no administrator"):
        await world.ask(business.count_new_accounts, asked, new.api_key)
    admin = await world.admin_token()
    found = await world.ask(business.count_new_accounts, asked, admin)
    assert found.days[0].registrations == 2
    with pytest.raises(errors.BadRequest, match="since and until: two days, the earlier first, at most 750 apart"):
        await world.ask(business.count_new_accounts, CountNewAccounts(today, today), admin)
