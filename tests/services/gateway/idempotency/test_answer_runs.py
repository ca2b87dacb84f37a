import asyncio
import random
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from services.gateway.idempotency import answer_runs as module
from services.gateway.idempotency.answer_runs import AnswerRun, AnswerRunId, AnswerRunReader, AnswerRuns, Produce
from shared import errors
from shared.api.inference import Chunk
from shared.types import UserId

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
NAME = AnswerRunId(ADA, b"one")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def runs(clock: Clock) -> AsyncIterator[AnswerRuns]:
    async with AnswerRuns(clock).running() as running:
        yield running


def chunk(number: int) -> Chunk:
    return Chunk(f"{number} ", (number,))


def says(count: int, gate: asyncio.Event | None = None) -> Produce[str, Chunk, int]:
    """Return a producer of ``count`` chunks; it makes the second half after the gate opens."""

    async def produce(run: AnswerRun[str, Chunk, int]) -> int:
        run.set_head("head")
        for number in range(1, count + 1):
            if gate is not None and number == count // 2 + 1:
                await gate.wait()
            await run.add(chunk(number))
        return count

    return produce


async def read(reader: AnswerRunReader[str, Chunk, int]) -> list[int]:
    with reader:
        return [number async for number, one in reader if one.text == f"{number} "]


async def test_every_reader_gets_the_whole_answer_and_its_end(runs: AnswerRuns) -> None:
    gate = asyncio.Event()
    run = runs.start(NAME, says(10, gate), seconds=5)
    first = run.reader()
    assert await first.wait_for_head() == "head"
    with first:
        assert [(await anext(first))[0] for _ in range(5)] == [1, 2, 3, 4, 5]
        found = runs.find(NAME)
        assert found is run
        others = asyncio.gather(read(run.reader()), read(run.reader(after=7)))
        await asyncio.sleep(0)
        gate.set()
        assert [number async for number, _ in first] == [6, 7, 8, 9, 10]
        assert await others == [list(range(1, 11)), [8, 9, 10]]
    assert first.result == 10


async def test_answers_of_other_tenants_are_not_found(runs: AnswerRuns) -> None:
    run = runs.start(NAME, says(2), seconds=5)
    with run.reader():
        assert runs.find(AnswerRunId(BOB, b"one")) is None


async def test_an_answer_is_canceled_when_its_last_reader_leaves(runs: AnswerRuns) -> None:
    cancelled = asyncio.Event()

    async def hang(run: AnswerRun[str, Chunk, int]) -> int:
        await run.add(chunk(1))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 0

    run = runs.start(NAME, hang, seconds=5)
    first, second = run.reader(), run.reader()
    with first:
        assert await anext(first) == (1, chunk(1))
    with second:
        assert await anext(second) == (1, chunk(1))
        assert not cancelled.is_set()
    # A run that is about to end can't be joined.
    assert runs.find(NAME) is None
    await asyncio.wait_for(cancelled.wait(), 30)
    assert runs._bytes == 0


async def test_a_canceled_reader_does_not_affect_the_others(runs: AnswerRuns) -> None:
    gate = asyncio.Event()
    run = runs.start(NAME, says(10, gate), seconds=5)
    staying = asyncio.create_task(read(run.reader()))
    leaving = asyncio.create_task(read(run.reader()))
    await asyncio.sleep(0.01)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.set()
    assert await staying == list(range(1, 11))


async def test_a_kept_answer_is_generated_to_its_end_and_read_later(runs: AnswerRuns, clock: Clock) -> None:
    gate = asyncio.Event()
    run = runs.start(NAME, says(10, gate), seconds=5, kept=True)
    with run.reader() as reader:
        await anext(reader)
    gate.set()
    found = runs.find(NAME)
    assert found is run
    assert await read(run.reader(after=1)) == list(range(2, 11))
    clock.now = module.KEPT_SECONDS - 1
    assert runs.find(NAME) is run
    clock.now = module.KEPT_SECONDS + 1
    assert runs.find(NAME) is None
    assert runs._bytes == 0


async def test_an_error_reaches_every_reader_after_the_chunks_before_it(runs: AnswerRuns) -> None:
    async def fail(run: AnswerRun[str, Chunk, int]) -> int:
        await run.add(chunk(1))
        await asyncio.sleep(0)
        raise errors.LinkLost("gone")

    run = runs.start(NAME, fail, seconds=5)

    async def try_to_read(reader: AnswerRunReader[str, Chunk, int]) -> list[int]:
        seen: list[int] = []
        with reader, pytest.raises(errors.LinkLost, match="gone"):
            async for number, _ in reader:
                seen.append(number)
        with pytest.raises(errors.LinkLost, match="gone"):
            _ = reader.result
        return seen

    readers = [run.reader() for _ in range(5)]
    assert await asyncio.gather(*map(try_to_read, readers)) == [[1]] * 5


async def test_a_bug_is_raised_to_the_readers_and_stops_nothing_else(runs: AnswerRuns) -> None:
    async def bug(run: AnswerRun[str, Chunk, int]) -> int:
        raise ZeroDivisionError

    run = runs.start(NAME, bug, seconds=5)
    with run.reader() as reader, pytest.raises(ZeroDivisionError):
        await reader.wait_for_head()
    assert await read(runs.start(AnswerRunId(ADA, b"two"), says(2), seconds=5).reader()) == [1, 2]


async def test_an_answer_times_out_without_readers_too(runs: AnswerRuns) -> None:
    async def endless(run: AnswerRun[str, Chunk, int]) -> int:
        while True:
            await run.add(chunk(1))

    run = runs.start(NAME, endless, seconds=0.03)
    with run.reader() as reader:
        await run.wait()
        while not run.is_over:
            await run.wait()
        assert run.buffer.size < 70_000
        with pytest.raises(errors.DeadlineExceeded, match="the answer was not ready after"):
            _ = [one async for one in reader]


async def test_a_slow_reader_delays_the_producer_but_no_other_reader(runs: AnswerRuns) -> None:
    run = runs.start(NAME, says(2000), seconds=5)
    slow = run.reader()
    with slow:
        await anext(slow)
        await asyncio.sleep(0.01)
        assert run.buffer.last < 300
        assert await read(run.reader()) == list(range(1, 2001))
        assert [number async for number, _ in slow] == list(range(2, 2001))


async def test_over_the_memory_limit_the_oldest_finished_answers_are_dropped() -> None:
    async with AnswerRuns(most_bytes=50_000).running() as runs:
        names = [AnswerRunId(ADA, bytes([number])) for number in range(10)]
        for name in names:
            await read(runs.start(name, says(50), seconds=5, kept=True).reader())
        assert runs._bytes <= 50_000
        left = [name for name in names if runs.find(name) is not None]
    assert left == names[-len(left) :]
    assert 0 < len(left) < 10


async def test_many_concurrent_answers_stay_within_the_memory_limit() -> None:
    async with AnswerRuns(most_bytes=200_000).running() as runs:
        names = [AnswerRunId(ADA, bytes([number])) for number in range(20)]
        readers = [runs.start(name, says(300), seconds=5, kept=True).reader() for name in names]
        most = 0

        async def watch(reader: AnswerRunReader[str, Chunk, int]) -> list[int]:
            nonlocal most
            seen = []
            with reader:
                async for number, _ in reader:
                    seen.append(number)
                    most = max(most, runs._bytes)
                    await asyncio.sleep(0)
            return seen

        assert await asyncio.gather(*map(watch, readers)) == [list(range(1, 301))] * 20
        # Each may buffer what its reader hasn't read yet.
        assert most <= 200_000 + 20 * 70_000


async def test_a_new_answer_replaces_one_of_the_same_name(runs: AnswerRuns) -> None:
    gate = asyncio.Event()
    old = runs.start(NAME, says(4, gate), seconds=5)
    with old.reader() as reader:
        new = runs.start(NAME, says(2), seconds=5, kept=True)
        assert runs.find(NAME) is new
        gate.set()
        assert [number async for number, _ in reader] == [1, 2, 3, 4]
    assert runs.find(NAME) is new
    assert await read(new.reader()) == [1, 2]


async def test_shutdown_cancels_running_answers() -> None:
    ended = False

    async def hang(run: AnswerRun[str, Chunk, int]) -> int:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True
        return 0

    async with AnswerRuns().running() as runs:
        run = runs.start(NAME, hang, seconds=60, kept=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert ended
    with pytest.raises(errors.Cancelled, match="the answer was not completed"):
        await run.reader().wait_for_head()


@pytest.mark.parametrize("seed", range(20))
async def test_readers_join_and_leave_at_random(runs: AnswerRuns, seed: int) -> None:
    rng = random.Random(seed)

    async def stutter(run: AnswerRun[str, Chunk, int]) -> int:
        for number in range(1, 201):
            await run.add(chunk(number))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        return 200

    run = runs.start(NAME, stutter, seconds=5, kept=True)

    async def one_reader() -> None:
        for _ in range(rng.randrange(300)):
            await asyncio.sleep(0)
        after = rng.randint(0, run.buffer.last + 2)
        stops_at = rng.choice([200, 200, rng.randint(1, 200)])
        seen = []
        with run.reader(after) as reader:
            async for number, _ in reader:
                seen.append(number)
                if number >= stops_at:
                    break
                for _ in range(rng.randrange(2)):
                    await asyncio.sleep(0)
        assert seen == list(range(after + 1, after + 1 + len(seen)))
        assert seen == [] if after >= 200 else seen[-1] >= stops_at

    async with asyncio.TaskGroup() as group:
        for _ in range(15):
            group.create_task(one_reader())
    assert run.end == 200


async def test_a_reader_that_leaves_makes_room_for_a_long_answer(runs: AnswerRuns) -> None:
    run = runs.start(NAME, says(12_000), seconds=5, kept=True)
    with run.reader() as stalled:
        await anext(stalled)
        await asyncio.sleep(0.02)
        assert 9_000 < run.buffer.last < 12_000
    while not run.is_over:
        await run.wait()
    assert run.end == 12_000
    with pytest.raises(errors.AnswerGone, match="chunk 1 of this answer is no longer stored: the answer is too long to keep"):
        run.reader()
