"""Runs a request on a worker and streams its response.

If the worker fails, another one takes over: from the start if nothing was delivered, else after the last token if the answer can
resume. The caller only sees a pause. Closing the stream early cancels the generation on the worker.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec

from services.gateway import generation
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.generation import AskWorker, Done, End, Failed, FindWorker, Generation, Pause, Step
from services.gateway.scheduling import preemption
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.retry_budget import RetryBudget
from services.gateway.scheduling.worker_claims import Claim
from shared import errors, spans
from shared.api import embedding, inference
from shared.api.generation import GenerationEnd
from shared.api.inference import PromptAccepted
from shared.protocol.directory import DirectoryEntry
from shared.rpc import RpcClient, RpcReply
from shared.telemetry import logs, tracing
from shared.telemetry.instruments import node_label
from shared.telemetry.tracing import CallSpan
from shared.timing.bounded_waits import BoundedWaits
from shared.types import NodeId

#: Fail over if a live worker sends nothing for this long in a started answer.
STALL_SECONDS = 15.0

AnswerItem = PromptAccepted | inference.Chunk | GenerationEnd
Embedding = PromptAccepted | embedding.Vectors | embedding.Embedded
ModerationItem = PromptAccepted | inference.ModerationNotice | inference.Moderated
ConversionItem = PromptAccepted | inference.ConvertedPart | inference.Converted
#: Counts a retry by kind and outcome.
Count = Callable[[str, str], object]
#: Called before each worker is asked, with the number of answer tokens that the caller already has.
OnClaim = Callable[[Claim, int], object]

#: A request that workers only read.
TextRequest = embedding.Embed | inference.Moderate | inference.Conversion

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
        return _RunningCall(self, prompt, requirements, seconds, on_claim).stream_response()

    def read(
        self, request: TextRequest, requirements: WorkerRequirements, *, seconds: float, on_claim: OnClaim = _ignore
    ) -> AsyncGenerator[Embedding | ModerationItem | ConversionItem]:
        """Yield vectors (scores if there is a query), all verdicts at the end, or parts, which may begin again; otherwise like
        ``generate``. Some may arrive before it raises a worker's error."""
        return _RunningCall(self, request, requirements, seconds, on_claim).stream_response()


@dataclass(slots=True)
class _RunningCall:
    """Carries out the steps of one generation."""

    relay: Relay
    request: inference.ProcessPrompt | TextRequest
    requirements: WorkerRequirements
    seconds: float
    on_claim: OnClaim
    #: These two are set when it begins.
    core: Generation = field(init=False)
    #: See ``Preemptible``.
    began_at: float = field(init=False)
    #: Why the current worker is asked; empty for the first one.
    why: str = ""
    claim: Claim | None = None
    #: It was not free at once.
    has_waited: bool = False
    #: Workers lost during this request.
    lost: list[DirectoryEntry] = field(default_factory=list)
    preempted_at: float = float("-inf")
    #: It waits because it was preempted.
    is_preempted: bool = False
    #: What runs on the worker now.
    reply: RpcReply[Any, Any] | None = None

    def may_be_preempted(self, now: float) -> bool:
        return self.reply is not None and self.core.is_preemptible and now - self.preempted_at >= preemption.PAUSE_SECONDS

    def preempt(self) -> None:
        assert self.reply is not None
        self.is_preempted, self.preempted_at = True, self.relay.dispatch.clock()
        self.reply.cancel(errors.Cancelled("a request of another tenant needs the slot"))

    async def stream_response(self) -> AsyncGenerator[Any]:
        relay = self.relay
        self.began_at = relay.clock()
        self.core = _new_generation(self.request, self.requirements, self.began_at + self.seconds)
        relay.budget.begin(self.began_at)
        if self.requirements.takes_slot:
            relay.dispatch.record_arrival(self.requirements.model)
        step: Step = FindWorker()
        work: AsyncGenerator[Any]
        try:
            while True:
                match step:
                    case Done(end):
                        yield end
                        return
                    case Failed(error):
                        raise error
                    case Pause(seconds):
                        await asyncio.sleep(seconds)
                        step = self.core.paused()
                        continue
                    case AskWorker():
                        work = self._ask(step)
                    case _:
                        assert isinstance(step, FindWorker)
                        work = self._find(step)
                async with aclosing(work) as items:
                    async for item in items:
                        if isinstance(item, Step):
                            step = item
                        else:
                            yield item
        finally:
            relay.budget.end()

    async def _find(self, wanted: FindWorker) -> AsyncGenerator[Any]:
        """Wait in the queue; yield notices, and the next step."""
        core, dispatch = self.core, self.relay.dispatch
        self.why, self.claim = wanted.why, None
        needs = self._requirements_for(wanted)
        selecting = tracing.begin("route.select", {"gen_ai.request.model": needs.model})
        try:
            if not wanted.why:
                with suppress(errors.NotReachable):
                    self.claim = dispatch.claim_now(needs)
            self.has_waited = self.claim is None
            if self.claim is None:
                async with aclosing(dispatch.find(needs)) as steps:
                    async for step in steps:
                        if isinstance(step, Claim):
                            self.claim = step
                        elif not core.began:
                            yield core.kind.notice(step)
        except (errors.NotReachable, errors.Overloaded) as error:
            if selecting is not None:
                selecting.error = errors.code_of(error)
                selecting.end()
            yield core.no_worker(error, self.relay.clock(), self.relay.draw)
            return
        if selecting is not None:
            selecting.end()
        assert self.claim is not None  # the generator ends with one
        self.is_preempted = False
        yield core.claimed(self.claim.offer.digest, self.relay.clock(), self.claim.start_wait_seconds)

    def _requirements_for(self, wanted: FindWorker) -> WorkerRequirements:
        if not wanted.why:
            return self.requirements
        found = msgspec.structs.replace(self.requirements, excluded=wanted.excluded, origin=wanted.origin)
        if not self.is_preempted:
            return found
        return msgspec.structs.replace(found, is_preempted=True, most_wait_seconds=self.core.ends_at - self.relay.clock())

    async def _ask(self, asked: AskWorker) -> AsyncGenerator[Any]:
        """Yield what the worker sends, and the next step."""
        core, claim, outcome = self.core, self.claim, "left"
        assert claim is not None
        silence = _Silence(core, self.relay.stall_seconds)
        try:
            with claim:
                if self.has_waited:
                    # The worker may have announced something else since the choice.
                    self.relay.dispatch.ensure_allowed(claim.worker.node, self.requirements)
                self.on_claim(claim, core.at.ids)
                try:
                    async with self._call(claim, asked) as answer:
                        accepted, self.reply, claim.call = None, answer, None if claim.provider else self
                        try:
                            with silence:
                                async for item in answer:
                                    silence.task = None
                                    if (
                                        accepted is None
                                        and isinstance(accepted := answer.accepted, PromptAccepted)
                                        and core.accepted(accepted)
                                    ):
                                        yield accepted
                                    if core.item(item) is not None:
                                        yield item
                                    if core.began and not claim.has_delivered:
                                        claim.record_delivery()
                                    silence.expect()
                        finally:
                            self.reply, claim.call = None, None
                            claim.was_accepted = answer.accepted is not None
                        step: Step = self._end(claim, answer.end)
                finally:
                    if core.processed_tokens is not None:
                        claim.record_tokens(*core.processed_tokens)
            outcome = "answered"
        except errors.AimeshError as error:
            outcome = "preempted" if self.is_preempted else "failed"
            step = self._fail(claim, error)
        finally:
            self._count(outcome)
        yield step

    def _call(self, claim: Claim, asked: AskWorker) -> CallSpan[RpcReply[Any, Any]]:
        kind, node, request = self.core.kind, claim.worker.node, self.request
        if asked.delivered:
            request = msgspec.structs.replace(request, delivered=asked.delivered, numerics=asked.numerics)
        attributes: dict[str, spans.Value] = {
            "rpc.system": "aimesh",
            "gen_ai.operation.name": kind.operation,
            "gen_ai.provider.name": "aimesh",
            "gen_ai.request.model": self.requirements.model,
            "server.address": node_label(node),
        }
        call = self.relay.rpc.stream(kind.method, request, to=node, deadline_seconds=asked.seconds)
        return CallSpan(f"{kind.operation} {self.requirements.model}", attributes, call)

    def _end(self, claim: Claim, end: End) -> Done:
        done, dispatch, node = self.core.ended(end), self.relay.dispatch, claim.worker.node
        if done.has_wrong_counts:
            self.relay.flag(node)
            quarantined = dispatch.worker_stats.dishonest_workers.strike(node, dispatch.clock())
            what = "worker quarantined for wrong token counts" if quarantined else "worker reported wrong token counts"
            _log.warning(what, worker=node, model=self.requirements.model)
        return done

    def _fail(self, claim: Claim, error: errors.AimeshError) -> Step:
        core, node = self.core, claim.worker.node
        if self.is_preempted:
            return core.preempted()
        claim.record_failure(error)
        stats, clock = self.relay.dispatch.worker_stats, self.relay.dispatch.clock()
        lost_workers = sum(not stats.may_be_running(worker, clock) for worker in self.lost)
        own_losses = lost_workers + (not stats.may_be_running(claim.worker, clock))
        others_lost = stats.count_losses(clock) > own_losses
        step = core.failed(node, error, was_accepted=claim.was_accepted, lost_workers=lost_workers, others_lost=others_lost)
        if isinstance(error, errors.LinkLost):
            self.lost.append(claim.worker)
        if not isinstance(step, FindWorker):
            return step
        if step.is_charged and not self.relay.budget.spend(self.relay.clock()):
            self.relay.count(step.why, "over_budget")
            return core.over_budget()
        what = "worker lost in mid-answer" if core.began else "worker failed before its first token"
        _log.warning(what, worker=node, code=errors.code_of(error))
        return step

    def _count(self, outcome: str) -> None:
        if self.why:
            self.relay.count(self.why, outcome)


class _Silence(BoundedWaits):
    """Raises LinkLost if the worker of a started answer is silent for ``seconds``, and another can resume it."""

    __slots__ = ("_core",)

    def __init__(self, core: Generation, seconds: float) -> None:
        super().__init__(seconds)
        self._core = core

    def expect(self) -> None:
        if self._core.began and self._core.can_resume:
            self.begin()

    def __enter__(self) -> None:
        self.expect()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if isinstance(error, asyncio.CancelledError) and self.has_ended():
            raise errors.LinkLost(f"the worker has sent nothing for {self._seconds:g} s in mid-answer") from error
        self.task = None


def _new_generation(request: inference.ProcessPrompt | TextRequest, requirements: WorkerRequirements, ends_at: float) -> Generation:
    kind = generation.kind_of(request)
    if not isinstance(request, inference.ProcessPrompt):
        return Generation(kind, requirements, ends_at)
    config = request.model_config
    return Generation(kind, requirements, ends_at, answers=config.n or 1, most_tokens=config.max_tokens)
