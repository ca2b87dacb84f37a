"""PostgreSQL's time between queries."""

from datetime import UTC, datetime, timedelta

import pytest

from shared import errors
from shared.stores.database_clock import DatabaseClock

AT = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)


async def test_it_runs_on_from_the_middle_of_the_last_question() -> None:
    seconds, at = iter([100.0, 104.0, 112.0, 200.0, 200.0, 201.0]), AT

    async def read() -> datetime:
        return at

    clock = DatabaseClock(read, lambda: next(seconds))
    await clock.refresh()
    assert clock.now() == AT + timedelta(seconds=10)
    at = AT - timedelta(days=1)
    await clock.refresh()
    assert clock.now() == at + timedelta(seconds=1)


async def test_it_keeps_the_last_answer_and_is_this_machines_clock_before_the_first() -> None:
    is_away = True

    async def read() -> datetime:
        if is_away:
            raise errors.Unavailable("PostgreSQL does not answer")
        return AT

    clock = DatabaseClock(read, lambda: 0.0)
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await clock.refresh()
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
    is_away = False
    await clock.refresh()
    is_away = True
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await clock.refresh()
    assert clock.now() == AT
