"""Validates the input of jobs, lets them end, and writes their files. If a gateway dies while it does, another begins again.

Output is made of results that don't change any more, so it doesn't matter how many gateways write it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from uuid import UUID

import msgspec

from features.files.contract import FilePurpose
from features.files.gateway.file_storage import FileStorage
from features.files.gateway.store import NewFile
from features.jobs.contract import JobKind, JobState, LineError
from features.jobs.feature import JOB
from features.jobs.gateway import batch_output
from features.jobs.gateway.job_metrics import UPKEEP, JobMetrics
from features.jobs.gateway.rules import line_results
from features.jobs.gateway.rules.batch_input import BatchInput, NewLine
from features.jobs.gateway.store import Job, JobStore, StoredLine
from features.jobs.instruments import LineOutcome
from services.gateway import background_jobs
from services.gateway.job_rules import JobRules
from shared import errors
from shared.api.tenant_events import TenantEvent
from shared.background.items import BackgroundItems
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import TenantId

#: OpenAI's: so long after it was written.
OUTPUT_SECONDS = 30 * 24 * 3600.0
_LOOK_SECONDS = 1.0
#: When a store or auth doesn't answer.
_RETRY_SECONDS = 10.0
#: What a thread reads at a time; lines that are added, and results that are read, at a time.
_READ_BYTES, _ADDED_LINES, _PAGE_LINES = 256 << 10, 1000, 500
#: A job ends so.
_ENDS = {
    (JobKind.BATCH, JobState.COMPLETED): TenantEvent.BATCH_COMPLETED,
    (JobKind.BATCH, JobState.FAILED): TenantEvent.BATCH_FAILED,
    (JobKind.BATCH, JobState.EXPIRED): TenantEvent.BATCH_EXPIRED,
    (JobKind.BATCH, JobState.CANCELLED): TenantEvent.BATCH_CANCELLED,
    (JobKind.RESPONSE, JobState.COMPLETED): TenantEvent.RESPONSE_COMPLETED,
    (JobKind.RESPONSE, JobState.FAILED): TenantEvent.RESPONSE_FAILED,
    (JobKind.RESPONSE, JobState.EXPIRED): TenantEvent.RESPONSE_FAILED,
    (JobKind.RESPONSE, JobState.CANCELLED): TenantEvent.RESPONSE_CANCELLED,
}

_log = logs.get(part="jobs")

#: Waits until lines of a tenant's job may be read. Raises Limited.
TakeTurn = Callable[[TenantId], AbstractAsyncContextManager[None]]


class _NotOurs(Exception):
    """Another gateway has the job by now, or somebody has cancelled it."""


class _Refused(Exception):
    def __init__(self, found: list[LineError]) -> None:
        self.found = found


class _ResponseStatus(msgspec.Struct):
    status: str = ""


class BatchWork:
    """``run`` is its task. Set ``ordered`` when a job was ordered, and ``ended`` when lines have ended or a job was cancelled."""

    def __init__(
        self,
        jobs: JobStore,
        files: FileStorage,
        rules: JobRules,
        runner: str,
        metrics: JobMetrics,
        *,
        items: BackgroundItems,
        secret: str,
        take_turn: TakeTurn,
    ) -> None:
        self._jobs, self._files, self._rules, self._runner, self._metrics, self._secret = jobs, files, rules, runner, metrics, secret
        self._items = items
        self._take_turn = take_turn
        self.ordered, self.ended, self._moved = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_repeat(self.validate, self.ordered))
            tasks.create_task(_repeat(self.move, self.ended))
            tasks.create_task(_repeat(self.finalize, self._moved))

    async def move(self) -> None:
        """Let jobs be finalized whose lines have all ended, or whose time is over."""
        await self._items.each(JOB, await self._jobs.list_movable(), self._move_one, str)

    async def _move_one(self, job: UUID) -> None:
        moved = await self._jobs.move(job)
        if moved is None:
            return
        self._moved.set()
        if moved.model is not None and moved.unfinished:
            self._metrics.end(moved.model, LineOutcome(moved.outcome.value), lines=moved.unfinished)

    async def validate(self) -> None:
        await self._work(JobState.VALIDATING, self._validate)

    async def finalize(self) -> None:
        await self._work(JobState.FINALIZING, self._finalize)

    async def _work(self, state: JobState, work: Callable[[Job], Awaitable[None]]) -> None:
        """Work on the jobs in this state, one after the other. Raises Unavailable if PostgreSQL is away."""
        while (job := await self._jobs.take(state, self._runner)) is not None:
            if not await self._items.attempt(JOB, str(job.id), self._work_on(job, work)):
                await self._jobs.hold(job.id, "an internal error; the gateway's log has it", _RETRY_SECONDS)

    async def _work_on(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        try:
            await work(job)
        except _NotOurs:
            _log.info("the job is not ours any more", job=job.public_id, state=job.state.value)
        except errors.AimeshError as error:
            _log.warning("a job has to wait", job=job.public_id, state=job.state.value, reason=error.message)
            await self._jobs.hold(job.id, error.message, _RETRY_SECONDS)

    async def _keep(self, job: Job) -> None:
        """Raises _NotOurs."""
        if not await self._jobs.keep(job.id, self._runner, job.state):
            raise _NotOurs

    # --- validating

    async def _validate(self, job: Job) -> None:
        try:
            reading = await self._read(job)
            await self._begin(job, reading)
        except _Refused as refused:
            await self._jobs.refuse(job.id, refused.found, _ENDS.get((job.kind, JobState.FAILED)))

    async def _read(self, job: Job) -> BatchInput:
        """Add the lines of the input file. Raises _Refused."""
        assert job.input_file is not None
        reading, lines = BatchInput(job.endpoint), list[NewLine]()
        try:
            file = await self._files.find_used(job.tenant_id, job.input_file)
            async with aclosing(self._files.read(file, 0, file.facts.size)) as pieces:
                async for piece in pieces:
                    for at in range(0, len(piece), _READ_BYTES):
                        async with self._take_turn(job.tenant_id):
                            lines += await asyncio.to_thread(list, reading.read(piece[at : at + _READ_BYTES]))
                        if len(lines) >= _ADDED_LINES:
                            await self._add(job, reading, lines)
                    await self._keep(job)
                    if reading.is_over:
                        break
        except errors.NotFound as error:
            raise _Refused([LineError("file_not_found", "the input file does not exist any more")]) from error
        except errors.FileDamaged as error:
            raise _Refused([LineError(error.code, error.message)]) from error
        lines += await asyncio.to_thread(list, reading.end())
        await self._add(job, reading, lines)
        if reading.errors:
            raise _Refused(reading.errors)
        return reading

    async def _add(self, job: Job, reading: BatchInput, lines: list[NewLine]) -> None:
        """Add lines, unless the job fails anyway."""
        await self._keep(job)
        if lines and not reading.errors:
            await self._jobs.add_lines(job.id, lines)
        lines.clear()

    async def _begin(self, job: Job, reading: BatchInput) -> None:
        """Raises _Refused."""
        model = reading.model
        assert model is not None  # of its first line
        try:
            owner = await self._rules.identify(job.owner)
        except (errors.NotAuthenticated, errors.NotAllowed) as error:
            await self._jobs.cancel(job.id, error.message)
            self.ended.set()
            return
        if not self._rules.may_run(owner, model):
            raise _Refused([LineError("model_not_found", f"there is no model {model} that you may use", param="body.model")])
        try:
            await self._jobs.begin(job.id, reading.total, model, self._rules.price_id_of(model), self._rules.line_limit_of(owner))
        except errors.NotAllowed as error:
            raise _Refused([LineError("queued_lines_exceeded", error.message)]) from error

    # --- finalizing

    async def _finalize(self, job: Job) -> None:
        if job.kind is JobKind.BATCH:
            for are_done, file in zip((True, False), job.written_files, strict=True):
                if file is not None:
                    new = NewFile(f"{job.public_id}_{'output' if are_done else 'error'}.jsonl", FilePurpose.BATCH_OUTPUT, OUTPUT_SECONDS)
                    async with aclosing(self._write(job, are_done=are_done)) as pieces:
                        await self._files.write(job.tenant_id, job.user_id, file, pieces, new)
        await self._jobs.end(job.id, await self._find_event(job))

    async def _write(self, job: Job, *, are_done: bool) -> AsyncGenerator[bytes]:
        """Yield a file of results. Raises _NotOurs."""
        after = -1
        while page := await self._read_page(job, after, are_done=are_done):
            lines = iter(page)
            while piece := await asyncio.to_thread(batch_output.write_some, job, lines, self._secret):
                yield piece
            after = page[-1].line

    async def _read_page(self, job: Job, after: int, *, are_done: bool) -> tuple[StoredLine, ...]:
        page = await self._jobs.results(job.id, after, _PAGE_LINES, are_done=are_done)
        # Afterward: if another gateway has ended the job, its lines are gone, and the file would seem to end here.
        await self._keep(job)
        return page

    async def _find_event(self, job: Job) -> TenantEvent | None:
        assert job.outcome is not None
        event = _ENDS.get((job.kind, job.outcome))
        if event is not TenantEvent.RESPONSE_COMPLETED:
            return event
        lines = await self._jobs.results(job.id, -1, 1)
        if not lines:
            raise _NotOurs  # its tenant is erased
        (line,) = lines
        assert line.result is not None
        try:
            plain = await asyncio.to_thread(line_results.unseal, line.result, job.tenant_id, job.id, line.line, self._secret)
        except errors.FileDamaged:
            return TenantEvent.RESPONSE_FAILED
        is_incomplete = msgspec.json.decode(plain, type=_ResponseStatus).status == "incomplete"
        return TenantEvent.RESPONSE_INCOMPLETE if is_incomplete else event


async def _repeat(work: Callable[[], Awaitable[None]], wake: asyncio.Event) -> None:
    while True:
        wake.clear()
        await background_jobs.attempt(UPKEEP, work)
        await wait_until_set(wake, _LOOK_SECONDS)
