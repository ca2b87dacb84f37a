"""Accounts, payments and reports."""

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
from services.gateway.payments.provider_orders import ProviderOrders
from services.gateway.rpc_api.account_rpc import AccountRpc
from services.gateway.settings import GatewaySettings
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

    @property
    def served(self) -> tuple[object, ...]:
        return (self.accounts, self.billing_rpc, self.reports, self.business)

    def tasks(self, settings: GatewaySettings, metrics: Metrics, stores: Stores) -> Iterator[Coroutine[Any, Any, Any]]:
        repeat = background_jobs.repeat
        yield repeat(UpkeepJob.CHECKPOINT, 600, stores.checkpoints.close_days, metrics)
        yield repeat(UpkeepJob.ROLL, 600, partial(self.business.roll, metrics), metrics)
        yield repeat(UpkeepJob.NOTICES, notice_outbox.EVERY_SECONDS, self.notices.work, metrics)
        if settings.money == "on":
            yield repeat(UpkeepJob.BILLING, 60, partial(self._work_on_bills, metrics), metrics)
            yield keep("payments", self.webhooks.run)
            if self.billing.provider is not None:
                yield repeat(UpkeepJob.LOST_EVENTS, 3600, self.billing.provider.find_lost, metrics)

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
