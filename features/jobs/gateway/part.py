"""What jobs add to the gateway."""

from collections.abc import Callable
from functools import cache
from typing import get_args

from features.files.gateway.file_storage import FileStorage
from features.jobs.contract import BatchEndpoint
from features.jobs.gateway.background_responses import BackgroundResponses
from features.jobs.gateway.batch_routes import BatchRoutes
from features.jobs.gateway.batch_work import BatchWork
from features.jobs.gateway.job_metrics import UPKEEP, JobMetrics
from features.jobs.gateway.job_orders import JobOrders
from features.jobs.gateway.line_inputs import LineInputs
from features.jobs.gateway.message_batch_routes import MessageBatchRoutes
from features.jobs.gateway.rest_jobs import RestJobs
from features.jobs.gateway.runner import JobRunner
from features.jobs.gateway.single_jobs import SingleJobs
from features.jobs.gateway.store import JobStore
from services.gateway import background_jobs
from services.gateway.features import Built, GatewayPart, Site


def _build(site: Site) -> Built:
    node, rules, secret, files = site.node, site.owners, site.settings.prompt_hash_secret, site.offered(FileStorage)
    store = JobStore(site.database, site.requests, site.on_tenant_event)
    metrics = JobMetrics(store, node.metrics)
    work = BatchWork(store, files, rules, node.id, metrics, items=site.items, secret=secret, take_turn=site.take_turn)
    orders = JobOrders(store, files, work, site.audit_reporting, rules)
    singles = SingleJobs(orders, store, files, rules, secret=secret)
    background = BackgroundResponses(singles)
    parts = (
        background,
        RestJobs(singles, orders, node.id),
        BatchRoutes(orders),
        MessageBatchRoutes(orders, store, files, rules.may_run),
    )
    runner = _runner(site, store, files, work, metrics)
    return Built(
        served=[orders],
        routes=[route for part in parts for route in part.routes()],
        tasks={
            "batches": work.run,
            "job lines": lambda: runner().run(),
            "open jobs": lambda: background_jobs.repeat(UPKEEP, 15, metrics.measure, node.metrics),
        },
        delete_old=store.delete_all_old,
        erase=store.erase,
        background=background,
    )


def _runner(site: Site, store: JobStore, files: FileStorage, work: BatchWork, metrics: JobMetrics) -> Callable[[], JobRunner]:
    """Return what makes the only one: its first lines come when the gateway has all routes."""

    @cache
    def make() -> JobRunner:
        return JobRunner(
            store,
            site.serve_lines(get_args(BatchEndpoint)),
            LineInputs(files),
            site.owners.identify,
            site.items,
            find_capacity=site.owners.find_capacity,
            metrics=metrics,
            on_ended=work.ended.set,
            name=site.node.id,
            secret=site.settings.prompt_hash_secret,
            draining=site.node.drain_started,
        )

    return make


PART = GatewayPart(_build)
