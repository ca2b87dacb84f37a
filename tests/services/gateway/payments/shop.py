"""Billing on a real PostgreSQL, with a fake auth, and what tests of providers do with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec

from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import Spending
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.plan_offers import Seller
from services.gateway.payments.billing import Billing
from services.gateway.payments.billing_store import BillingStore
from services.gateway.payments.payment_provider import PaymentProvider
from services.gateway.payments.provider_orders import ProviderOrders
from shared import errors
from shared.api import billing as api
from shared.api.billing import Invoice, Order, OrderTopUp, Party
from shared.api.method import Nothing
from shared.api.notices import Notice
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.config_documents import ConfigKind, PlanDocument
from shared.telemetry import Metrics
from shared.types import RequestId, TenantId
from tests.services.gateway.fakes import FakeRpc
from tests.services.gateway.payments.stripe_server import StripeServer

SELLER = Seller(Party("Mesh GmbH", ("Hamburg",)), "VAT", Decimal(19), "EUR")


class Shop:
    """Billing, and the plans that auth was told of."""

    def __init__(self, opened: Any, live: LiveConfiguration, url: str, seller: Seller = SELLER) -> None:
        self.rows, self.live, self.url = BillingStore(opened), live, url
        self.ledger = LedgerStore(opened)
        self.plans: dict[TenantId, str] = {}
        self.gone: set[TenantId] = set()
        #: Organizations that share their founder's limits.
        self.sharing: set[TenantId] = set()
        #: Users who may not have free tokens.
        self.unverified: set[TenantId] = set()
        self.auth_is_away = False
        self.rpc = FakeRpc()
        self.rpc.answers |= {api.describe_account.name: self._describe, api.apply_plan.name: self._apply}
        #: Of each payment that was counted.
        self.paid: list[tuple[str, int]] = []
        self.deferred = DeferredRows(opened, "gateway")
        self.metrics = Metrics("gateway")
        self.items = BackgroundItems(self.deferred, self.metrics)
        self.billing = Billing(
            self.rows,
            live,
            self.rpc,
            seller,
            items=self.items,
            on_paid=lambda document: self.paid.append((document.currency, document.net_minor)),
        )

    async def _describe(self, request: api.DescribeAccount) -> api.AccountName:
        if request.owner in self.gone:
            raise errors.NotFound("gone")
        return api.AccountName(
            "ada", "ada@example.org", self.plan_of(request.owner), request.owner in self.sharing, request.owner not in self.unverified
        )

    async def _apply(self, request: api.ApplyPlan) -> Nothing:
        if self.auth_is_away:
            raise errors.Unavailable("auth does not answer")
        if request.owner in self.gone:
            raise errors.NotFound("gone")
        self.plans[request.owner] = request.plan
        return Nothing()

    async def retry(self) -> None:
        """Try everything again that failed, as an administrator does."""
        assert await self.deferred.retry(None, None)

    def plan_of(self, owner: TenantId) -> str:
        return self.plans.get(owner, "free")

    async def order(self, owner: TenantId, plan: str) -> api.Order:
        return await self.billing.order_plan(owner, plan)

    async def invoices(self, owner: TenantId) -> list[Invoice]:
        """Return them oldest first."""
        return list(reversed(await self.rows.list_invoices(owner, only_open=False, before=None, limit=100)))

    async def execute(self, sql: str, *args: object) -> None:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            await connection.execute(sql, *args)
        finally:
            await connection.close()

    async def fetch(self, sql: str, *args: object) -> Any:
        """Return the one value."""
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            return await connection.fetchval(sql, *args)
        finally:
            await connection.close()

    async def notices(self) -> list[tuple[str, Notice]]:
        """Take them all, oldest first, with their subjects."""
        taken = []
        async with self.rows.transaction() as rows:
            while (one := await rows.take_notice()) is not None:
                taken.append((one[1], msgspec.json.decode(one[2], type=Notice)))
        return taken

    async def end_period(self, owner: TenantId) -> None:
        """Let a month pass for this account."""
        await self.execute("UPDATE accounts SET anchor = now(), period_end = now() WHERE owner = $1", owner)

    async def wait_days(self, number: str, days: int) -> None:
        """Let an invoice become older."""
        await self.execute("ALTER TABLE invoices DISABLE TRIGGER invoices_are_immutable")
        await self.execute(
            "UPDATE invoices SET created_at = created_at + shift, due_at = due_at + shift, reminded_at = reminded_at + shift"
            " FROM (SELECT number, make_interval(days => extract(day FROM now() - created_at)::integer - $2) AS shift FROM invoices) AS old"
            " WHERE invoices.number = $1 AND old.number = $1", number, days,
        )  # fmt: skip
        await self.execute("ALTER TABLE invoices ENABLE TRIGGER invoices_are_immutable")


def owner() -> TenantId:
    return TenantId(uuid4())


PLANS: dict[tuple[ConfigKind, str], Any] = {
    (ConfigKind.PLAN, "pro"): PlanDocument(stripe_price="price_pro", stripe_meter="price_tokens", paddle_price="pri_pro"),
    (ConfigKind.PLAN, "gold"): PlanDocument(fee=99.0, for_sale=True, stripe_price="price_gold", paddle_price="pri_gold"),
    (ConfigKind.PLAN, "silver"): PlanDocument(fee=49.0, for_sale=True),
}


@asynccontextmanager
async def selling(shop: Shop, name: str, provider: PaymentProvider) -> AsyncIterator[Shop]:
    await shop.live.change(lambda *_: PLANS, origin="applied", author=None)
    orders = ProviderOrders(name, provider, shop.rows, shop.live, SELLER.currency, items=shop.items)
    shop.billing = Billing(shop.rows, shop.live, shop.rpc, SELLER, orders, items=shop.items)
    yield shop


def orders_of(shop: Shop) -> ProviderOrders:
    assert shop.billing.provider is not None
    return shop.billing.provider


async def deliver(shop: Shop, signed: tuple[bytes, str]) -> bool:
    """Hand a webhook over. Return whether it was new."""
    return await orders_of(shop).receive(orders_of(shop).provider.verify(*signed))


async def tell(shop: Shop, stripe: StripeServer, *objects: str) -> None:
    for object_id in objects:
        await deliver(shop, stripe.signed(object_id))
    await shop.billing.work()


def session_of(order: Order) -> str:
    assert order.url is not None
    return order.url.rpartition("/")[2]


async def top_up(shop: Shop, ada: TenantId, order_id: RequestId | None = None) -> Order:
    return await shop.billing.order_top_up(ada, OrderTopUp("25.00", order_id or RequestId(uuid4())))


async def balance(shop: Shop, ada: TenantId) -> int:
    return (await shop.ledger.read_account(ada, Spending())).balance_micro
