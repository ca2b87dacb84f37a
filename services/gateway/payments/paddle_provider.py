"""Payments with Paddle: transactions with a checkout, the customer portal, and one-time charges for usage beyond a plan.

Only this module knows the library, which blocks: one thread runs its calls. Paddle has no idempotency keys. A checkout twice is harmless,
because nobody knows the first; a charge is looked for before it is made.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import ClassVar, TypeVar
from uuid import UUID

import requests
from paddle_billing import Client, Environment, Options
from paddle_billing.Entities.Adjustment import Adjustment
from paddle_billing.Entities.Shared import CurrencyCode, CustomData, Money, TaxCategory, TransactionStatus
from paddle_billing.Entities.Subscription import Subscription
from paddle_billing.Entities.Subscriptions import SubscriptionEffectiveFrom, SubscriptionOnPaymentFailure
from paddle_billing.Entities.Transaction import Transaction
from paddle_billing.Exceptions.ApiError import ApiError
from paddle_billing.Notifications import PaddleSignature, Secret
from paddle_billing.Resources.Adjustments.Operations import ListAdjustments
from paddle_billing.Resources.CustomerPortalSessions.Operations import CreateCustomerPortalSession
from paddle_billing.Resources.Shared.Operations import Comparator, DateComparison, Pager
from paddle_billing.Resources.Shared.Operations.List.OrderBy import OrderBy
from paddle_billing.Resources.Subscriptions.Operations import CancelSubscription, CreateOneTimeCharge
from paddle_billing.Resources.Subscriptions.Operations.Charge import SubscriptionChargeItemWithPrice
from paddle_billing.Resources.Subscriptions.Operations.Price import SubscriptionNonCatalogPriceWithProduct, SubscriptionNonCatalogProduct
from paddle_billing.Resources.Transactions.Operations import CreateTransaction, ListTransactions
from paddle_billing.Resources.Transactions.Operations.Create import TransactionCreateItem, TransactionCreateItemWithPrice
from paddle_billing.Resources.Transactions.Operations.List.Includes import Includes
from paddle_billing.Resources.Transactions.Operations.List.Origin import Origin
from paddle_billing.Resources.Transactions.Operations.Price import TransactionNonCatalogPriceWithProduct, TransactionNonCatalogProduct

from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.facts.tiers import TierPlan
from services.gateway.payments import payment_provider
from services.gateway.payments.payment_provider import (
    CheckoutState,
    Forged,
    OwedUsage,
    PaidPeriod,
    ProviderOrder,
    ProviderSubscription,
    Reversal,
    WebhookEvent,
)
from shared import errors
from shared.telemetry import logs

_FOLLOWED = ("txn_", "sub_")
#: Which payments are made, and which a customer sees in the portal.
_KEPT = [TransactionStatus.Paid, TransactionStatus.Completed]
_SHOWN = [*_KEPT, TransactionStatus.Billed, TransactionStatus.PastDue]
#: All but what was used beyond a plan.
_OF_PLANS = [Origin.Api, Origin.Web, Origin.SubscriptionRecurring, Origin.SubscriptionUpdate]
#: As many as Paddle gives at once, and the limits on all.
_PAGE, _MAX_PAYMENTS, _MAX_EVENTS = 30, 300, 1000
T = TypeVar("T")

_log = logs.get(part="paddle")


@dataclass(frozen=True)
class _Address:
    """In place of an environment of the library."""

    base_url: str


@asynccontextmanager
async def opened(settings: ProviderSettings) -> AsyncIterator["PaddleProvider"]:
    # The library logs every signature that it checks, and what it sends.
    logging.getLogger("paddle_billing").setLevel(logging.WARNING)
    silent = logging.getLogger("paddle_billing.client")
    silent.disabled = True
    # Keys say which environment they are for.
    own = Environment.SANDBOX if settings.secret.startswith("pdl_sdbx_") else Environment.PRODUCTION
    options = Options(own if settings.api_url is None else _Address(settings.api_url))
    client = Client(settings.secret, options=options, logger=silent, retry_count=0, timeout=payment_provider.READ_SECONDS)
    thread = ThreadPoolExecutor(1, "paddle")
    try:
        yield PaddleProvider(client, thread, settings)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


class PaddleProvider:
    meters: ClassVar[None] = None
    signature_header: ClassVar[bytes] = b"paddle-signature"

    def __init__(self, client: Client, thread: ThreadPoolExecutor, settings: ProviderSettings) -> None:
        self._client = client
        self._thread = thread
        self._settings = settings

    def price_of(self, plan: TierPlan) -> str | None:
        return plan.paddle_price

    def verify(self, body: bytes, signature: str) -> WebhookEvent:
        # Not by the library's Verifier, which skips the age if the environment has TEST_MODE.
        try:
            signed_at, _ = PaddleSignature.parse(signature)
            is_genuine = PaddleSignature().verify(signature, body.decode(), Secret(self._settings.webhook_secret))
            if not is_genuine or abs(time.time() - signed_at) > payment_provider.MAX_AGE_SECONDS:
                raise Forged
            event = json.loads(body)
            told = event["data"]
            object_id = told["transaction_id"] if told["id"].startswith("adj_") else told["id"]
            return WebhookEvent(id=event["event_id"], object_id=object_id if object_id.startswith(_FOLLOWED) else None)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Forged from error

    async def check_out(self, order: ProviderOrder, plan: TierPlan | None, customer: str | None, email: str) -> tuple[str, str]:
        if plan is not None:
            item = TransactionCreateItem(plan.paddle_price, 1)
        else:
            product = TransactionNonCatalogProduct("Prepaid credits", TaxCategory.Standard)
            price = TransactionNonCatalogPriceWithProduct(
                "Prepaid credits", self._money(order.amount_minor), product, custom_data=CustomData({"order": str(order.id)})
            )
            item = TransactionCreateItemWithPrice(price, 1)
        wanted = CreateTransaction([item], custom_data=CustomData(payment_provider.metadata(order, self._settings.return_url)))
        if customer is not None:
            wanted.customer_id = customer
        made: Transaction = await self._run(lambda: self._client.transactions.create(wanted))
        if made.checkout is None or made.checkout.url is None:
            raise errors.Unavailable("Paddle has made no page for this payment", hint="set a default payment link in Paddle's settings")
        return made.id, made.checkout.url

    async def find_bought(self, object_id: str) -> str | None:
        # An adjustment's event names its transaction.
        return object_id

    async def list_events(self, since: datetime) -> list[WebhookEvent]:
        def list_all() -> tuple[list[Transaction], list[Adjustment]]:
            changed = DateComparison(since, Comparator.GTE)
            paid = self._client.transactions.list(ListTransactions(statuses=_KEPT, updated_at=changed))
            listed = self._client.adjustments.list(ListAdjustments(Pager(order_by=OrderBy.id_descending())))
            return [*islice(paid, _MAX_EVENTS)], [*islice(takewhile(lambda one: one.created_at >= since, listed), _MAX_EVENTS)]

        paid, adjusted = await self._run(list_all)
        found = [(one, one.id) for one in paid] + [(one, one.transaction_id) for one in adjusted]
        return [WebhookEvent(id=f"{one.id}/{one.status}", object_id=object_id) for one, object_id in found]

    async def read(self, object_id: str) -> CheckoutState | ProviderSubscription | None:
        try:
            if object_id.startswith("txn_"):
                return _checkout(await self._run(lambda: self._client.transactions.get(object_id, [Includes.Adjustment])))
            found, payments = await self._run(lambda: (self._client.subscriptions.get(object_id), self._list_paid(object_id)))
        except errors.NotFound:
            return None
        return _subscription(found, payments)

    async def find_checkout(self, subscription: str) -> str | None:
        begun_by = ListTransactions(subscription_ids=[subscription], origins=[Origin.Api, Origin.Web])
        return await self._run(lambda: next((one.id for one in self._client.transactions.list(begun_by)), None))

    async def list_payments(self, customer: str) -> dict[str, str | None] | None:
        # There is one customer for each address, and the payer types it.
        wanted = ListTransactions(customer_ids=[customer], statuses=_SHOWN)
        found = await self._run(lambda: [*islice(self._client.transactions.list(wanted), _MAX_PAYMENTS + 1)])
        return {one.id: one.subscription_id for one in found} if len(found) <= _MAX_PAYMENTS else None

    async def open_portal(self, customer: str) -> str:
        made = await self._run(lambda: self._client.customer_portal_sessions.create(customer, CreateCustomerPortalSession()))
        return str(made.urls.general.overview)

    async def bill(self, owed: OwedUsage, plan: TierPlan, customer: str, subscription: str, amount_minor: int) -> bool:
        await self._run(lambda: self._bill(owed.id, subscription, amount_minor, owed.text))
        return True

    async def cancel(self, subscription: str) -> None:
        ending = CancelSubscription(SubscriptionEffectiveFrom.NextBillingPeriod)
        await self._run(lambda: self._client.subscriptions.cancel(subscription, ending))

    def _list_paid(self, subscription: str) -> list[Transaction]:
        """Return the last payments for a plan, newest first."""
        wanted = ListTransactions(
            Pager(order_by=OrderBy.id_descending(), per_page=_PAGE),
            subscription_ids=[subscription], statuses=_KEPT, origins=_OF_PLANS, includes=[Includes.Adjustment],
        )  # fmt: skip
        return [*islice(self._client.transactions.list(wanted), _PAGE)]

    def _bill(self, charge: UUID, subscription: str, amount_minor: int, text: str) -> None:
        made = self._client.transactions.list(ListTransactions(subscription_ids=[subscription], origins=[Origin.SubscriptionCharge]))
        items = [item for transaction in made for item in transaction.items]
        billed = {_text_data(item.price.custom_data).get("order"): int(item.price.unit_price.amount) for item in items}
        while (found := billed.get(str(charge))) is not None:
            charge, amount_minor = payment_provider.rest_of(charge), amount_minor - found
        if amount_minor <= 0:
            return
        product = SubscriptionNonCatalogProduct("Usage", TaxCategory.Standard)
        price = SubscriptionNonCatalogPriceWithProduct(
            text, self._money(amount_minor), product, custom_data=CustomData({"order": str(charge)})
        )
        # A card that is refused is Paddle's to follow.
        charge = CreateOneTimeCharge(
            SubscriptionEffectiveFrom.Immediately, [SubscriptionChargeItemWithPrice(price, 1)], SubscriptionOnPaymentFailure.ApplyChange
        )
        self._client.subscriptions.create_one_time_charge(subscription, charge)

    def _money(self, amount_minor: int) -> Money:
        return Money(str(amount_minor), CurrencyCode(self._settings.currency))

    async def _run(self, call: Callable[[], T]) -> T:
        """Raises NotFound, and Unavailable without the library's text, which may quote the request."""
        try:
            async with asyncio.timeout(payment_provider.WRITE_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except ApiError as error:
            if error.response.status_code == 404:
                raise errors.NotFound("Paddle has no such object") from None
            _log.warning("paddle refused", code=error.error_code, fields=[each.field for each in error.field_errors])
        except (requests.RequestException, TimeoutError, ValueError, KeyError, TypeError) as error:
            _log.warning("paddle does not answer", kind=type(error).__name__)
        raise errors.Unavailable("Paddle did not accept the call or did not answer", hint="try again in a minute; the log has the reason")


def _checkout(found: Transaction) -> CheckoutState:
    status, totals = str(found.status), found.details.totals
    made_for = {_text_data(item.price.custom_data).get("order") for item in found.items}
    listed = sum(int(item.price.unit_price.amount) * item.quantity for item in found.items)
    return CheckoutState(
        id=found.id,
        is_over=status in {"completed", "canceled"},
        payment=found.id if status in {"paid", "completed"} else None,
        customer=found.customer_id,
        subscription=found.subscription_id,
        # By the measure of the prices: if they add up to the subtotal, which has no tax, the tax came on top and is not part of the goods.
        # If they include it, they add up to more.
        amount_minor=int(totals.total) - (int(totals.tax) if listed == int(totals.subtotal) else 0),
        paid_minor=int(totals.total),
        reversals=_reversals(found),
        currency=str(totals.currency_code),
        # A customer's browser can put other goods into the checkout, and write its custom data. It can't write those of a price.
        goods_of=made_for.pop() if len(made_for) == 1 else None,
        claimed=_text_data(found.custom_data),
        order=None,
    )


def _reversals(found: Transaction) -> tuple[Reversal, ...]:
    """Return what the customer got back, and what a bank took back, oldest first. A warning moves no money, and neither does a refund that
    Paddle has not approved."""
    made = sorted(found.adjustments or (), key=lambda one: one.created_at)
    won = [(one.totals.total, one.created_at) for one in made if str(one.action) == "chargeback_reverse"]
    # A credit goes to the balance that pays the customer's next transactions. Paddle makes some for changes of plans: those are no refunds.
    actions = {"refund", "chargeback"} | ({"credit"} if found.subscription_id is None else set())
    reversals = []
    for one in made:
        action, status = str(one.action), str(one.status)
        if action not in actions or status not in {"approved", "reversed"}:
            continue
        is_won = action == "chargeback" and any(total == one.totals.total and at >= one.created_at for total, at in won)
        is_returned = is_won or status == "reversed"
        reversals.append(Reversal(id=one.id, amount_minor=int(one.totals.total), is_returned=is_returned))
    return tuple(reversals)


def _subscription(found: Subscription, payments: list[Transaction]) -> ProviderSubscription:
    """``payments``: see ``_list_paid``."""
    present, periods = found.current_billing_period, [one.billing_period for one in payments if one.billing_period is not None]
    if present is None and periods:
        # It has ended. An upgrade is paid from its moment on.
        start = min(period.starts_at for period in periods if period.ends_at == periods[0].ends_at)
    else:
        start = found.created_at if present is None else present.starts_at
    return ProviderSubscription(
        id=found.id,
        customer=found.customer_id,
        status=str(found.status),
        prices=tuple(item.price.id for item in found.items),
        period_start=start,
        paid=_paid([one for one in payments if _period_end(one) > start]),
    )


def _period_end(payment: Transaction) -> datetime:
    """Return until when a payment is for; where Paddle doesn't say it, only that it is later than the payment."""
    period = payment.billing_period
    end: datetime = (payment.billed_at or payment.created_at) + timedelta(days=1) if period is None else period.ends_at
    return end


def _paid(payments: list[Transaction]) -> PaidPeriod | None:
    """``payments``: for one period, newest first."""
    if not payments:
        return None
    items = sorted(payments[0].items, key=lambda item: -int(item.price.unit_price.amount))
    amounts = [(int(one.details.totals.total), _reversals(one)) for one in payments]
    return PaidPeriod(
        prices=tuple(item.price.id for item in items),
        paid_minor=sum(amount for amount, _ in amounts),
        kept_minor=sum(payment_provider.kept_of(amount, reversals) for amount, reversals in amounts),
    )


def _text_data(found: CustomData | None) -> dict[str, str]:
    data = None if found is None else found.data
    return {name: value for name, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
