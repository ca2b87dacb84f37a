"""Samples are taken at the times their rows are named after, however imprecise timers are."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.metrics.history import history_writer, rollup
from services.metrics.history.history_writer import HistoryWriter

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("started", [3.0, 0.0, 14.9996])
@pytest.mark.parametrize("late", [-0.0005, 0.0, 0.4])
async def test_sample_time_is_never_before_its_period(monkeypatch: pytest.MonkeyPatch, started: float, late: float) -> None:
    """An event loop with millisecond timers may wake half a millisecond early, in the previous period."""
    now, looked, slept = BEGIN + timedelta(seconds=started), list[datetime](), 0

    async def text() -> str:
        looked.append(now)
        return ""

    async def sleep(seconds: float) -> None:
        nonlocal now, slept
        slept += 1
        if len(looked) == 3 or slept == 50:
            raise asyncio.CancelledError
        now += timedelta(seconds=max(0.0, seconds + late))

    monkeypatch.setattr(history_writer.asyncio, "sleep", sleep)
    keeper = HistoryWriter(text, {}, lambda: now)
    with pytest.raises(asyncio.CancelledError):
        await keeper.sample_forever()
    named = [look.at for look in keeper._waiting]
    assert len(set(named)) == 3
    assert all(timedelta(0) <= at - name < timedelta(seconds=1) for at, name in zip(looked, named, strict=True))
    assert named[1] - named[0] == named[2] - named[1] == timedelta(seconds=rollup.RAW)
