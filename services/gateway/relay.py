"""Runs a request on a worker and streams its response.

If the worker fails, another one takes over: from the start if nothing was delivered, else after the last token if the answer can
resume. The caller only sees a pause. Closing the stream early cancels the generation on the worker.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Generic

import msgspec

from services.gateway.failover import (
    AnswerFailover,
    ConversionFailover,
    Ended,
    FailoverState,
    GivenUp,
    ModerationFailover,
    RetryBudget,
    RetryOnWorker,
    VectorsFailover,
)
from services.gateway.scheduling import preemption
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_claims import Claim
from shared import errors, spans
from shared.api import embedding, inference
from shared.api.generation import GenerationEnd
from shared.api.method import End, Item, Request, StreamMethod
from shared.protocol.directory import DirectoryEntry
from shared.rpc import RpcClient, RpcReply
from shared.telemetry import logs, tracing
from shared.telemetry.instruments import node_label
from shared.timing.bounded_waits import BoundedWaits
from shared.types import NodeId

#: Fail over if a live worker sends nothing for this long in a started answer.
STALL_SECONDS = 15.0

AnswerItem = inference.PromptAccepted | inference.Chunk | GenerationEnd
Embedding = inference.PromptAccepted | embedding.Vectors | embedding.Embedded
ModerationItem = inference.PromptAccepted | inference.ModerationNotice | inference.Moderated
ConversionItem = inference.PromptAccepted | inference.ConvertedPart | inference.Converted
#: Counts a retry by kind and outcome.
Count = Callable[[str, str], object]
#: Called before each worker is asked, with the number of answer tokens that the caller already has.
OnClaim = Callable[[Claim, int], object]

#: A request that workers only read.
TextRequest = embedding.Embed | inference.Moderate | inference.Conversion
_TEXTS: dict[type[TextRequest], tuple[StreamMethod[Any, Any, Any], type[FailoverState[Any, Any, Any]]]] = {
    embedding.Embed: (embedding.embed, VectorsFailover),
    inference.Moderate: (inference.moderate, ModerationFailover),
    inference.Tokenize: (inference.tokenize, ConversionFailover),
    inference.Detokenize: (inference.detokenize, ConversionFailover),
    inference.RenderChat: (inference.render_chat, ConversionFailover),
}
#: Operation names of OpenTelemetry.
_OPERATIONS = dict.fromkeys((method.name for method, _ in _TEXTS.values()), "tokenize") | {
    inference.process_prompt.name: "chat", embedding.embed.name: "embeddings", embedding.rank.name: "rerank",
    inference.moderate.name: "moderation",
}  # fmt: skip

_log = logs.get(part="relay")


def _ignore(*_: object) -> None: ...


@dataclass(slots=True)
class Relay:
    """Runs requests on workers, with failover."""

    rpc: RpcClient
    dispatch: Dispatch
    clock: Callable[[], float] = time.monotonic
    #: Returns numbers from 0 to 1.
    draw: Callable[[], float] = random.random
    count: Count = _ignore
    #: Counts a worker that reports wrong token counts.
    flag: Callable[[NodeId], object] = _ignore
    stall_seconds: float = STALL_SECONDS
    budget: RetryBudget = field(default_factory=RetryBudget)

    def generate(
        self, prompt: inference.ProcessPrompt, requirements: WorkerRequirements, seconds: float, *, on_claim: OnClaim = _ignore
    ) -> AsyncGenerator[AnswerItem]:
        """Yield PromptAccepted, chunks, and finally the GenerationEnd with the counts of the whole answer. Raises the last worker's error,
        WorkerLost if a part was delivered, or Poison if two engines crashed. ``on_claim`` gets each worker that is asked. Close it with
        ``aclose``."""
        state = AnswerFailover(prompt)
        return _RunningCall(self, inference.process_prompt, state, requirements, seconds, on_claim).stream_response()

    def read(
        self, request: TextRequest, requirements: WorkerRequirements, *, seconds: float, on_claim: OnClaim = _ignore
    ) -> AsyncGenerator[Embedding | ModerationItem | ConversionItem]:
        """Yield vectors (scores if there is a query), all verdicts at the end, or parts, which may begin again; otherwise like
        ``generate``. Some may arrive before it raises a worker's error."""
        method, state = _TEXTS[type(request)]
        if isinstance(request, embedding.Embed) and request.query is not None:
            method = embedding.rank
        return _RunningCall(self, method, state(request), requirements, seconds, on_claim).stream_response()


@dataclass(slots=True)
class _RunningCall(Generic[Request, Item, End]):
    """Runs one request on one worker after another."""

    relay: Relay
    method: StreamMethod[Request, Item, End]
    state: FailoverState[Request, Item, End]
    requirements: WorkerRequirements
    seconds: float
    on_claim: OnClaim
    ends_at: float = 0.0
    #: Why another worker is asked; None for the first.
    retry: RetryOnWorker | None = None
    #: Workers lost during this request.
    lost: list[DirectoryEntry] = field(default_factory=list)
    #: See ``Preemptible``.
    began_at: float = 0.0
    preempted_at: float = float("-inf")
    #: It waits because it was preempted.
    is_preempted: bool = False
    #: What runs on the worker now.
    reply: RpcReply[Item, End] | None = None

    def may_be_preempted(self, now: float) -> bool:
        return self.reply is not None and self.state.is_preemptible and now - self.preempted_at >= preemption.PAUSE_SECONDS

    def preempt(self) -> None:
        assert self.reply is not None
        self.is_preempted, self.preempted_at = True, self.relay.dispatch.clock()
        self.reply.cancel(errors.Cancelled("a request of another tenant needs the slot"))

    async def stream_response(self) -> AsyncGenerator[inference.PromptAccepted | Item | End]:
        budget, clock = self.relay.budget, self.relay.clock
        self.began_at = clock()
        self.ends_at = self.began_at + self.seconds
        budget.begin(clock())
        if self.requirements.takes_slot:
            self.relay.dispatch.record_arrival(self.requirements.model)
        try:
            while True:
                claim = self._claim_now()
                has_waited = claim is None
                if claim is None:
                    async with aclosing(self._wait_for_claim()) as steps:
                        async for step in steps:
                            if isinstance(step, Claim):
                                claim = step
                            elif not self.state.began:
                                yield self.state.waiting_notice(step)
                assert claim is not None  # the generator ends with one
                self.ends_at += claim.start_wait_seconds
                self.is_preempted = False
                outcome = "left"
                try:
                    async with aclosing(self._stream_from(claim, has_waited=has_waited)) as answers:
                        async for item in answers:
                            yield item
                    outcome = "answered"
                    return
                except errors.AimeshError as error:
                    outcome = "preempted" if self.is_preempted else "failed"
                    decision = self._decide(claim, error)
                finally:
                    self._count(outcome)
                if isinstance(decision, Ended):
                    yield decision.end
                    return
                self.retry = decision
        finally:
            budget.end()

    def _claim_now(self) -> Claim | None:
        if self.retry is not None:
            return None
        selecting = tracing.begin("route.select", {"gen_ai.request.model": self.requirements.model})
        claim: Claim | None = None
        with suppress(errors.NotReachable):
            claim = self.relay.dispatch.claim_now(self.requirements)
        if claim is not None and selecting is not None:
            selecting.end()
        return claim

    async def _wait_for_claim(self) -> AsyncGenerator[str | Claim]:
        """Wait in the queue; search again while no worker can resume the answer."""
        state, clock = self.state, self.relay.clock
        while True:
            requirements = self._requirements_now()
            selecting = tracing.begin("route.select", {"gen_ai.request.model": requirements.model})
            try:
                async with aclosing(self.relay.dispatch.find(requirements)) as steps:
                    async for step in steps:
                        if selecting is not None and isinstance(step, Claim):
                            selecting.end()
                        yield step
                return
            except (errors.NotReachable, errors.Overloaded) as error:
                if selecting is not None:
                    selecting.error = errors.code_of(error)
                    selecting.end()
                if isinstance(error, errors.NotStarted):
                    raise  # it has waited long enough
                if self.requirements.has_alternative and not state.began:
                    # The worker's own error says more than that no other worker is there.
                    raise state.last_failure or error from None
                pause = state.on_no_worker(error, clock(), self.relay.draw)
            if isinstance(pause, GivenUp):
                raise pause.error from None
            if self.ends_at - clock() <= pause:
                raise errors.DeadlineExceeded("no worker could resume the answer in time", hint="retry with a longer timeout")
            await asyncio.sleep(pause)

    def _requirements_now(self) -> WorkerRequirements:
        found = msgspec.structs.replace(self.requirements, excluded=self.state.excluded, origin=self.state.origin)
        if not self.is_preempted:
            return found
        return msgspec.structs.replace(found, is_preempted=True, most_wait_seconds=self.ends_at - self.relay.clock())

    async def _stream_from(self, claim: Claim, *, has_waited: bool) -> AsyncGenerator[inference.PromptAccepted | Item | End]:
        state, left = self.state, self.ends_at - self.relay.clock()
        state.record_attempt(claim.offer.digest)
        silence = BoundedWaits(self.relay.stall_seconds)
        with claim, closing(silence):
            if has_waited:
                # The worker may have announced something else since the choice.
                self.relay.dispatch.ensure_allowed(claim.worker.node, self.requirements)
            self.on_claim(claim, state.delivered_tokens)
            try:
                call = self.relay.rpc.stream(self.method, state.request, to=claim.worker.node, deadline_seconds=left)
                async with tracing.CallSpan(
                    f"{_OPERATIONS[self.method.name]} {self.requirements.model}", self._attributes(claim), call
                ) as answer:
                    items, is_accepted = aiter(answer), False
                    self.reply, claim.call = answer, None if claim.provider else self
                    try:
                        # If no other worker can resume, keep waiting for this one.
                        while (item := await self._next(items, silence if state.began and state.can_resume else None)) is not None:
                            state.has_responded = True
                            if not is_accepted and isinstance(answer.accepted, inference.PromptAccepted):
                                is_accepted = True
                                if state.record_acceptance(answer.accepted):
                                    yield answer.accepted
                            if state.record_item(item):
                                yield item
                            if state.began:
                                claim.record_delivery()
                    except errors.LinkLost:
                        state.has_responded = state.has_responded or answer.accepted is not None
                        raise
                    finally:
                        self.reply, claim.call = None, None
                        claim.was_accepted = answer.accepted is not None
                    self._check(claim.worker, answer.end)
                    yield state.with_total_usage(answer.end)
            finally:
                if state.processed_tokens is not None:
                    claim.record_tokens(*state.processed_tokens)

    async def _next(self, items: AsyncIterator[Item], silence: BoundedWaits | None) -> Item | None:
        """Return None at the end of the stream. Raises LinkLost if the worker stalls."""
        if silence is None:
            return await anext(items, None)
        try:
            with silence:
                return await anext(items, None)
        except TimeoutError as error:
            raise errors.LinkLost(f"the worker has sent nothing for {self.relay.stall_seconds:g} s in mid-answer") from error

    def _attributes(self, claim: Claim) -> dict[str, spans.Value]:
        return {
            "rpc.system": "aimesh",
            "gen_ai.operation.name": _OPERATIONS[self.method.name],
            "gen_ai.provider.name": "aimesh",
            "gen_ai.request.model": self.requirements.model,
            "server.address": node_label(claim.worker.node),
        }

    def _decide(self, claim: Claim, error: errors.AimeshError) -> RetryOnWorker | Ended[End]:
        """Raise what the caller gets, or return how to continue."""
        state = self.state
        if self.is_preempted:
            return RetryOnWorker(state.began, is_free=True)
        claim.record_failure(error)
        stats, clock = self.relay.dispatch.worker_stats, self.relay.dispatch.clock()
        lost_workers = sum(not stats.may_be_running(worker, clock) for worker in self.lost)
        own_losses = lost_workers + (not stats.may_be_running(claim.worker, clock))
        others_lost = stats.count_losses(clock) > own_losses
        decision = state.on_failure(claim.worker.node, error, lost_workers=lost_workers, others_lost=others_lost)
        if isinstance(error, errors.LinkLost):
            self.lost.append(claim.worker)
        if isinstance(decision, GivenUp):
            raise decision.error from error
        if isinstance(decision, Ended):
            return decision
        if not decision.is_free and not self.relay.budget.spend(self.relay.clock()):
            self.relay.count(_kind(decision), "over_budget")
            raise state.final_error(error) from error
        what = "worker lost in mid-answer" if decision.is_resumption else "worker failed before its first token"
        _log.warning(what, worker=claim.worker.node, code=errors.code_of(error))
        return decision

    def _check(self, worker: DirectoryEntry, end: End) -> None:
        dispatch = self.relay.dispatch
        if not self.state.has_wrong_counts(end, self.requirements):
            return
        self.relay.flag(worker.node)
        quarantined = dispatch.worker_stats.dishonest_workers.strike(worker.node, dispatch.clock())
        what = "worker quarantined for wrong token counts" if quarantined else "worker reported wrong token counts"
        _log.warning(what, worker=worker.node, model=self.requirements.model)

    def _count(self, outcome: str) -> None:
        if self.retry is not None:
            self.relay.count(_kind(self.retry), outcome)


def _kind(retry: RetryOnWorker) -> str:
    return "resumption" if retry.is_resumption else "retry"
