"""Payments with Stripe: Checkout, the Customer Portal, and meters for usage beyond a plan. Only this module knows the library."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid5

import aiohttp
import stripe
from stripe.params import EventListParams, InvoicePaymentListParams
from stripe.params.billing import MeterEventCreateParams
from stripe.params.checkout import SessionCreateParams

from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.facts.tiers import TierPlan
from services.gateway.payments import payment_provider
from services.gateway.payments.payment_provider import (
    CheckoutState,
    Declined,
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

#: At least 30 minutes, as Stripe wants; the order may wait for its first answer that long, too.
CHECKOUT_HOURS = 1
#: Stripe remembers the identifiers of meter events for a day.
_REMEMBERED = timedelta(hours=23)
#: The invoice of a period is a draft for an hour, in which Stripe still counts usage of the period.
_DRAFT = timedelta(minutes=50)
#: Types of events about refunds and disputes.
REVERSING = (
    "refund.created", "refund.updated", "refund.failed", "charge.refunded", "charge.dispute.created", "charge.dispute.closed",
    "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated",
)  # fmt: skip
#: Types of events about payments.
PAYING = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
#: Of events in one answer, and in all; those of lost webhooks are asked for each hour.
_PAGE, _MAX_EVENTS = 100, 10_000
T = TypeVar("T")

_log = logs.get(part="stripe")


@asynccontextmanager
async def opened(settings: ProviderSettings) -> AsyncIterator["StripeProvider"]:
    # Its log lines have whole requests.
    logging.getLogger("stripe").setLevel(logging.WARNING)
    http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=payment_provider.WRITE_SECONDS))
    client = stripe.StripeClient(
        settings.secret,
        http_client=http,
        base_addresses={} if settings.api_url is None else {"api": settings.api_url},
        max_network_retries=0,
    )
    try:
        yield StripeProvider(client, settings)
    finally:
        await http.close_async()  # type: ignore[no-untyped-call]


class StripeProvider:
    signature_header: ClassVar[bytes] = b"stripe-signature"

    def __init__(self, client: stripe.StripeClient, settings: ProviderSettings) -> None:
        self._client = client
        self._settings = settings
        self.meters = StripeMeters(client)

    def price_of(self, plan: TierPlan) -> str | None:
        return plan.stripe_price

    def verify(self, body: bytes, signature: str) -> WebhookEvent:
        return verify(body, signature, self._settings.webhook_secret)

    async def check_out(self, order: ProviderOrder, plan: TierPlan | None, customer: str | None, email: str) -> tuple[str, str]:
        # The same parameters each time: Stripe refuses a key with others.
        metadata = payment_provider.metadata(order, self._settings.return_url)
        params: SessionCreateParams = {
            "client_reference_id": str(order.owner),
            "metadata": metadata,
            "success_url": self._settings.return_url,
            "cancel_url": self._settings.return_url,
            "expires_at": int((order.created_at + timedelta(hours=CHECKOUT_HOURS)).timestamp()),
        }
        if customer is not None:
            params["customer"] = customer
        elif email:
            params["customer_email"] = email
        if self._settings.has_tax:
            params["automatic_tax"], params["tax_id_collection"] = {"enabled": True}, {"enabled": True}
            params["billing_address_collection"] = "required"
            if customer is not None:
                params["customer_update"] = {"address": "auto", "name": "auto"}
        if plan is not None:
            assert plan.stripe_price is not None
            params["mode"], params["subscription_data"] = "subscription", {"metadata": metadata}
            params["line_items"] = [{"price": plan.stripe_price, "quantity": 1}]
            if plan.stripe_meter is not None:
                params["line_items"].append({"price": plan.stripe_meter})
        else:
            params["mode"] = "payment"
            params["line_items"] = [
                {
                    "price_data": {
                        "currency": self._settings.currency.lower(),
                        "unit_amount": order.amount_minor,
                        "product_data": {"name": "Prepaid credits"},
                    },
                    "quantity": 1,
                }
            ]
            if customer is None:
                params["customer_creation"] = "always"
            if self._settings.has_tax:
                # As on invoices of the mesh: what is credited is without tax.
                params["line_items"][0]["price_data"]["tax_behavior"] = "exclusive"
                params["invoice_creation"] = {"enabled": True}
        made = await _answered(self._client.v1.checkout.sessions.create_async(params, {"idempotency_key": f"checkout-{order.id}"}))
        return made.id, made.url or ""

    async def find_bought(self, object_id: str) -> str | None:
        if not object_id.startswith("pi_"):
            return object_id
        v1 = self._client.v1
        sessions = await _read(v1.checkout.sessions.list_async({"payment_intent": object_id, "limit": 1}))
        if sessions.data:
            return sessions.data[0].id
        paid: InvoicePaymentListParams = {"payment": {"type": "payment_intent", "payment_intent": object_id}, "limit": 1}
        payments = await _read(v1.invoice_payments.list_async({**paid, "expand": ["data.invoice"]}))
        return _subscription_of(payments.data[0].to_dict()["invoice"]) if payments.data else None

    async def read(self, object_id: str) -> CheckoutState | ProviderSubscription | None:
        try:
            if object_id.startswith("cs_"):
                session = await _read(self._client.v1.checkout.sessions.retrieve_async(object_id))
                return _checkout(session, await self._list_reversed(_id(session.payment_intent)), self._settings.return_url)
            found = await _read(self._client.v1.subscriptions.retrieve_async(object_id))
        except errors.NotFound:
            return None
        # The first payment of an incomplete one is not made yet.
        return None if found.status == "incomplete" else _subscription(found, await self._read_paid(found))

    async def _read_paid(self, found: stripe.Subscription) -> PaidPeriod | None:
        start = _period_start(found)
        listed = await _read(
            self._client.v1.invoices.list_async(
                {"subscription": found.id, "status": "paid", "created": {"gte": start - 86400}, "limit": _PAGE, "expand": ["data.payments"]}
            )
        )
        prices: tuple[str, ...] = ()
        paid = kept = 0
        # The newest comes first.
        for invoice in listed.data:
            if not (of_period := _prices_of(invoice, start)):
                continue
            prices = prices or of_period
            paid += invoice.amount_paid
            kept += invoice.amount_paid
            for payment in () if invoice.payments is None else invoice.payments.data:
                reversals = await self._list_reversed(_id(payment.payment.payment_intent))
                kept -= invoice.amount_paid - payment_provider.kept_of(invoice.amount_paid, reversals)
        return PaidPeriod(prices=prices, paid_minor=paid, kept_minor=max(0, kept)) if prices else None

    async def _list_reversed(self, payment: str | None) -> tuple[Reversal, ...]:
        if payment is None:
            return ()
        v1 = self._client.v1
        refunds = await _read(v1.refunds.list_async({"payment_intent": payment, "limit": _PAGE}))
        disputes = await _read(v1.disputes.list_async({"payment_intent": payment, "limit": _PAGE}))
        found = [(one.created, one.id, one.amount, one.status in {"failed", "canceled"}) for one in refunds.data]
        # An inquiry, whose states begin with "warning", moves no money.
        found += [(one.created, one.id, one.amount, one.status.startswith(("won", "prevented", "warning"))) for one in disputes.data]
        return tuple(Reversal(id=name, amount_minor=amount, is_returned=is_returned) for _, name, amount, is_returned in sorted(found))

    async def list_events(self, since: datetime) -> list[WebhookEvent]:
        found: list[stripe.Event] = []
        asked: EventListParams = {"types": [*PAYING, *REVERSING], "created": {"gte": int(since.timestamp())}, "limit": _PAGE}
        while len(found) < _MAX_EVENTS:
            listed = await _read(self._client.v1.events.list_async(asked))
            found += listed.data
            if not listed.has_more:
                break
            asked["starting_after"] = found[-1].id
        return [WebhookEvent(id=one.id, object_id=_named(one.data.object.to_dict())) for one in found]

    async def find_checkout(self, subscription: str) -> str | None:
        listed = await _read(self._client.v1.checkout.sessions.list_async({"subscription": subscription, "limit": 1}))
        return listed.data[0].id if listed.data else None

    async def list_payments(self, customer: str) -> dict[str, str | None]:
        # Each first checkout makes a customer of its own.
        return {}

    async def open_portal(self, customer: str) -> str:
        made = self._client.v1.billing_portal.sessions.create_async({"customer": customer, "return_url": self._settings.return_url})
        return (await _answered(made)).url

    async def bill(self, owed: OwedUsage, plan: TierPlan, customer: str, subscription: str, amount_minor: int) -> bool:
        if plan.stripe_meter is None:
            return False
        await _answered(self._count(owed, plan.stripe_meter, customer, amount_minor), payment_provider.READ_SECONDS)
        return True

    async def cancel(self, subscription: str) -> None:
        ending = self._client.v1.subscriptions.update_async(subscription, {"cancel_at_period_end": True})
        await _answered(ending, payment_provider.READ_SECONDS)

    async def _count(self, owed: OwedUsage, price: str, customer: str, amount_minor: int) -> None:
        now, end = datetime.now(UTC), owed.ended_at - timedelta(seconds=1)
        charge = owed.id
        if (owed.is_restored or now - owed.at > _REMEMBERED) and (found := await self.meters.sum_up(price, customer, end, now)):
            # Attempts that Stripe has forgotten are in the sum, and younger ones are remembered.
            if found == amount_minor or (owed.is_restored and found > amount_minor):
                return
            if not owed.is_restored:
                raise errors.Unavailable(f"the meter has {found} of {customer} since the period's end; expected 0 or {amount_minor}")
            # What was used more since the restore is a charge of its own.
            charge, amount_minor = uuid5(owed.id, str(found)), amount_minor - found
        # Later, it goes on the next invoice.
        await self.meters.add(price, customer, amount_minor, charge, end if now - owed.ended_at < _DRAFT else now)


class StripeMeters:
    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client
        self._found: dict[str, stripe.billing.Meter] = {}

    async def add(self, meter: str, customer: str, value: int, event_id: UUID, at: datetime) -> None:
        found = await self._find(meter)
        payload = {found.customer_mapping.event_payload_key: customer, found.value_settings.event_payload_key: str(value)}
        params: MeterEventCreateParams = {
            "event_name": found.event_name,
            "identifier": str(event_id),
            "timestamp": int(at.timestamp()),
            "payload": payload,
        }
        await _answered(_once(self._client.v1.billing.meter_events.create_async(params)))

    async def sum_up(self, meter: str, customer: str, since: datetime, until: datetime) -> int:
        found = await self._find(meter)
        start, end = (int(moment.timestamp()) // 60 * 60 for moment in (since, until + timedelta(seconds=59)))
        summaries = self._client.v1.billing.meters.event_summaries
        listed = await _answered(summaries.list_async(found.id, {"customer": customer, "start_time": start, "end_time": end}))
        return round(sum(one.aggregated_value for one in listed.data))

    async def _find(self, meter: str) -> stripe.billing.Meter:
        """Raises NotFound, and Unavailable."""
        if meter not in self._found:
            billing = self._client.v1.billing
            if meter.startswith("price_"):
                price = await _answered(self._client.v1.prices.retrieve_async(meter))
                if price.recurring is None or price.recurring.meter is None:
                    raise errors.NotFound(f"the price {meter} has no meter")
                self._found[meter] = await _answered(billing.meters.retrieve_async(price.recurring.meter))
            else:
                listed = await _answered(billing.meters.list_async({"status": "active", "limit": 100}))
                self._found |= {one.event_name: one for one in listed.data}
        if meter not in self._found:
            raise errors.NotFound(f"no meter has the event name {meter}")
        return self._found[meter]


async def _once(call: Awaitable[object]) -> None:
    """Stripe refuses an event that it has."""
    try:
        await call
    except stripe.InvalidRequestError as error:
        if error.code != "duplicate_meter_event" and "already exists with identifier" not in (error.user_message or ""):
            raise


def verify(body: bytes, signature: str, secret: str) -> WebhookEvent:
    """Raises Forged."""
    try:
        stripe.WebhookSignature.verify_header(body, signature, secret, payment_provider.MAX_AGE_SECONDS)
        event = json.loads(body)
        found = event["data"]["object"]
        return WebhookEvent(id=event["id"], object_id=_named(found))
    except (stripe.SignatureVerificationError, ValueError, KeyError, TypeError) as error:
        raise Forged from error


def _named(found: Mapping[str, Any]) -> str | None:
    """Return what to read for an event about this object; None if it is not followed."""
    match found["object"]:
        case "checkout.session" | "subscription":
            return str(found["id"])
        case "charge" | "refund" | "dispute":
            return _id(found["payment_intent"])
        case "invoice":
            return _subscription_of(found)
    return None


def _subscription_of(invoice: Mapping[str, Any]) -> str | None:
    # Endpoints of older versions of the API have it beside the rest.
    details = (invoice.get("parent") or {}).get("subscription_details") or invoice
    return _id(details.get("subscription"))


def _checkout(session: stripe.checkout.Session, reversals: tuple[Reversal, ...], return_url: str) -> CheckoutState:
    is_paid = session.payment_status != "unpaid"
    claimed: dict[str, str] = {} if session.metadata is None else dict(session["metadata"].to_dict())
    return CheckoutState(
        id=session.id,
        is_over=session.status == "expired" or (session.status == "complete" and is_paid),
        # A subscription's payments belong to its invoices.
        payment=_id(session.payment_intent or session.subscription) if is_paid else None,
        customer=_id(session.customer),
        subscription=_id(session.subscription),
        # Tax is on top. The goods are the order's, and only the operator can take something off their price.
        amount_minor=(session.amount_total or 0) - (session.total_details.amount_tax if session.total_details else 0),
        paid_minor=session.amount_total or 0,
        reversals=reversals,
        currency=(session.currency or "").upper(),
        goods_of=claimed.get("order"),
        claimed=claimed,
        # No browser reaches the metadata.
        order=payment_provider.read_metadata(claimed, return_url),
    )


def _subscription(found: stripe.Subscription, paid: PaidPeriod | None) -> ProviderSubscription:
    return ProviderSubscription(
        id=found.id,
        customer=_id(found.customer) or "",
        status=found.status,
        prices=tuple(item.price.id for item in found.items.data),
        period_start=datetime.fromtimestamp(_period_start(found), UTC),
        paid=paid,
    )


def _period_start(found: stripe.Subscription) -> int:
    return min(item.current_period_start for item in found.items.data)


def _prices_of(invoice: stripe.Invoice, period_start: int) -> tuple[str, ...]:
    """Return the prices of what an invoice bills from the start of a period on, the dearest first. The rest is of periods before, or
    credit for what is not used of a plan."""
    lines = (line for line in invoice.lines.data if line.period.start >= period_start and line.amount >= 0)
    priced = ((line.amount, line.pricing and line.pricing.price_details) for line in lines)
    return tuple(str(_id(price.price)) for _, price in sorted(priced, key=lambda one: -one[0]) if price)


def _id(found: Any) -> str | None:
    """Return the id of what may be expanded."""
    return found if found is None or isinstance(found, str) else str(found.id)


async def _read(call: Awaitable[T]) -> T:
    return await _answered(call, payment_provider.READ_SECONDS)


async def _answered(call: Awaitable[T], seconds: float | None = None) -> T:
    """Raises NotFound, and Unavailable without the library's text, which may quote the request; Declined if nothing was done."""
    kind = errors.Unavailable
    try:
        async with asyncio.timeout(seconds):
            return await call
    except stripe.StripeError as error:
        status = error.http_status
        if status == 404:
            raise errors.NotFound("Stripe has no such object") from None
        if isinstance(error.__cause__, aiohttp.ClientConnectorError) or (status is not None and 400 <= status < 500 and status != 409):
            kind = Declined
        # Its words for parameters name ids such as prices, which the operator has to mend.
        reason = error.user_message if isinstance(error, stripe.InvalidRequestError) else None
        _log.warning("stripe refused", kind=type(error).__name__, code=error.code, request=error.request_id, reason=reason)
    except (aiohttp.ClientError, TimeoutError) as error:
        _log.warning("stripe does not answer", kind=type(error).__name__)
    raise kind("Stripe did not accept the call or did not answer", hint="try again in a minute; the log has the reason")
