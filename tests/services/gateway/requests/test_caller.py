"""A caller between an answer and its reader, without workers and a ledger."""

import asyncio
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from services.gateway.facts import tally
from services.gateway.facts.reader import Reader
from services.gateway.facts.tally import Tally
from services.gateway.requests.caller import Caller
from services.gateway.requests.hold import Hold
from shared import errors
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason
from tests.services.gateway.requests.admitted_runs import admitted_run
from tests.services.gateway.requests.test_hold import tokens


def counted(chunk: Chunk) -> Tally:
    return tally.count(tally.NOTHING, chunk)


@dataclass
class Steps:
    """Asks for steps, of which none ends before the test lets it."""

    #: They don't end at once if they are canceled, as a query of PostgreSQL.
    end_late: bool = False
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[asyncio.Task[int]] = field(default_factory=list)

    def extend(self, wanted: int) -> asyncio.Task[int]:
        self.asked.append(asyncio.get_running_loop().create_task(self._extend(wanted)))
        return self.asked[-1]

    async def _extend(self, wanted: int) -> int:
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                if not self.end_late:
                    raise
        return wanted


async def asking_for_a_step(steps: Steps, *, whole_until: float | None = None) -> Caller:
    """Return a caller that has a token, and waits for no step yet."""
    caller = Caller(admitted_run(), Reader(), time.monotonic)
    caller.bound(Hold(held=1, most=1000, answers=1), steps.extend, whole_until=whole_until)
    assert await caller.take(1, tokens(1), counted(tokens(1))) is (whole_until is None)
    (step,) = steps.asked
    await asyncio.sleep(0)
    assert not step.done()
    return caller


@pytest.mark.parametrize("whole", [tokens(10_000), Chunk("a" * 30_000, ())])
async def test_an_answer_in_one_piece_gets_as_many_steps_as_it_needs(whole: Chunk) -> None:
    """Models of other teams send the whole answer in one piece."""
    asked: list[int] = []

    def extend(wanted: int) -> asyncio.Task[int]:
        asked.append(wanted)
        return asyncio.get_running_loop().create_task(asyncio.sleep(0, wanted))

    caller = Caller(admitted_run(), Reader(), time.monotonic)
    caller.bound(Hold(held=4096, most=12_288, answers=1), extend, whole_until=None)
    assert await caller.take(1, whole, counted(whole))
    assert asked == [8192, 12_288]


@pytest.mark.parametrize(
    ("left", "start_wait_seconds", "is_more_wanted"), [(-1.0, 0.0, False), (-1.0, 60.0, True), (60.0, 0.0, True), (None, 0.0, True)]
)
async def test_only_an_answer_with_a_deadline_is_cut_off(left: float | None, start_wait_seconds: float, is_more_wanted: bool) -> None:
    """The time in which its workers start doesn't count."""

    def extend(_wanted: int) -> asyncio.Task[int]:
        raise AssertionError("there is nothing to extend")

    run: Any = admitted_run()
    run.attempts = SimpleNamespace(start_wait_seconds=start_wait_seconds)
    caller = Caller(run, Reader(), time.monotonic)
    caller.bound(Hold(held=5, most=5, answers=1), extend, whole_until=None if left is None else time.monotonic() + left)
    assert await caller.take(1, tokens(1), counted(tokens(1))) is is_more_wanted


async def test_a_step_is_asked_for_once_however_late_it_is() -> None:
    steps = Steps()
    caller = await asking_for_a_step(steps)
    taking = asyncio.create_task(caller.take(2, tokens(1), counted(tokens(2))))
    await asyncio.sleep(0)
    assert not taking.done(), "the piece does not fit yet"
    steps.may_end.set()
    assert await taking
    assert len(steps.asked) == 1


async def test_the_end_of_an_answer_gives_up_a_step() -> None:
    """It was held while moderation checked the answer."""
    steps = Steps()
    caller = await asking_for_a_step(steps)
    await caller.finish(GenerationEnd(FinishReason.STOP, Usage(7, 1)))
    await asyncio.sleep(0)
    assert steps.asked[0].cancelled()


async def test_the_failure_of_an_answer_gives_up_a_step() -> None:
    steps = Steps()
    caller = await asking_for_a_step(steps)
    await asyncio.wait_for(caller.close(), 5)
    assert steps.asked[0].cancelled()


async def test_a_late_answer_does_not_wait_for_the_end_of_a_step() -> None:
    steps = Steps(end_late=True)
    caller = await asking_for_a_step(steps, whole_until=time.monotonic() - 1)
    await caller.finish(None)
    assert caller.run.answer is not None
    assert caller.run.answer.is_complete
    asyncio.get_running_loop().call_later(5, steps.may_end.set)
    await caller.close()
    assert not steps.may_end.is_set()
    steps.may_end.set()
    await asyncio.wait(steps.asked)


async def test_an_error_of_the_reader_ends_the_answer_and_is_not_the_workers() -> None:
    """Raised where the worker's answer is read, it would have another worker write the answer again."""

    class Full(Reader[Any, Any]):
        async def take(self, number: int, piece: Any, at: Tally) -> bool:
            raise problem

    problem, caller = errors.TooLarge("for this API"), None
    caller = Caller(admitted_run(), Full(), time.monotonic)
    assert not await caller.take(1, tokens(1), counted(tokens(1)))
    with pytest.raises(errors.TooLarge) as raised:
        await caller.finish(None)
    assert raised.value is problem
