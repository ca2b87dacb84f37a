"""Batches on a database and a store of files: gateways that work on them, and lines that end without a worker."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from features.files.contract import FilePurpose
from features.files.gateway.store import PREFIX as FILE
from features.jobs.contract import CreateBatch
from features.jobs.gateway.batch_routes import BatchRoutes
from features.jobs.gateway.batch_work import BatchWork
from features.jobs.gateway.job_metrics import JobMetrics
from features.jobs.gateway.job_orders import JobOrders
from features.jobs.gateway.message_batch_routes import MessageBatchRoutes
from features.jobs.gateway.rules import line_results
from features.jobs.gateway.store import Job, JobStore, LineResult
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.store import GatewayStore
from shared import context
from shared.api.auth import IdentifyOwner, Principal
from shared.api.tenant_events import TenantEvent
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.protocol import public_ids
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.database import Transaction
from shared.stores.objects import ObjectStore
from shared.telemetry import Metrics
from shared.types import ModelName, RequestId, TenantId
from tests.features.files.gateway import file_site
from tests.features.files.gateway.file_site import ADA, SECRET, Site

MODEL, ENDPOINT = ModelName("echo"), "/v1/chat/completions"
#: What the endpoint answers: status and body by custom_id.
Answer = Callable[[str], tuple[int, dict[str, Any]]]


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | changes


def jsonl(lines: Iterable[object]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def good(custom_id: str) -> tuple[int, dict[str, Any]]:
    return 200, {"id": f"chat-{custom_id}", "choices": []}


@dataclass
class SiteRules:
    site: "BatchSite"
    choose_model: Callable[[Principal, str | None], ModelName] = lambda _owner, _named: MODEL
    runs_as_batch: Callable[[Principal, bool | None], bool] = lambda _owner, wanted: bool(wanted)

    async def identify(self, owner: IdentifyOwner) -> Principal:
        return self.site.identify(owner)

    def may_run(self, _owner: Principal, model: ModelName) -> bool:
        return model in self.site.models

    def line_limit_of(self, _owner: Principal) -> int | None:
        return self.site.most_lines

    def file_limit_of(self, _owner: Principal) -> int | None:
        return self.site.files.most_bytes

    def price_id_of(self, _model: ModelName) -> int | None:
        return 1


@dataclass
class BatchSite:
    files: Site
    jobs: JobStore
    orders: JobOrders
    work: BatchWork
    #: Names of models that the owners may use.
    models: set[str] = field(default_factory=lambda: {MODEL})
    most_lines: int | None = None
    identify: Callable[[IdentifyOwner], Principal] = lambda _owner: ADA
    turns: BodyTurns = field(default_factory=BodyTurns)

    def worker(self, runner: str, jobs: Any = None, files: Any = None) -> BatchWork:
        """Return the work of another gateway."""
        metrics = JobMetrics(self.jobs, Metrics("gateway"))
        return BatchWork(
            jobs or self.jobs,
            files or self.files.storage,
            self.rules,
            runner,
            metrics,
            items=self.items,
            secret=SECRET,
            take_turn=self.turns.turn,
        )

    @property
    def items(self) -> BackgroundItems:
        return BackgroundItems(DeferredRows(self.files.database, "gateway"), Metrics("gateway"))

    @property
    def rules(self) -> SiteRules:
        return SiteRules(self)

    async def order(self, data: bytes, key: str | None = None, **more: Any) -> Job:
        file = await self.files.store(data, purpose=FilePurpose.BATCH)
        return await self.orders.order_batch(ADA, CreateBatch(file.id, more.pop("endpoint", ENDPOINT), **more), key)

    async def find(self, job: Job) -> Job:
        found = await self.jobs.find(ADA.tenant_id, job.id)
        assert found is not None
        return found

    async def validate(self, data: bytes, **more: Any) -> Job:
        job = await self.order(data, **more)
        await self.work.validate()
        return await self.find(job)

    async def answer(self, job: Job, answer: Answer = good, most: int = 1_000_000) -> None:
        """Let so many lines run."""

        def requests() -> list[RequestId]:
            return [RequestId(context.new_request_id()) for _ in range(min(32, most))]

        while most and (claimed := await self.jobs.claim(MODEL, requests(), "r", live=job.is_live)):
            results = []
            for each in claimed:
                status, body = answer(each.custom_id)
                sealed = line_results.seal(json.dumps(body).encode(), job.tenant_id, job.id, each.line, SECRET)
                code = None if status < 400 else "bad_request"
                results.append(LineResult(request_id=each.request_id, row=None, result=sealed, status_code=status, error_code=code))
            await self.jobs.finish(results)
            most -= len(claimed)

    async def end(self, job: Job, work: BatchWork | None = None) -> Job:
        await (work or self.work).move()
        await (work or self.work).finalize()
        return await self.find(job)

    async def read(self, file: UUID) -> list[Any]:
        return [json.loads(each) for each in (await self.files.read(public_ids.encode(FILE, file))).splitlines()]

    async def execute(self, sql: str) -> None:
        async with self.files.database.transaction() as transaction:
            assert transaction._connection is not None
            await transaction._connection.execute(sql)

    async def lose_leases(self) -> None:
        await self.execute("UPDATE jobs SET lease_until = '-infinity', waits_until = '-infinity'")

    async def events(self) -> list[tuple[str, str]]:
        """Return what ADA was told, and of which job."""
        async with self.files.database.transaction() as transaction:
            assert transaction._connection is not None
            rows = await transaction._connection.fetch("SELECT event, about FROM told ORDER BY number")
        return [(row["event"], row["about"]) for row in rows]


async def _tell(transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None:
    """Keep it as a feature would, with what happened."""
    assert tenant == ADA.tenant_id
    assert transaction._connection is not None
    await transaction._connection.execute("INSERT INTO told (event, about) VALUES ($1, $2)", event, about)


@asynccontextmanager
async def running(url: str, objects: ObjectStore) -> AsyncIterator[BatchSite]:
    async with file_site.running(url, objects) as files:
        async with files.database.transaction() as transaction:
            assert transaction._connection is not None
            await transaction._connection.execute(
                "CREATE TABLE IF NOT EXISTS told (number serial, event text, about text, PRIMARY KEY (event, about))"
            )
        jobs = JobStore(files.database, GatewayStore(files.database), _tell)
        nowhere: Any = None
        site = BatchSite(files, jobs, nowhere, nowhere)
        site.work = site.worker("one")
        site.orders = JobOrders(jobs, files.storage, site.work, AuditReporting(nowhere), site.rules)
        messages = MessageBatchRoutes(site.orders, jobs, files.storage, site.rules.may_run)
        files.more_routes = (*BatchRoutes(site.orders).routes(), *messages.routes())
        yield site
