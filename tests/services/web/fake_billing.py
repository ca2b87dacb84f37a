"""The fake mesh, billing part of the gateway: plans, orders and invoices. What an order leads to is the gateway's business."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from shared import currency, errors
from shared.api import auth
from shared.api import billing as api
from shared.api.billing import Invoice, InvoiceDocument, InvoiceLine, InvoicePurpose, InvoiceState, Party, Plan, PlanState
from shared.api.ledger import Account, Allowance
from shared.types import Credential, MicroCredits, TenantId, UserRole

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
FREE = Plan("free", 0, 0, "EUR", 100_000, 0, ("10 requests/min", "100 requests/h"), for_sale=True)
PRO = Plan("pro", 3, 2900, "EUR", 1_000_000, 10_000, ("100 requests/min",), for_sale=True)
ENTERPRISE = Plan("enterprise", 0, None, "EUR", None, None)


class FakeBilling:
    """Handlers, mixed into ``FakeMesh``. A test reads and writes the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.sells = True
        self.plans = (FREE, PRO, ENTERPRISE)
        self.plan, self.next_plan, self.waits_for, self.plan_state = FREE, None, None, PlanState.GIVEN
        self.allowance: Allowance | None = Allowance(100_000, 40_000, 5_000, datetime(2026, 12, 1, tzinfo=UTC))
        self.balance = MicroCredits(12_500_000)
        #: Oldest first.
        self.invoices: list[Invoice] = []
        self.customers: tuple[api.Customer, ...] = ()
        self.months: tuple[api.MonthRevenue, ...] = ()
        #: The payment provider's page.
        self.pay_at: str | None = None
        self.may_order = True

    def add_invoice(self, minor: int = 2900, text: str = "Plan pro, a month", **changes: object) -> Invoice:
        number = f"INV-2026-{len(self.invoices) + 1:06d}"
        seller, customer = Party("Mesh GmbH", ("1 Road", "VAT DE 1")), Party("ada <b>", ("ada@example.org",))
        tax = minor * 19 // 100
        document = InvoiceDocument(
            number, NOW, NOW + timedelta(days=14), seller, customer, "EUR", (InvoiceLine(text, minor),), minor, "VAT", "19", tax,
            minor + tax, InvoicePurpose.PLAN,
        )  # fmt: skip
        fields = {name: changes.pop(name) for name in tuple(changes) if name in InvoiceDocument.__struct_fields__}
        document = msgspec.structs.replace(document, **fields)
        self.invoices.append(msgspec.structs.replace(Invoice(document, TenantId(UUID(int=1)), InvoiceState.OPEN), **changes))
        return self.invoices[-1]

    def _ensure_sells(self) -> None:
        if not self.sells:
            raise errors.NotFound("this mesh sells nothing", hint="an administrator can start it with MONEY=on")

    def _read_billing(self, _: api.ReadBilling, credential: Credential | None) -> api.Billing:
        self._user(credential)
        self._ensure_sells()
        account = Account(self.balance, MicroCredits(250_000), MicroCredits(0), self.allowance)
        provider = "manual" if self.pay_at is None else "stripe"
        return api.Billing(self.plan, self.plan_state, account, provider, self.next_plan, self.waits_for, portal=self.pay_at is not None)

    def _open_portal(self, _: api.OpenPortal, credential: Credential | None) -> api.Portal:
        self._check_order("gateway.openPortal", credential)
        if self.pay_at is None:
            raise errors.NotFound("this mesh has no payment provider", hint="see `aicli billing invoices`")
        return api.Portal(self.pay_at)

    def _list_plans(self, _: api.ListPlans, credential: Credential | None) -> api.Plans:
        everything = credential is not None and self._user(credential).role is UserRole.ADMIN
        return api.Plans(tuple(plan for plan in self.plans if everything or plan.for_sale))

    def _set_plan(self, request: api.SetPlan, credential: Credential | None) -> api.Order:
        self._check_order("gateway.setPlan", credential)
        if request.plan == self.plan.name:
            self.next_plan = self.waits_for = None
            return api.Order(done=True)
        if self.waits_for is not None:
            raise errors.AlreadyExists(f"a change to {self.next_plan} waits for the invoice {self.waits_for}", hint="pay it")
        self.next_plan, self.waits_for = request.plan, self.add_invoice().number
        return api.Order(done=False, invoice=self.waits_for, url=self.pay_at)

    def _order_top_up(self, request: api.OrderTopUp, credential: Credential | None) -> api.Order:
        self._check_order("gateway.orderTopUp", credential)
        try:
            minor = currency.read(request.amount, "EUR")
        except ValueError as error:
            raise errors.BadRequest(f"the amount {error}", field="amount") from error
        return api.Order(done=False, invoice=self.add_invoice(minor, "Prepaid credits").number, url=self.pay_at)

    def _check_order(self, method: str, credential: Credential | None) -> None:
        self._user(credential)
        self._check_fresh(method)
        if not self.may_order:
            raise errors.NotAllowed("only owners of an organization change what it pays", hint="ask an owner")

    def _list_invoices(self, request: api.ListInvoices, credential: Credential | None) -> api.Invoices:
        self._user(credential)
        found = [
            each
            for each in reversed(self.invoices)
            if (not request.only_open or each.state in {InvoiceState.OPEN, InvoiceState.LATE})
            and (request.owner is None or each.owner == request.owner)
            and (request.before is None or each.number < request.before)
        ]
        return api.Invoices(tuple(found[: request.limit]))

    def _get_invoice(self, request: api.GetInvoice, credential: Credential | None) -> Invoice:
        self._user(credential)
        for invoice in self.invoices:
            if invoice.number == request.number:
                return invoice
        raise errors.NotFound(f"there is no invoice {request.number}")

    def _pay_invoice(self, request: api.PayInvoice, credential: Credential | None) -> Invoice:
        return self._settle("gateway.payInvoice", request.number, credential, InvoiceState.PAID, request.reference)

    def _void_invoice(self, request: api.VoidInvoice, credential: Credential | None) -> Invoice:
        state = InvoiceState.REFUNDED if request.refund else InvoiceState.VOID
        return self._settle("gateway.voidInvoice", request.number, credential, state, "")

    def _settle(self, method: str, number: str, credential: Credential | None, state: InvoiceState, reference: str) -> Invoice:
        self._check_fresh(method)
        found = self._get_invoice(api.GetInvoice(number), credential)
        if (found.state in {InvoiceState.OPEN, InvoiceState.LATE}) == (state is InvoiceState.REFUNDED):
            raise errors.AlreadyExists(f"the invoice {number} was paid", hint="see `aicli admin invoices`")
        paid = msgspec.structs.replace(found, state=state, reference=reference, paid_at=NOW)
        self.invoices[self.invoices.index(found)] = paid
        return paid

    def _list_customers(self, request: api.ListCustomers, _: Credential | None) -> api.Customers:
        self._ensure_sells()
        return api.Customers(tuple(each for each in self.customers if request.after is None or each.owner > request.after)[: request.limit])

    def _read_revenue(self, _request: api.ReadRevenue, _: Credential | None) -> api.Revenue:
        self._ensure_sells()
        return api.Revenue(self.months)

    def _user(self, credential: Credential | None) -> auth.User:
        raise NotImplementedError

    def _check_fresh(self, method: str) -> None:
        raise NotImplementedError
