"""Runs lines of jobs on machines that are idle: claims them, answers them, and writes each result together with its pay.

Each gateway has one. What a line has done counts once PostgreSQL has its result, so a gateway may die at any moment: another one claims
its lines when their leases end. Results wait here while PostgreSQL is away; the lines keep their places, so memory is bounded.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from features.jobs.contract import JobState
from features.jobs.feature import JOB_MODEL, LINE
from features.jobs.gateway import line_calls
from features.jobs.gateway.job_metrics import UPKEEP, JobMetrics
from features.jobs.gateway.line_calls import App, LineAnswer
from features.jobs.gateway.line_inputs import LineInputs
from features.jobs.gateway.rules import line_results
from features.jobs.gateway.store import ClaimedLine, Job, JobStore, LineResult, LineRetry
from features.jobs.instruments import LineOutcome
from features.jobs.rules import retry_rules
from features.jobs.rules.pace import MAX_LINES, Pace
from features.jobs.rules.retry_rules import Next, Verdict
from services.gateway import background_jobs
from services.gateway.facts import line_run
from services.gateway.facts.line_run import LineRun
from services.gateway.facts.request_record import RowsRefused
from services.gateway.job_rules import BatchCapacity
from shared import context, errors
from shared.api.auth import IdentifyOwner, Principal
from shared.background.items import BackgroundItems
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import wait_until_set
from shared.types import ModelName, RequestId

_MAX_MODELS, _MAX_CLAIMED, _MAX_WRITTEN = 100, 32, 500
#: Sealed; a single result may have more. PostgreSQL must take them in time.
_MAX_WRITTEN_BYTES = 16 << 20
#: How often to look for lines, with some here and without.
_BUSY_SECONDS, _IDLE_SECONDS = 0.25, 1.0
#: How long results are collected, at most.
_COLLECT_SECONDS = 0.02
#: How often to look for jobs that were canceled.
_STOP_SECONDS = 0.5
EXTEND_SECONDS = 15.0
#: A gateway that could not extend for so long gives its lines up.
LOST_SECONDS = 45.0
#: An attempt of a lost gateway holds credits for so long after its lease. Releases before jobs bill what is lost for longer.
_GRACE_SECONDS = 10.0
#: A job that doesn't move says why, after so long.
_SAY_SECONDS = 15.0
_GIVE_BACK_SECONDS = 2.0
_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=5.0)

_log = logs.get(part="jobs")

#: Asks auth who ordered a job, with the rights of now.
Identify = Callable[[IdentifyOwner], Awaitable[Principal]]


#: None if no worker serves the model.
FindCapacity = Callable[[ModelName], BatchCapacity | None]


@dataclass(eq=False, slots=True)
class _Attempt:
    job: Job
    line: ClaimedLine
    task: asyncio.Task[None] | None = None
    #: None while it runs.
    verdict: Verdict | None = None
    result: LineResult | None = None
    began: float = 0.0

    @property
    def request(self) -> RequestId:
        return self.line.request_id


@dataclass(eq=False, slots=True)
class _LineGroup:
    """The lines of one model that are here."""

    model: ModelName
    is_live: bool
    pace: Pace = field(default_factory=Pace)
    attempts: dict[RequestId, _Attempt] = field(default_factory=dict)
    most: int = 0
    idle_since: float | None = None

    @property
    def room(self) -> int:
        """Return how many lines to claim. Few at a time would cost a claim for each line."""
        room = self.most - len(self.attempts)
        return room if room >= min(_MAX_CLAIMED, max(1, self.most // 4)) else 0


class JobRunner:
    def __init__(
        self,
        store: JobStore,
        app: App,
        inputs: LineInputs,
        identify: Identify,
        items: BackgroundItems,
        *,
        find_capacity: FindCapacity,
        metrics: JobMetrics,
        on_ended: Callable[[], object],
        name: str,
        secret: str,
        draining: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``app``: serves the endpoints for lines, within ``line_run.current``. ``on_ended`` is called after results
        are written, ``secret`` seals them."""
        self._store, self._app, self._inputs, self._identify, self._items = store, app, inputs, identify, items
        self._find_capacity, self._metrics, self._name, self._secret, self._clock = find_capacity, metrics, name, secret, clock
        self._draining, self._on_ended = draining, on_ended
        self._groups: dict[tuple[ModelName, bool], _LineGroup] = {}
        self._ended: list[_Attempt] = []
        self._has_ended, self._may_claim = asyncio.Event(), store.begun
        #: Models with jobs that may run. They are listed again soon, or when a job begins, but not for each line that ends.
        self._models, self._listed_at, self._has_room = list[tuple[ModelName, bool]](), clock(), False
        self._extended_at = clock()
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for work in (self._claim_all(), self._write_all(), self._keep_all(), self._stop_all()):
                    self._tasks.create_task(work)
        finally:
            await self._give_back()

    @property
    def running(self) -> int:
        return sum(len(group.attempts) for group in self._groups.values())

    def _attempts(self) -> list[_Attempt]:
        return [attempt for group in self._groups.values() for attempt in group.attempts.values()]

    def _unfinished(self) -> list[_Attempt]:
        return [attempt for attempt in self._attempts() if attempt.verdict is None]

    # --- claims

    async def _claim_all(self) -> None:
        failures = 0
        while not self._draining.is_set():
            self._may_claim.clear()
            if await background_jobs.attempt(UPKEEP, self._claim_of_each_model):
                failures = 0
                await wait_until_set(self._may_claim, _BUSY_SECONDS if self._groups else _IDLE_SECONDS)
            else:
                failures += 1
                await asyncio.sleep(_BACKOFF.pause(failures))

    async def _claim_of_each_model(self) -> None:
        has_room, self._has_room = self._has_room, False
        if not has_room or self._clock() - self._listed_at >= _BUSY_SECONDS:
            self._models, self._listed_at = await self._store.list_models(_MAX_MODELS), self._clock()
        for key in self._models:
            self._groups.setdefault(key, _LineGroup(*key))
        await self._items.each(JOB_MODEL, self._models, lambda key: self._fill(self._groups[key]), lambda key: f"{key[0]}/{key[1]}")
        self._groups = {key: group for key, group in self._groups.items() if group.attempts or key in self._models}

    async def _fill(self, group: _LineGroup) -> None:
        found = BatchCapacity(MAX_LINES, waits_live=False) if group.is_live else self._find_capacity(group.model)
        group.most = 0 if found is None else group.pace.look(slots=found.slots, waits_live=found.waits_live)
        await self._say_waiting(group, found)
        while (room := group.room) > 0 and not self._draining.is_set():
            requests = [context.new_request_id() for _ in range(min(room, _MAX_CLAIMED))]
            claimed = await self._store.claim(group.model, requests, self._name, live=group.is_live)
            job = await self._store.read(claimed[0].job_id) if claimed else None
            if job is None:
                return
            for line in claimed:
                attempt = group.attempts[line.request_id] = _Attempt(job, line, began=self._clock())
                attempt.task = self._tasks.create_task(self._run(group, attempt))
            if len(claimed) < len(requests):
                return

    async def _say_waiting(self, group: _LineGroup, found: BatchCapacity | None) -> None:
        if group.most or group.attempts:
            group.idle_since = None
            return
        now = self._clock()
        group.idle_since = now if group.idle_since is None else group.idle_since
        if now - group.idle_since >= _SAY_SECONDS:
            group.idle_since = now
            why = f"no worker serves {group.model}" if found is None else "live requests come first"
            await self._store.say_waiting(group.model, why)

    # --- one line

    async def _run(self, group: _LineGroup, attempt: _Attempt) -> None:
        job, line = attempt.job, attempt.line
        self._metrics.begin(group.model, line.could_run_at)
        if line.was_lost:
            self._metrics.end(group.model, LineOutcome.TAKEN_OVER)
        failure: errors.AimeshError | None = None
        try:
            await self._items.attempt(LINE, f"{job.public_id}/{line.line}", self._answer_within(attempt))
        except asyncio.CancelledError:
            return  # whoever canceled it says what becomes of it
        except errors.AimeshError as error:
            failure = error
        if attempt.verdict is None:
            status, code = (errors.Internal.status, errors.Internal.code) if failure is None else (failure.status, errors.code_of(failure))
            attempt.verdict, attempt.result = retry_rules.judge(failure, status, line.attempt), _nothing(line.request_id, code)
        self._end(attempt)

    async def _answer_within(self, attempt: _Attempt) -> None:
        attempt.verdict, attempt.result = await self._answer(attempt.job, attempt.line)

    async def _answer(self, job: Job, line: ClaimedLine) -> tuple[Verdict, LineResult]:
        request, seed = line.request_id, (job.seed + line.line) % 2**63
        try:
            body = await self._inputs.read(job, line)
            principal = await self._identify(job.owner)
        except errors.AimeshError as error:
            return retry_rules.judge(error, error.status, line.attempt), _nothing(request, errors.code_of(error))
        run = LineRun(
            job_id=job.id,
            request_id=request,
            # The key may only be used from some networks, as it was when the job was ordered.
            principal=msgspec.structs.replace(principal, networks=()),
            is_live=job.is_live,
            price_id=job.price_id,
            seed=seed,
        )
        line_run.current.set(run)
        found = await line_calls.answer(self._app, job.endpoint, body)
        verdict = retry_rules.judge(run.failure, found.status or errors.Internal.status, line.attempt)
        return verdict, await self._result(job, line, run, found) if found.body else _nothing(request, errors.Internal.code)

    async def _result(self, job: Job, line: ClaimedLine, run: LineRun, found: LineAnswer) -> LineResult:
        sealed = await asyncio.to_thread(line_results.seal, found.body, job.tenant_id, job.id, line.line, self._secret)
        is_success = found.status < errors.CallerError.status
        code = errors.Internal.code if run.failure is None else errors.code_of(run.failure)
        return LineResult(
            request_id=line.request_id,
            row=run.row,
            result=sealed,
            status_code=found.status,
            cached_tokens=run.cached_tokens,
            error_code=None if is_success else code,
        )

    def _end(self, attempt: _Attempt) -> None:
        self._ended.append(attempt)
        self._has_ended.set()

    def _forget(self, attempts: Iterable[_Attempt]) -> None:
        for attempt in attempts:
            group = self._groups.get((attempt.job.model or ModelName(""), attempt.job.is_live))
            if group is not None and group.attempts.pop(attempt.request, None) is not None and group.room:
                self._has_room = True
                self._may_claim.set()

    # --- results

    async def _write_all(self) -> None:
        failures = 0
        while True:
            await self._has_ended.wait()
            await asyncio.sleep(_COLLECT_SECONDS)
            if await background_jobs.attempt(UPKEEP, self._write_next):
                failures = 0
            else:
                failures += 1
                await asyncio.sleep(_BACKOFF.pause(failures))

    async def _write_next(self) -> None:
        ended, size = list[_Attempt](), 0
        for attempt in self._ended[:_MAX_WRITTEN]:
            size += len(attempt.result.result or b"") if attempt.result is not None else 0
            if ended and size > _MAX_WRITTEN_BYTES:
                break
            ended.append(attempt)
        outcomes = await self._write(ended)
        for attempt, outcome in outcomes.items():
            self._count(attempt, outcome)
        del self._ended[: len(ended)]
        self._forget(ended)
        if not self._ended:
            self._has_ended.clear()

    async def _write(self, ended: list[_Attempt]) -> dict[_Attempt, LineOutcome]:
        """Repeating it changes nothing. Return what became of those that were still this gateway's."""
        by_next: dict[Next, list[_Attempt]] = {}
        for attempt in ended:
            assert attempt.verdict is not None
            by_next.setdefault(attempt.verdict.next, []).append(attempt)
        outcomes = await self._finish(by_next.pop(Next.END, []))
        if outcomes:
            self._on_ended()
        rest = [attempt for attempts in by_next.values() for attempt in attempts]
        retries = [
            LineRetry(attempt.request, attempt.verdict.seconds, is_uncounted=attempt.verdict.next is not Next.AGAIN)
            for attempt in rest
            if attempt.verdict is not None
        ]
        if retries:
            await self._store.requeue(retries)
        verdicts = {attempt.job.id: attempt.verdict for attempt in rest if attempt.verdict is not None}
        await self._items.each(JOB_MODEL, verdicts.items(), self._judge_job, lambda each: str(each[0]))
        return outcomes | dict.fromkeys(rest, LineOutcome.REQUEUED)

    async def _judge_job(self, judged: tuple[UUID, Verdict]) -> None:
        job, verdict = judged
        if verdict.next is Next.CANCEL:
            await self._store.cancel(job, verdict.why)
        elif verdict.why:
            await self._store.hold(job, verdict.why, verdict.seconds if verdict.next is Next.HOLD else 0.0)

    async def _finish(self, ended: list[_Attempt]) -> dict[_Attempt, LineOutcome]:
        results = [attempt.result for attempt in ended if attempt.result is not None]
        if not results:
            return {}
        try:
            written = await self._store.finish(results)
        except RowsRefused as error:
            if len(ended) > 1:
                halves = ended[: len(ended) // 2], ended[len(ended) // 2 :]
                return {attempt: outcome for half in halves for attempt, outcome in (await self._finish(half)).items()}
            # The line's lease ends, and after the third time, so does the line.
            _log.error("PostgreSQL refused a result", job=str(ended[0].job.id), line=ended[0].line.line, reason=error.message)
            return {}
        return {
            attempt: LineOutcome.DONE if attempt.result.error_code is None else LineOutcome.FAILED
            for attempt in ended
            if attempt.result is not None and attempt.request in written
        }

    def _count(self, attempt: _Attempt, outcome: LineOutcome) -> None:
        if attempt.job.model is not None:
            has_result = outcome is not LineOutcome.REQUEUED
            self._metrics.end(attempt.job.model, outcome, seconds=self._clock() - attempt.began if has_result else None)

    # --- leases and cancels

    async def _keep_all(self) -> None:
        while True:
            await asyncio.sleep(EXTEND_SECONDS)
            if not await background_jobs.attempt(UPKEEP, self._keep) and self._clock() - self._extended_at >= LOST_SECONDS:
                self._drop(self._unfinished())

    async def _keep(self) -> None:
        asked, was_away = self._attempts(), self._clock() - self._extended_at >= LOST_SECONDS
        kept = await self._store.extend([attempt.request for attempt in asked], self._name) if asked else set()
        self._extended_at = self._clock()
        # A result that waits is written, if nobody else has the line.
        self._drop([attempt for attempt in asked if attempt.request not in kept and attempt.verdict is None])
        if not was_away:
            # Otherwise PostgreSQL may have been, and other gateways extend theirs, too.
            await self._store.give_back_lost(_GRACE_SECONDS)

    async def _stop_all(self) -> None:
        while True:
            await asyncio.sleep(_STOP_SECONDS)
            if self._unfinished():
                await background_jobs.attempt(UPKEEP, self._stop)

    async def _stop(self) -> None:
        """If PostgreSQL is away, what was stopped ends with its lease."""
        stopped = await self._store.list_stopped({attempt.job.id for attempt in self._unfinished()})
        ended = self._drop([attempt for attempt in self._unfinished() if attempt.job.id in stopped])
        cancelled = [attempt.request for attempt in ended if stopped[attempt.job.id] is JobState.CANCELLING]
        if cancelled:
            await self._store.stop(cancelled)

    def _drop(self, attempts: Collection[_Attempt]) -> Collection[_Attempt]:
        for attempt in attempts:
            if attempt.task is not None:
                attempt.task.cancel()
        self._forget(attempts)
        return attempts

    async def _give_back(self) -> None:
        """Let others run at once what this gateway has begun."""
        attempts = self._drop(self._unfinished())
        try:
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                while self._ended:
                    await self._write_next()
                if attempts:
                    await self._store.requeue([LineRetry(attempt.request, 0.0, is_uncounted=True) for attempt in attempts])
        except (errors.Unavailable, TimeoutError):
            _log.warning("lines stay leased until another gateway takes them", lines=len(attempts))


def _nothing(request: RequestId, code: str) -> LineResult:
    return LineResult(request_id=request, row=None, result=None, status_code=None, error_code=code)
