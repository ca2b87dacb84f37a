"""Files, batches, and what runs later."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.files.file_rows import FileRows
from services.gateway.files.file_storage import FileStorage
from services.gateway.http_api import line_app
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.rest_jobs import RestJobs
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.job_owners import JobOwners
from services.gateway.jobs.batch_work import BatchWork
from services.gateway.jobs.job_desk import JobDesk
from services.gateway.jobs.job_metrics import JobMetrics
from services.gateway.jobs.job_store import JobStore, TellTenant
from services.gateway.jobs.line_inputs import LineInputs
from services.gateway.jobs.runner import JobRunner
from services.gateway.jobs.single_jobs import SingleJobs
from services.gateway.openai_api.background_responses import BackgroundResponses
from services.gateway.openai_api.batch_routes import BatchRoutes
from services.gateway.openai_api.file_routes import FileRoutes
from services.gateway.openai_api.message_batch_routes import MessageBatchRoutes
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.settings import GatewaySettings
from services.gateway.wiring.admission import Admission
from services.gateway.wiring.scheduling import Scheduling
from services.gateway.wiring.stores import Stores
from shared.background.tasks import keep
from shared.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    files: FileStorage
    owners: JobOwners
    store: JobStore
    metrics: JobMetrics
    work: BatchWork
    desk: JobDesk
    singles: SingleJobs
    background: BackgroundResponses

    @property
    def served(self) -> tuple[object, ...]:
        return (self.files, self.desk)

    def routes(self, node: Node) -> Iterator[HttpRoute]:
        for part in (
            self.background,
            RestJobs(self.singles, self.desk, node.id),
            FileRoutes(self.files, self.owners.file_limit_of),
            BatchRoutes(self.desk),
            MessageBatchRoutes(self.desk, self.store, self.files, self.owners.may_run),
        ):
            yield from part.routes()

    def tasks(self, node: Node, stores: Stores, runner: JobRunner) -> Iterator[Coroutine[Any, Any, Any]]:
        yield background_jobs.repeat(UpkeepJob.JOBS, 15, self.metrics.measure, node.metrics)
        yield keep("batches", self.work.run)
        yield keep("job lines", runner.run)
        if (objects := stores.file_objects) is not None:
            yield background_jobs.repeat(UpkeepJob.FILES, 600, self.files.clean, node.metrics)
            yield keep("file store", objects.watch)

    async def delete_old(self) -> None:
        while await self.store.delete_old():
            pass


def build(
    settings: GatewaySettings,
    node: Node,
    stores: Stores,
    scheduling: Scheduling,
    admission: Admission,
    *,
    stored: StoredItems,
    turns: BodyTurns,
    on_tenant_event: TellTenant,
) -> Jobs:
    secret, audit_reporting = settings.prompt_hash_secret, admission.audit_reporting
    files = FileStorage(
        FileRows(stores.database),
        stores.file_objects,
        node.dispatcher.memory,
        audit_reporting,
        items=stores.items,
        secret=secret,
    )
    owners = JobOwners(admission.search, admission.callers.identify_owner, scheduling.models.of)
    store = JobStore(stores.database, stores.requests, on_tenant_event)
    metrics = JobMetrics(store, node.metrics)
    work = BatchWork(store, files, owners, node.id, metrics, items=stores.items, secret=secret, take_turn=turns.turn)
    desk = JobDesk(store, files, work, audit_reporting, owners)
    singles = SingleJobs(desk, store, files, owners, secret=secret)
    return Jobs(
        files=files,
        owners=owners,
        store=store,
        metrics=metrics,
        work=work,
        desk=desk,
        singles=singles,
        background=BackgroundResponses(singles, stored),
    )


def new_runner(
    settings: GatewaySettings,
    node: Node,
    stores: Stores,
    jobs: Jobs,
    *,
    routes: tuple[HttpRoute, ...],
    images: ImageLimits,
    turns: BodyTurns,
) -> JobRunner:
    """``routes``: those that a line may ask."""
    return JobRunner(
        jobs.store,
        line_app.build(routes, node.metrics, memory=node.dispatcher.memory, images=images, traces=node.traces, turns=turns),
        LineInputs(jobs.files),
        jobs.owners.identify,
        stores.items,
        find_room=jobs.owners.find_room,
        metrics=jobs.metrics,
        on_ended=jobs.work.ended.set,
        name=node.id,
        secret=settings.prompt_hash_secret,
        draining=node.drain_started,
    )
