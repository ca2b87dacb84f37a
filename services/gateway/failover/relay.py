"""Runs a request on a worker and hands on what it says.

When the worker fails, another one takes over: from the beginning while nothing has come, and behind the last token where one answer
has. The caller sees a pause then. Leaving early cancels the generation on the worker.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, replace
from typing import Generic

from services.gateway import node_interface
from services.gateway.failover.failover import AnswerFailover, Ended, FailoverState, GivenUp, RetryBudget, RetryOnWorker, VectorsFailover
from services.gateway.scheduling.dispatch import Dispatch, WaitingRequests
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_claims import Claim
from shared import errors, spans
from shared.api import embedding, inference
from shared.api.generation import Generation
from shared.api.method import End, Item, Request, StreamMethod
from shared.discovery.directory import DirectoryEntry
from shared.telemetry import logs, tracing
from shared.telemetry.instruments import node_label
from shared.timing.bounded_waits import BoundedWaits
from shared.types import NodeId

#: A worker that lives and says nothing more of an answer that it has begun is gone around after so long.
STALL_SECONDS = 15.0

Said = inference.PromptAccepted | inference.Chunk | Generation
Embedding = inference.PromptAccepted | embedding.Vectors | embedding.Embedded
#: Counts a retry, by kind and outcome.
Count = Callable[[str, str], object]
#: Called before a worker is asked, with the tokens of the answer that the caller has already.
RunsOn = Callable[[Claim, int], object]

#: As OpenTelemetry names them.
_OPERATIONS = {inference.process_prompt.name: "chat", embedding.embed.name: "embeddings"}

_log = logs.get(part="relay")


def _uncounted(_kind: str, _outcome: str) -> None:
    """Where there are no metrics."""


def _unflagged(_node: NodeId) -> None:
    """As well."""


def _untold(_claim: Claim, _delivered: int) -> None:
    """Where nobody asks."""


@dataclass(frozen=True, slots=True)
class _Means:
    """What all requests share."""

    rpc: node_interface.NodeRpc
    dispatch: Dispatch
    clock: Callable[[], float]
    draw: Callable[[], float]
    count: Count
    flag: Callable[[NodeId], object]
    stall_seconds: float
    budget: RetryBudget


class Relay:
    """One for the gateway."""

    def __init__(
        self,
        rpc: node_interface.NodeRpc,
        dispatch: Dispatch,
        clock: Callable[[], float] = time.monotonic,
        *,
        draw: Callable[[], float] = random.random,
        count: Count = _uncounted,
        flag: Callable[[NodeId], object] = _unflagged,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """``draw`` gives numbers from 0 to 1; ``flag`` counts a worker that told wrong numbers."""
        self._means = _Means(rpc, dispatch, clock, draw, count, flag, stall_seconds, RetryBudget())

    def generate(
        self, prompt: inference.ProcessPrompt, wish: WorkerRequirements, *, seconds: float, runs_on: RunsOn = _untold
    ) -> AsyncGenerator[Said]:
        """What the workers said of the prompt, chunks, and last the Generation, whose counts are those of the whole answer. Raises the
        last worker's error; WorkerLost where a part has come, and Poison where two engines died of it. ``runs_on`` is told each worker
        that is asked. Close it with ``aclose``."""
        return _Way(self._means, inference.process_prompt, AnswerFailover(prompt), wish, seconds, runs_on=runs_on).walked()

    def embed(
        self, texts: embedding.Embed, wish: WorkerRequirements, *, seconds: float, runs_on: RunsOn = _untold
    ) -> AsyncGenerator[Embedding]:
        """As ``generate``, with the vectors of texts. Of those some may have come when it raises a worker's error."""
        return _Way(self._means, embedding.embed, VectorsFailover(texts), wish, seconds, runs_on=runs_on).walked()


class _Way(Generic[Request, Item, End]):
    """Walks one request's course."""

    def __init__(
        self,
        means: _Means,
        method: StreamMethod[Request, Item, End],
        course: FailoverState[Request, Item, End],
        wish: WorkerRequirements,
        seconds: float,
        *,
        runs_on: RunsOn,
    ) -> None:
        self._means = means
        self._method = method
        self._course = course
        self._wish = wish
        self._seconds = seconds
        self._runs_on = runs_on
        self._operation = _OPERATIONS[method.name]
        self._ends_at = 0.0
        #: Why the worker that is asked now is not the first.
        self._retry: RetryOnWorker | None = None
        #: Workers that were lost while they ran it.
        self._lost: list[DirectoryEntry] = []

    async def walked(self) -> AsyncGenerator[inference.PromptAccepted | Item | End]:
        budget, clock = self._means.budget, self._means.clock
        self._ends_at = clock() + self._seconds
        budget.begin(clock())
        try:
            while True:
                claim = self._claim_now()
                if claim is None:
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

    def _claim_now(self) -> Claim | None:
        """Claim a place in the common case: nobody waits, and a worker is free. ``_found`` looks further."""
        if self._retry is not None:
            return None
        selecting = tracing.begin("route.select", {"gen_ai.request.model": self._wish.model})
        claim: Claim | None = None
        with suppress(errors.NotReachable):
            claim = self._means.dispatch.claim_now(self._wish)
        if claim is not None and selecting is not None:
            selecting.end()
        return claim

    async def _found(self) -> AsyncGenerator[WaitingRequests | Claim]:
        """As ``Dispatch.find``, over and over while nobody can go on with what the caller has."""
        course, clock = self._course, self._means.clock
        while True:
            wish = replace(self._wish, not_on=course.not_on, digest=course.digest)
            selecting = tracing.begin("route.select", {"gen_ai.request.model": wish.model})
            try:
                async with aclosing(self._means.dispatch.find(wish)) as steps:
                    async for step in steps:
                        if selecting is not None and isinstance(step, Claim):
                            selecting.end()
                        yield step
                return
            except (errors.NotReachable, errors.Overloaded) as error:
                if selecting is not None:
                    selecting.error = errors.code_of(error)
                    selecting.end()
                decision = course.nobody(error, clock(), self._means.draw)
            if isinstance(decision, GivenUp):
                raise decision.error from None
            left = self._ends_at - clock()
            if left <= decision.seconds:
                raise errors.DeadlineExceeded("no worker could go on with the answer in time", hint="try again, or give it longer")
            await asyncio.sleep(decision.seconds)

    async def _said(self, claim: Claim) -> AsyncGenerator[inference.PromptAccepted | Item | End]:
        """What one worker says, as far as the caller is to hear of it."""
        course, left = self._course, self._ends_at - self._means.clock()
        course.asked(_digest(claim.worker, self._wish))
        self._runs_on(claim, course.delivered_tokens)
        silence = BoundedWaits(self._means.stall_seconds)
        with claim, closing(silence):
            try:
                asked = self._means.rpc.stream(self._method, course.request, to=claim.worker.node, deadline_seconds=left)
                async with tracing.CallSpan(f"{self._operation} {self._wish.model}", self._attributes(claim), asked) as answer:
                    items, is_accepted = aiter(answer), False
                    try:
                        # Where nobody else could go on, patience is all there is.
                        while (item := await self._next(items, silence if course.began and course.can_go_on else None)) is not None:
                            course.heard()
                            if not is_accepted and isinstance(answer.accepted, inference.PromptAccepted):
                                is_accepted = True
                                if course.accepted(answer.accepted):
                                    yield answer.accepted
                            if course.said(item):
                                yield item
                            if course.began:
                                claim.delivered()
                    except errors.LinkLost:
                        if answer.accepted is not None:
                            course.heard()
                        raise
                    self._check(claim.worker, answer.end)
                    yield course.ended(answer.end)
            finally:
                if course.took is not None:
                    claim.tokens(*course.took)

    async def _next(self, items: AsyncIterator[Item], silence: BoundedWaits | None) -> Item | None:
        """None at their end. Raises LinkLost where the worker falls silent."""
        if silence is None:
            return await anext(items, None)
        try:
            with silence:
                return await anext(items, None)
        except TimeoutError as error:
            raise errors.LinkLost(f"the worker has said nothing more of its answer for {self._means.stall_seconds:g} s") from error

    def _attributes(self, claim: Claim) -> dict[str, spans.Value]:
        return {
            "rpc.system": "aimesh",
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": "aimesh",
            "gen_ai.request.model": self._wish.model,
            "server.address": node_label(claim.worker.node),
        }

    def _decide(self, claim: Claim, error: errors.AimeshError) -> RetryOnWorker | Ended[End]:
        """Raises what the caller is to be told."""
        course = self._course
        knowledge, clock = self._means.dispatch.knowledge, self._means.dispatch.clock()
        decision = course.failed(claim.worker.node, error, gone=sum(not knowledge.is_there(worker, clock) for worker in self._lost))
        if isinstance(error, errors.LinkLost):
            self._lost.append(claim.worker)
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

    def _check(self, worker: DirectoryEntry, end: End) -> None:
        """Remembers a worker that tells wrong numbers; nobody pays for them."""
        dispatch = self._means.dispatch
        if not self._course.is_wrong(end, self._wish):
            return
        self._means.flag(worker.node)
        quarantined = dispatch.knowledge.strikes.strike(worker.node, dispatch.clock())
        what = "worker in quarantine: it told wrong counts of tokens" if quarantined else "worker told wrong counts of tokens"
        _log.warning(what, worker=worker.node, model=self._wish.model)

    def _count(self, outcome: str) -> None:
        if self._retry is not None:
            self._means.count(_kind(self._retry), outcome)


def _kind(retry: RetryOnWorker) -> str:
    return "resumption" if retry.goes_on else "retry"


def _digest(worker: DirectoryEntry, wish: WorkerRequirements) -> str:
    """Of the file that this worker has under the model's name; empty where it does not say."""
    return next((offer.digest for offer in worker.announcement.models if offer.name == wish.model), "")
