import asyncio
from collections.abc import Sequence

import pytest

from services.gateway.billing import ledger
from services.gateway.billing.ledger import QueryBatching
from shared import errors


class Store:
    """Doubles numbers when the test allows it."""

    def __init__(self) -> None:
        self.received: list[list[int]] = []
        self.open = asyncio.Event()
        self.fails = False

    async def ask_all(self, numbers: Sequence[int]) -> list[int]:
        self.received.append(list(numbers))
        await self.open.wait()
        if self.fails:
            raise errors.Unavailable("away")
        return [2 * number for number in numbers]


async def test_queries_that_arrive_during_a_batch_form_the_next_batch() -> None:
    store = Store()
    async with QueryBatching(store.ask_all).running() as batching, asyncio.TaskGroup() as tasks:
        first = [tasks.create_task(batching.ask(number)) for number in range(ledger.WRITERS)]
        while len(store.received) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        rest = [tasks.create_task(batching.ask(number)) for number in range(100, 100 + 3 * ledger.MAX_TOGETHER)]
        await asyncio.sleep(0)
        store.open.set()
        assert [await task for task in first + rest] == [
            2 * number for number in (*range(ledger.WRITERS), *range(100, 100 + 3 * ledger.MAX_TOGETHER))
        ]
    assert max(map(len, store.received)) == ledger.MAX_TOGETHER
    assert len(store.received) <= ledger.WRITERS + 4


async def test_a_failure_fails_the_whole_batch_but_not_the_next() -> None:
    store = Store()
    store.open.set()
    store.fails = True
    async with QueryBatching(store.ask_all).running() as batching:
        answers = await asyncio.gather(*(batching.ask(number) for number in range(3)), return_exceptions=True)
        assert all(isinstance(answer, errors.Unavailable) for answer in answers)
        store.fails = False
        assert await batching.ask(4) == 8


async def test_a_cancellation_takes_effect_after_the_answer() -> None:
    store = Store()
    async with QueryBatching(store.ask_all).running() as batching:
        task = asyncio.create_task(batching.ask(1))
        while not store.received:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        store.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await batching.ask(2) == 4


async def test_waiting_queries_fail_at_shutdown() -> None:
    store = Store()
    async with QueryBatching(store.ask_all).running() as batching:
        task = asyncio.create_task(batching.ask(1))
        while not store.received:  # noqa: ASYNC110
            await asyncio.sleep(0)
    with pytest.raises(errors.Draining, match="this gateway is stopping"):
        await task
