"""Payments with Stripe: Checkout, the Customer Portal, and meters for usage beyond a plan. Only this module knows the library."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import aiohttp
import stripe
from stripe.params.checkout import SessionCreateParams

from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.facts.tiers import TierPlan
from services.gateway.payments import payment_provider
from services.gateway.payments.payment_provider import (
    CheckoutState,
    Forged,
    ProviderOrder,
    ProviderSubscription,
    WebhookEvent,
)
from shared import errors
from shared.telemetry import logs
from shared.types import TenantId

#: At least 30 minutes, as Stripe wants; the order may wait for its first answer that long, too.
CHECKOUT_HOURS = 1
_FOLLOWED = ("checkout.session", "subscription")
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

    def price_of(self, plan: TierPlan) -> str | None:
        return plan.stripe_price

    def verify(self, body: bytes, signature: str) -> WebhookEvent:
        return verify(body, signature, self._settings.webhook_secret)

    async def check_out(self, order: ProviderOrder, plan: TierPlan | None, customer: str | None, email: str) -> tuple[str, str]:
        # The same parameters each time: Stripe refuses a key with others.
        metadata = payment_provider.metadata(order)
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
        made = await _answered(self._client.v1.checkout.sessions.create_async(params, {"idempotency_key": f"checkout-{order.id}"}))
        return made.id, made.url or ""

    async def read(self, object_id: str) -> CheckoutState | ProviderSubscription | None:
        try:
            if object_id.startswith("cs_"):
                return _checkout(await _answered(self._client.v1.checkout.sessions.retrieve_async(object_id)))
            return _subscription(await _answered(self._client.v1.subscriptions.retrieve_async(object_id)))
        except errors.NotFound:
            return None

    async def open_portal(self, customer: str) -> str:
        made = self._client.v1.billing_portal.sessions.create_async({"customer": customer, "return_url": self._settings.return_url})
        return (await _answered(made)).url

    async def bill(self, order_id: UUID, plan: TierPlan, subscription: str, amount_minor: int, text: str) -> bool:
        # Its meter has counted the usage, which the export sends.
        return plan.stripe_meter is not None


def verify(body: bytes, signature: str, secret: str) -> WebhookEvent:
    """Raises Forged."""
    try:
        stripe.WebhookSignature.verify_header(body, signature, secret, payment_provider.MAX_AGE_SECONDS)
        event = json.loads(body)
        found = event["data"]["object"]
        return WebhookEvent(id=event["id"], object_id=found["id"] if found["object"] in _FOLLOWED else None)
    except (stripe.SignatureVerificationError, ValueError, KeyError, TypeError) as error:
        raise Forged from error


def _checkout(session: stripe.checkout.Session) -> CheckoutState | None:
    order_id = _metadata(session).get("order")
    if order_id is None:
        return None
    is_paid = session.payment_status != "unpaid"
    return CheckoutState(
        order_id=UUID(order_id),
        is_over=session.status == "expired" or (session.status == "complete" and is_paid),
        payment=_id(session.payment_intent) if is_paid else None,
        customer=_id(session.customer),
        subscription=_id(session.subscription),
    )


def _subscription(found: stripe.Subscription) -> ProviderSubscription | None:
    ours, items = _metadata(found), found.items.data
    # The first payment of an incomplete one is not made yet.
    if found.status == "incomplete" or "owner" not in ours:
        return None
    return ProviderSubscription(
        id=found.id,
        owner=TenantId(UUID(ours["owner"])),
        customer=_id(found.customer) or "",
        status=found.status,
        plan=ours.get("plan", ""),
        prices=frozenset(item.price.id for item in items),
        period_start=datetime.fromtimestamp(min(item.current_period_start for item in items), UTC),
    )


def _metadata(found: stripe.checkout.Session | stripe.Subscription) -> dict[str, str]:
    return {} if found.metadata is None else dict(found["metadata"].to_dict())


def _id(found: Any) -> str | None:
    """Return the id of what may be expanded."""
    return found if found is None or isinstance(found, str) else str(found.id)


async def _answered(call: Awaitable[T]) -> T:
    """Raises NotFound, and Unavailable without the library's text, which may quote the request."""
    try:
        return await call
    except stripe.StripeError as error:
        if error.http_status == 404:
            raise errors.NotFound("Stripe has no such object") from None
        # Its words for parameters name ids such as prices, which the operator has to mend.
        reason = error.user_message if isinstance(error, stripe.InvalidRequestError) else None
        _log.warning("stripe refused", kind=type(error).__name__, code=error.code, request=error.request_id, reason=reason)
    except (aiohttp.ClientError, TimeoutError) as error:
        _log.warning("stripe does not answer", kind=type(error).__name__)
    raise errors.Unavailable("Stripe did not accept the call or did not answer", hint="try again in a minute; the log has the reason")
