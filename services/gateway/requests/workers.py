"""Has workers generate answers, one worker after another, and hands what they send to a reader.

If a worker fails, another one takes over: from the start if nothing was delivered, else after the last token if the answer can resume. The
reader only sees a pause.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.gateway.facts.reader import Reader
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.requests import generation
from services.gateway.requests.generation import AskWorker, Done, End, Failed, FindWorker, Generation, NotReached, Pause, Step, Work
from services.gateway.scheduling import preemption
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.retry_budget import RetryBudget
from services.gateway.scheduling.worker_claims import Claim
from shared import errors, spans
from shared.api.generation import GenerationEnd
from shared.api.inference import ProcessPrompt, PromptAccepted
from shared.protocol.directory import DirectoryEntry
from shared.rpc import RpcClient, RpcReply
from shared.telemetry import logs, tracing
from shared.telemetry.instrument import node_label
from shared.types import NodeId

#: Fail over if a live worker sends nothing for this long in a started answer.
STALL_SECONDS = 15.0
#: Workers wait 10 minutes before they end a request for live ones, and a request of a batch takes an hour at most.
MAX_MADE_WAY = 6

#: Counts a retry by kind and outcome.
Count = Callable[[str, str], object]
#: Called before each worker is asked, with the number of answer tokens that the caller already has.
OnClaim = Callable[[Claim, int], object]

_log = logs.get(part="workers")


def _ignore(*_: object) -> None: ...


@dataclass(slots=True)
class Workers:
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
    #: When our own connection to NATS came back: see ``generation``.
    back_at: Callable[[], float] = lambda: -math.inf

    def generate(
        self,
        work: Work,
        requirements: WorkerRequirements,
        seconds: float,
        reader: Reader[PromptAccepted, Any],
        *,
        on_claim: OnClaim = _ignore,
    ) -> Awaitable[End | None]:
        """Return the answer's end, with the counts of the whole; None if the reader wants no more, which ends the work. Raises the last
        worker's error, WorkerLost if a part was delivered, or Poison if two engines crashed. ``on_claim`` gets each worker that is asked.
        Vectors and parts of a conversion may have begun again."""
        ends_at = self.clock() + seconds
        answers, most_tokens = 0, None
        if isinstance(work, ProcessPrompt):
            answers, most_tokens = work.model_config.n or 1, work.model_config.max_tokens
        most_wait_seconds = self.dispatch.most_wait(requirements)
        core = Generation(
            generation.kind_of(work), requirements, ends_at, answers=answers, most_tokens=most_tokens, most_wait_seconds=most_wait_seconds
        )
        # No frame of its own: each would be resumed with each piece.
        return _RunningWork(self, work, requirements, core, reader, on_claim).run()


@dataclass(slots=True)
class _RunningWork:
    """Carries out the steps of one generation."""

    workers: Workers
    work: Work
    requirements: WorkerRequirements
    core: Generation
    reader: Reader[PromptAccepted, Any]
    on_claim: OnClaim
    #: See ``Preemptible``. These two are set when it begins.
    began_at: float = field(init=False)
    watch: "_Watch" = field(init=False)
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
    #: How often a worker has ended it for live requests.
    made_way: int = 0
    #: What runs on the worker now.
    reply: RpcReply[Any, Any] | None = None

    def may_be_preempted(self, now: float) -> bool:
        return self.reply is not None and self.core.is_preemptible and now - self.preempted_at >= preemption.PAUSE_SECONDS

    def preempt(self) -> None:
        assert self.reply is not None
        self.is_preempted, self.preempted_at = True, self.workers.dispatch.clock()
        self.reply.cancel(errors.Cancelled("a request of another tenant needs the slot"))

    async def run(self) -> End | None:
        workers = self.workers
        self.began_at = workers.clock()
        self.watch = _Watch(self.core, self.reader, workers.stall_seconds, workers.clock)
        workers.budget.begin(self.began_at)
        if self.requirements.takes_slot:
            workers.dispatch.record_arrival(self.requirements.model)
        step: Step | None = FindWorker()
        try:
            while step is not None:
                self.watch.wait()
                match step:
                    case AskWorker():
                        step = await self._ask(step)
                    case FindWorker():
                        step = await self._find(step)
                    case Pause(seconds):
                        await asyncio.sleep(seconds)
                        step = self.core.paused()
                    case Done(end):
                        return end
                    case Failed(error):
                        raise error
        except asyncio.CancelledError:
            if not self.watch.has_cut():
                raise
        finally:
            self.watch.close()
            workers.budget.end()
        return None

    async def _find(self, wanted: FindWorker) -> Step | None:
        """Wait in the queue. Return the next step; None if the reader wants no more."""
        core, dispatch = self.core, self.workers.dispatch
        self.why, self.claim = wanted.why, None
        needs = self._requirements_for(wanted)
        try:
            with tracing.span("route.select", {"gen_ai.request.model": needs.model}):
                if not wanted.why:
                    with suppress(errors.NotReachable):
                        self.claim = dispatch.claim_now(needs)
                self.has_waited = self.claim is None
                if self.claim is None:
                    async with aclosing(dispatch.find(needs)) as found:
                        async for step in found:
                            if isinstance(step, Claim):
                                self.claim = step
                            elif not core.began and not await self._notify(step):
                                return None
        except (errors.NotReachable, errors.Overloaded) as error:
            return self._no_worker(error)
        assert self.claim is not None  # the generator ends with one
        self.is_preempted = False
        return core.claimed(self.claim.offer.digest, self.workers.clock(), self.claim.start_wait_seconds)

    def _no_worker(self, error: errors.AimeshError) -> Step:
        workers = self.workers
        return self.core.no_worker(error, workers.clock(), workers.draw, workers.back_at())

    async def _notify(self, waiting: str) -> bool:
        self.watch.since = None
        is_wanted = await self.reader.take(0, self.core.kind.notice(waiting), self.core.at)
        self.watch.wait()
        return is_wanted

    def _requirements_for(self, wanted: FindWorker) -> WorkerRequirements:
        if not wanted.why:
            return self.requirements
        found = msgspec.structs.replace(self.requirements, excluded=wanted.excluded, origin=wanted.origin)
        if not self.is_preempted:
            return found
        return msgspec.structs.replace(found, is_preempted=True, most_wait_seconds=self.core.ends_at - self.workers.clock())

    async def _ask(self, asked: AskWorker) -> Step | None:
        """Hand what the worker sends to the reader. Return the next step; None if the reader wants no more."""
        core, claim, reader, watch, outcome = self.core, self.claim, self.reader, self.watch, "left"
        assert claim is not None
        try:
            with claim:
                if self.has_waited:
                    # The worker may have announced something else since the choice.
                    self.workers.dispatch.ensure_allowed(claim.worker.node, self.requirements)
                self.on_claim(claim, core.at.ids)
                try:
                    with self._span(claim.worker.node):
                        async with self._call(claim.worker.node, asked) as answer:
                            accepted, self.reply, claim.call = None, answer, None if claim.provider else self
                            try:
                                with watch:
                                    async for item in answer:
                                        watch.since = None
                                        if accepted is None and isinstance(accepted := answer.accepted, PromptAccepted):
                                            self._accept(accepted)
                                        at = core.item(item)
                                        if at is not None and not await reader.take(0 if item.waiting else 1, item, at):
                                            return None
                                        if core.began and not claim.has_delivered:
                                            claim.record_delivery()
                                        watch.expect()
                            finally:
                                self.reply, claim.call = None, None
                                claim.was_accepted = answer.accepted is not None
                            step: Step = self._end(claim, answer.end)
                finally:
                    if core.processed_tokens is not None:
                        claim.record_tokens(*core.processed_tokens)
            outcome = "answered"
        except errors.AimeshError as error:
            if isinstance(error, errors.Preempted) and self.requirements.batch and core.may_continue and self.made_way < MAX_MADE_WAY:
                # Only the worker knows when live requests need it.
                self.is_preempted, self.made_way = True, self.made_way + 1
            outcome = "preempted" if self.is_preempted else "failed"
            step = self._fail(claim, error)
        finally:
            if self.why:
                self.workers.count(self.why, outcome)
        return step

    def _accept(self, accepted: PromptAccepted) -> None:
        if self.core.accepted(accepted):
            self.reader.begin(accepted)

    def _span(self, node: NodeId) -> tracing.span:
        operation, model = self.core.kind.operation, self.requirements.model
        attributes: dict[str, spans.Value] = {
            "rpc.system": "aimesh",
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "aimesh",
            "gen_ai.request.model": model,
            "server.address": node_label(node),
        }
        return tracing.span(f"{operation} {model}", attributes, spans.SpanKind.CLIENT)

    def _call(self, node: NodeId, asked: AskWorker) -> AbstractAsyncContextManager[RpcReply[Any, Any]]:
        kind, work = self.core.kind, self.work
        if asked.delivered:
            work = msgspec.structs.replace(work, delivered=asked.delivered, numerics=asked.numerics)
        return self.workers.rpc.stream(kind.method, work, to=node, deadline_seconds=asked.seconds)

    def _end(self, claim: Claim, end: End) -> Done:
        done, dispatch, node = self.core.ended(end), self.workers.dispatch, claim.worker.node
        if self.requirements.batch and isinstance(end, GenerationEnd) and end.computed_seconds is not None:
            claim.most_seconds = max(0.0, end.computed_seconds)
        if done.has_wrong_counts:
            self.workers.flag(node)
            quarantined = dispatch.worker_stats.dishonest_workers.strike(node, dispatch.clock())
            what = "worker quarantined for wrong token counts" if quarantined else "worker reported wrong token counts"
            _log.warning(what, worker=node, model=self.requirements.model)
        return done

    def _fail(self, claim: Claim, error: errors.AimeshError) -> Step:
        core, workers, node = self.core, self.workers, claim.worker.node
        if self.is_preempted:
            return core.preempted()
        now, back_at = workers.clock(), workers.back_at()
        if isinstance(error, errors.OWN_CONNECTION_LOST):
            return core.connection_lost(error, now, workers.draw, back_at)
        error = core.judge(error, was_accepted=claim.was_accepted, now=now, back_at=back_at)
        claim.record_failure(error)
        stats, clock = workers.dispatch.worker_stats, workers.dispatch.clock()
        lost_workers = sum(not stats.may_be_running(worker, clock) for worker in self.lost)
        own_losses = lost_workers + (not stats.may_be_running(claim.worker, clock))
        others_lost = stats.count_losses(clock) > own_losses
        step = core.failed(node, error, was_accepted=claim.was_accepted, lost_workers=lost_workers, others_lost=others_lost)
        if isinstance(error, errors.LinkLost):
            self.lost.append(claim.worker)
        if isinstance(step, NotReached):
            return self._no_worker(error)
        if not isinstance(step, FindWorker):
            return step
        if step.is_charged and not workers.budget.spend(workers.clock()):
            workers.count(step.why, "over_budget")
            return core.over_budget()
        what = "worker lost in mid-answer" if core.began else "worker failed before its first token"
        _log.warning(what, worker=node, code=errors.code_of(error))
        return step


class _Watch:
    """Ends waits for workers, never those for the reader: at the reader's ``cut_at``, and when the worker of a started answer is silent and
    another can resume it. One timer, which looks rarely."""

    __slots__ = ("_clock", "_core", "_cut_at", "_is_up", "_loop", "_reader", "_stall_seconds", "_task", "_timer", "is_silence", "since")

    def __init__(self, core: Generation, reader: Reader[Any, Any], stall_seconds: float, clock: Callable[[], float]) -> None:
        self._core, self._reader, self._stall_seconds, self._clock = core, reader, stall_seconds, clock
        self._loop = asyncio.get_running_loop()
        # Without the loop, it asks the system for the process's id (Python 3.11).
        self._task = asyncio.current_task(self._loop)
        #: When the wait began; None while nothing is waited for.
        self.since: float | None = None
        #: It is a worker's, which may be too long.
        self.is_silence = False
        self._cut_at = math.inf
        #: It has canceled the wait.
        self._is_up = False
        self._timer = self._loop.call_later(stall_seconds, self._look)

    def wait(self) -> None:
        """A wait begins, for no worker that has begun."""
        self.since, self.is_silence = self._clock(), False
        self._mind_cut(self.since)

    def expect(self) -> None:
        """A wait for the worker begins."""
        self.since, self.is_silence = self._clock(), self._core.began and self._core.can_resume
        if self._reader.cut_at is not None:
            self._mind_cut(self.since)

    def _mind_cut(self, now: float) -> None:
        cut_at = self._reader.cut_at
        if cut_at is not None and (cut_at != self._cut_at or now >= cut_at):
            self._cut_at = cut_at
            self._timer.cancel()
            self._timer = self._loop.call_later(min(max(0.0, cut_at - now), self._stall_seconds), self._look)

    def _look(self) -> None:
        now, ends_at = self._clock(), self._cut_at
        if self.since is not None:
            if self.is_silence:
                ends_at = min(ends_at, self.since + self._stall_seconds)
            if now >= ends_at:
                assert self._task is not None
                self._is_up = self._task.cancel()
                return
        self._timer = self._loop.call_later(min(ends_at - now if ends_at > now else math.inf, self._stall_seconds), self._look)

    def has_cut(self) -> bool:
        """Return whether a cancellation is the reader's ``cut_at``, and nobody else's."""
        return self._is_up and self._clock() >= self._cut_at and self._is_own()

    def __enter__(self) -> None:
        self.expect()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raises LinkLost for a worker that was silent."""
        is_silent = isinstance(error, asyncio.CancelledError) and self._is_up and self._clock() < self._cut_at and self._is_own()
        if is_silent:
            self._is_up = False
            self._timer = self._loop.call_later(self._stall_seconds, self._look)
            raise errors.LinkLost(f"the worker has sent nothing for {self._stall_seconds:g} s in mid-answer") from error

    def _is_own(self) -> bool:
        return self._task is not None and self._task.uncancel() == 0

    def close(self) -> None:
        self._timer.cancel()
