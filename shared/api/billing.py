"""gateway: plans for sale, what an account has to pay, and its invoices. Amounts are whole minor units of one currency, such as cents."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shared.api.ledger import Account
from shared.api.method import PEOPLE, Body, Method, Nothing
from shared.types import Moment, RequestId, Role, TenantId

MinorUnits = Annotated[int, Meta(ge=-(10**15), le=10**15)]
#: What a customer may top up at once, in whole units of the currency.
MIN_TOP_UP, MAX_TOP_UP = 5, 10_000
InvoiceNumber = Annotated[str, Meta(pattern=r"^[A-Z]{1,8}-([A-Z]{1,8}-)?[0-9]{4}-[0-9]{6}\Z")]
PlanText = Annotated[str, Meta(min_length=1, max_length=100)]
Reason = Annotated[str, Meta(max_length=500)]


class Plan(Body, frozen=True, omit_defaults=False):
    name: str
    version: int
    #: For a month; None: agreed with each customer.
    fee_minor: MinorUnits | None
    currency: str
    #: Each month; None: as many as are used.
    included_tokens: int | None
    #: How much usage beyond them is billed at the end of a period; None: all of it; 0: it needs prepaid credits.
    overage_minor: MinorUnits | None
    #: In words, such as `100 requests per hour`.
    limits: tuple[str, ...] = ()
    for_sale: bool = False


class ListPlans(Body, frozen=True):
    pass


class Plans(Body, frozen=True):
    plans: tuple[Plan, ...] = ()


class PlanState(StrEnum):
    #: No subscription: an administrator gave the plan, or it is the one of every new account.
    GIVEN = "given"
    ACTIVE = "active"
    #: An invoice is late, or a card was refused. The plan still works.
    PAST_DUE = "past_due"


class Billing(Body, frozen=True, omit_defaults=False):
    plan: Plan
    state: PlanState
    account: Account
    #: manual, stripe or paddle.
    provider: str
    #: The plan that follows: once ``waits_for`` is paid, or at the end of the period.
    next_plan: str | None = None
    waits_for: str | None = None
    #: Where the customer manages cards and finds the provider's invoices.
    portal: bool = False


class ReadBilling(Body, frozen=True):
    """None reads the caller's own. Only administrators may read another's."""

    owner: TenantId | None = None


class SetPlan(Body, frozen=True):
    """Change the plan. People choose among the plans for sale, for themselves or an organization that they own; a larger plan begins when
    it is paid, a cheaper one at the end of the period. The present plan again undoes a change that has not happened."""

    plan: PlanText
    #: Of the caller by default. Administrators may name any; then the plan begins at once, and ``reason`` is recorded.
    owner: TenantId | None = None
    reason: Reason = ""


class OrderTopUp(Body, frozen=True):
    """Buy prepaid credits."""

    #: Such as `25` or `25.00`.
    amount: Annotated[str, Meta(min_length=1, max_length=30)]
    #: Chosen by the caller. The same id again is the same order.
    order_id: RequestId
    #: ISO 4217; the mesh has one, which is the default.
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")] | None = None
    owner: TenantId | None = None


class Order(Body, frozen=True, omit_defaults=False):
    """What happens next."""

    #: Nothing has to be paid: it is done, or happens at the end of the period.
    done: bool
    #: To be paid.
    invoice: str | None = None
    #: The provider's page on which to pay.
    url: str | None = None


class InvoiceLine(Body, frozen=True, omit_defaults=False):
    text: str
    amount_minor: MinorUnits


class Party(Body, frozen=True, omit_defaults=False):
    name: str
    #: Lines of the address, tax numbers, a bank account.
    lines: tuple[str, ...] = ()


class InvoicePurpose(StrEnum):
    PLAN = "plan"
    TOP_UP = "top_up"
    OVERAGE = "overage"
    #: Takes another invoice back.
    CREDIT_NOTE = "credit_note"


class InvoiceDocument(Body, frozen=True, omit_defaults=False):
    """Never changed once it has its number."""

    number: str
    issued_at: Moment
    due_at: Moment
    seller: Party
    customer: Party
    currency: str
    lines: tuple[InvoiceLine, ...]
    net_minor: MinorUnits
    tax_name: str
    tax_percent: str
    tax_minor: MinorUnits
    total_minor: MinorUnits
    purpose: InvoicePurpose
    #: Of a credit note: the invoice that it takes back.
    corrects: str | None = None


class InvoiceState(StrEnum):
    OPEN = "open"
    LATE = "late"
    PAID = "paid"
    #: A credit note took it back: unpaid, or after its payment.
    VOID = "void"
    REFUNDED = "refunded"


class Invoice(Body, frozen=True, omit_defaults=False):
    document: InvoiceDocument
    owner: TenantId
    state: InvoiceState
    paid_at: Moment | None = None
    reference: str = ""

    @property
    def number(self) -> str:
        return self.document.number


class OpenPortal(Body, frozen=True):
    """Open the payment provider's page for cards, its invoices, and changing or canceling the subscription."""

    owner: TenantId | None = None


class Portal(Body, frozen=True):
    url: str


class ListInvoices(Body, frozen=True):
    """Newest first. Without an owner: the caller's own; all of them for administrators with ``everyone``."""

    owner: TenantId | None = None
    everyone: bool = False
    only_open: bool = False
    before: InvoiceNumber | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class Invoices(Body, frozen=True):
    invoices: tuple[Invoice, ...] = ()


class GetInvoice(Body, frozen=True):
    number: InvoiceNumber


class PayInvoice(Body, frozen=True):
    """For administrators: the money has arrived. The same reference again changes nothing."""

    number: InvoiceNumber
    #: Such as `wire 17`.
    reference: Annotated[str, Meta(min_length=1, max_length=200)]


class VoidInvoice(Body, frozen=True):
    """For administrators: take an invoice back, with a credit note."""

    number: InvoiceNumber
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    #: It was paid, and the money is returned by other means: its credits are taken back, or its plan ends.
    refund: bool = False
    #: A restored database lacks it: this number and those before it become void, and are never used again.
    lost: bool = False


class AdoptPayment(Body, frozen=True):
    """For administrators: read a payment at the provider of which this mesh has no order, or another one. With an owner, give them what was
    paid: credits, or the plan of its subscription."""

    #: At the provider: a checkout session, a transaction or a subscription.
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,255}\Z")]
    owner: TenantId | None = None
    reason: Reason = ""


class ProviderPayment(Body, frozen=True, omit_defaults=False):
    """What the provider says."""

    #: Of the checkout.
    id: str
    is_paid: bool
    amount_minor: MinorUnits
    currency: str
    customer: str | None
    subscription: str | None
    #: What the checkout says of its order. With Paddle, a customer's browser can write it.
    claimed: dict[str, str]


class Customer(Body, frozen=True, omit_defaults=False):
    """An account that has ordered a plan, or was given one."""

    owner: TenantId
    #: The present plan, as name and version; None before the first one is paid.
    plan: str | None
    next_plan: str | None
    state: PlanState
    provider: str
    #: None before its first request.
    period_ends_at: Moment | None


class ListCustomers(Body, frozen=True):
    """For administrators."""

    #: The last owner of the previous page.
    after: TenantId | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class Customers(Body, frozen=True):
    customers: tuple[Customer, ...] = ()


class ReadRevenue(Body, frozen=True):
    """For administrators: what was paid in the last 12 months, by invoice or through a provider, without tax."""


class MonthRevenue(Body, frozen=True, omit_defaults=False):
    #: Such as 2026-02, in UTC.
    month: str
    currency: str
    net_minor: MinorUnits


class Revenue(Body, frozen=True):
    #: Oldest first, without months in which nothing was paid.
    months: tuple[MonthRevenue, ...] = ()


class ApplyPlan(Body, frozen=True):
    """Of the gateway: an account has this plan from now on. Safe to repeat."""

    owner: TenantId
    plan: str


class DescribeAccount(Body, frozen=True):
    owner: TenantId


class AccountName(Body, frozen=True):
    """Who an invoice is for."""

    name: str
    #: Of the user, or of an owner of the organization; empty if there is none.
    email: str
    plan: str
    #: An organization that shares its founder's limits has no tokens of its own.
    shares_limits: bool = False
    #: See ``User``; true of organizations.
    has_free_tokens: bool = True


list_plans = Method("gateway.listPlans", ListPlans, Plans, callers=PEOPLE)
read_billing = Method("gateway.readBilling", ReadBilling, Billing, callers=PEOPLE)
set_plan = Method("gateway.setPlan", SetPlan, Order, callers=PEOPLE)
order_top_up = Method("gateway.orderTopUp", OrderTopUp, Order, callers=PEOPLE)
open_portal = Method("gateway.openPortal", OpenPortal, Portal, callers=PEOPLE)
list_invoices = Method("gateway.listInvoices", ListInvoices, Invoices, callers=PEOPLE)
get_invoice = Method("gateway.getInvoice", GetInvoice, Invoice, callers=PEOPLE)
pay_invoice = Method("gateway.payInvoice", PayInvoice, Invoice, callers=PEOPLE)
void_invoice = Method("gateway.voidInvoice", VoidInvoice, Invoice, callers=PEOPLE)
adopt_payment = Method("gateway.adoptPayment", AdoptPayment, ProviderPayment, callers=PEOPLE)
list_customers = Method("gateway.listCustomers", ListCustomers, Customers, callers=PEOPLE)
read_revenue = Method("gateway.readRevenue", ReadRevenue, Revenue, callers=PEOPLE)
describe_account = Method("auth.describeAccount", DescribeAccount, AccountName, callers={Role.GATEWAY})
apply_plan = Method("auth.applyPlan", ApplyPlan, Nothing, callers={Role.GATEWAY})
