"""Many callers share one answer, and one failure."""

import asyncio

import pytest

from services.auth.oidc.provider import CACHE_SECONDS, FAILED_SECONDS, RENEW_SECONDS, CachedAnswer
from shared import errors


class Source:
    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.broken = False
        self.kept = CachedAnswer(self.fetch, lambda: self.now)

    async def fetch(self) -> str:
        self.asked += 1
        answer = f"answer {self.asked}"
        await asyncio.sleep(0)
        if self.broken:
            raise errors.Unavailable("away", hint="wait")
        return answer


async def test_many_concurrent_callers_share_one_answer() -> None:
    source = Source()
    assert set(await asyncio.gather(*(source.kept.get() for _ in range(50)))) == {"answer 1"}
    source.now = CACHE_SECONDS - 1
    assert await source.kept.get() == "answer 1"
    source.now = CACHE_SECONDS
    assert await source.kept.get() == "answer 2"


async def test_a_newer_answer_is_fetched_at_most_once_in_a_while() -> None:
    source = Source()
    first = await source.kept.get()
    assert await source.kept.renew(first) == "answer 1"
    source.now = RENEW_SECONDS
    assert set(await asyncio.gather(*(source.kept.renew(first) for _ in range(50)))) == {"answer 2"}
    assert await source.kept.get() == "answer 2"


async def test_many_waiting_callers_share_one_failure() -> None:
    source = Source()
    source.broken = True
    failed = await asyncio.gather(*(source.kept.get() for _ in range(50)), return_exceptions=True)
    assert [type(each) for each in failed] == [errors.Unavailable] * 50
    assert source.asked == 1
    source.broken = False
    source.now = FAILED_SECONDS
    assert await source.kept.get() == "answer 2"


async def test_a_failed_renewal_keeps_the_previous_answer() -> None:
    source = Source()
    first = await source.kept.get()
    source.now, source.broken = RENEW_SECONDS, True
    with pytest.raises(errors.Unavailable, match="away"):
        await source.kept.renew(first)
    assert await source.kept.get() == first
    assert await source.kept.renew(first) == first
    assert source.asked == 2


async def test_a_canceled_caller_leaves_the_fetch_to_the_next() -> None:
    source = Source()
    task = asyncio.ensure_future(source.kept.get())
    await asyncio.sleep(0)
    task.cancel()
    assert await source.kept.get() == "answer 2"
