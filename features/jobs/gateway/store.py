"""Reads and writes jobs and their lines. A line's result, its request's row and its pay are written together, or not at all."""

import asyncio
from collections.abc import Collection, Sequence
from uuid import UUID

import msgspec

from features.jobs.contract import JobKind, JobState, LineError
from features.jobs.gateway.rules.batch_input import NewLine
from features.jobs.rules.states import MAX_LOST_LEASES, LineState
from services.gateway.facts.request_record import RequestRow, RowsRefused
from services.gateway.features import OnTenantEvent, RequestRows
from shared import context, errors
from shared.api.auth import IdentifyOwner, Principal
from shared.api.tenant_events import TenantEvent
from shared.protocol import public_ids
from shared.stores import database
from shared.stores.database import Database, DatabaseRow, Transaction
from shared.types import KeyId, MicroCredits, ModelName, Moment, RequestId, TenantId, UserId

PREFIXES = {JobKind.BATCH: "batch", JobKind.SINGLE: "job", JobKind.RESPONSE: "resp"}
LEASE_SECONDS = 60.0
#: Of which jobs are measured.
MAX_MODELS = 200
#: At a time; each may have 50,000 lines.
MAX_ERASED = 20
#: Sealed, of one page; a single line may have more.
_PAGE_BYTES = 1 << 20
#: All lines of a large job.
_LINES_SECONDS = 60.0


async def _tell_nobody(transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None: ...


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    owner: Principal
    kind: JobKind
    endpoint: str
    seed: int
    #: How long it may take, and how long it is kept after its end.
    seconds: float
    kept_seconds: float
    is_live: bool = False
    model: ModelName | None = None
    price_id: int | None = None
    input_file: UUID | None = None
    metadata: dict[str, str] = {}
    idempotency_key: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``jobs``."""

    id: UUID
    tenant_id: TenantId
    user_id: UserId
    key_id: KeyId | None
    kind: JobKind
    is_live: bool
    endpoint: str
    model: ModelName | None
    price_id: int | None
    state: JobState
    outcome: JobState | None
    #: Why it doesn't move.
    waiting: str | None
    seed: int
    input_file: UUID | None
    output_file: UUID
    error_file: UUID
    metadata: dict[str, str]
    errors: tuple[LineError, ...]
    total: int
    done: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_micro: MicroCredits
    created_at: Moment
    in_progress_at: Moment | None
    cancelling_at: Moment | None
    finalizing_at: Moment | None
    ended_at: Moment | None
    expires_at: Moment
    delete_at: Moment

    @property
    def written_files(self) -> tuple[UUID | None, UUID | None]:
        """Return the file of its answers, and that of its errors, if a batch has them at its end."""
        return self.output_file if self.done else None, self.error_file if self.done < self.total else None

    @property
    def public_id(self) -> str:
        return public_ids.encode(PREFIXES[self.kind], self.id, "_")

    @property
    def owner(self) -> IdentifyOwner:
        return IdentifyOwner(self.user_id, self.key_id, None if self.tenant_id == self.user_id else self.tenant_id)


class ClaimedLine(msgspec.Struct, frozen=True):
    job_id: UUID
    line: int
    request_id: RequestId
    attempt: int
    start: int
    size: int
    custom_id: str
    could_run_at: Moment
    #: Another gateway had it, and lost it.
    was_lost: bool = False


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    request_id: RequestId
    #: The request's row; None if none began.
    row: RequestRow | None
    #: Sealed.
    result: bytes | None
    status_code: int | None
    error_code: str | None = None
    cached_tokens: int = 0


class LineRetry(msgspec.Struct, frozen=True):
    request_id: RequestId
    seconds: float
    #: It was only set aside.
    is_uncounted: bool = False


class MovedJob(msgspec.Struct, frozen=True):
    """One that is finalized now."""

    #: None if it was never validated.
    model: ModelName | None
    outcome: JobState
    #: How many of its lines have no result.
    unfinished: int


class StoredLine(msgspec.Struct, frozen=True, kw_only=True):
    line: int
    custom_id: str
    state: LineState
    result: bytes | None
    status_code: int | None
    error_code: str | None
    request_id: RequestId | None


class OpenJobs(msgspec.Struct, frozen=True):
    kind: str
    state: str
    jobs: int


class ModelJobs(msgspec.Struct, frozen=True):
    """The jobs of a model that are in progress."""

    model: ModelName
    queued: int
    running: int
    #: For how long the oldest line could have run.
    oldest_seconds: float
    #: Lines per second, for no job to expire.
    needed_per_second: float


class JobStore:
    """Every method may raise Unavailable. Methods that name a job see it whoever owns it; ``find`` sees only its owner's."""

    def __init__(self, opened: Database, requests: RequestRows, tell: OnTenantEvent = _tell_nobody) -> None:
        """``tell`` is called in the transaction in which a job ends."""
        self._database, self._requests, self._tell = opened, requests, tell
        #: Set when a job begins through this gateway.
        self.begun = asyncio.Event()

    # --- its owner

    async def create(self, job: NewJob) -> Job:
        """Insert a job, or return the one with its idempotency key."""
        async with self._database.bound(job.owner.tenant_id) as transaction:
            return await self._create(transaction, job)

    async def start(self, job: NewJob, line: NewLine, most_lines: int | None = None) -> Job:
        """Insert a job of one line that may run at once, or return the one with its idempotency key. Raises NotAllowed like ``begin``."""
        async with self._database.bound(job.owner.tenant_id) as transaction:
            made = await self._create(transaction, job)
            if made.id != job.id:
                return made
            await transaction.run("add_lines", job.id, *_line_columns([line]))
            await _begin(transaction, most_lines, job.id, 1, job.model, job.price_id)
            row = await transaction.row("find_job", job.id)
        assert row is not None
        self.begun.set()
        return _job(row)

    async def _create(self, transaction: Transaction, job: NewJob) -> Job:
        owner = job.owner
        await transaction.run(
            "create_job", job.id, owner.tenant_id, owner.user_id, owner.key_id, job.kind.value, job.is_live, job.endpoint, job.model,
            job.price_id, job.seed, job.input_file, msgspec.json.encode(job.metadata).decode(), job.idempotency_key, job.seconds,
            job.kept_seconds, context.new_request_id(), context.new_request_id(),
        )  # fmt: skip
        row = await transaction.row("find_job", job.id)
        if row is None:
            row = await transaction.row("find_repeated_job", owner.tenant_id, job.idempotency_key)
        assert row is not None
        return _job(row)

    async def find(self, tenant: TenantId, job: UUID) -> Job | None:
        async with self._database.bound(tenant) as transaction:
            row = await transaction.row("find_job", job)
        return None if row is None else _job(row)

    async def find_repeated(self, tenant: TenantId, key: str) -> Job | None:
        async with self._database.bound(tenant) as transaction:
            row = await transaction.row("find_repeated_job", tenant, key)
        return None if row is None else _job(row)

    async def page(
        self, tenant: TenantId, kind: JobKind | None, after: UUID | None, most: int, endpoint: str | None = None
    ) -> tuple[Job, ...]:
        """Return the newest jobs, or those behind ``after``."""
        async with self._database.bound(tenant) as transaction:
            return tuple(_job(row) for row in await transaction.rows("list_jobs", tenant, kind, after, most, endpoint))

    async def erase(self, tenant: TenantId) -> None:
        while await self._database.run("erase_jobs", tenant, MAX_ERASED, deadline_seconds=30):
            pass

    async def cancel(self, job: UUID, why: str | None = None) -> Job | None:
        """Begin no other line. Return the job as it is then."""
        async with self._database.transaction() as transaction:
            if await transaction.row("lock_job", job) is None:
                return None
            await transaction.run("cancel_job", job, why)
            row = await transaction.row("find_job", job)
        return None if row is None else _job(row)

    async def forget(self, job: UUID) -> None:
        """Cancel a job, and delete it as soon as it has ended. Nobody sees it any more."""
        async with self._database.transaction() as transaction:
            await transaction.row("lock_job", job)
            await transaction.run("cancel_job", job, None)
            await transaction.run("forget_job", job)
            await transaction.rows("delete_jobs", 1, job)

    # --- validating and finalizing

    async def take(self, state: JobState, runner: str) -> Job | None:
        """Take a job in this state from whoever has lost it."""
        row = await self._database.row("take_job", state.value, runner, LEASE_SECONDS)
        return None if row is None else _job(row)

    async def keep(self, job: UUID, runner: str, state: JobState) -> bool:
        """Return False if another gateway has it, or somebody has cancelled it."""
        return await self._database.run("keep_job", job, runner, state.value, LEASE_SECONDS) == 1

    async def add_lines(self, job: UUID, lines: Sequence[NewLine]) -> None:
        await self._database.run("add_lines", job, *_line_columns(lines))

    async def begin(self, job: UUID, total: int, model: ModelName, price_id: int | None, most_lines: int | None = None) -> bool:
        """Return False if nobody validates it any more. Raises NotAllowed if more than ``most_lines`` of its owner would wait."""
        async with self._database.transaction() as transaction:
            has_begun = await _begin(transaction, most_lines, job, total, model, price_id)
        self.begun.set()
        return has_begun

    async def refuse(self, job: UUID, found: Sequence[LineError], event: TenantEvent | None = None) -> None:
        async with self._database.transaction(deadline_seconds=_LINES_SECONDS) as transaction:
            row = await transaction.row("refuse_job", job, msgspec.json.encode(found).decode())
            await _end(transaction, row, event, self._tell)

    async def list_movable(self, most: int = 100) -> list[UUID]:
        """Return jobs that are at their end."""
        return [row["id"] for row in await self._database.rows("list_movable_jobs", most, None)]

    async def move(self, job: UUID) -> MovedJob | None:
        """Let a job be finalized, unless another gateway was faster."""
        async with self._database.transaction(deadline_seconds=_LINES_SECONDS) as transaction:
            await transaction.row("lock_job", job)
            if not await transaction.rows("list_movable_jobs", 1, job):
                return None
            row = await transaction.row("finalize_job", job)
            assert row is not None
            return MovedJob(row["model"], JobState(row["outcome"]), row["unfinished"])

    async def results(self, job: UUID, after: int, most: int, *, are_done: bool | None = None) -> tuple[StoredLine, ...]:
        """Return the next lines, fewer if their results are large. ``are_done``: only those that are, or the others."""
        return tuple(_line(row) for row in await self._database.rows("list_results", job, after, most, _PAGE_BYTES, are_done))

    async def end(self, job: UUID, event: TenantEvent | None = None) -> None:
        async with self._database.transaction(deadline_seconds=_LINES_SECONDS) as transaction:
            await _end(transaction, await transaction.row("end_job", job), event, self._tell)

    async def delete_old(self, most: int = 100) -> int:
        return len(await self._database.rows("delete_jobs", most, None))

    async def delete_all_old(self) -> None:
        while await self.delete_old():
            pass

    # --- of all owners

    async def count_open(self) -> tuple[OpenJobs, ...]:
        return tuple(OpenJobs(row["kind"], row["state"], row["jobs"]) for row in await self._database.rows("count_open_jobs"))

    async def measure_models(self) -> tuple[ModelJobs, ...]:
        return tuple(
            ModelJobs(**{name: row[name] for name in ModelJobs.__struct_fields__})
            for row in await self._database.rows("measure_job_models", MAX_MODELS)
        )

    # --- running lines

    async def list_models(self, most: int) -> list[tuple[ModelName, bool]]:
        """Return the models of jobs that may run now, and whether the jobs are live."""
        return [(ModelName(row["model"]), row["is_live"]) for row in await self._database.rows("list_waiting_models", most)]

    async def claim(self, model: ModelName, requests: Sequence[RequestId], runner: str, *, live: bool = False) -> tuple[ClaimedLine, ...]:
        """Return lines of one job, each with one of these new ids."""
        rows = await self._database.rows("claim_lines", model, list(requests), runner, LEASE_SECONDS, MAX_LOST_LEASES, live)
        return tuple(ClaimedLine(**{name: row[name] for name in ClaimedLine.__struct_fields__}) for row in rows)

    async def extend(self, requests: Sequence[RequestId], runner: str) -> set[RequestId]:
        """Return those that are still this runner's."""
        return {
            RequestId(row["request_id"]) for row in await self._database.rows("extend_line_leases", list(requests), runner, LEASE_SECONDS)
        }

    async def finish(self, results: Sequence[LineResult]) -> set[RequestId]:
        """Write results; return those that this call has written. The lines of the others have ended, or belong to other requests by now.
        Raises RowsRefused, too."""
        try:
            return await self._finish(results)
        except database.Refusal as error:
            # Without the error's text, which may quote the row.
            raise RowsRefused(type(error).__name__) from error

    async def _finish(self, results: Sequence[LineResult]) -> set[RequestId]:
        ids = [each.request_id for each in results]
        async with self._database.transaction() as transaction:
            await transaction.rows("lock_jobs_of_requests", ids)
            columns = zip(*(_result_columns(each) for each in results), strict=True)
            ended = {RequestId(row["request_id"]) for row in await transaction.rows("end_lines", *columns)}
            rows = [each.row for each in results if each.row is not None and each.request_id in ended]
            if rows:
                await self._requests.write_within(transaction, rows)
        return ended

    async def requeue(self, retries: Sequence[LineRetry]) -> None:
        """Let lines be tried again later. Nothing is paid for these attempts."""
        ids = [each.request_id for each in retries]
        async with self._database.transaction() as transaction:
            await transaction.rows("lock_jobs_of_requests", ids)
            await transaction.run("requeue_lines", ids, [each.seconds for each in retries], [each.is_uncounted for each in retries])

    async def give_back_lost(self, grace_seconds: float, most: int = 500) -> None:
        """Let lines be tried again whose gateways have lost them for so long, so that they hold no credits until somebody has time for
        them."""
        rows = await self._database.rows("list_lost_attempts", grace_seconds, most)
        if rows:
            await self.requeue([LineRetry(RequestId(row["request_id"]), 0.0) for row in rows])

    async def list_stopped(self, jobs: Collection[UUID]) -> dict[UUID, JobState | None]:
        """Return those whose lines may not go on, with their states; None: it is gone."""
        rows = await self._database.rows("list_stopped_jobs", list(jobs))
        return {row["id"]: row["state"] and JobState(row["state"]) for row in rows}

    async def read(self, job: UUID) -> Job | None:
        row = await self._database.row("find_job", job)
        return None if row is None else _job(row)

    async def say_waiting(self, model: ModelName, why: str | None) -> None:
        await self._database.run("say_waiting", model, why)

    async def stop(self, requests: Sequence[RequestId]) -> None:
        """Cancel lines whose job is being cancelled."""
        async with self._database.transaction() as transaction:
            await transaction.rows("lock_jobs_of_requests", list(requests))
            await transaction.run("stop_lines", list(requests))

    async def hold(self, job: UUID, why: str, seconds: float) -> None:
        """Say why a job doesn't move, and until when."""
        await self._database.run("hold_job", job, why, seconds)


def _line_columns(lines: Sequence[NewLine]) -> list[list[object]]:
    return [[getattr(line, name) for line in lines] for name in NewLine.__struct_fields__]


async def _begin(transaction: Transaction, most_lines: int | None, job: UUID, total: int, *model_and_price: object) -> bool:
    await transaction.row("lock_job", job)
    if most_lines is not None and (used := await transaction.value("count_waiting_lines", job)) + total > most_lines:
        raise errors.NotAllowed(f"{used} of your lines wait; with {total} more they would exceed your limit of {most_lines} lines")
    return await transaction.run("begin_job", job, total, *model_and_price) == 1


async def _end(transaction: Transaction, row: DatabaseRow | None, event: TenantEvent | None, tell: OnTenantEvent) -> None:
    """Let go of the input that a job had for itself, and tell its owner; unless another gateway has."""
    if row is None:
        return
    job = _job(row)
    await transaction.run("give_up_job_input", job.input_file)
    if event is not None:
        await tell(transaction, job.tenant_id, event, job.public_id)


def _result_columns(result: LineResult) -> tuple[object, ...]:
    row = result.row
    used = (
        (0, result.cached_tokens, 0, 0) if row is None else (row.prompt_tokens, result.cached_tokens, row.completion_tokens, row.cost_micro)
    )
    return result.request_id, result.result, result.status_code, result.error_code, *used


def _job(row: DatabaseRow) -> Job:
    fields = {name: row[name] for name in Job.__struct_fields__}
    errors = () if row["errors"] is None else msgspec.json.decode(row["errors"], type=tuple[LineError, ...])
    fields |= {"kind": JobKind(row["kind"]), "state": JobState(row["state"]), "outcome": row["outcome"] and JobState(row["outcome"])}
    return Job(**fields | {"metadata": msgspec.json.decode(row["metadata"], type=dict[str, str]), "errors": errors})


def _line(row: DatabaseRow) -> StoredLine:
    return StoredLine(**{name: row[name] for name in StoredLine.__struct_fields__} | {"state": LineState(row["state"])})
