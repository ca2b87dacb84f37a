"""Takes orders for jobs from the members of their account or organization, and tells them how they are."""

import secrets
from collections.abc import AsyncIterator
from uuid import UUID

import msgspec

from features.files.contract import FilePurpose
from features.files.gateway.file_storage import FileStorage
from features.files.gateway.store import PREFIX as FILE
from features.files.gateway.store import FileOwner, NewFile
from features.jobs import contract as api
from features.jobs.contract import JobFacts, JobKind
from features.jobs.gateway.batch_work import BatchWork
from features.jobs.gateway.store import Job, JobStore, NewJob
from services.gateway.facts.bad_field import BadField
from services.gateway.job_rules import JobRules
from shared import context, errors
from shared.api.auth import Principal
from shared.protocol import public_ids
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import TenantId

_WINDOWS = {"24h": 24 * 3600.0, "1h": 3600.0}
#: After its end.
KEPT_SECONDS = 30 * 24 * 3600.0


class JobOrders:
    def __init__(self, store: JobStore, files: FileStorage, work: BatchWork, audit_reporting: AuditReporting, rules: JobRules) -> None:
        self._store, self._files, self._work, self._audit_reporting, self._rules = store, files, work, audit_reporting, rules

    @serves(api.create_batch)
    async def create_batch(self, request: api.CreateBatch, call: RpcCall) -> JobFacts:
        return facts_of(await self.order_batch(call.principal, request, request.idempotency_key or call.idempotency_key))

    @serves(api.list_jobs)
    async def list(self, request: api.ListJobs, call: RpcCall) -> api.Jobs:
        found, has_more = await self.page(call.principal.tenant_id, request)
        # A hundred errors of a hundred jobs would not fit into a message.
        return api.Jobs(tuple(msgspec.structs.replace(facts_of(job), errors=job.errors[:1]) for job in found), has_more=has_more)

    @serves(api.get_job)
    async def get(self, request: api.GetJob, call: RpcCall) -> JobFacts:
        return facts_of(await self.find(call.principal.tenant_id, request.id))

    @serves(api.cancel_job)
    async def cancel(self, request: api.CancelJob, call: RpcCall) -> JobFacts:
        return facts_of(await self.cancel_of(call.principal, request.id))

    async def order_batch(self, owner: Principal, order: api.CreateBatch, key: str | None) -> Job:
        """Raises NotFound, BadField for another file than input of batches, and IdempotencyConflict."""
        file = await self._files.find(owner.tenant_id, order.input_file)
        if file.facts.purpose is not FilePurpose.BATCH:
            raise BadField("input_file_id", "must be a file that was uploaded with the purpose batch")
        return await self.add_batch(owner, file.id, order.endpoint, key, window=order.window, metadata=order.metadata)

    async def add_batch(
        self,
        owner: Principal,
        input_file: UUID,
        endpoint: str,
        key: str | None,
        *,
        window: api.BatchWindow = "24h",
        metadata: api.Metadata | None = None,
    ) -> Job:
        """Raises IdempotencyConflict."""
        new = NewJob(
            id=context.new_request_id(),
            owner=owner,
            kind=JobKind.BATCH,
            endpoint=endpoint,
            seed=secrets.randbits(63),
            seconds=_WINDOWS[window],
            kept_seconds=KEPT_SECONDS,
            input_file=input_file,
            metadata=metadata or {},
            idempotency_key=key,
        )
        made = await self._store.create(new)
        if made.id == new.id:
            self._work.ordered.set()
            self._audit_reporting.report_action("batch.create", owner, tenant=owner.tenant_id, target=made.public_id)
        elif (made.kind, made.input_file, made.endpoint, made.metadata) != (new.kind, input_file, endpoint, new.metadata):
            raise other_job()
        return made

    async def store_input(self, owner: Principal, lines: AsyncIterator[bytes]) -> UUID:
        """Store lines of a batch as a file that nobody sees; also the one line of a job that is no batch. It is deleted with the end of the
        job that gets it as its input, and after 30 days. Raises what ``FileStorage.store`` raises."""
        of = FileOwner(owner.tenant_id, owner.user_id, self._rules.file_limit_of(owner))
        made = await self._files.store(of, lines, lambda: NewFile("input.jsonl", FilePurpose.JOB_INPUT, KEPT_SECONDS))
        file = public_ids.decode(FILE, made.id)
        assert file is not None
        return file

    async def page(self, tenant: TenantId, asked: api.ListJobs, endpoint: str | None = None) -> tuple[tuple[Job, ...], bool]:
        """Return jobs, of an endpoint or of all, and whether there are more. Raises NotFound."""
        after = None if asked.after is None else read_id(asked.after)
        found = await self._store.page(tenant, asked.kind, after, asked.limit + 1, endpoint)
        return found[: asked.limit], len(found) > asked.limit

    async def find_batch(self, tenant: TenantId, job: str, endpoint: str | None = None) -> Job:
        """Raises NotFound, also for another kind of job or another endpoint."""
        found = await self.find(tenant, job)
        if found.kind is not JobKind.BATCH or endpoint not in {None, found.endpoint}:
            raise _missing(job)
        return found

    async def find(self, tenant: TenantId, job: str) -> Job:
        """Raises NotFound."""
        found = await self._store.find(tenant, read_id(job))
        if found is None or found.public_id != job:
            raise _missing(job)
        return found

    async def cancel_of(self, by: Principal, job: str) -> Job:
        """Raises NotFound. What has ended stays as it is."""
        found = await self.find(by.tenant_id, job)
        cancelled = await self._store.cancel(found.id) or found
        self._work.ended.set()
        if found.kind is JobKind.BATCH:
            self._audit_reporting.report_action("batch.cancel", by, tenant=by.tenant_id, target=job)
        return cancelled


def read_id(text: str) -> UUID:
    """Raises NotFound."""
    found = public_ids.decode(text.partition("_")[0], text)
    if found is None:
        raise _missing(text)
    return found


def other_job() -> errors.IdempotencyConflict:
    return errors.IdempotencyConflict("this idempotency key was used for another job", hint="use a new key for each job")


def window_of(job: Job) -> api.BatchWindow:
    return "1h" if (job.expires_at - job.created_at).total_seconds() <= _WINDOWS["1h"] else "24h"


def _missing(job: str) -> errors.NotFound:
    return errors.NotFound(f"there is no job {job[:60]!r}", hint="`aicli batch list` shows yours")


def facts_of(job: Job) -> JobFacts:
    is_batch = job.kind is JobKind.BATCH
    output_file, error_file = job.written_files if is_batch and job.ended_at is not None else (None, None)

    def name(file: UUID | None) -> str | None:
        return None if file is None else public_ids.encode(FILE, file)

    return JobFacts(
        id=job.public_id,
        kind=job.kind,
        endpoint=job.endpoint,
        state=job.state,
        created_at=job.created_at,
        expires_at=job.expires_at,
        model=job.model,
        waiting=job.waiting,
        total=job.total,
        done=job.done,
        failed=job.failed,
        input_tokens=job.input_tokens,
        cached_tokens=job.cached_tokens,
        output_tokens=job.output_tokens,
        cost_micro=job.cost_micro,
        input_file=name(job.input_file) if is_batch else None,
        output_file=name(output_file),
        error_file=name(error_file),
        metadata=job.metadata,
        errors=job.errors,
        in_progress_at=job.in_progress_at,
        cancelling_at=job.cancelling_at,
        finalizing_at=job.finalizing_at,
        ended_at=job.ended_at,
    )
