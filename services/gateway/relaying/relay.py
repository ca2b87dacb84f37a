"""Runs a request on a worker and hands on what it says.

When the worker fails, another one takes over: from the beginning while nothing has come, and behind the last token where one answer
has. The caller sees a pause then. Leaving early cancels the generation on the worker.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self

from services.gateway import mesh
from services.gateway.placing.dispatch import Claim, Dispatch, Waiting
from services.gateway.placing.routing import Wish
from services.gateway.relaying.resumption import Again, AnswerCourse, Course, Ended, GivenUp, VectorsCourse
from services.gateway.relaying.retry_budget import RetryBudget
from shared import errors
from shared.api import embedding, inference
from shared.api.generation import Generation
from shared.api.method import End, Item, Request, StreamMethod
from shared.directory import Entry
from shared.telemetry import logs

#: A worker that lives and says nothing more of an answer that it has begun is gone around after so long.
STALL_SECONDS = 15.0

Said = inference.Accepted | inference.Chunk | Generation
Embedding = inference.Accepted | embedding.Vectors | embedding.Embedded
#: Counts a retry, by kind and outcome.
Count = Callable[[str, str], object]

_log = logs.get(part="relay")


def _uncounted(_kind: str, _outcome: str) -> None:
    """Where there are no metrics."""


@dataclass(frozen=True, slots=True)
class _Means:
    """What all requests share."""

    rpc: mesh.Rpc
    dispatch: Dispatch
    clock: Callable[[], float]
    draw: Callable[[], float]
    count: Count
    stall_seconds: float
    budget: RetryBudget


class Relay:
    """One for the gateway."""

    def __init__(
        self,
        rpc: mesh.Rpc,
        dispatch: Dispatch,
        clock: Callable[[], float] = time.monotonic,
        *,
        draw: Callable[[], float] = random.random,
        count: Count = _uncounted,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """``draw`` gives numbers from 0 to 1."""
        self._means = _Means(rpc, dispatch, clock, draw, count, stall_seconds, RetryBudget())

    def generate(self, prompt: inference.ProcessPrompt, wish: Wish, *, seconds: float) -> AsyncGenerator[Said]:
        """What the workers said of the prompt, chunks, and last the Generation, whose counts are those of the whole answer. Raises the
        last worker's error; WorkerLost where a part has come, and Poison where two engines died of it. Close it with ``aclose``."""
        return _Way(self._means, inference.process_prompt, AnswerCourse(prompt), wish, seconds).walked()

    def embed(self, texts: embedding.Embed, wish: Wish, *, seconds: float) -> AsyncGenerator[Embedding]:
        """As ``generate``, with the vectors of texts. Of those some may have come when it raises a worker's error."""
        return _Way(self._means, embedding.embed, VectorsCourse(texts), wish, seconds).walked()


class _Way(Generic[Request, Item, End]):
    """Walks one request's course."""

    def __init__(
        self, means: _Means, method: StreamMethod[Request, Item, End], course: Course[Request, Item, End], wish: Wish, seconds: float
    ) -> None:
        self._means = means
        self._method = method
        self._course = course
        self._wish = wish
        self._seconds = seconds
        self._ends_at = 0.0
        #: Why the worker that is asked now is not the first.
        self._retry: Again | None = None

    async def walked(self) -> AsyncGenerator[inference.Accepted | Item | End]:
        budget, clock = self._means.budget, self._means.clock
        self._ends_at = clock() + self._seconds
        budget.begin(clock())
        try:
            while True:
                claim: Claim | None = None
                async with aclosing(self._found()) as steps:
                    async for step in steps:
                        if isinstance(step, Claim):
                            claim = step
                        elif not self._course.began:
                            yield self._course.waiting(step.why)
                assert claim is not None  # the last step is one
                outcome = "left"
                try:
                    async with aclosing(self._said(claim)) as answers:
                        async for said in answers:
                            yield said
                    outcome = "answered"
                    return
                except errors.AimeshError as error:
                    outcome = "failed"
                    claim.failed(error)
                    decision = self._decide(claim, error)
                finally:
                    self._count(outcome)
                if isinstance(decision, Ended):
                    yield decision.end
                    return
                self._retry = decision
        finally:
            budget.end()

    async def _found(self) -> AsyncGenerator[Waiting | Claim]:
        """As ``Dispatch.find``, over and over while nobody can go on with what the caller has."""
        course, clock = self._course, self._means.clock
        while True:
            wish = replace(self._wish, not_on=course.not_on, digest=course.digest)
            try:
                async with aclosing(self._means.dispatch.find(wish)) as steps:
                    async for step in steps:
                        yield step
                return
            except (errors.NotReachable, errors.Overloaded) as error:
                decision = course.nobody(error, clock(), self._means.draw)
            if isinstance(decision, GivenUp):
                raise decision.error from None
            left = self._ends_at - clock()
            if left <= decision.seconds:
                raise errors.DeadlineExceeded("no worker could go on with the answer in time", hint="try again, or give it longer")
            await asyncio.sleep(decision.seconds)

    async def _said(self, claim: Claim) -> AsyncGenerator[inference.Accepted | Item | End]:
        """What one worker says, as far as the caller is to hear of it."""
        course, left = self._course, self._ends_at - self._means.clock()
        course.asked(_digest(claim.worker, self._wish))
        with claim, _Silence(self._means.stall_seconds) as silence:
            try:
                async with self._means.rpc.stream(self._method, course.request, to=claim.worker.node, deadline_seconds=left) as answer:
                    items, is_accepted = aiter(answer), False
                    # Where nobody else could go on, patience is all there is.
                    while (item := await silence.next_of(items, is_bounded=course.began and course.can_go_on)) is not None:
                        if not is_accepted and isinstance(answer.accepted, inference.Accepted):
                            is_accepted = True
                            if course.accepted(answer.accepted):
                                yield answer.accepted
                        if course.said(item):
                            yield item
                        if course.began:
                            claim.delivered()
                    yield course.ended(answer.end)
            finally:
                if course.took is not None:
                    claim.tokens(*course.took)

    def _decide(self, claim: Claim, error: errors.AimeshError) -> Again | Ended[End]:
        """Raises what the caller is to be told."""
        course = self._course
        decision = course.failed(claim.worker.node, error)
        if isinstance(decision, GivenUp):
            raise decision.error from error
        if isinstance(decision, Ended):
            return decision
        if not decision.is_free and not self._means.budget.spend(self._means.clock()):
            self._means.count(_kind(decision), "over_budget")
            raise course.lost(error) from error
        what = "worker lost in mid-answer" if decision.goes_on else "worker failed before its first token"
        _log.warning(what, worker=claim.worker.node, code=errors.code_of(error))
        return decision

    def _count(self, outcome: str) -> None:
        if self._retry is not None:
            self._means.count(_kind(self._retry), outcome)


class _Silence:
    """Ends a wait for a worker that has fallen silent, with LinkLost. One timer for the whole answer: a chunk costs it nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since = 0.0
        #: Who waits now; whoever reads the answer may hand it on to another task.
        self._task: asyncio.Task[object] | None = None
        self._is_up = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    async def next_of(self, items: AsyncIterator[Item], *, is_bounded: bool) -> Item | None:
        """None at their end."""
        if is_bounded:
            self._since, self._task = self._loop.time(), asyncio.current_task()
            if self._timer is None:
                self._timer = self._loop.call_later(self._seconds, self._look)
        try:
            return await anext(items, None)
        finally:
            self._task = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task = asyncio.current_task()
        # Nobody else may have wanted the cancel, too.
        if self._is_up and isinstance(error, asyncio.CancelledError) and task is not None and task.uncancel() == 0:
            raise errors.LinkLost(f"the worker has said nothing more of its answer for {self._seconds:g} s") from error

    def _look(self) -> None:
        silent = 0.0 if self._task is None else self._loop.time() - self._since
        if self._task is None or silent < self._seconds:
            self._timer = self._loop.call_later(self._seconds - silent, self._look)
            return
        self._is_up = True
        self._task.cancel()


def _kind(retry: Again) -> str:
    return "resumption" if retry.goes_on else "retry"


def _digest(worker: Entry, wish: Wish) -> str:
    """Of the file that this worker has under the model's name; empty where it does not say."""
    return next((offer.digest for offer in worker.announcement.models if offer.name == wish.model), "")
