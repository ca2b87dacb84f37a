"""Assembles the gateway, and serves its RPC methods."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import ClassVar
from uuid import UUID

from services.gateway import background_jobs, node_rows, store
from services.gateway.background_jobs import Partitions, UpkeepJob
from services.gateway.billing import orphan_settlement, route_metrics
from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner
from services.gateway.billing.journal import OrphanedJournals, held_journal
from services.gateway.billing.ledger import Ledger
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.callers import Callers
from services.gateway.configuration import ended_keys
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts import policies
from services.gateway.facts.bad_field import BadField
from services.gateway.facts.model_routes import Route
from services.gateway.features import Features, Site
from services.gateway.files.file_objects import FileObjects
from services.gateway.files.file_rows import FileRows
from services.gateway.files.file_storage import FileStorage
from services.gateway.guard import detectors
from services.gateway.guard.guard_reporting import GuardReporting
from services.gateway.http_api import line_app
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.cors import CorsPolicy
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from services.gateway.http_api.http_over_rpc import HttpOverRpc
from services.gateway.http_api.openapi import Reference
from services.gateway.http_api.rest_accounts import RestAccounts
from services.gateway.http_api.rest_billing import RestBilling
from services.gateway.http_api.rest_inference import RestInference
from services.gateway.http_api.rest_jobs import RestJobs
from services.gateway.http_api.rest_models import RestModels
from services.gateway.http_api.rest_usage import RestUsage
from services.gateway.http_api.rest_versions import RestVersions
from services.gateway.http_api.rpc_routes import RpcRoutes
from services.gateway.http_api.webhooks import Webhooks
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.job_owners import JobOwners
from services.gateway.jobs.batch_work import BatchWork
from services.gateway.jobs.job_desk import JobDesk
from services.gateway.jobs.job_metrics import JobMetrics
from services.gateway.jobs.job_store import JobStore
from services.gateway.jobs.line_inputs import LineInputs
from services.gateway.jobs.runner import JobRunner
from services.gateway.jobs.single_jobs import SingleJobs
from services.gateway.limits import limit_rules, quotas
from services.gateway.limits.quotas import Quotas
from services.gateway.model_orders import ModelOrders
from services.gateway.models import catalog as model_catalog
from services.gateway.models import registry
from services.gateway.models.deployment_store import DeploymentStore
from services.gateway.models.deployments import Deployments
from services.gateway.models.hub import Hub
from services.gateway.models.model_origin import ModelOrigin
from services.gateway.models.model_readers import ModelReaders
from services.gateway.models.name_uses import NameUses
from services.gateway.models.registry import ModelRegistry
from services.gateway.models.registry_store import RegistryStore
from services.gateway.models.used_everywhere import UsedEverywhere
from services.gateway.openai_api import rerank_route
from services.gateway.openai_api.background_responses import BackgroundResponses
from services.gateway.openai_api.batch_routes import BatchRoutes
from services.gateway.openai_api.file_routes import FileRoutes
from services.gateway.openai_api.infill_route import InfillRoute
from services.gateway.openai_api.message_batch_routes import MessageBatchRoutes
from services.gateway.openai_api.openai_embeddings import OpenAiEmbeddings
from services.gateway.openai_api.openai_moderations import OpenAiModerations
from services.gateway.openai_api.openai_routes import OpenAiRoutes
from services.gateway.openai_api.rerank_route import RerankRoute
from services.gateway.openai_api.token_routes import TokenRoutes
from services.gateway.owner_statements import OwnerStatements
from services.gateway.payments import notice_outbox, payment_provider
from services.gateway.payments.billing import Billing
from services.gateway.payments.billing_rpc import BillingRpc
from services.gateway.payments.billing_store import BillingStore
from services.gateway.payments.notice_outbox import NoticeOutbox
from services.gateway.payments.payment_provider import PaymentProvider
from services.gateway.payments.provider_orders import ProviderOrders
from services.gateway.payments.stripe_sink import StripeSink
from services.gateway.pull_orders import PullOrders
from services.gateway.recovery import kinds as recovery_kinds
from services.gateway.recovery.gateway_recovery import GatewayRecovery
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.requests.observed import RequestObservers
from services.gateway.requests.refused_requests import RefusedRequests
from services.gateway.requests.request_admission import RequestAdmission
from services.gateway.requests.revoked_callers import RevokedCallers
from services.gateway.requests.runs import RepeatedRequest, Runs
from services.gateway.requests.target_choice import TargetSearch
from services.gateway.requests.workers import Workers
from services.gateway.rollouts.rollout_brake import RolloutBrake
from services.gateway.rollouts.rollout_runner import RolloutRunner
from services.gateway.rollouts.rollout_store import RolloutStore
from services.gateway.rpc_api.account_notices import AccountNotices
from services.gateway.rpc_api.account_rpc import AccountRpc
from services.gateway.rpc_api.config_rpc import ConfigRpc
from services.gateway.rpc_api.deferred_rpc import DeferredRpc
from services.gateway.rpc_api.deployment_rpc import DeploymentRpc
from services.gateway.rpc_api.model_peers_rpc import ModelPeersRpc
from services.gateway.rpc_api.model_search_rpc import ModelSearch
from services.gateway.rpc_api.model_trust_rpc import ModelTrustRpc
from services.gateway.rpc_api.policy_rpc import PolicyRpc
from services.gateway.rpc_api.rollouts_rpc import RolloutsRpc
from services.gateway.rpc_api.routes_rpc import RoutesRpc
from services.gateway.rpc_api.rpc_reader import RpcReader, ScoreReader, VectorReader
from services.gateway.scheduling import model_coverage, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.quarantine import Quarantine, QuarantineStore
from services.gateway.scheduling.queue_sharing import QueueSharing
from services.gateway.scheduling.worker_records import WorkerPresence, WorkerStats
from services.gateway.scheduling.worker_starts import WorkerStarts
from services.gateway.servers import Servers
from services.gateway.settings import GatewaySettings, GatewaySettingsRpc
from services.gateway.store import GatewayStore
from services.gateway.usage_export.acknowledged_files import AcknowledgedFiles
from services.gateway.usage_export.export import UsageExport
from services.gateway.usage_export.file_sink import FileSink
from services.gateway.usage_export.outbox_store import OutboxStore
from services.gateway.usage_export.sinks import CloudEventsSink, Sink
from services.gateway.usage_reports import BusinessReports, UsageReports
from services.gateway.usage_store import DaysStore, UsageStore
from shared import access_table, client_address, config_releases, context, errors, features, plan_names, worker_pools
from shared.api import auth, embedding, gateway, inference
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.api.model_copies import VERSION_SOURCE
from shared.api.usage_report import UserUsage
from shared.background import tasks as background_tasks
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.config_documents import ConfigKind, DeploymentDocument
from shared.node import Node, lifecycle
from shared.protocol import replica_check
from shared.protocol.directory import ConfigReading, DirectoryEntry
from shared.recovery import recovery_log
from shared.recovery.recovery_store import RecoveryStore
from shared.rpc import RpcCall, StreamCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.rpc.authorization import Authorizer, CallerIdentity
from shared.stores.cache import Cache
from shared.stores.database import Database
from shared.stores.recent_writes import RecentWrites
from shared.stores.replica_reads import DatabaseOptions, ReplicaPlan
from shared.telemetry import logs
from shared.telemetry.database_metrics import DatabaseMetrics
from shared.types import Credential, ModelName, Permission, Role, TenantId, UserId
from shared.worker_pools import PoolsFile


@dataclass(frozen=True, slots=True)
class GatewayStores:
    """What the gateway keeps in PostgreSQL and Valkey."""

    cache: Cache
    database: Database
    deferred: DeferredRows
    #: Of background work.
    items: BackgroundItems
    recovery: GatewayRecovery
    checkpoints: CheckpointStore
    requests: GatewayStore
    ledger: LedgerStore
    config: ConfigStore
    rollouts: RolloutStore
    provider: PaymentProvider | None
    #: None if the settings forbid to ask it.
    hub: Hub | None
    #: None without MODEL_ORIGIN.
    origin: ModelOrigin | None
    #: None without FILES_URL.
    file_objects: FileObjects | None


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What decides which requests may run, and on which workers."""

    live: LiveConfiguration
    pools: PoolsFile
    quarantine: Quarantine


@dataclass(frozen=True, slots=True)
class JobParts:
    store: JobStore
    metrics: JobMetrics
    work: BatchWork
    desk: JobDesk
    singles: SingleJobs


@dataclass(frozen=True, slots=True)
class RequestRecords:
    """What remembers requests: their cost, their rows, and answers that can be given again."""

    ledger: Ledger
    recorder: UsageRecorder
    idempotency: IdempotentRequests
    #: None if the response cache is off.
    responses: ResponseCache | None


#: Anonymous callers see only the public models.
_ANONYMOUS = TenantId(UUID(int=0))
#: Time to discover workers after start, before the list of models is complete.
_DISCOVERY_SECONDS = 3.0
#: How often POOLS_FILE is looked at.
_POOLS_SECONDS = 5.0

_log = logs.get(part="gateway")


def _source_of(live: LiveConfiguration, model: ModelName) -> str | None:
    """Return the source of a deployed model."""
    stored = live.documents.get((ConfigKind.DEPLOYMENT, model))
    return document.source if stored is not None and isinstance(document := stored.usable, DeploymentDocument) else None


class GatewayService:
    """The gateway; create it with ``open``. The dispatcher calls the methods marked with ``serves``."""

    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self, settings: GatewaySettings, node: Node, stores: GatewayStores, rules: RequestRules, records: RequestRecords) -> None:
        self._settings, self._node, self._turns = settings, node, BodyTurns()
        self._stores, self._rules, self._records = stores, rules, records
        self._live = live = rules.live
        metrics = node.metrics
        self.audit_reporting = AuditReporting(node.rpc, on_act=recovery_log.noting(recovery_kinds.RESTRICTING))
        stores.recovery.report(self.audit_reporting)
        self._finish = node.dispatcher.finish = stores.recovery.log.finish
        self._accounts = AccountRpc(stores.ledger, records.ledger, live, node.rpc, self.audit_reporting)
        billing_store = BillingStore(stores.database)
        # The series exists from the start, so that the first payment is an increase.
        count_paid, orders = metrics.revenue.labels(currency=settings.currency).inc, None
        if stores.provider is not None:
            sold_in = settings.currency
            orders = ProviderOrders(
                settings.payments, stores.provider, billing_store, live, sold_in, items=stores.items, on_paid=count_paid,
                on_reversed=metrics.revenue_reversed.labels(currency=sold_in).inc,
            )  # fmt: skip
        self._billing = Billing(
            billing_store,
            live,
            node.rpc,
            settings.seller(),
            orders,
            items=stores.items,
            on_paid=lambda paid: metrics.revenue.labels(currency=paid.currency).inc(paid.net_minor),
        )
        self._webhooks = Webhooks(self._billing, metrics)
        self._notices = NoticeOutbox(billing_store, node.rpc, stores.items, settings.currency, sells=settings.money == "on")
        self._billing_rpc = BillingRpc(
            self._billing,
            billing_store,
            live,
            stores.ledger,
            node.rpc,
            self.audit_reporting,
            settings.currency,
            is_on=settings.money == "on",
        )
        self._quotas = Quotas(
            stores.cache, lambda: live.config.limits, metrics, self._gateways, without_valkey=settings.limiter_without_valkey
        )
        queueing = QueueSettings(settings.queue_seconds, settings.queue_most, settings.queue_per_user, settings.start_seconds)
        rng = random.Random()  # noqa: S311 - the choice of a worker needs no cryptographic randomness
        name = f"{time.time_ns() // 1_000_000:013d}.{node.id}"
        worker_stats = WorkerStats(dishonest_workers=rules.quarantine.dishonest_workers, starts=WorkerStarts(rules.pools))
        self._dispatch = Dispatch(
            node.directory,
            rng,
            queueing,
            metrics,
            name=name,
            worker_stats=worker_stats,
            is_revoked=lambda model: model in live.config.names.revoked,
        )
        self._queue_sharing = QueueSharing(stores.cache, self._dispatch, name)
        self._callers = Callers(
            node.rpc,
            count_refusal=lambda reason: metrics.auth_failures.labels(reason=reason).inc(),
            can_ask=lambda: bool(node.directory.reachable(Role.AUTH)),
            back_at=lambda: node.node_transports.nats_back_at,
            wait_seconds=settings.queue_seconds,
            most_waiting=settings.queue_most,
        )
        node.dispatcher.gate = Authorizer(self._callers.identify, self._on_refusal)
        self._rollouts = RolloutRunner(
            live,
            stores.rollouts,
            self.audit_reporting,
            metrics,
            lambda: self._runs.waiting(),  # noqa: PLW0108 - it is made below
            items=stores.items,
        )
        self._guard_reporting = GuardReporting(metrics, self.audit_reporting)
        images = ImageLimits(settings.image_max_count, settings.image_max_bytes)
        self._job_owners = JobOwners(self._new_search(), self._callers.identify_owner, self._catalogue)
        self._runs = Runs(
            self._new_admission(),
            Workers(
                node.rpc,
                self._dispatch,
                count=lambda kind, outcome: metrics.retries.labels(kind=kind, outcome=outcome).inc(),
                flag=rules.quarantine.report,
                back_at=lambda: node.node_transports.nats_back_at,
            ),
            records.recorder,
            RequestObservers(
                publish=node.events_of_mesh.publish,
                on_compared=RolloutBrake(lambda: live.rollouts, self._rollouts.stop).record_end,
                on_guarded=self._guard_reporting.record_end,
            ),
            records.idempotency,
            images=images,
            most_seconds=settings.request_timeout_seconds,
            responses=records.responses,
            cache_only_when_asked=settings.response_cache == "asked",
        )
        self._reports = UsageReports(UsageStore(stores.database), request_log_days=settings.request_log_days)
        self._business = BusinessReports(
            DaysStore(stores.database), request_log_days=settings.request_log_days, upstream_monthly=settings.upstream_monthly
        )
        outbox = OutboxStore(stores.database, f"/aimesh/{settings.mesh}")
        self._usage_export = UsageExport(
            outbox,
            tuple(_usage_sinks(settings, outbox, stores.provider)),
            settings.usage_export_unit,
            AcknowledgedFiles(outbox, settings.recovery_log_dir, node.id),
            metrics,
        )
        registry_store = RegistryStore(stores.database)
        self._registry = ModelRegistry(
            registry_store,
            stores.origin,
            node.directory,
            ModelReaders(registry_store, node.rpc),
            self.audit_reporting,
            items=stores.items,
            gibibytes=settings.model_origin_quota,
            is_deployed=self._is_deployed,
            find_use=NameUses(live, node.directory, lambda: frozenset(self._deployments.documents), live.reload).find,
            wait_until_used=UsedEverywhere(live, node.directory),
        )
        self._model_trust = ModelTrustRpc(live, registry_store, self._registry, self.audit_reporting)
        self._files = FileStorage(
            FileRows(stores.database),
            stores.file_objects,
            node.dispatcher.memory,
            self.audit_reporting,
            items=stores.items,
            secret=settings.prompt_hash_secret,
        )
        self._features = Features()
        self._jobs = self._new_jobs()
        self._items = StoredItems(
            stores.cache, live, secret=settings.prompt_hash_secret, most_bytes=settings.stored_items_megabytes * 2**20
        )
        self._model_search = ModelSearch(
            live, node.rpc, node.directory, stores.hub, self._catalogue, self.audit_reporting, model_catalog.load()
        )
        self._deployments = Deployments(
            node.directory,
            node.rpc,
            DeploymentStore(stores.database, stores.cache),
            read_documents=lambda: live.bodies_of(DeploymentDocument),
            read_versions=lambda: live.config.models,
            changed=live.changed,
            find_facts=self._find_facts,
            serve_next=registry_store.serve_next,
            items=stores.items,
            metrics=node.metrics,
        )
        self._features.build(
            Site(
                settings=settings, node=node, database=stores.database, items=stores.items, audit_reporting=self.audit_reporting,
                now=records.ledger.database_clock.now, runs=self._runs, catalogue=self._catalogue,
            )
        )  # fmt: skip
        routes = self._routes_of_http()
        self._http = self._http_app(routes, images)
        self._job_runner = self._new_job_runner(routes, images)

    async def _is_deployed(self, channel: str) -> bool:
        """Return whether the mesh puts a channel on machines, perhaps since just now. Raises Unavailable."""
        await self._live.reload()
        return self._deployments.is_deployed(channel)

    async def _find_facts(self, source: str) -> inference.ModelFacts | None:
        if source.startswith(VERSION_SOURCE):
            return await self._registry.find_facts(source.removeprefix(VERSION_SOURCE))
        return self._model_search.find_facts(source)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: GatewaySettings, node: Node) -> AsyncIterator["GatewayService"]:
        async with (
            _stores(settings, node) as stores,
            _rules(settings, node, stores) as rules,
            _records(settings, node, stores, rules) as records,
        ):
            service = cls(settings, node, stores, rules, records)
            service._serve_others()
            service._start_tasks()
            yield service
            service._guard_reporting.flush()
            await service.audit_reporting.send()

    def _new_search(self) -> TargetSearch:
        return TargetSearch(
            ledger=self._records.ledger,
            dispatch=self._dispatch,
            directory=self._node.directory,
            source=self._live,
            prompt_hash_secret=self._settings.prompt_hash_secret,
            worker_wait_seconds=_DISCOVERY_SECONDS,
            discovery_ends_at=time.monotonic() + _DISCOVERY_SECONDS,
        )

    def _new_admission(self) -> RequestAdmission:
        return RequestAdmission(
            search=self._job_owners.search,
            quotas=self._quotas,
            tasks=self._node.tasks,
            read_guardrails=self._live.guardrails_at,
            metrics=self._node.metrics,
        )

    def _serve_others(self) -> None:
        """Serve the methods of the gateway's parts; the service's own are served by the node."""
        node, stores, live, audit_reporting = self._node, self._stores, self._live, self.audit_reporting
        servers = Servers(live, node.rpc, node.trust, self._settings.prompt_hash_secret)
        for part in (
            stores.recovery,
            self._accounts,
            HttpOverRpc(self._http),
            ModelOrders(node.rpc, node.directory, live, audit_reporting),
            PullOrders(node.rpc, node.directory, audit_reporting),
            DeploymentRpc(live, self._deployments, self._model_search.find_source, audit_reporting),
            self._model_search,
            self._items,
            self._files,
            self._jobs.desk,
            self._reports,
            self._business,
            OwnerStatements(DaysStore(stores.database), node.rpc),
            GatewaySettingsRpc(self._settings, lambda: {name: offer.terms for name, offer in live.config.offers.items()}),
            self._billing_rpc,
            self._registry,
            self._model_trust,
            ModelPeersRpc(node, self._registry.readers, partial(_source_of, live), self._registry.find_size),
            self._usage_export,
            servers,
            ConfigRpc(
                live,
                stores.config,
                self._settings,
                node.rpc,
                audit_reporting,
                servers,
                served=self._served,
                gateways=lambda: node.directory.entries(Role.GATEWAY),
            ),
            PolicyRpc(live, node.rpc, audit_reporting, self._quotas),
            RoutesRpc(live, node.directory, stores.requests.read_spending, self._records.ledger.price_of),
            DeferredRpc(stores.deferred, audit_reporting),
            RolloutsRpc(live, stores.config, stores.rollouts, node.rpc, audit_reporting),
            *self._features.served,
        ):
            node.dispatcher.add(part)

    def _start_tasks(self) -> None:
        node, live, metrics, settings = self._node, self._live, self._node.metrics, self._settings
        self._watch_workers()
        live.on_models = node.announce_models
        node.announce_models(live.models_revision)
        metrics.config_revision.set_function(lambda: live.config.revision)
        metrics.config_age.set_function(live.age_seconds)
        metrics.config_unreadable.set_function(lambda: len(live.config.unreadable))
        partitions, objects = Partitions(self._stores.database, metrics), self._stores.file_objects

        async def delete_old() -> None:
            await partitions.drop_old(settings.request_log_days)
            await self._reports.delete_old()
            await self._usage_export.delete_old()
            await self._features.delete_old()
            while await self._jobs.store.delete_old():
                pass

        revoked_callers = RevokedCallers(self._runs, self._callers.identify_owner)
        self._callers.on_change = revoked_callers.note
        remove_policies = partial(ended_keys.remove_policies, self._stores.config, live, node.rpc)
        keep = background_tasks.keep
        for task in (
            lifecycle.every(_POOLS_SECONDS, self.reload_pools),
            keep(
                "route targets", partial(route_metrics.measure_targets, metrics, self._routes, lambda: node.directory.usable(Role.WORKER))
            ),
            keep("route spending", partial(route_metrics.measure_spending, metrics, self._routes, self._stores.requests.read_spending)),
            keep("configuration", live.watch),
            keep("rollouts", self._rollouts.run),
            keep("deployments", self._deployments.run),
            keep("changes of accounts", self._callers.watch),
            keep("revoked callers", revoked_callers.run),
            keep("limits", self._quotas.watch),
            lifecycle.every(quotas.SLOT_HEARTBEAT_SECONDS, self._quotas.extend_slots),
            keep("queue sharing", self._queue_sharing.run),
            keep("model coverage", partial(model_coverage.measure, node, self._dispatch)),
            keep("guard reporting", self._guard_reporting.run),
            keep("audit reporting", self.audit_reporting.run),
            background_jobs.repeat(UpkeepJob.PARTITIONS, 600, partitions.extend, metrics),
            background_jobs.repeat(UpkeepJob.CHECKPOINT, 600, self._stores.checkpoints.close_days, metrics),
            background_jobs.repeat(UpkeepJob.ROLL, 600, partial(self._business.roll, metrics), metrics),
            background_jobs.repeat(UpkeepJob.RETENTION, 3600, delete_old, metrics),
            background_jobs.repeat(UpkeepJob.KEY_POLICIES, ended_keys.SECONDS, remove_policies, metrics),
            background_jobs.repeat(UpkeepJob.USAGE_EXPORT, 60, self._usage_export.measure, metrics),
            background_jobs.repeat(UpkeepJob.NOTICES, notice_outbox.EVERY_SECONDS, self._notices.work, metrics),
            background_jobs.repeat(UpkeepJob.JOBS, 15, self._jobs.metrics.measure, metrics),
            background_jobs.repeat(UpkeepJob.ITEMS, 15, self._stores.items.measure, metrics),
            *self._features.tasks(),
            keep("batches", self._jobs.work.run),
            keep("job lines", self._job_runner.run),
            keep("acknowledged usage", self._usage_export.keep_files),
            *(keep("usage export", export.run) for export in self._usage_export.exports),
            *(
                [background_jobs.repeat(UpkeepJob.FILES, 600, self._files.clean, metrics), keep("file store", objects.watch)]
                if objects
                else ()
            ),
            *(keep("models", self._registry.run) for _ in range(registry.JOBS if self._stores.origin else 0)),
        ):
            node.tasks.create_task(task)
        if settings.money == "on":
            node.tasks.create_task(background_jobs.repeat(UpkeepJob.BILLING, 60, self._work_on_bills, metrics))
            node.tasks.create_task(keep("payments", self._webhooks.run))
            if self._billing.provider is not None:
                find_lost = self._billing.provider.find_lost
                node.tasks.create_task(background_jobs.repeat(UpkeepJob.LOST_EVENTS, 3600, find_lost, metrics))

    async def _work_on_bills(self) -> None:
        await self._billing.work()
        self._node.metrics.webhook_backlog.set(await self._billing.measure_events())
        self._node.metrics.unbilled_usage.set(await self._billing.measure_owed())

    def _gateways(self) -> int:
        return 1 + len(self._node.directory.usable(Role.GATEWAY))

    async def reload_pools(self) -> None:
        pools = self._rules.pools
        if await asyncio.to_thread(pools.refresh):
            if pools.trouble:
                _log.error("POOLS_FILE can't be used; the earlier pools stay", reason=pools.trouble)
            else:
                _log.info("pools loaded", pools=[pool.name for pool in pools.pools])

    def _watch_workers(self) -> None:
        presence = WorkerPresence()

        def publish_change(entry: DirectoryEntry) -> None:
            if event := presence.changed(entry, datetime.now(UTC)):
                self._node.publish(event)

        self._node.directory.watch(publish_change)
        for entry in self._node.directory.entries(Role.WORKER):
            publish_change(entry)

    async def checks(self) -> tuple[Check, ...]:
        auth_is_available = bool(self._node.directory.usable(Role.AUTH))
        detail = "" if auth_is_available else "no auth service on the mesh; start it with `aicli stack restart auth`"
        async with asyncio.TaskGroup() as tasks:
            database, cache = tasks.create_task(self._stores.requests.checks()), tasks.create_task(self._stores.cache.check())
            files = tasks.create_task(self._files.checks())
        auth_check = Check("auth", auth_is_available, detail)
        return (
            *database.result(), cache.result(), auth_check, await self._records.recorder.check(), *files.result(), *self._check_features(),
        )  # fmt: skip

    def _check_features(self) -> Iterator[Check]:
        others = [entry.announcement for role in replica_check.COMPARED_WITH for entry in self._node.directory.reachable(role)]
        if different := replica_check.describe_features(features.known(), others):
            yield Check("features", ok=False, detail=different, needed=False)

    def _list_lacking(self) -> Collection[str]:
        """Return the features that only other gateways have."""
        return self._node.directory.features_of(Role.GATEWAY).keys() - features.known().keys()

    def asgi(self) -> client_address.ClientAddress:
        return client_address.ClientAddress(self._http, self._settings.web_hop_secret)

    def _routes_of_http(self) -> tuple[HttpRoute, ...]:
        background = BackgroundResponses(self._jobs.singles, self._items)
        parts = (
            RestAccounts(self._node.rpc),
            RestInference(self._runs),
            RestUsage(self._stores.requests, self._reports, self._quotas, self._accounts),
            RestBilling(self._billing_rpc, self._accounts, self._node.id),
            RestModels(self._model_search, self.list_models, self._node.id),
            RestVersions(self._registry, self._model_trust, self._node.id),
            OpenAiRoutes(self._runs, self._catalogue, self._items, background),
            background,
            RestJobs(self._jobs.singles, self._jobs.desk, self._node.id),
            FileRoutes(self._files, self._job_owners.file_limit_of),
            BatchRoutes(self._jobs.desk),
            MessageBatchRoutes(self._jobs.desk, self._jobs.store, self._files, self._job_owners.may_run),
            OpenAiEmbeddings(self._runs),
            OpenAiModerations(self._runs),
            TokenRoutes(self._runs, self._items),
            RerankRoute(self._runs),
            InfillRoute(self._runs),
        )
        return (*(route for part in parts for route in part.routes()), *self._features.routes)

    def _http_app(self, routes: tuple[HttpRoute, ...], images: ImageLimits) -> HttpApp:
        rpc_routes = RpcRoutes(self._node.rpc, self._node.dispatcher.find, self._node.id, self._finish).routes()
        all_routes = (*routes, *rpc_routes, *Reference(routes).routes(), *self._webhooks.routes())
        access = HttpAccess(
            identify=self._callers.identify,
            quotas=self._quotas,
            refused=RefusedRequests(self._records.recorder, self._quotas, self._node.metrics, self._records.ledger.database_clock.now),
            on_refusal=self.audit_reporting.report_refusal,
            cors=CorsPolicy(self._settings.cors_origins),
            list_lacking=self._list_lacking,
        )
        memory, traces = self._node.dispatcher.memory, self._node.traces
        return HttpApp(all_routes, access, self._node.metrics, memory=memory, images=images, traces=traces, turns=self._turns)

    def _new_jobs(self) -> JobParts:
        stores, secret = self._stores, self._settings.prompt_hash_secret
        store = JobStore(stores.database, stores.requests, self._features.on_tenant_event)
        metrics = JobMetrics(store, self._node.metrics)
        rules = self._job_owners
        work = BatchWork(store, self._files, rules, self._node.id, metrics, items=stores.items, secret=secret, take_turn=self._turns.turn)
        desk = JobDesk(store, self._files, work, self.audit_reporting, rules)
        return JobParts(store, metrics, work, desk, SingleJobs(desk, store, self._files, rules, secret=secret))

    def _new_job_runner(self, routes: tuple[HttpRoute, ...], images: ImageLimits) -> JobRunner:
        node = self._node
        app = line_app.build(routes, node.metrics, memory=node.dispatcher.memory, images=images, traces=node.traces, turns=self._turns)
        return JobRunner(
            self._jobs.store,
            app,
            LineInputs(self._files),
            self._job_owners.identify,
            self._stores.items,
            find_room=self._job_owners.find_room,
            metrics=self._jobs.metrics,
            on_ended=self._jobs.work.ended.set,
            name=node.id,
            secret=self._settings.prompt_hash_secret,
            draining=node.drain_started,
        )

    def _on_refusal(self, method: str, _caller: CallerIdentity, principal: auth.Principal | None, error: errors.AimeshError) -> None:
        self.audit_reporting.report_refusal(method, principal, "", error)

    # --- inference ----------------------------------------------------------------------------------------------------

    @serves(gateway.process_inference_request)
    async def process_inference_request(
        self, request: gateway.ProcessInferenceRequest, stream: StreamCall[gateway.InferenceChunk]
    ) -> gateway.InferenceResult:
        async with self._counting_refusals(stream):
            return await self._infer(request, stream)

    async def _infer(self, request: gateway.ProcessInferenceRequest, stream: StreamCall[gateway.InferenceChunk]) -> gateway.InferenceResult:
        seconds = self._begin(stream, flex=request.request.flex)
        if stream.is_whole and request.rest is not None:
            raise BadField("rest", "requires a stream; omit it to get the whole answer")
        repeat = RepeatedRequest(key=request.idempotency_key, rest=request.rest)
        cache = cache_keys.CacheRequest.OFF if request.fresh else cache_keys.CacheRequest.NOTHING
        # The rest of a call needs its earlier parts.
        whole = stream.is_whole or bool(request.request.tools)
        asked = await self._runs.admit_images(request.request)
        after, wants_parts = 0 if request.rest is None else request.rest.after, request.call_parts and not stream.is_whole
        return await self._runs.answer(
            stream.principal,
            asked,
            RpcReader(stream, after=after, wants_parts=wants_parts),
            seconds=seconds,
            repeat=repeat,
            cache=cache,
            whole=whole,
            streamed=not stream.is_whole,
        )

    @serves(gateway.cancel_inference)
    async def cancel_inference(self, request: gateway.CancelInference, call: RpcCall) -> Nothing:
        await self._runs.cancel(call.principal, request.idempotency_key)
        return Nothing()

    @serves(embedding.request_embeddings)
    async def embed(self, request: embedding.RequestEmbeddings, stream: StreamCall[embedding.Vectors]) -> embedding.EmbeddingResult:
        seconds, key = self._begin(stream, flex=request.request.flex), request.idempotency_key
        async with self._counting_refusals(stream):
            return await self._runs.embed(stream.principal, request.request, VectorReader(stream), seconds=seconds, key=key)

    @serves(embedding.request_ranking)
    async def rank(self, request: embedding.RequestRanking, stream: StreamCall[embedding.RankingNotice]) -> embedding.Ranking:
        reader, seconds = ScoreReader(stream), self._begin(stream)
        async with self._counting_refusals(stream):
            result = await self._runs.rank(stream.principal, request.request, reader, seconds=seconds)
        return rerank_route.rank(result, reader.scores, request.request.top_n)

    @asynccontextmanager
    async def _counting_refusals(self, call: RpcCall) -> AsyncIterator[None]:
        """Count the request if it is refused before the limits have counted it, as ``HttpApp`` does."""
        try:
            yield
        except errors.AimeshError as error:
            await self._quotas.count_refused(call.principal, error)
            raise

    def _begin(self, call: RpcCall, *, flex: bool | None = None) -> float:
        """Give a request its id, and return how long it may take."""
        # It is the key of the request's row, so other services must not choose it. A client's is new.
        if call.caller_role is not Role.CLIENT:
            context.another()
        return min(self._runs.longest(flex=flex), call.remaining_seconds())

    # --- models and nodes ---------------------------------------------------------------------------------------------

    @serves(gateway.get_service_health)
    async def get_service_health(self, _request: gateway.GetServiceHealth, _call: RpcCall) -> gateway.ServiceHealth:
        checks = await self.checks()
        workers = self._node.directory.usable(Role.WORKER)
        healthy = all(check.ok for check in checks) and bool(workers)
        return gateway.ServiceHealth("healthy" if healthy else "degraded", checks, len(workers), self._served(), self._dispatch.in_flight)

    @serves(gateway.list_models)
    async def list_models(self, _request: gateway.ListModels, call: RpcCall) -> gateway.ServedModels:
        caller = None if call.credential is None else await self._callers.identify(call.credential)
        models = self._catalogue(caller)
        if caller is None:
            return gateway.ServedModels(models)
        workers = policies.open_to(caller.tenant_id, self._live.config.policies.of(caller), self._node.directory.entries(Role.WORKER))
        return routing.listed(models, workers)

    @serves(gateway.list_nodes)
    async def list_nodes(self, _request: gateway.ListNodes, call: RpcCall) -> gateway.NodeRows:
        return gateway.NodeRows(node_rows.of_mesh(self._node, self._dispatch))

    @serves(gateway.give_up_pool)
    async def give_up_pool(self, request: gateway.GiveUpPool, call: RpcCall) -> Nothing:
        """Refuse what waits for a machine that won't come. Only metrics, which orders machines, may call this."""
        self._dispatch.give_up(worker_pools.find(self._rules.pools.pools, request.pool).name, request.reason, request.seconds)
        return Nothing()

    @serves(gateway.pardon_node)
    async def pardon_node(self, request: gateway.PardonNode, call: RpcCall) -> gateway.PardonedNode:
        node = await self._rules.quarantine.pardon(request.node)
        self.audit_reporting.report_action("node.pardon", call.principal, target=node)
        return gateway.PardonedNode(node)

    def _catalogue(self, caller: auth.Principal | None) -> tuple[gateway.ServedModel, ...]:
        """Return the models for this caller; for an anonymous caller, the public models."""
        tenant = _ANONYMOUS if caller is None else caller.tenant_id
        config = self._live.config
        policy = config.policies.find(None) if caller is None else config.policies.of(caller)
        names = (config.names if policy.direct_models.value else config.route_names).seen_by(tenant)
        workers = policies.open_to(tenant, policy, self._node.directory.usable(Role.WORKER))
        startable = () if caller is None else self._dispatch.worker_stats.starts.pools
        served = routing.catalogue(workers, names, policy.allows_name, startable)
        return served if caller is None else tuple(model for model in served if routing.may_name(caller, model.name, names))

    def _routes(self) -> tuple[Route, ...]:
        return tuple(self._live.config.names.routes.values())

    def _served(self) -> tuple[ModelName, ...]:
        return routing.served(self._node.directory.usable(Role.WORKER), self._live.config.names.seen_by(None))

    # --- quota and usage ----------------------------------------------------------------------------------------------

    @serves(gateway.get_user_quota)
    async def get_user_quota(self, request: gateway.GetUserQuota, call: RpcCall) -> gateway.UserQuota:
        principal = call.principal
        if request.user_id is not None and request.user_id != principal.user_id:
            if not access_table.may(principal, Permission.EVERYTHING):
                raise errors.NotAllowed("only an administrator can read another user's quota", hint="omit userId to read your own")
            principal = await self._read_principal(request.user_id, call.credential)
        found, reached = await self._quotas.look(principal, lambda model: routing.may_name(principal, model, self._live.config.names))
        hour, account = limit_rules.hourly(found), await self._accounts.account_of(principal)
        return gateway.UserQuota(
            user_id=principal.user_id,
            tier=plan_names.name_of(principal.tier),
            limit_per_hour=hour.limit,
            used_this_hour=hour.used,
            remaining=hour.remaining,
            resets_at=datetime.now(UTC) + timedelta(seconds=hour.resets_in_seconds),
            limits=found,
            account=account,
            key_budget=await self._accounts.find_key_budget(principal),
            notices=await AccountNotices(self._records.ledger, self._billing_rpc.store, self._served).find(principal, account, reached),
        )

    @serves(gateway.erase_stored)
    async def erase_stored(self, request: gateway.EraseStored, _call: RpcCall) -> Nothing:
        """Only auth may call this, for a tenant that it erases."""
        await self._features.erase(request.tenant_id, request.feature)
        return Nothing()

    @serves(gateway.read_usage)
    async def read_usage(self, request: gateway.ReadUsage, _call: RpcCall) -> UserUsage:
        """Return a tenant's usage. Only auth may call this; it has checked access."""
        return await self._stores.requests.read_usage(request.tenant_id)

    async def _read_principal(self, user_id: UserId, credential: Credential | None) -> auth.Principal:
        user = await self._node.rpc.call(auth.get_user, auth.GetUser(user_id), credential=credential)
        return auth.Principal(user.id, user.username, user.role, user.tier)


@asynccontextmanager
async def _stores(settings: GatewaySettings, node: Node) -> AsyncIterator[GatewayStores]:
    async with (
        Cache.open(settings.redis_url) as cache,
        _database(settings, node, cache) as database,
        GatewayRecovery.open(settings, node, RecoveryStore(database, "gateway"), cache) as recovery,
        payment_provider.open_provider(settings.provider()) as provider,
        Hub.opened(settings.hub_url) as hub,
    ):
        checkpoints = CheckpointStore(database, CheckpointSigner(settings.prompt_hash_secret, settings.mesh))
        ledger = LedgerStore(database, checkpoints, exports_usage=settings.exports_usage)
        requests = GatewayStore(database, exports_usage=settings.exports_usage)
        await ledger.ensure_default_price(*settings.default_price())
        origin = None if settings.model_origin is None else await asyncio.to_thread(ModelOrigin.open, settings.model_origin, settings)
        file_objects = None
        if settings.files_url is not None:
            file_objects = await asyncio.to_thread(FileObjects.open, settings.files_url, settings, FileRows(database), node.metrics)
        deferred = DeferredRows(database, "gateway")
        yield GatewayStores(
            cache,
            database,
            deferred,
            BackgroundItems(deferred, node.metrics),
            recovery,
            checkpoints,
            requests,
            ledger,
            ConfigStore(database),
            RolloutStore(database),
            provider,
            hub if settings.model_hub == "on" else None,
            origin,
            file_objects,
        )


def _usage_sinks(settings: GatewaySettings, outbox: OutboxStore, provider: PaymentProvider | None) -> Iterator[Sink]:
    if settings.usage_export_url is not None:
        yield CloudEventsSink(settings.usage_export_url, settings.usage_export_token_file)
    if settings.usage_export_file is not None:
        yield FileSink(settings.usage_export_file)
    if settings.usage_export_stripe_meter is not None and provider is not None and provider.meters is not None:
        yield StripeSink(provider.meters, settings.usage_export_stripe_meter, outbox)


def _database(settings: GatewaySettings, node: Node, cache: Cache) -> AbstractAsyncContextManager[Database]:
    read_url, lag_seconds = settings.database_read_url, settings.database_read_lag_seconds
    replica = None if read_url is None else ReplicaPlan(read_url, lag_seconds, RecentWrites(cache, "gateway", lag_seconds))
    options = DatabaseOptions(replica, DatabaseMetrics(node.metrics))
    return store.opened(settings.database_url, pool_size=settings.database_pool, migrate=settings.migrate == "on", options=options)


@asynccontextmanager
async def _rules(settings: GatewaySettings, node: Node, stores: GatewayStores) -> AsyncIterator[RequestRules]:
    live, pools = LiveConfiguration(stores.config), PoolsFile(settings.pools_file)
    live.on_snapshot = lambda config: node.announce_config(ConfigReading(config_releases.READS, config.needs_release, config.revision))
    await asyncio.gather(live.start(settings), asyncio.to_thread(detectors.load))
    quarantine = Quarantine(QuarantineStore(stores.database), node.metrics.wrong_counts)
    async with quarantine.running():
        yield RequestRules(live, pools, quarantine)


@asynccontextmanager
async def _records(settings: GatewaySettings, node: Node, stores: GatewayStores, rules: RequestRules) -> AsyncIterator[RequestRecords]:
    requests, metrics = stores.requests, node.metrics
    page = settings.billing_page
    ledger = Ledger(stores.ledger, rules.live, node.id, metrics, items=stores.items, has_plans=settings.money == "on", billing_page=page)
    find_receipts = partial(orphan_settlement.collect_receipts, node.rpc, node.directory, stores.items, strike=rules.quarantine.strike)
    async with (
        held_journal(settings.journal, node.id, requests.find_unknown) as journal,
        UsageRecorder(requests, journal, metrics.usage_queue_rows, metrics.settle_failures).running() as recorder,
        # Ends before the recorder, so that no rows arrive in a journal that is closed.
        OrphanedJournals(settings.journal, node.id, requests.find_unknown, recorder.take_over, stores.items).running(metrics),
        ledger.running(recorder, requests.write_requests, find_receipts),
        # Inside the others, so that canceled answers still get their rows and free their keys.
        Recorders().running() as recorders,
        _idempotency(settings, node, stores, recorders).running() as idempotency,
    ):
        metrics.settle_journal_rows.set_function(lambda: recorder.journal_rows)
        yield RequestRecords(ledger, recorder, idempotency, _responses(settings, node, stores.cache, recorders))


def _idempotency(settings: GatewaySettings, node: Node, stores: GatewayStores, recorders: Recorders) -> IdempotentRequests:
    return IdempotentRequests(
        IdempotencyStore(stores.database),
        recorders,
        node.id,
        items=stores.items,
        secret=settings.prompt_hash_secret,
        most_seconds=settings.request_timeout_seconds,
        start_seconds=settings.start_seconds,
    )


def _responses(settings: GatewaySettings, node: Node, cache: Cache, recorders: Recorders) -> ResponseCache | None:
    if settings.response_cache == "off":
        return None
    bounds = CacheBounds(
        keep_seconds=settings.response_cache_seconds,
        most_bytes=settings.response_cache_megabytes * 2**20,
        most_seconds=settings.request_timeout_seconds,
        start_seconds=settings.start_seconds,
    )
    return ResponseCache(cache, recorders, node.metrics, bounds, secret=settings.prompt_hash_secret)
