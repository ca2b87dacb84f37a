"""Defines what a payment provider does for the mesh, and opens the one that the settings name.

Nothing that a provider sends is a command: a webhook only names an object, whose present state is then read.
"""

import importlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol
from uuid import UUID, uuid5

from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.facts.tiers import TierPlan
from shared import errors
from shared.types import MicroCredits, TenantId

#: Stripe's limit, and the most that a signature may be old here. A repeated event has no effect, however young it is.
MAX_AGE_SECONDS = 300
#: Of one call. Nothing is locked meanwhile.
READ_SECONDS = 5.0
#: A card is charged meanwhile.
WRITE_SECONDS = 15.0

#: The names in ``metadata``.
METADATA = ("order", "owner", "plan", "amount", "mesh")


class Forged(Exception):
    """The signature of a webhook is missing, wrong or old."""


class Declined(errors.Unavailable):
    """The provider has certainly done nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    id: str
    #: None: it is about something that the mesh does not follow.
    object_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOrder:
    """What a customer is about to pay at the provider."""

    #: The key that makes calls about it safe to repeat.
    id: UUID
    owner: TenantId
    #: Name and version; None: prepaid credits.
    plan: str | None
    amount_minor: int
    created_at: datetime
    #: At the provider; None until it has answered.
    object_id: str | None
    url: str | None
    #: Paid, or too late to pay.
    ended_at: datetime | None
    #: The provider's id of the payment.
    payment: str | None
    #: An administrator has said whose payment it is.
    is_adopted: bool = False
    #: What refunds and disputes took back of the amount.
    reversed_minor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOrder:
    """An order as the provider has it."""

    id: UUID
    owner: TenantId
    plan: str | None
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversal:
    """A refund or a dispute. While a dispute is open, the provider keeps the money."""

    #: The provider's.
    id: str
    #: With tax.
    amount_minor: int
    #: The refund failed or was canceled, or the dispute was won.
    is_returned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutState:
    id: str
    is_over: bool
    #: None: not paid.
    payment: str | None
    customer: str | None
    #: The subscription that it belongs to.
    subscription: str | None
    #: What the goods cost, to compare with an order's amount.
    amount_minor: int
    #: What the customer paid, with tax.
    paid_minor: int
    #: Parts of ``paid_minor``, oldest first. A subscription's payments are reversed in ``PaidPeriod``.
    reversals: tuple[Reversal, ...]
    currency: str
    #: The order that the goods were made for, from where only the mesh writes. None: other goods.
    goods_of: str | None
    #: What ``metadata`` gave, or what a customer wrote over it.
    claimed: Mapping[str, str]
    #: The whole order, from where only this mesh writes.
    order: WrittenOrder | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidPeriod:
    """What was paid for the present period of a subscription."""

    #: Of the newest payment, the dearest first; one of them is the plan's.
    prices: tuple[str, ...]
    #: By all payments for this period, with tax. 0: nothing had to be paid.
    paid_minor: int
    #: What is left of it after reversals.
    kept_minor: int

    def share_of(self, tokens: int | None) -> int | None:
        """Return how many of a plan's tokens were paid. None: as many as are used, while anything is kept."""
        if self.paid_minor == 0 or (tokens is None and self.kept_minor > 0):
            return tokens
        return (tokens or 0) * self.kept_minor // self.paid_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSubscription:
    id: str
    customer: str
    #: Stripe's or Paddle's word.
    status: str
    prices: tuple[str, ...]
    period_start: datetime
    #: None: nobody has paid for the present period yet.
    paid: PaidPeriod | None

    @property
    def has_ended(self) -> bool:
        return self.status not in {"trialing", "active", "past_due"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedUsage:
    """What an account owed at the end of a period, beyond its plan and balance."""

    #: Of the order that it makes.
    id: UUID
    owner: TenantId
    micro: MicroCredits
    period_start: datetime
    ended_at: datetime
    #: Since when a provider may have been told.
    at: datetime
    #: The database was restored after the period began, so a provider may have been told before that, perhaps of another amount.
    is_restored: bool
    #: By the gateway that bills it.
    taken_until: datetime

    @property
    def text(self) -> str:
        return f"Usage beyond the plan, from {self.period_start:%Y-%m-%d}"


class UsageMeters(Protocol):
    """Counts usage at a provider. ``meter``: the name of its events, or a price that it has. Every coroutine may raise Unavailable."""

    async def add(self, meter: str, customer: str, value: int, event_id: UUID, at: datetime) -> None:
        """Count a value once for each id, if it is repeated within a day. Raises Declined."""

    async def sum_up(self, meter: str, customer: str, since: datetime, until: datetime) -> int:
        """Return the sum of whole minutes. What was added lately may be missing."""


class PaymentProvider(Protocol):
    """Every coroutine may raise Unavailable: the provider does not answer, or refuses; then it is not known whether it has acted."""

    #: The header of webhooks with their signature, in lower case.
    signature_header: ClassVar[bytes]

    @property
    def meters(self) -> UsageMeters | None:
        """Return what counts usage there; None if nothing does."""

    def price_of(self, plan: TierPlan) -> str | None:
        """Return the provider's price of a plan."""

    def verify(self, body: bytes, signature: str) -> WebhookEvent:
        """Check the signature of the raw bytes, then parse them. Raises Forged."""

    async def check_out(self, order: ProviderOrder, plan: TierPlan | None, customer: str | None, email: str) -> tuple[str, str]:
        """Return the id of a checkout, and its page. The same order again is the same checkout, or another one that nobody knows of.
        ``customer``: at the provider, if they have paid before."""

    async def find_bought(self, object_id: str) -> str | None:
        """Return the checkout or the subscription that an event's object belongs to, often the object itself; None if there is none."""

    async def read(self, object_id: str) -> CheckoutState | ProviderSubscription | None:
        """Return the present state of a checkout or a subscription; None if it is gone."""

    async def find_checkout(self, subscription: str) -> str | None:
        """Return the checkout with which a subscription began."""

    async def list_events(self, since: datetime) -> list[WebhookEvent]:
        """Return what webhooks have told of payments, refunds and disputes since then, or should have. Their ids stay the same."""

    async def list_payments(self, customer: str) -> Mapping[str, str | None] | None:
        """Return what a customer has paid, with the subscriptions that it belongs to, if others may have paid as the same customer; else
        nothing. None: it is too much to list."""

    async def open_portal(self, customer: str) -> str:
        """Return the page on which a customer manages cards, invoices and the subscription."""

    async def bill(self, owed: OwedUsage, plan: TierPlan, customer: str, subscription: str, amount_minor: int) -> bool:
        """Bill usage beyond the plan, once for each id. False: the provider doesn't, and an invoice is needed."""

    async def cancel(self, subscription: str) -> None:
        """End it with its period; again, it changes nothing. May raise NotFound, too."""


def kept_of(paid_minor: int, reversals: Iterable[Reversal]) -> int:
    """Return what is left of a payment."""
    return max(0, paid_minor - sum(one.amount_minor for one in reversals if not one.is_returned))


def open_provider(settings: ProviderSettings | None) -> AbstractAsyncContextManager[PaymentProvider | None]:
    """Import the library of the provider, and no other."""
    if settings is None:
        return _nothing()
    module = importlib.import_module(f"services.gateway.payments.{settings.name}_provider")
    opened: AbstractAsyncContextManager[PaymentProvider] = module.opened(settings)
    return opened


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield None


def rest_of(charge: UUID) -> UUID:
    """Return the id of what a charge or an invoice bills less than is owed: a restored database doesn't know that it exists."""
    return uuid5(charge, "rest")


def metadata(order: ProviderOrder, return_url: str) -> dict[str, str]:
    """Return what the provider keeps beside an order, so that a restored database can have it again."""
    values = (str(order.id), str(order.owner), order.plan or "", str(order.amount_minor), return_url)
    return dict(zip(METADATA, values, strict=True))


def read_metadata(written: Mapping[str, str], return_url: str) -> WrittenOrder | None:
    """Return the order; None if it isn't one of this mesh, which is at ``return_url``."""
    try:
        if written["mesh"] != return_url:
            return None
        return WrittenOrder(
            id=UUID(written["order"]),
            owner=TenantId(UUID(written["owner"])),
            plan=written["plan"] or None,
            amount_minor=int(written["amount"]),
        )
    except (KeyError, ValueError):
        return None
