"""Runs single requests as jobs of one line: a request is stored like a batch of one, and its answer is kept for a day."""

import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import blake2b

import msgspec

from features.files.gateway.file_storage import FileStorage
from features.jobs.contract import JobKind
from features.jobs.gateway.job_orders import JobOrders
from features.jobs.gateway.rules import batch_input, line_results
from features.jobs.gateway.rules.batch_input import MAX_LINE_BYTES, NewLine
from features.jobs.gateway.store import Job, JobStore, NewJob, StoredLine
from features.jobs.rules.states import LineState
from services.gateway.facts.bad_field import BadField
from services.gateway.job_rules import JobRules
from shared import context, errors
from shared.api.auth import Principal
from shared.types import TenantId

#: How long a job may take, and how long it is kept after its end.
_SECONDS = _KEPT_SECONDS = 24 * 3600.0
#: They don't take the default model, which answers prompts.
_OTHER_MODELS = {"/v1/embeddings", "/v1/moderations", "/v1/rerank"}
_UNFINISHED = {LineState.QUEUED, LineState.RUNNING}


class SingleRequest(msgspec.Struct, frozen=True, kw_only=True):
    kind: JobKind
    endpoint: str
    body: dict[str, object]
    #: Whether it waits behind live requests, at the price of batches; None: as the policies say.
    flex: bool | None
    metadata: dict[str, str] = {}


class SingleJob(msgspec.Struct, frozen=True):
    job: Job
    line: StoredLine

    @property
    def has_ended(self) -> bool:
        """Return whether the request has an answer or an error, or never will."""
        return self.line.state not in _UNFINISHED


class SingleJobs:
    def __init__(self, orders: JobOrders, store: JobStore, files: FileStorage, rules: JobRules, *, secret: str) -> None:
        self._orders, self._store, self._files, self._rules, self._secret = orders, store, files, rules, secret

    async def order(self, by: Principal, request: SingleRequest, key: str | None) -> SingleJob:
        """Let a request run. One under the key of an earlier one gets that one's job. Raises BadField, UnknownModel, PolicyForbidden,
        IdempotencyConflict, TooLarge, NotAllowed if too many lines wait, and what ``FileStorage.store`` raises."""
        named = request.body.get("model")
        if not isinstance(named, str) and (named is not None or request.endpoint in _OTHER_MODELS):
            raise BadField("body.model", "must be the name of a model")
        digest = blake2b(msgspec.json.encode(request, order="sorted"), digest_size=32).hexdigest()
        if key is not None and (found := await self._store.find_repeated(by.tenant_id, key)) is not None:
            return await self._same(found, digest)
        model, is_batch = self._rules.choose_model(by, named), self._rules.runs_as_batch(by, request.flex)
        body = {**request.body, "model": model}
        content = msgspec.json.encode({"custom_id": digest, "method": "POST", "url": request.endpoint, "body": body})
        if len(content) > MAX_LINE_BYTES:
            raise errors.TooLarge(f"the request of a job may have {MAX_LINE_BYTES} bytes", hint="send it without a job")
        file = await self._orders.store_input(by, _only(content))
        new = NewJob(
            id=context.new_request_id(),
            owner=by,
            kind=request.kind,
            endpoint=request.endpoint,
            seed=secrets.randbits(63),
            seconds=_SECONDS,
            kept_seconds=_KEPT_SECONDS,
            is_live=not is_batch,
            model=model,
            price_id=self._rules.price_id_of(model),
            input_file=file,
            metadata=request.metadata,
            idempotency_key=key,
        )
        made = None
        prefix = batch_input.prefix_of(batch_input.read_body(msgspec.json.encode(body)))
        try:
            made = await self._store.start(new, NewLine(0, digest, 0, len(content), prefix), self._rules.line_limit_of(by))
        finally:
            if made is None or made.id != new.id:
                with suppress(errors.AimeshError):  # it expires
                    await self._files.give_up(by.tenant_id, file)
        return await self._same(made, digest) if made.id != new.id else SingleJob(made, _queued(digest))

    async def find(self, tenant: TenantId, job: str) -> SingleJob | None:
        """Return None for a batch. Raises NotFound."""
        found = await self._orders.find(tenant, job)
        return None if found.kind is JobKind.BATCH else await self._with_line(found)

    async def cancel(self, by: Principal, job: str) -> None:
        """Cancel it, unless its request has ended. Raises NotFound."""
        found = await self.find(by.tenant_id, job)
        if found is None or not found.has_ended:
            await self._orders.cancel_of(by, job)

    async def delete(self, by: Principal, job: str) -> None:
        """Cancel it, and keep nothing of it. Raises NotFound."""
        await self._store.forget((await self._orders.find(by.tenant_id, job)).id)

    def result_of(self, single: SingleJob) -> bytes:
        """Return the answer of the endpoint. Raises AnswerGone if there is none, and FileDamaged."""
        job, line = single.job, single.line
        if line.result is not None and (plain := line_results.unseal(line.result, job.tenant_id, job.id, line.line, self._secret)):
            return plain
        why = line.error_code or f"it was {line.state.value}"
        raise errors.AnswerGone(f"{job.public_id} ended without an answer: {why}", hint="send the request again")

    async def _same(self, job: Job, digest: str) -> SingleJob:
        """Raises IdempotencyConflict if the job was made of another request."""
        single = None if job.kind is JobKind.BATCH else await self._with_line(job)
        if single is None or single.line.custom_id != digest:
            raise errors.IdempotencyConflict("this Idempotency-Key was used for another request", hint="use a new key for each request")
        return single

    async def _with_line(self, job: Job) -> SingleJob:
        (line,) = await self._store.results(job.id, -1, 1)
        return SingleJob(job, line)


def _queued(custom_id: str) -> StoredLine:
    """Return the line of a new job, which may run by now."""
    return StoredLine(
        line=0, custom_id=custom_id, state=LineState.QUEUED, result=None, status_code=None, error_code=None, request_id=None
    )  # fmt: skip


async def _only(content: bytes) -> AsyncIterator[bytes]:
    yield content
