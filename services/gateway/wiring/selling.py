"""Accounts, payments and reports, and what is exported of usage."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.http_api.webhooks import Webhooks
from services.gateway.payments import notice_outbox
from services.gateway.payments.billing import Billing
from services.gateway.payments.billing_rpc import BillingRpc
from services.gateway.payments.billing_store import BillingStore
from services.gateway.payments.notice_outbox import NoticeOutbox
from services.gateway.payments.payment_provider import PaymentProvider
from services.gateway.payments.provider_orders import ProviderOrders
from services.gateway.payments.stripe_sink import StripeSink
from services.gateway.rpc_api.account_rpc import AccountRpc
from services.gateway.settings import GatewaySettings
from services.gateway.usage_export.acknowledged_files import AcknowledgedFiles
from services.gateway.usage_export.export import UsageExport
from services.gateway.usage_export.file_sink import FileSink
from services.gateway.usage_export.outbox_store import OutboxStore
from services.gateway.usage_export.sinks import CloudEventsSink, Sink
from services.gateway.usage_reports import BusinessReports, UsageReports
from services.gateway.usage_store import DaysStore, UsageStore
from services.gateway.wiring.admission import Admission
from services.gateway.wiring.scheduling import Scheduling
from services.gateway.wiring.stores import Stores
from shared.background.tasks import keep
from shared.node import Node
from shared.telemetry.metrics_registry import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Selling:
    accounts: AccountRpc
    billing: Billing
    billing_rpc: BillingRpc
    #: Of the payment provider.
    webhooks: Webhooks
    notices: NoticeOutbox
    reports: UsageReports
    business: BusinessReports
    usage_export: UsageExport

    @property
    def served(self) -> tuple[object, ...]:
        return (self.accounts, self.billing_rpc, self.reports, self.business, self.usage_export)

    def tasks(self, settings: GatewaySettings, metrics: Metrics, stores: Stores) -> Iterator[Coroutine[Any, Any, Any]]:
        repeat = background_jobs.repeat
        yield repeat(UpkeepJob.CHECKPOINT, 600, stores.checkpoints.close_days, metrics)
        yield repeat(UpkeepJob.ROLL, 600, partial(self.business.roll, metrics), metrics)
        yield repeat(UpkeepJob.USAGE_EXPORT, 60, self.usage_export.measure, metrics)
        yield repeat(UpkeepJob.NOTICES, notice_outbox.EVERY_SECONDS, self.notices.work, metrics)
        yield keep("acknowledged usage", self.usage_export.keep_files)
        yield from (keep("usage export", export.run) for export in self.usage_export.exports)
        if settings.money == "on":
            yield repeat(UpkeepJob.BILLING, 60, partial(self._work_on_bills, metrics), metrics)
            yield keep("payments", self.webhooks.run)
            if self.billing.provider is not None:
                yield repeat(UpkeepJob.LOST_EVENTS, 3600, self.billing.provider.find_lost, metrics)

    async def delete_old(self) -> None:
        await self.reports.delete_old()
        await self.usage_export.delete_old()

    async def _work_on_bills(self, metrics: Metrics) -> None:
        await self.billing.work()
        metrics.webhook_backlog.set(await self.billing.measure_events())
        metrics.unbilled_usage.set(await self.billing.measure_owed())


def build(settings: GatewaySettings, node: Node, stores: Stores, scheduling: Scheduling, admission: Admission) -> Selling:
    live, metrics, items, sells = scheduling.live, node.metrics, stores.items, settings.money == "on"
    store = BillingStore(stores.database)
    billing = Billing(
        store,
        live,
        node.rpc,
        settings.seller(),
        _orders(settings, node, stores, store, scheduling),
        items=items,
        on_paid=lambda paid: metrics.revenue.labels(currency=paid.currency).inc(paid.net_minor),
    )
    outbox = OutboxStore(stores.database, f"/aimesh/{settings.mesh}")
    return Selling(
        accounts=AccountRpc(stores.ledger, admission.ledger, live, node.rpc, admission.audit_reporting),
        billing=billing,
        billing_rpc=BillingRpc(billing, store, live, stores.ledger, node.rpc, admission.audit_reporting, settings.currency, is_on=sells),
        webhooks=Webhooks(billing, metrics),
        notices=NoticeOutbox(store, node.rpc, items, settings.currency, sells=sells),
        reports=UsageReports(UsageStore(stores.database), request_log_days=settings.request_log_days),
        business=BusinessReports(
            DaysStore(stores.database), request_log_days=settings.request_log_days, upstream_monthly=settings.upstream_monthly
        ),
        usage_export=UsageExport(
            outbox,
            tuple(_sinks(settings, outbox, stores.provider)),
            settings.usage_export_unit,
            AcknowledgedFiles(outbox, settings.recovery_log_dir, node.id),
            metrics,
        ),
    )


def _orders(settings: GatewaySettings, node: Node, stores: Stores, store: BillingStore, scheduling: Scheduling) -> ProviderOrders | None:
    metrics, sold_in = node.metrics, settings.currency
    # The series exists from the start, so that the first payment is an increase.
    count_paid = metrics.revenue.labels(currency=sold_in).inc
    if stores.provider is None:
        return None
    return ProviderOrders(
        settings.payments, stores.provider, store, scheduling.live, sold_in, items=stores.items, on_paid=count_paid,
        on_reversed=metrics.revenue_reversed.labels(currency=sold_in).inc,
    )  # fmt: skip


def _sinks(settings: GatewaySettings, outbox: OutboxStore, provider: PaymentProvider | None) -> Iterator[Sink]:
    if settings.usage_export_url is not None:
        yield CloudEventsSink(settings.usage_export_url, settings.usage_export_token_file)
    if settings.usage_export_file is not None:
        yield FileSink(settings.usage_export_file)
    if settings.usage_export_stripe_meter is not None and provider is not None and provider.meters is not None:
        yield StripeSink(provider.meters, settings.usage_export_stripe_meter, outbox)
