import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest

from services.gateway.facts import tally
from services.gateway.facts.reader import Reader
from services.gateway.facts.tally import Tally
from services.gateway.idempotency import recorder as module
from services.gateway.idempotency.recorder import Produce, Recorder, Recorders, RecordingId
from shared import errors
from shared.api.inference import Chunk
from shared.types import UserId
from tests.clocks import Clock
from tests.testnet import until

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
NAME = RecordingId(ADA, b"one")

Made = Recorder[str, Chunk, int]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def recorders(clock: Clock) -> AsyncIterator[Recorders]:
    async with Recorders(clock).running() as running:
        yield running


def chunk(number: int) -> Chunk:
    return Chunk(f"{number} ", (number,))


async def add(recorder: Made, number: int) -> None:
    assert await recorder.take(number, chunk(number), Tally(ids=number))


def says(count: int, gate: asyncio.Event | None = None) -> Produce[str, Chunk, int]:
    """Return a producer of ``count`` chunks; it makes the second half after the gate opens."""

    async def produce(recorder: Made) -> int:
        recorder.begin("head")
        for number in range(1, count + 1):
            if gate is not None and number == count // 2 + 1:
                await gate.wait()
            await add(recorder, number)
        return count

    return produce


class Listener(Reader[str, Chunk]):
    """Reads a recorder from a place on; may leave after a number, and wait between chunks."""

    def __init__(
        self, recorder: Made, after: int = 0, *, stops_after: int | None = None, pause: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self.head: str | None = None
        self.numbers: list[int] = []
        self._recorder, self._place = recorder, recorder.join(after)
        self._stops_after, self._pause = stops_after, pause

    def begin(self, head: str) -> None:
        self.head = head

    async def take(self, number: int, piece: Chunk, at: Tally) -> bool:
        assert piece.text == f"{number} "
        assert at in {Tally(ids=number), tally.NOTHING}
        self.numbers.append(number)
        if self._pause is not None:
            await self._pause()
        return self._stops_after is None or number < self._stops_after

    async def listen(self) -> int | None:
        return await self._recorder.play(self, self._place)


async def read(recorder: Made, after: int = 0, **more: int) -> list[int]:
    listener = Listener(recorder, after, **more)  # type: ignore[arg-type]
    await listener.listen()
    return listener.numbers


async def test_every_reader_gets_the_whole_answer_and_its_end(recorders: Recorders) -> None:
    gate = asyncio.Event()
    made = recorders.start(NAME, says(10, gate), seconds=5)
    first = Listener(made)
    listening = asyncio.create_task(first.listen())
    await until(lambda: first.numbers == [1, 2, 3, 4, 5])
    assert first.head == "head"
    assert recorders.find(NAME) is made
    others = asyncio.gather(read(made), read(made, after=7))
    await asyncio.sleep(0)
    gate.set()
    assert await listening == 10
    assert first.numbers == list(range(1, 11))
    assert await others == [list(range(1, 11)), [8, 9, 10]]


async def test_readers_of_an_answer_that_is_not_kept_get_its_count(recorders: Recorders) -> None:
    counts = []

    class Counter(Listener):
        async def take(self, number: int, piece: Chunk, at: Tally) -> bool:
            counts.append(at)
            return True

    await Counter(recorders.start(NAME, says(2), seconds=5)).listen()
    await Counter(recorders.start(NAME, says(1), seconds=5, kept=True)).listen()
    assert counts == [Tally(ids=1), Tally(ids=2), tally.NOTHING]


async def test_a_head_that_changes_before_the_first_chunk_is_told_again(recorders: Recorders) -> None:
    async def produce(recorder: Made) -> int:
        recorder.begin("first worker")
        await asyncio.sleep(0.001)
        recorder.begin("second worker")
        await add(recorder, 1)
        return 1

    listener = Listener(recorders.start(NAME, produce, seconds=5))
    assert await listener.listen() == 1
    assert (listener.head, listener.numbers) == ("second worker", [1])


async def test_a_reader_stops_waiting_at_its_own_time(recorders: Recorders) -> None:
    gate = asyncio.Event()
    made = recorders.start(NAME, says(10, gate), seconds=5, kept=True)
    ends_at = asyncio.get_running_loop().time() + 0.02

    listener = Listener(made)
    listener.cut_at = ends_at
    assert await listener.listen() is None
    assert listener.numbers == [1, 2, 3, 4, 5]
    gate.set()
    assert await read(made) == list(range(1, 11))


async def test_answers_of_other_tenants_are_not_found(recorders: Recorders) -> None:
    made = recorders.start(NAME, says(2), seconds=5)
    assert recorders.find(RecordingId(BOB, b"one")) is None
    assert await read(made) == [1, 2]


async def test_an_answer_is_canceled_when_its_last_reader_leaves(recorders: Recorders) -> None:
    cancelled = asyncio.Event()

    async def hang(recorder: Made) -> int:
        await add(recorder, 1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 0

    made = recorders.start(NAME, hang, seconds=60)
    first, second = Listener(made, stops_after=1), Listener(made, stops_after=1)
    assert await first.listen() is None
    assert not cancelled.is_set()
    assert await second.listen() is None
    # An answer that is about to end can't be joined.
    assert recorders.find(NAME) is None
    await asyncio.wait_for(cancelled.wait(), 10)
    assert recorders._bytes == 0


async def test_a_canceled_reader_does_not_affect_the_others(recorders: Recorders) -> None:
    gate = asyncio.Event()
    made = recorders.start(NAME, says(10, gate), seconds=5)
    staying, leaving = asyncio.create_task(read(made)), asyncio.create_task(read(made))
    await asyncio.sleep(0.01)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.set()
    assert await staying == list(range(1, 11))


async def test_a_kept_answer_is_generated_to_its_end_and_read_later(recorders: Recorders, clock: Clock) -> None:
    gate = asyncio.Event()
    made = recorders.start(NAME, says(10, gate), seconds=5, kept=True)
    assert await read(made, stops_after=1) == [1]
    gate.set()
    assert recorders.find(NAME) is made
    assert await read(made, after=1) == list(range(2, 11))
    clock.now = module.KEPT_SECONDS - 1
    assert recorders.find(NAME) is made
    clock.now = module.KEPT_SECONDS + 1
    assert recorders.find(NAME) is None
    assert recorders._bytes == 0


async def test_an_error_reaches_every_reader_after_the_chunks_before_it(recorders: Recorders) -> None:
    async def fail(recorder: Made) -> int:
        await add(recorder, 1)
        await asyncio.sleep(0)
        raise errors.LinkLost("gone")

    made = recorders.start(NAME, fail, seconds=5)
    listeners = [Listener(made) for _ in range(5)]
    outcomes = await asyncio.gather(*[listener.listen() for listener in listeners], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [errors.LinkLost] * 5
    assert [listener.numbers for listener in listeners] == [[1]] * 5


async def test_a_bug_is_raised_to_the_readers_and_stops_nothing_else(recorders: Recorders) -> None:
    async def bug(recorder: Made) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read(recorders.start(NAME, bug, seconds=5))
    assert await read(recorders.start(RecordingId(ADA, b"two"), says(2), seconds=5)) == [1, 2]


async def test_a_canceled_answer_does_not_cancel_its_readers(recorders: Recorders) -> None:
    async def cancel(recorder: Made) -> int:
        raise asyncio.CancelledError

    with pytest.raises(errors.Cancelled, match="the answer was not completed"):
        await read(recorders.start(NAME, cancel, seconds=5))


async def test_an_answer_times_out_without_readers_too(recorders: Recorders) -> None:
    async def endless(recorder: Made) -> int:
        while True:
            await add(recorder, 1)

    made = recorders.start(NAME, endless, seconds=0.03)
    place = made.join()
    await until(lambda: made.is_over)
    assert made.recording.size < 70_000
    with pytest.raises(errors.DeadlineExceeded, match="the answer was not ready after"):
        await made.play(Reader(), place)


async def test_a_slow_reader_delays_the_producer_but_no_other_reader(recorders: Recorders) -> None:
    made, gate = recorders.start(NAME, says(2000), seconds=5), asyncio.Event()
    slow = Listener(made, pause=gate.wait)
    listening = asyncio.create_task(slow.listen())
    await asyncio.sleep(0.01)
    assert slow.numbers == [1]
    assert made.recording.last < 300
    assert await read(made) == list(range(1, 2001))
    gate.set()
    assert await listening == 2000
    assert slow.numbers == list(range(1, 2001))


async def test_over_the_memory_limit_the_oldest_finished_answers_are_dropped() -> None:
    async with Recorders(most_bytes=50_000).running() as recorders:
        names = [RecordingId(ADA, bytes([number])) for number in range(10)]
        for name in names:
            await read(recorders.start(name, says(50), seconds=5, kept=True))
        assert recorders._bytes <= 50_000
        left = [name for name in names if recorders.find(name) is not None]
    assert left == names[-len(left) :]
    assert 0 < len(left) < 10


async def test_many_concurrent_answers_stay_within_the_memory_limit() -> None:
    async with Recorders(most_bytes=200_000).running() as recorders:
        names = [RecordingId(ADA, bytes([number])) for number in range(20)]
        most = 0

        async def watch() -> None:
            nonlocal most
            most = max(most, recorders._bytes)
            await asyncio.sleep(0)

        listeners = [Listener(recorders.start(name, says(300), seconds=5, kept=True), pause=watch) for name in names]
        await asyncio.gather(*[listener.listen() for listener in listeners])
        assert [listener.numbers for listener in listeners] == [list(range(1, 301))] * 20
        # Each may buffer what its reader hasn't read yet.
        assert most <= 200_000 + 20 * 70_000


async def test_a_new_answer_replaces_one_of_the_same_name(recorders: Recorders) -> None:
    gate = asyncio.Event()
    old = recorders.start(NAME, says(4, gate), seconds=5)
    reading = asyncio.create_task(read(old))
    await asyncio.sleep(0)
    new = recorders.start(NAME, says(2), seconds=5, kept=True)
    assert recorders.find(NAME) is new
    gate.set()
    assert await reading == [1, 2, 3, 4]
    assert recorders.find(NAME) is new
    assert await read(new) == [1, 2]


async def test_shutdown_cancels_running_answers() -> None:
    ended = False

    async def hang(recorder: Made) -> int:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True
        return 0

    async with Recorders().running() as recorders:
        made = recorders.start(NAME, hang, seconds=60, kept=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert ended
    with pytest.raises(errors.Cancelled, match="the answer was not completed"):
        await read(made)


@pytest.mark.parametrize("seed", range(20))
async def test_readers_join_and_leave_at_random(recorders: Recorders, seed: int) -> None:
    rng = random.Random(seed)

    async def stutter(recorder: Made) -> int:
        for number in range(1, 201):
            await add(recorder, number)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        return 200

    made = recorders.start(NAME, stutter, seconds=5, kept=True)

    async def pause() -> None:
        for _ in range(rng.randrange(2)):
            await asyncio.sleep(0)

    async def one_reader() -> None:
        for _ in range(rng.randrange(300)):
            await asyncio.sleep(0)
        after = rng.randint(0, made.recording.last + 2)
        stops_after = rng.choice([200, 200, rng.randint(1, 200)])
        listener = Listener(made, after, stops_after=stops_after, pause=pause)
        await listener.listen()
        seen = listener.numbers
        assert seen == list(range(after + 1, after + 1 + len(seen)))
        assert seen == [] if after >= 200 else seen[-1] >= stops_after

    async with asyncio.TaskGroup() as group:
        for _ in range(15):
            group.create_task(one_reader())
    assert made.end == 200


async def test_a_reader_that_leaves_makes_room_for_a_long_answer(recorders: Recorders) -> None:
    made = recorders.start(NAME, says(12_000), seconds=5, kept=True)
    stalled = asyncio.create_task(Listener(made, pause=asyncio.Event().wait).listen())
    await asyncio.sleep(0.02)
    assert 9_000 < made.recording.last < 12_000
    stalled.cancel()
    await until(lambda: made.is_over)
    assert made.end == 12_000
    with pytest.raises(errors.AnswerGone, match="chunk 1 of this answer is no longer stored: the answer is too long to keep"):
        made.join()
