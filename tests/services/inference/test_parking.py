import asyncio

import pytest

from services.inference import parking
from shared import errors


async def test_parked_call_says_so_and_loses_nothing() -> None:
    reports, notices = asyncio.Queue[int](), list[str]()

    async def say(notice: str) -> None:
        notices.append(notice)
        if len(notices) == 3:
            reports.put_nowait(7)

    assert await parking.wait(reports.get, say, notice_seconds=0.001) == 7
    assert notices == [parking.NOTICE] * 3


async def test_call_that_is_parked_too_long_is_preempted() -> None:
    notices = list[str]()

    async def say(notice: str) -> None:
        notices.append(notice)

    with pytest.raises(errors.Preempted):
        await parking.wait(asyncio.Event().wait, say, notice_seconds=0.0001)
    assert len(notices) * parking.NOTICE_SECONDS == 600
